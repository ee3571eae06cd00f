"""Makes tests/data/models: tiny models as Keras 3 and PyTorch save them, with inputs and what they give.

    python tests/data/make_models.py     needs keras with a backend, torch and safetensors

Keras computes in float32, PyTorch in float64 with results rounded once.
"""
import json
from pathlib import Path

import keras
import numpy as np
import torch
from keras import layers as kl
from safetensors.numpy import save_file
from torch import nn

HERE = Path(__file__).resolve().parent / "models"
CASES = []
RANDOM = np.random.default_rng(0)


def keras_model(name, model, inputs, outputs=("y",)):
    for weight in model.weights:
        if "float" in str(weight.dtype) and len(weight.shape):
            weight.assign(RANDOM.normal(0, 0.3, weight.shape).astype("f4"))
    given = list(inputs.values())
    results = model.predict(given if len(given) > 1 else given[0], verbose=0)
    results = results if isinstance(results, (list, tuple)) else [results]
    data = {f"in.{k}": v for k, v in inputs.items()}
    data |= {f"out.{k}": np.ascontiguousarray(v, dtype="f4") for k, v in zip(outputs, results, strict=True)}
    model.save(HERE / f"{name}.keras")
    save_file(data, HERE / f"{name}.safetensors")
    CASES.append({"name": name, "model": f"{name}.keras", "data": f"{name}.safetensors", "tol": 1e-5})


def keras_models():
    x = RANDOM.normal(size=(3, 7, 4)).astype("f4")
    tokens = RANDOM.integers(1, 20, (3, 9)).astype("i4")
    tokens[0, 5:] = 0  # padded after
    tokens[1, :2] = 0  # and before
    tokens[2, 3] = 0  # and with a hole
    row = RANDOM.normal(size=(3, 3)).astype("f4")
    sequence, word = kl.Input((7, 4), name="a"), kl.Input((9,), dtype="int32")
    line = keras.Sequential

    average = kl.Bidirectional(kl.LSTM(5, return_sequences=True), merge_mode="ave")
    keras_model("average", line([kl.Input((7, 4)), average, kl.TimeDistributed(kl.Dense(3, activation="tanh"))]), {"x": x})
    relu = kl.LSTM(5, activation="relu", recurrent_activation="hard_sigmoid", use_bias=False, return_sequences=True)
    pooled = [kl.Input((7, 4)), relu, kl.LayerNormalization(), kl.Dropout(0.3), kl.GlobalMaxPooling1D()]
    keras_model("pooled", line([*pooled, kl.Dense(3, activation="softmax")]), {"x": x})
    back = [kl.Input((7, 4)), kl.LSTM(5, go_backwards=True, return_sequences=True)]
    keras_model("backwards", line([*back, kl.LSTM(3, return_sequences=True)]), {"x": x})
    embedding = kl.Embedding(20, 6, mask_zero=True)
    keras_model("masked", keras.Model(word, kl.LSTM(5, return_sequences=True)(embedding(word))), {"x": tokens})
    both = kl.Bidirectional(kl.LSTM(5, return_sequences=True))
    tagger = [kl.Input((9,), dtype="int32"), kl.Embedding(20, 6, mask_zero=True), both, kl.Dense(3, activation="softmax")]
    keras_model("tagger", line(tagger), {"x": tokens})
    source, target = kl.Input((None, 4), name="source"), kl.Input((None, 3), name="target")
    _, h, c = kl.LSTM(6, return_state=True, name="encoder")(source)
    decoded, _, _ = kl.LSTM(6, return_sequences=True, return_state=True, name="decoder")(target, initial_state=[h, c])
    translate = keras.Model([source, target], kl.Dense(4)(decoded))
    given = {"source": x, "target": RANDOM.normal(size=(3, 5, 3)).astype("f4")}
    keras_model("translate", translate, given)
    states = keras.Model(sequence, kl.Bidirectional(kl.LSTM(5, return_state=True))(sequence))
    keras_model("states", states, {"x": x}, ("y", "h", "c", "h_reverse", "c_reverse"))
    shared, other = kl.LSTM(4, return_sequences=True), kl.Input((3,), name="b")
    repeated = kl.RepeatVector(6)(kl.Dense(4, activation="elu")(other))
    summed = kl.GlobalAveragePooling1D()(kl.Add()([shared(shared(sequence)), sequence]))
    both = kl.Concatenate()([summed, kl.LSTM(2)(repeated)])
    keras_model("shared", keras.Model([sequence, other], both), {"a": x, "b": row})
    keras_model("gru", line([kl.Input((7, 4)), kl.GRU(2)]), {"x": x})


def keras_front_ends():
    x = RANDOM.normal(size=(3, 11, 4)).astype("f4")
    other = RANDOM.normal(size=(3, 7, 4)).astype("f4")
    tokens = RANDOM.integers(1, 20, (3, 9)).astype("i4")
    tokens[0, 5:], tokens[1, :2], tokens[2, 3] = 0, 0, 0
    line, sequences = keras.Sequential, {"return_sequences": True}

    front = [kl.Input((11, 4)), kl.Conv1D(6, 3, activation="relu", kernel_regularizer="l2"), kl.MaxPooling1D(2)]
    keras_model("cnn", line([*front, kl.SpatialDropout1D(0.2), kl.LSTM(5), kl.Dense(2, activation="softmax")]), {"x": x})
    causal = kl.Conv1D(6, 3, padding="causal", dilation_rate=2, use_bias=False)
    same = [kl.Conv1D(5, 4, padding="same", strides=2), kl.AveragePooling1D(3, 2, padding="same")]
    keras_model("windows", line([kl.Input((None, 4)), causal, *same, kl.Bidirectional(kl.LSTM(3, **sequences))]), {"x": x})
    flat = [kl.Permute((2, 1)), kl.LSTM(4, **sequences), kl.Flatten(), kl.Dense(10), kl.Reshape((5, -1)), kl.LSTM(3)]
    keras_model("shapes", line([kl.Input((11, 4)), *flat]), {"x": x})
    unread = [kl.Embedding(20, 5, mask_zero=True), kl.Conv1D(4, 3), kl.LSTM(3)]
    keras_model("unread_mask", line([kl.Input((9,), dtype="int32"), *unread]), {"x": tokens})
    a, b = kl.Input((11, 4), name="a"), kl.Input((7, 4), name="b")
    encoded, h, c = kl.LSTM(6, return_state=True, **sequences)(a)
    decoded = kl.LSTM(6, **sequences)(b, initial_state=[h, c])
    seen = kl.Attention(use_scale=True)([decoded, encoded])
    own = kl.Attention()([decoded, decoded], use_causal_mask=True)
    keras_model("luong", keras.Model([a, b], kl.Dense(3)(kl.Concatenate()([decoded, seen, own]))), {"a": x, "b": other})
    word, more = kl.Input((9,), dtype="int32", name="a"), kl.Input((9,), dtype="int32", name="b")
    table = kl.Embedding(20, 5, mask_zero=True)
    read = [kl.LSTM(5, **sequences)(table(w)) for w in (word, more)]
    bahdanau = kl.GlobalAveragePooling1D()(kl.AdditiveAttention()(read))
    keras_model("bahdanau", keras.Model([word, more], bahdanau), {"a": tokens, "b": tokens[::-1].copy()})
    read = kl.LSTM(6, **sequences)(a)
    weights = kl.Permute((2, 1))(kl.Dense(11, activation="softmax")(kl.Permute((2, 1))(read)))
    keras_model("weighted", keras.Model(a, kl.LSTM(2)(kl.Multiply()([read, weights]))), {"a": x})
    # The largest over outputs that are repeated, and over outputs that are zero, at masked steps.
    read = kl.LSTM(4, **sequences)(table(word))
    both = kl.Bidirectional(kl.LSTM(3, **sequences))(table(word))
    largest = kl.Concatenate()([kl.GlobalMaxPooling1D()(read), kl.GlobalMaxPooling1D()(both)])
    back = kl.LSTM(5, go_backwards=True, return_sequences=True)(a)
    both = kl.Bidirectional(kl.LSTM(3, return_state=True, **sequences))(back)
    again = kl.Bidirectional(kl.LSTM(3, **sequences), merge_mode="mul")(back, initial_state=both[1:])
    turned = kl.LSTM(2, go_backwards=True, name="turned", **sequences)(both[0])
    mirrored = [turned, kl.GlobalAveragePooling1D(name="mean")(again), both[2]]
    keras_model("mirrored", keras.Model(a, mirrored), {"a": x}, ("turned", "mean", "c"))
    keras_model("largest", keras.Model(word, kl.Dense(3)(largest)), {"a": tokens})


def keras_models_inside():
    tokens = RANDOM.integers(1, 20, (3, 9)).astype("i4")
    tokens[0, 5:], tokens[1, :2], tokens[2, 3] = 0, 0, 0
    x, row = RANDOM.normal(size=(3, 7, 4)).astype("f4"), RANDOM.normal(size=(3, 3)).astype("f4")
    line, sequences = keras.Sequential, {"return_sequences": True}
    word, more = kl.Input((9,), dtype="int32", name="a"), kl.Input((9,), dtype="int32", name="b")

    front = line([kl.Input((9,), dtype="int32"), kl.Embedding(20, 5, mask_zero=True)])
    encoder = line([kl.Input((9,), dtype="int32"), front, kl.LSTM(4, **sequences), kl.Bidirectional(kl.LSTM(3))])
    siamese = kl.Dense(1, activation="sigmoid")(kl.Subtract()([encoder(word), encoder(more)]))
    keras_model("siamese", keras.Model([word, more], siamese), {"a": tokens, "b": tokens[::-1].copy()})
    h, r = kl.Input((7, 4), name="h"), kl.Input((3,), name="r")
    inner = keras.Model([h, r], [kl.LSTM(3, **sequences)(h), kl.Dense(2)(r)], name="inner")
    a, b = kl.Input((7, 4), name="a"), kl.Input((3,), name="b")
    read = inner([kl.LSTM(4, **sequences)(a), b])
    keras_model("inside", keras.Model([a, b], [kl.LSTM(2, name="y")(read[0]), read[1]]), {"a": x, "b": row}, ("y", "inner"))
    seen = kl.Embedding(20, 5, mask_zero=True)(word)
    pooled = kl.GlobalAveragePooling1D()(kl.Attention()([seen, seen]))
    keras_model("attended", keras.Model(word, pooled), {"a": tokens})


def language_model(name, vocab, embed, hidden, layers, prefixes, tied=False, bias=True):
    modules = [
        nn.Embedding(vocab, embed),
        nn.LSTM(embed, hidden, layers, batch_first=True, bias=bias),
        nn.Linear(hidden, vocab, bias=bias),
    ]
    if tied:
        modules[2].weight = modules[0].weight
    model = nn.ModuleDict(dict(zip(prefixes, modules, strict=True)))
    # A tied weight is saved once.
    state = {k: v.numpy() for k, v in model.state_dict().items() if not (tied and k == f"{prefixes[2]}.weight")}
    save_file(state, HERE / f"{name}.state.safetensors")
    model.double()
    tokens, targets = torch.randint(0, vocab, (3, 8)), torch.randint(0, vocab, (3, 8))
    y, (h, c) = modules[1](modules[0](tokens))
    logits = modules[2](y)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    with torch.no_grad():
        y, carried = modules[1](modules[0](tokens[:1]))
        greedy = [modules[2](y)[0, -1].argmax()]
        for _ in range(6):
            y, carried = modules[1](modules[0](greedy[-1].reshape(1, 1)), carried)
            greedy.append(modules[2](y)[0, -1].argmax())
    data = {"in.tokens": tokens, "in.targets": targets, "out.logits": logits, "out.h_n": h, "out.c_n": c}
    data |= {"out.loss": loss.reshape(1), "out.greedy": torch.stack(greedy)}
    data |= {f"grad.{k}": p.grad for k, p in model.named_parameters()}
    data = {k: v.detach().numpy() for k, v in data.items()}
    save_file({k: v if v.dtype.kind == "i" else v.astype("f4") for k, v in data.items()}, HERE / f"{name}.safetensors")
    CASES.append({
        "name": name, "state_dict": f"{name}.state.safetensors", "data": f"{name}.safetensors", "tied": tied,
        "embedding": prefixes[0], "lstm": prefixes[1], "linear": prefixes[2], "tol_forward": 1e-5, "tol_grad": 1e-4,
    })


if __name__ == "__main__":
    torch.manual_seed(0)
    HERE.mkdir(exist_ok=True)
    keras_models()
    language_model("tied", 17, 6, 6, 1, ("embedding", "lstm", "linear"), tied=True)
    language_model("deep", 15, 4, 5, 3, ("wte", "rnn", "head"), bias=False)
    language_model("square", 8, 8, 8, 1, ("a", "b", "c"), bias=False)
    keras_front_ends()
    keras_models_inside()
    (HERE / "cases.json").write_text(json.dumps({"cases": CASES}, indent=1) + "\n")
