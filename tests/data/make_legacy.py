"""Makes tests/data/legacy: whole models in HDF5 as Keras 2 and Keras 3 save them, with inputs and what they give; and
models of Keras 3 in the middle of their training, with what their optimisers keep of each parameter.

    python tests/data/make_legacy.py     needs keras with the backend tensorflow, tf_keras (Keras 2) and safetensors
"""
from pathlib import Path

import keras
import numpy as np
import tf_keras
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent / "legacy"
RANDOM = np.random.default_rng(0)


def save(name, model, inputs):
    model.set_weights([RANDOM.normal(0, 0.4, w.shape).astype("f4") for w in model.get_weights()])
    given = list(inputs.values())
    result = model.predict(given if len(given) > 1 else given[0], verbose=0)
    model.save(HERE / f"{name}.h5")
    save_file({**{f"in.{k}": v for k, v in inputs.items()}, "out.y": result}, HERE / f"{name}.safetensors")


def two():
    kl = tf_keras.layers
    word, rows = kl.Input((6,), dtype="int32", name="word"), kl.Input((4, 3), name="rows")
    table = kl.Embedding(9, 4, mask_zero=True)(word)
    both = kl.LSTM(3, return_sequences=True, return_state=True, recurrent_activation="hard_sigmoid")
    _, h, c, back, _ = kl.Bidirectional(both)(table)
    read = kl.LayerNormalization()(kl.LSTM(3, return_sequences=True)(rows, initial_state=[h, c]))
    keys = kl.Dense(3, activation="hard_sigmoid")(read)
    seen = kl.Attention(use_scale=True)([read, keys])
    earlier = kl.Attention()([read, keys], use_causal_mask=True)
    mean = kl.GlobalAveragePooling1D()(kl.Concatenate()([seen, earlier]))
    y = kl.Dense(2, activation="softmax")(kl.Concatenate()([mean, kl.LeakyReLU(0.3)(back)]))
    model = tf_keras.Model([word, rows], y)
    model.compile("adam", "mse")
    tokens = RANDOM.integers(1, 9, (3, 6)).astype("i4")
    tokens[0, 4:], tokens[1, :1], tokens[2, 3] = 0, 0, 0
    save("functional2", model, {"word": tokens, "rows": RANDOM.normal(size=(3, 4, 3)).astype("f4")})
    layers = [kl.LSTM(3, input_shape=(5, 2), return_sequences=True), kl.LayerNormalization()]
    layers += [kl.TimeDistributed(kl.Dense(2, kernel_regularizer="l2")), kl.LSTM(2)]
    save("sequential2", tf_keras.Sequential(layers), {"x": RANDOM.normal(size=(3, 5, 2)).astype("f4")})


def three():
    kl = keras.layers
    word, row = kl.Input((6,), dtype="int32", name="word"), kl.Input((3,), name="row")
    both = kl.Bidirectional(kl.LSTM(3, return_state=True))(kl.Embedding(9, 4, mask_zero=True)(word))
    read = kl.LSTM(3, recurrent_activation="hard_sigmoid")(kl.RepeatVector(4)(row), initial_state=both[1:3])
    y = kl.Dense(2, activation="softmax")(kl.Concatenate()([read, both[0]]))
    tokens = RANDOM.integers(0, 3, (3, 6)).astype("i4")
    save("functional3", keras.Model([word, row], y), {"word": tokens, "row": RANDOM.normal(size=(3, 3)).astype("f4")})
    model = keras.Sequential([kl.Input((6, 4)), kl.Conv1D(3, 2), kl.LSTM(3), kl.Dropout(0.2), kl.Dense(2)])
    x = RANDOM.normal(size=(3, 6, 4)).astype("f4")
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(x, RANDOM.normal(size=(3, 2)), verbose=0)
    save("sequential3", model, {"x": x})


def trained():
    """What is kept goes by `kind/layer/variable`, such as `_velocities/dense/kernel`."""
    kl, optimizers = keras.layers, keras.optimizers
    a, b = kl.Input((5, 3), name="a"), kl.Input((5, 3), name="b")
    shared = kl.LSTM(3, return_sequences=True, name="shared")
    wide = kl.LSTM(4, name="wide")(kl.Concatenate()([kl.Dense(4, name="z")(b), shared(b)]))
    joined = kl.Concatenate()([kl.Bidirectional(kl.LSTM(2), name="both")(shared(a)), wide])
    model = keras.Model([a, b], kl.Dense(1, name="last")(joined))
    schedule = optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    for name, optimizer, kinds in [
        ("adam", optimizers.Adam(3e-3, amsgrad=True, clipnorm=1.0), ["_momentums", "_velocities", "_velocity_hats"]),
        ("sgd", optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=0.01), ["momentums"]),
        (
            "rmsprop",
            optimizers.RMSprop(momentum=0.5, centered=True),
            ["_momentums", "_velocities", "_average_gradients"],
        ),
    ]:
        model.compile(optimizer, "mse")
        x = RANDOM.normal(size=(12, 5, 3)).astype("f4")
        model.fit([x, x[::-1]], RANDOM.normal(size=(12, 1)), batch_size=4, verbose=0)
        kept = {}
        for kind in kinds:
            for weight, value in zip(model.trainable_variables, getattr(optimizer, kind), strict=True):
                kept[f"{kind}/{weight.path}"] = np.ascontiguousarray(value.numpy())
        model.save(HERE / f"{name}.keras")
        save_file(kept, HERE / f"{name}.safetensors")


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    two()
    three()
    trained()
