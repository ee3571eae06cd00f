"""Asks PyTorch, Keras and ONNX Runtime whether what `mnemon convert` writes is the model that it read.

    python tests/interchange/check.py target/release/mnemon [target/tmp/keras]

needs torch, keras, onnxruntime, h5py and safetensors. The folder is one of `.keras` files that
`cargo test --test keras` wrote: each has to give the `out.*` that lie beside it or in tests/data/models for the `in.*`.
"""
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import onnxruntime
import torch
from keras import layers as kl
from safetensors.numpy import load_file, save_file
from torch import nn

# That Keras would rather write another kind of file.
logging.getLogger("absl").setLevel(logging.ERROR)
DATA = Path(__file__).resolve().parents[1] / "data"
TOLERANCE = 1e-5
RANDOM = np.random.default_rng(1)
# The order in which models of tests/data give several outputs; others have one.
ORDER = ["y", "turned", "mean", "h", "c", "h_reverse", "c_reverse", "inner"]


def mnemon(*arguments):
    """Runs the command, which has to end well; gives what it says."""
    ran = subprocess.run([MNEMON, *map(str, arguments)], capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise RuntimeError(f"{arguments[0]} ended with {ran.returncode}: {ran.stderr.strip()}")
    return ran.stdout


def refused(file, to, reason, *more):
    """A step: whether a model that `to` cannot say is refused for its `reason`, and nothing is written."""
    ran = subprocess.run([MNEMON, "convert", file, to, *more], capture_output=True, text=True, check=False)
    return f"refused by {reason}", ran.returncode == 2 and reason in ran.stderr and not to.exists(), True


def runtime(path, given):
    """What ONNX Runtime gives, by name; 64-bit tokens, and states that are carried begin at zero."""
    session = onnxruntime.InferenceSession(path)
    inputs = {}
    for x in session.get_inputs():
        # A model of one input may be asked by any name.
        value = given[x.name] if x.name in given else None if x.name.endswith("_0") else next(iter(given.values()))
        value = np.zeros((len(next(iter(given.values()))), x.shape[1]), "f4") if value is None else value
        inputs[x.name] = value.astype("i8" if "int64" in x.type else "f4")
    return dict(zip((y.name for y in session.get_outputs()), session.run(None, inputs), strict=True))


def ours(file, given, folder):
    """What mnemon gives, by name."""
    inputs, outputs = folder / "given.safetensors", folder / "got.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in given.items()}, inputs)
    mnemon("run", file, "--input", inputs, "--output", outputs, "--device", "cpu")
    return load_file(outputs)


def same(step, got, wanted):
    """A step of a check for each of `wanted`, by its name."""
    for name, value in wanted.items():
        yield f"{step} {name}", got[name], value


# PyTorch


class Module(nn.Module):
    """Perhaps an embedding, an LSTM, and perhaps a linear layer, by any names."""

    def __init__(self, names, size, hidden, tokens=0, classes=0, tied=False, **lstm):
        super().__init__()
        self.names = names
        rnn = nn.LSTM(size, hidden, batch_first=True, **lstm)
        width = (lstm.get("proj_size") or hidden) * (1 + lstm.get("bidirectional", False))
        embedding = nn.Embedding(tokens, size) if tokens else nn.Identity()
        linear = nn.Linear(width, classes, bias=lstm.get("bias", True)) if classes else nn.Identity()
        if tied:
            linear.weight = embedding.weight
        for name, module in zip(names, [embedding, rnn, linear], strict=True):
            self.add_module(name, module)

    def forward(self, x):
        embedding, rnn, linear = (getattr(self, name) for name in self.names)
        y, (h, c) = rnn(embedding(x))
        return {("logits" if isinstance(embedding, nn.Embedding) else "y"): linear(y), "h_n": h, "c_n": c}


LANGUAGE = {"size": 6, "hidden": 5, "tokens": 20, "classes": 7}
TIED = {"size": 6, "hidden": 6, "tokens": 20, "classes": 20, "tied": True}
MODULES = {
    "embedding, LSTM, linear": LANGUAGE,
    "three layers, dropout": {**LANGUAGE, "num_layers": 3, "dropout": 0.5},
    "bidirectional layers": {**LANGUAGE, "num_layers": 2, "bidirectional": True},
    "no bias": {**LANGUAGE, "num_layers": 2, "bias": False},
    "projection": {**LANGUAGE, "proj_size": 3},
    "tied": TIED,
    "tied, layers": {**TIED, "num_layers": 2},
    "bidirectional": {"size": 4, "hidden": 5, "bidirectional": True, "classes": 3},
    "projection, both ways": {"size": 4, "hidden": 5, "proj_size": 2, "num_layers": 2, "bidirectional": True},
    "LSTM alone": {"size": 4, "hidden": 5},
    "LSTM of one unit": {"size": 1, "hidden": 1, "classes": 1},
}


def check_pytorch(settings, folder):
    """A module to mnemon's file and back, and to ONNX."""
    model = Module(["embed", "rnn", "head"], **settings).eval()
    names = ["embedding", "bidirectional" if settings.get("bidirectional") else "lstm", "dense"]
    x = torch.randint(0, 20, (3, 7)) if "tokens" in settings else torch.randn(3, 7, settings["size"])
    wanted = {name: value.detach().numpy() for name, value in model(x).items()}
    given = {"tokens" if "tokens" in settings else "x": x.numpy()}
    torch.save(model.state_dict(), folder / "model.pt")
    save_file({name: value.numpy().copy() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    own, state, graph = (folder / name for name in ["own.safetensors", "state.safetensors", "model.onnx"])
    zipped = folder / "state.pt"
    for kind in ["pt", "safetensors"]:
        mnemon("convert", folder / f"model.{kind}", own)
        yield from same(f".{kind} in mnemon", ours(own, given, folder), wanted)
        mnemon("convert", own, state, "--format", "pytorch")
        back = Module(names, **settings).eval()
        back.load_state_dict({name: torch.from_numpy(value) for name, value in load_file(state).items()}, strict=True)
        mnemon("convert", own, zipped)
        loaded = [torch.load(zipped, weights_only=True, mmap=mapped) for mapped in (False, True)]
        equal = [torch.equal(read[name], value) for read in loaded for name, value in back.state_dict().items()]
        yield f".{kind} as .pt", np.array(equal), np.ones(2 * len(back.state_dict()))
        got = {name: value.detach().numpy() for name, value in back(x).items()}
        yield from same(f".{kind} and back", got, wanted)
        # Bit by bit: two modules made alike have their parameters in one order.
        pairs = zip(model.state_dict().values(), back.state_dict().values(), strict=True)
        yield f".{kind} parameters", np.array([torch.equal(a, b) for a, b in pairs]), np.ones(len(model.state_dict()))
    mnemon("convert", own, graph)
    yield from same("ONNX", runtime(graph, given), wanted)


# Keras


ACTIVATIONS = [
    "linear", "relu", "leaky_relu", "hard_sigmoid", "selu", "elu", "silu", "softplus", "softsign", "exponential",
]


def keras_models():
    """Models that this script builds, by name."""
    line, model, steps = keras.Sequential, keras.Model, {"return_sequences": True}
    tokens = lambda name=None: kl.Input((None,), dtype="int32", name=name)
    masked = lambda: kl.Embedding(20, 6, mask_zero=True)
    both = lambda units, merge="concat", **more: kl.Bidirectional(kl.LSTM(units, **more), merge_mode=merge)
    x = lambda n=None, name=None: kl.Input((n, 4), name=name)

    yield "language model", line([tokens(), kl.Embedding(20, 6), kl.LSTM(5, **steps), kl.Dropout(0.3), kl.Dense(20)])
    yield "classifier", line([tokens(), masked(), both(5), kl.Dense(3, activation="softmax")])
    labels = kl.TimeDistributed(kl.Dense(3, activation="softmax"))
    yield "tagger", line([tokens(), masked(), both(5, **steps), labels])
    front = [x(12), kl.Conv1D(6, 3, activation="relu"), kl.MaxPooling1D(2)]
    front += [kl.Conv1D(5, 2, padding="causal", dilation_rate=2)]
    yield "convolutions", line([*front, kl.LSTM(5, **steps), kl.GlobalMaxPooling1D(), kl.Dense(2)])
    front = [x(), kl.Conv1D(6, 4, padding="same", strides=2, use_bias=False), kl.AveragePooling1D(3, 2, padding="same")]
    front += [kl.SpatialDropout1D(0.2), kl.LSTM(5, **steps)]
    yield "windows of any length", line([*front, kl.GlobalAveragePooling1D()])
    edges = [x(9), kl.ZeroPadding1D((2, 1)), kl.Conv1D(6, 3), kl.Cropping1D((1, 2)), kl.LSTM(3)]
    yield "padding and cropping", line(edges)
    norms = [kl.LayerNormalization(), kl.TimeDistributed(kl.LayerNormalization())]
    norms += [kl.LayerNormalization(center=False), kl.LayerNormalization(scale=False)]
    yield "normalised", line([x(), kl.LSTM(5, **steps), *norms[:2], kl.LSTM(4, **steps), *norms[2:]])
    less = {"use_bias": False}
    yield "no bias", line([x(), kl.LSTM(5, **less, **steps), both(3, **less), kl.Dense(2, **less)])
    back = [kl.LSTM(5, go_backwards=True, **steps), kl.LSTM(3, **steps), kl.LSTM(3, go_backwards=True)]
    yield "backwards", line([x(), *back])
    for merge in ["sum", "mul", "ave"]:
        yield f"directions: {merge}", line([x(), both(5, merge, **steps), both(3, merge)])
    for name in ACTIVATIONS:
        # Gates that grow without bound make numbers that nothing can be compared with.
        cell = {} if name == "exponential" else {"activation": name, "recurrent_activation": name}
        own = [kl.LSTM(4, **cell, **steps), kl.Dense(4), kl.Activation(name), kl.Dense(3, activation="tanh")]
        yield f"activation {name}", line([x(5), *own, kl.Dense(3, activation=name)])
    functions = [kl.LeakyReLU(0.3), kl.Dense(4), kl.ELU(0.5), kl.Dense(8), kl.ReLU(), kl.Dense(3), kl.Softmax()]
    yield "functions as layers", line([x(), kl.LSTM(4), kl.Dense(4), *functions])
    shapes = [kl.Permute((2, 1)), kl.LSTM(6, **steps), kl.Reshape((-1, 3)), kl.LSTM(4), kl.RepeatVector(3)]
    yield "shapes", line([x(6), *shapes, kl.LSTM(4, **steps), kl.Flatten(), kl.Dense(2)])
    zeros = kl.LSTM(4, zero_output_for_mask=True, **steps)
    yield "masking", line([x(), kl.Masking(), kl.LSTM(5, **steps), zeros, kl.Dense(3)])
    yield "masked mean", line([x(), kl.Masking(), kl.LSTM(5, **steps), kl.Dropout(0.1), kl.GlobalAveragePooling1D()])
    yield "masked largest", line([tokens(), masked(), both(5, **steps), kl.GlobalMaxPooling1D()])

    word, rows = tokens("word"), kl.Input((3,), name="rows")
    read = kl.LSTM(5)(masked()(word))
    yield "two inputs", model([word, rows], kl.Dense(2)(kl.Concatenate()([read, kl.Dense(4, activation="tanh")(rows)])))
    yield "inputs the other way round", model([rows, word], [kl.Dense(2)(read), kl.Dense(3)(rows)])
    source, target = tokens("source"), tokens("target")
    _, h, c = kl.LSTM(6, return_state=True)(masked()(source))
    decoded, _, _ = kl.LSTM(6, return_state=True, **steps)(kl.Embedding(20, 5)(target), initial_state=[h, c])
    yield "encoder and decoder", model([source, target], kl.Dense(20, activation="softmax")(decoded))
    a, b = x(name="a"), x(name="b")
    _, h, c, back_h, back_c = both(3, return_state=True)(a)
    joined = [kl.Concatenate()([h, back_h]), kl.Concatenate()([c, back_c])]
    decoded = kl.LSTM(6, return_state=True, **steps)(b, initial_state=joined)
    yield "encoder of two directions", model([a, b], [kl.Dense(4)(decoded[0]), *decoded[1:]])
    shared = kl.LSTM(4)
    yield "shared", model([a, b], kl.Dense(1)(kl.Subtract()([shared(a), shared(b)])))
    encoded, decoded = kl.LSTM(5, **steps)(a), kl.LSTM(5, **steps)(b)
    scores = {"dot": kl.Attention(), "scaled": kl.Attention(use_scale=True), "additive": kl.AdditiveAttention()}
    for name, own in scores.items():
        seen = own([decoded, encoded])
        yield f"attention: {name}", model([a, b], kl.Dense(3)(kl.Concatenate()([decoded, seen])))
    yield "causal attention", model(a, kl.Dense(3)(kl.Attention()([encoded, encoded], use_causal_mask=True)))
    table = masked()
    query, value = kl.LSTM(5, **steps)(table(target)), both(5, "sum", **steps)(table(source))
    seen = [kl.Attention()([query, value]), kl.AdditiveAttention()([query, value])]
    yield "masked attention", model([source, target], [kl.GlobalAveragePooling1D()(s) for s in seen])
    encoded = kl.LSTM(4, **steps)(x_fixed := x(6, "a"))
    merges = [m([encoded, x_fixed]) for m in (kl.Add(), kl.Multiply(), kl.Average(), kl.Maximum(), kl.Minimum())]
    yield "merges", model(x_fixed, kl.LSTM(3)(kl.Concatenate()(merges)))
    apart = kl.Bidirectional(kl.LSTM(4, **steps), merge_mode=None)(a)
    encoder = line([tokens(), masked(), kl.LSTM(5, **steps), both(4)])
    yield "model called twice", model([source, target], kl.Dense(1)(kl.Subtract()([encoder(source), encoder(target)])))
    h, rows = x(name="h"), kl.Input((3,), name="inner_rows")
    inner = model([h, rows], [kl.LSTM(4, **steps)(h), kl.Dense(2)(rows)])
    outer = inner([kl.LSTM(4, **steps)(a), own_rows := kl.Input((3,), name="own_rows")])
    yield "model of several inputs in a model", model([a, own_rows], [kl.LSTM(3)(outer[0]), outer[1]])
    deep = line([tokens(), line([masked()]), line([line([kl.LSTM(4, **steps)]), kl.LSTM(3)]), kl.Dense(2)])
    yield "models in models", deep
    seen = masked()(source)
    yield "attention to tokens", model(source, kl.GlobalAveragePooling1D()(kl.Attention()([seen, seen])))
    yield "directions apart", model(a, [kl.Dense(3)(apart[0]), kl.LSTM(2)(apart[1])])


def random_inputs(model):
    """Inputs by name, `x` where there is one: tokens and steps of which some are left out, where the model masks."""
    given = {}
    masks = any(isinstance(layer, kl.Masking) for layer in model.layers)
    for x in model.inputs:
        # Of nine steps no window of these models needs an odd one at the end, where Keras over PyTorch repeats a value.
        shape = [3, *(9 if n is None else n for n in x.shape[1:])]
        if "int" in x.dtype:
            given[x.name] = RANDOM.integers(1, 20, shape).astype("i4") * (RANDOM.random(shape) < 0.7)
        else:
            given[x.name] = RANDOM.normal(size=shape).astype("f4")
            if masks and len(shape) == 3:
                given[x.name] *= RANDOM.random((*shape[:2], 1)) < 0.7
    return given if len(given) > 1 else {"x": next(iter(given.values()))}


def predicted(model, given):
    """What Keras gives, in the model's order."""
    values = [given[x.name] for x in model.inputs] if len(given) > 1 else next(iter(given.values()))
    got = model.predict(values, verbose=0)
    return {str(at): value for at, value in enumerate(got if isinstance(got, (list, tuple)) else [got])}


def zeroed(model):
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    return model


def check_keras(file, given, wanted, folder, unsaid=None):
    """A model's file to mnemon's and back to Keras, whole and as weights, if nothing is unsaid there; and to ONNX."""
    own, graph = folder / "own.safetensors", folder / "model.onnx"
    again, legacy, weights = (folder / f"again.{kind}" for kind in ["keras", "h5", "weights.h5"])
    mnemon("convert", file, own)
    got = ours(own, given, folder)
    # Outputs of mnemon go by their names, which Keras's do not.
    order = [name.split("[")[0] for name, _ in network_of(own)["outputs"]]
    by_order = lambda got: {str(at): got[name] for at, name in enumerate(order)}
    yield from same("in mnemon", by_order(got), wanted)
    if unsaid:
        yield refused(own, again, unsaid)
        yield refused(own, legacy, unsaid)
    else:
        mnemon("convert", own, again)
        back = keras.models.load_model(again)
        yield from same("and back", predicted(back, given), wanted)
        mnemon("convert", own, legacy)
        yield from same("and back in .h5", predicted(keras.models.load_model(legacy), given), wanted)
        mnemon("convert", own, weights)
        zeroed(back).load_weights(weights)
        yield from same("weights", predicted(back, given), wanted)
    mnemon("convert", own, graph)
    yield from same("ONNX", by_order(runtime(graph, given)), wanted)


def network_of(own):
    """The network that a file of mnemon's own describes."""
    size = int.from_bytes(own.read_bytes()[:8], "little")
    metadata = json.loads(json.loads(own.read_bytes()[8 : 8 + size])["__metadata__"]["mnemon"])
    return metadata.get("network", {"outputs": [("y", None)]})


def check_saved(model, folder):
    """A model of this script, as both kinds of file that Keras has."""
    for weight in model.weights:
        weight.assign(RANDOM.normal(0, 0.4, weight.shape))
    given = random_inputs(model)
    wanted = predicted(model, given)
    for kind in ["keras", "h5"]:
        model.save(folder / f"model.{kind}")
        for step, *pair in check_keras(folder / f"model.{kind}", given, wanted, folder):
            yield f".{kind} {step}", *pair
    # What is wrapped, or in a model of its own, has its weights elsewhere than what comes back, which is not.
    if not any(isinstance(layer, (kl.TimeDistributed, keras.Model)) for layer in model.layers):
        zeroed(model).load_weights(folder / "again.weights.h5")
        yield from same("weights in the same model", predicted(model, given), wanted)


def check_loaded(file, folder):
    """A file of tests/data that Keras reads."""
    model = keras.models.load_model(file)
    given = random_inputs(model)
    yield from check_keras(file, given, predicted(model, given), folder)


def check_recorded(file, folder):
    """A file of tests/data that a version of Keras wrote which need not be there, with what it gave."""
    tensors = load_file(file.with_suffix(".safetensors"))
    given = {name[3:]: value for name, value in tensors.items() if name.startswith("in.")}
    # What the second version called a hard sigmoid the third has not.
    unsaid = "Keras has no activation HardSigmoid" if file.stem == "functional2" else None
    yield from check_keras(file, given, {"0": tensors["out.y"]}, folder, unsaid)


def recorded(file):
    """The file of inputs and outputs that belong to a written one."""
    beside = file.with_suffix(".safetensors")
    return beside if beside.exists() else DATA / "models" / beside.name


def check_written(file, folder):
    """A file that the tests wrote, and its weights in HDF5 where they are there too, in Keras."""
    tensors = load_file(recorded(file))
    given = {name[3:]: value for name, value in tensors.items() if name.startswith("in.")}
    outputs = sorted((ORDER.index(name[4:]), value) for name, value in tensors.items() if name.startswith("out."))
    wanted = {str(at): value for at, (_, value) in enumerate(outputs)}
    model = keras.models.load_model(file)
    yield from same("in Keras", predicted(model, given), wanted)
    if file.with_suffix(".weights.h5").exists():
        zeroed(model).load_weights(file.with_suffix(".weights.h5"))
        yield from same("weights", predicted(model, given), wanted)


# What only mnemon's own files can say


class Network:
    """A network with random parameters. Its values are their places and how many features they have."""

    def __init__(self, **inputs):
        self.nodes, self.outputs, self.tensors = [], [], {}
        self.inputs = list(inputs.items())

    def __getitem__(self, name):
        at = [x for x, _ in self.inputs].index(name)
        kind = self.inputs[at][1]
        return {"input": at}, next(iter(kind.values())) if isinstance(kind, dict) else 0

    def add(self, kind, /, *read, **layer):
        """Adds a layer; gives its output, or a list where it has several."""
        name = layer.setdefault("name", f"{kind}_{len(self.nodes)}")
        shapes, features = LAYERS.get(kind, lambda layer, *features: ({}, features[:1]))(layer, *(f for _, f in read))
        for role, shape in shapes.items():
            self.tensors[f"{name}.{role}"] = RANDOM.normal(0, 0.3, shape).astype("f4")
        self.nodes.append({"name": name, "layer": {"class": kind, **layer}, "inputs": [port for port, _ in read]})
        values = [({"node": [len(self.nodes) - 1, at]}, f) for at, f in enumerate(features)]
        return values if len(values) > 1 else values[0]

    def output(self, name, value):
        self.outputs.append((name, value[0]))

    def save(self, path):
        network = {"inputs": self.inputs, "nodes": self.nodes, "outputs": self.outputs}
        metadata = {"format": "mnemon", "version": 1, "network": network}
        save_file(self.tensors, path, metadata={"mnemon": json.dumps(metadata)})
        return path


def lstm(layer, features, *_):
    """The parameters of an LSTM and its outputs; what a file must say gets a default."""
    wanted = {"units": 5, "activation": "tanh", "bias": "one", "return_sequences": True, "stateful": False}
    layer |= {**wanted, **layer}
    h, r = layer["units"], layer.get("projection") or layer["units"]
    shapes = {"weight_ih": (4 * h, features), "weight_hh": (4 * h, r)}
    biases = {"none": [], "one": ["bias_ih"], "two": ["bias_ih", "bias_hh"]}[layer["bias"]]
    shapes |= {role: (4 * h,) for role in biases}
    shapes |= {"weight_hr": (r, h)} if "projection" in layer else {}
    cell = layer.get("cell", {})
    shapes |= {"peepholes": (3 * h,)} if cell.get("peepholes") else {}
    if "layer_norm" in cell:
        shapes |= {"norm_ih": (4 * h,), "norm_hh": (4 * h,), "norm_gain": (h,), "norm_bias": (h,)}
    ways = ["", "_reverse"] if layer.get("direction") == "both" else [""]
    width = r * len(ways) if layer.get("merge", "concat") == "concat" else r
    outputs = [width] * (2 if layer.get("merge") == "apart" else 1)
    outputs += [r, h] * len(ways) if layer.get("return_state") else []
    return {f"{role}_l0{way}": shape for way in ways for role, shape in shapes.items()}, outputs


def dense(layer, features):
    layer |= {"activation": layer.get("activation", "linear"), "bias": True}
    return {"weight": (layer["units"], features), "bias": (layer["units"],)}, [layer["units"]]


def conv1d(layer, features):
    layer |= {"activation": layer.get("activation", "linear"), "bias": True}
    shapes = {"weight": (layer["filters"], layer["window"]["taps"], features), "bias": (layer["filters"],)}
    return shapes, [layer["filters"]]


def attention(layer, query, value, *_):
    layer |= {"causal": layer.get("causal", False)}
    scale = query if layer["score"] == "additive" else 1
    return ({"scale": (scale,)} if layer["scale"] else {}), [value]


def formula(layer, *features):
    width = max(features)
    return {f"constant_{o['vector']}": (width,) for o in layer["operands"] if "vector" in o}, [width]


def memory(layer, hidden, tokens, _):
    pointer = layer["mixture"]["kind"] == "pointer"
    shapes = {"weight": (hidden, hidden), "bias": (hidden,), "sentinel": (1, hidden)} if pointer else {}
    return shapes, [tokens]


# For each class of layers its parameters and the features of its outputs; other layers have no parameters.
LAYERS = {
    "lstm": lstm,
    "dense": dense,
    "conv1d": conv1d,
    "attention": attention,
    "formula": formula,
    "embedding": lambda layer, _: ({"weight": (layer["vocabulary"], layer["size"])}, [layer["size"]]),
    "layer_normalization": lambda _, features: ({"weight": (features,), "bias": (features,)}, [features]),
    "merge": lambda layer, *features: ({}, [sum(features) if layer["kind"] == "concatenate" else features[0]]),
    "columns": lambda layer, _: ({}, [layer["count"]]),
    "feature_sum": lambda layer, _: ({}, [1]),
    "working_memory": memory,
}

MIXTURES = {
    "linear": {"kind": "linear", "theta": 0.8, "lambda": 0.3},
    "linear of nothing": {"kind": "linear", "theta": 0.8, "lambda": 0.0},
    "global": {"kind": "global", "theta": 1.1, "alpha": 0.4},
    "pointer": {"kind": "pointer"},
}

CELLS = {
    "plain": {},
    "peepholes": {"cell": {"peepholes": True}},
    "coupled": {"cell": {"coupled": True}},
    "coupled peepholes": {"cell": {"coupled": True, "peepholes": True}},
    "clip": {"cell": {"clip": 0.3}},
    "cell clip": {"cell": {"cell_clip": 0.2}},
    "layer norm": {"cell": {"layer_norm": 1e-3}},
    "zoneout": {"cell": {"zoneout_h": 0.1, "zoneout_c": 0.3}},
    "projection": {"projection": 3},
    "gates by selu": {"recurrent_activation": "selu"},
    "gates by swish, h by elu": {"recurrent_activation": "swish", "output_activation": {"elu": {"alpha": 0.5}}},
    "gates by exponential": {"recurrent_activation": "exponential", "cell": {"clip": 0.3}},
    "gates by alpha and beta": {
        "recurrent_activation": {"hard_sigmoid": {"alpha": 0.3, "beta": 0.4}},
        "activation": {"scaled_tanh": {"alpha": 0.9, "beta": 0.7}},
        "output_activation": {"leaky_relu": {"alpha": 0.2}},
    },
    "gates by affine, h by thresholded relu": {
        "recurrent_activation": {"affine": {"alpha": 0.3, "beta": 0.5}},
        "output_activation": {"thresholded_relu": {"alpha": 0.1}},
    },
    "two biases": {"bias": "two"},
    "no bias": {"bias": "none"},
    "all at once": {
        "projection": 3,
        "bias": "two",
        "cell": {"peepholes": True, "layer_norm": 1e-3, "zoneout_h": 0.1, "zoneout_c": 0.2, "cell_clip": 0.6},
    },
}


def holes(shape):
    """Random steps of which some, anywhere, are all zero, and one sequence has none."""
    x = RANDOM.normal(size=shape).astype("f4") * (RANDOM.random((*shape[:2], 1)) < 0.6)
    x[-1] = 0
    return x


def own_networks():
    """Networks by name, with their inputs."""
    for name, cell in CELLS.items():
        for masked in [False, True]:
            n = Network(x={"features": 4})
            at = n.add("masking", n["x"], value=0.0) if masked else n["x"]
            at = n.add("lstm", at, direction="both", merge="sum", zero_output_for_mask=True, **cell)
            at = n.add("lstm", at, direction="reverse", **cell)
            at, h, c = n.add("lstm", at, return_state=True, **cell)
            n.output("y", at)
            n.output("h", h)
            n.output("c", c)
            n.output("last", n.add("lstm", at, return_sequences=False, direction="both", **cell))
            x = holes((4, 6, 4)) if masked else RANDOM.normal(size=(3, 6, 4)).astype("f4")
            yield f"{name}{', holes' if masked else ''}", n, {"x": x}

    n = Network(a="tokens", b="tokens")
    a, b = (n.add("embedding", n[x], vocabulary=9, size=4, mask_zero=x == "a") for x in "ab")
    both, *states = n.add("lstm", a, direction="both", return_state=True, cell={"layer_norm": 1e-3})
    n.output("both", both)
    n.output("other", n.add("lstm", b, *states, direction="both"))
    yield "states of tokens with holes", n, {x: RANDOM.integers(0, 3, (5, 6)).astype("i4") for x in "ab"}

    for masked in [False, True]:
        n = Network(a={"features": 4}, b={"features": 4})
        a, b = (n.add("masking", n[x], value=0.0) if masked else n[x] for x in "ab")
        _, h, c = n.add("lstm", a, return_state=True, cell={"zoneout_h": 0.2})
        encoded = n.add("lstm", a, cell={"peepholes": True})
        decoded = n.add("lstm", b, h, c, cell={"cell_clip": 0.4})
        for score in ["dot", "additive"]:
            n.output(score, n.add("attention", decoded, encoded, score=score, scale=True))
        n.output("causal", n.add("attention", decoded, decoded, score="dot", scale=False, causal=True))
        given = {x: holes((3, t, 4)) for x, t in [("a", 7), ("b", 5)]}
        yield f"encoder, decoder, attention{', holes' if masked else ''}", n, given

    n = Network(x={"features": 4}, n="lengths")
    at = n.add("lstm", n.add("along", n["x"], n["n"]), direction="both", cell={"layer_norm": 1e-3})
    at = n.add("lstm", at, direction="reverse")
    n.output("y", n.add("along", at, n["x"]))
    n.output("mean", n.add("pooling", at, kind="average"))
    n.output("past the end", n.add("dense", at, units=3, activation="sigmoid"))
    yield "lengths", n, {"x": RANDOM.normal(size=(3, 6, 4)).astype("f4"), "n": np.array([6, 1, 4], "i4")}

    n = Network(x={"features": 4}, n="lengths")
    x = n.add("along", n["x"], n["n"])
    at, h, _ = n.add("lstm", x, go_backwards=True, return_state=True)
    n.output("turned", at)
    n.output("largest", n.add("pooling", x, kind="max"))
    n.output("shares", n.add("time_softmax", x))
    for step in [-2, 0, 3]:
        n.output(f"step {step}", n.add("step", x, at=step))
    forth = n.add("lstm", x)
    n.output("row", n.add("along", h, x))
    for score, causal in [("dot", True), ("additive", False)]:
        n.output(score, n.add("attention", forth, forth, score=score, scale=False, causal=causal))
    windows = [("max", 3, 1, 1, "valid"), ("average", 2, 2, 1, "causal"), ("average", 3, 1, 2, "same"), ("max", 2, 1, 1, "same")]
    windows += [("average", 2, 3, 1, {"explicit": {"before": 1, "after": 1}})]
    for at, (kind, taps, stride, dilation, padding) in enumerate(windows):
        window = {"taps": taps, "stride": stride, "dilation": dilation, "padding": padding}
        for part in [n.add("pooling1d", forth, kind=kind, window=window), n.add("conv1d", forth, filters=3, window=window)]:
            n.output(f"windows {at} {part[0]['node'][0]}", n.add("pooling", part, kind="average"))
    for before, after, stride in [(1, 1, 1), (-1, 2, 2), (0, -2, 1)]:
        part = n.add("cropping1d", forth, before=before, after=after, stride=stride)
        n.output(f"part {before} {after}", n.add("pooling", part, kind="sum"))
    yield "lengths, more", n, {"x": RANDOM.normal(size=(3, 6, 4)).astype("f4"), "n": np.array([6, 1, 4], "i4")}

    n = Network(a={"features": 4}, b={"features": 4}, n="lengths")
    a, b = n.add("lstm", n["a"]), n.add("lstm", n["b"])
    n.output("shorter", n.add("along", a, n["b"]))
    n.output("longer", n.add("along", b, n["a"]))
    n.output("ended", n.add("pooling", n.add("along", n.add("along", b, n["n"]), n["a"]), kind="sum"))
    given = {x: RANDOM.normal(size=(3, t, 4)).astype("f4") for x, t in [("a", 7), ("b", 5)]}
    yield "steps of two sequences", n, given | {"n": np.array([2, 5, 1], "i4")}

    for name, mixture in MIXTURES.items():
        n = Network(tokens="tokens")
        at = n.add("lstm", n.add("embedding", n["tokens"], vocabulary=9, size=5), units=4)
        logits = n.add("dense", at, units=9)
        settings = {"window": 4, "mixture": mixture, "steps": 20, "stateful": False}
        n.output("y", n.add("working_memory", at, logits, n["tokens"], **settings))
        yield f"memory: {name}", n, {"tokens": RANDOM.integers(0, 9, (3, 13)).astype("i4")}

    n = Network(transpose_1={"features": 4})
    at = n.add("lstm", n["transpose_1"], units=3, name="gather_5")
    for name in ["matmul_2", "add_3", "softmax_4", "softmax_14"]:
        n.output(name, n.add("dense", at, units=3, activation="softmax"))
    yield "names that operators have", n, {"transpose_1": RANDOM.normal(size=(3, 6, 4)).astype("f4")}

    n = Network(x={"features": 4})
    windows = [("max", 3, 2, "same"), ("average", 4, 1, "same"), ("average", 3, 2, "same"), ("max", 2, 2, "valid")]
    windows += [("max", 3, 1, "causal"), ("average", 3, 2, {"explicit": {"before": 1, "after": 2}})]
    for at, (kind, taps, stride, padding) in enumerate(windows):
        window = {"taps": taps, "stride": stride, "dilation": 1, "padding": padding}
        pooled = n.add("pooling1d", n["x"], kind=kind, window=window)
        read = n.add("conv1d", pooled, filters=3, window={**window, "stride": 1, "taps": 2})
        n.output(f"y{at}", n.add("lstm", read, return_sequences=False))
    n.output("cropped", n.add("cropping1d", n["x"], before=1, after=2, stride=2))
    n.output("padded", n.add("cropping1d", n["x"], before=-1, after=-2, stride=1))
    yield "windows", n, {"x": RANDOM.normal(size=(3, 9, 4)).astype("f4")}

    n = Network(x={"features": 4})
    inside = {"explicit": {"before": -2, "after": 1}}
    windows = [("max", 3, 2, 2, "same"), ("average", 3, 2, 3, "same"), ("average", 2, 1, 2, "causal")]
    windows += [("max", 2, 1, 3, "causal"), ("max", 3, 1, 1, inside), ("average", 3, 2, 1, inside)]
    windows += [("average", 2, 1, 3, {"explicit": {"before": 2, "after": 1}})]
    for at, (kind, taps, stride, dilation, padding) in enumerate(windows):
        window = {"taps": taps, "stride": stride, "dilation": dilation, "padding": padding}
        n.output(f"pooled {at}", n.add("pooling1d", n["x"], kind=kind, window=window))
        n.output(f"convolved {at}", n.add("conv1d", n["x"], filters=3, window=window))
    yield "dilated windows", n, {"x": RANDOM.normal(size=(3, 10, 4)).astype("f4")}

    n = Network(x={"features": 4})
    at = n.add("lstm", n["x"], units=4)
    n.output("columns", n.add("columns", at, first=1, count=2))
    n.output("step", n.add("step", at, at=-2))
    for mean in [False, True]:
        n.output(f"features{mean}", n.add("feature_sum", at, mean=mean))
    for kind in ["time_softmax", "log_softmax", "layer_normalization"]:
        n.output(kind, n.add(kind, at, **({"epsilon": 1e-3, "scale": True, "center": True} if "norm" in kind else {})))
    n.output("sum", n.add("pooling", at, kind="sum"))
    yield "parts of rows and steps", n, {"x": RANDOM.normal(size=(3, 6, 4)).astype("f4")}

    n = Network(x={"features": 4})
    a, b = ({"input": 0}, {"input": 1})
    x, y = n["x"], n.add("lstm", n["x"], units=4)
    high = n.add("formula", x, function="exponential", operands=[a])
    for function in ["add", "subtract", "multiply", "divide", "maximum", "minimum", "less", "greater", "equal"]:
        n.output(function, n.add("formula", x, high, function=function, operands=[a, b]))
    for function in ["negate", "absolute", "sign", "erf"]:
        n.output(function, n.add("formula", y, function=function, operands=[a]))
    for function in ["logarithm", "square_root", "reciprocal"]:
        n.output(function, n.add("formula", high, function=function, operands=[a]))
    for power in [0.0, 0.5, -0.5, 2.0, -3.0, 1.7]:
        n.output(f"power{power}", n.add("formula", high, function="power", operands=[a, {"number": power}]))
    more = n.add("formula", x, y, function="less", operands=[a, b])
    less = n.add("formula", more, function="not", operands=[a])
    n.output("or", n.add("formula", more, less, function="or", operands=[a, b]))
    n.output("and", n.add("formula", more, less, function="and", operands=[a, b]))
    n.output("where", n.add("formula", more, function="where", operands=[a, {"vector": 0}, {"number": 2.0}]))
    yield "formulas", n, {"x": RANDOM.normal(size=(3, 6, 4)).astype("f4")}


def check_own(network, given, folder):
    """A network of mnemon's own in ONNX Runtime."""
    own, graph = network.save(folder / "own.safetensors"), folder / "model.onnx"
    mnemon("convert", own, graph)
    yield from same("ONNX", runtime(graph, given), ours(own, given, folder))


def check_carried(cell, folder):
    """A layer that carries its state, over a sequence at once here and in two pieces in ONNX Runtime."""
    n = Network(x={"features": 4})
    at = n.add("lstm", n["x"], stateful=True, name="below", **cell)
    n.output("y", n.add("lstm", at, stateful=True, name="above", **cell))
    own, graph = n.save(folder / "own.safetensors"), folder / "model.onnx"
    mnemon("convert", own, graph)
    x = RANDOM.normal(size=(3, 9, 4)).astype("f4")
    first = runtime(graph, {"x": x[:, :4]})
    carried = {f"{name}.{part}_0": first[f"{name}.{part}_n"] for name in ["below", "above"] for part in "hc"}
    second = runtime(graph, {"x": x[:, 4:], **carried})
    yield "two pieces", np.concatenate([first["y"], second["y"]], 1), ours(own, {"x": x}, folder)["y"]


def check_remembered(mixture, folder):
    """A memory that goes on, over a text at once here and in pieces in ONNX Runtime."""
    n = Network(tokens="tokens")
    at = n.add("lstm", n.add("embedding", n["tokens"], vocabulary=9, size=5), units=4, stateful=True, name="lstm")
    logits = n.add("dense", at, units=9)
    settings = {"window": 5, "mixture": mixture, "steps": 20, "stateful": True, "name": "recall"}
    n.output("y", n.add("working_memory", at, logits, n["tokens"], **settings))
    own, graph = n.save(folder / "own.safetensors"), folder / "model.onnx"
    mnemon("convert", own, graph)
    tokens = RANDOM.integers(0, 9, (3, 14)).astype("i4")
    states = ["lstm.h", "lstm.c", "recall.h", "recall.tokens"]
    given = {"recall.h_0": np.zeros((3, 5, 4), "f4"), "recall.tokens_0": np.full((3, 5), -1)}
    given |= {f"{name}_0": np.zeros((3, 4), "f4") for name in states[:2]}
    pieces = []
    for part in np.split(tokens, [3, 4, 11], 1):
        got = runtime(graph, {"tokens": part, **given})
        given = {f"{name}_0": got[f"{name}_n"] for name in states}
        pieces.append(got["y"])
    yield "pieces", np.concatenate(pieces, 1), ours(own, {"tokens": tokens}, folder)["y"]


def check_edges(name, folder):
    """An ONNX file of the tests, whose outputs or lengths only ONNX has, once more as one."""
    tensors = load_file(DATA / "onnx" / f"{name}.safetensors")
    given = {key[3:]: value for key, value in tensors.items() if key.startswith("in.")}
    mnemon("convert", DATA / "onnx" / f"{name}.onnx", folder / "model.onnx")
    got = runtime(folder / "model.onnx", given)
    for key, value in tensors.items():
        if key.startswith("out."):
            yield f"again {key}", got[key[4:]], value


def check_refusals(folder):
    """What another program has no word for, or mnemon has none for, is refused by the layer's name."""
    n = Network(tokens="tokens")
    at = n.add("embedding", n["tokens"], vocabulary=9, size=5)
    h = n.add("lstm", at, cell={"peepholes": True}, name="odd")
    logits = n.add("dense", h, units=9)
    n.output("y", logits)
    own = n.save(folder / "own.safetensors")
    yield refused(own, folder / "no.keras", "odd: Keras's LSTM has no peepholes")
    yield refused(own, folder / "no.safetensors", "odd: PyTorch's nn.LSTM has no peepholes", "--format", "pytorch")
    yield refused(DATA / "models" / "gru.keras", folder / "no.onnx", "gru: the layer GRU is not supported")
    # Operations have the classes of layers, and other arguments.
    x = kl.Input((6, 4))
    for name, value in {"multiply": x * 2.0, "add": x + 1.0, "maximum": keras.ops.maximum(x, 0.0)}.items():
        keras.Model(x, kl.LSTM(3)(value)).save(folder / "number.keras")
        yield refused(folder / "number.keras", folder / "no.onnx", name)
    back = keras.Sequential([x, kl.Masking(), kl.LSTM(3, return_sequences=True, go_backwards=True), kl.LSTM(2, name="above")])
    back.save(folder / "back.keras")
    yield refused(folder / "back.keras", folder / "no.onnx", "above")
    left = kl.Masking()(x)
    keras.Model(x, kl.LSTM(3)(kl.Multiply()([left, left]))).save(folder / "product.keras")
    yield refused(folder / "product.keras", folder / "no.onnx", "logical_or")
    keras.Model(x, kl.Dense(3)(keras.ops.average(x, axis=1))).save(folder / "number.keras")
    yield refused(folder / "number.keras", folder / "no.onnx", "average")


def error(got, wanted):
    """The largest difference, over the largest value where that is above one."""
    got, wanted = np.asarray(got, "f8"), np.asarray(wanted, "f8")
    if got.shape != wanted.shape:
        raise ValueError(f"expected {wanted.shape}, got {got.shape}")
    return np.abs(got - wanted).max() / max(1.0, np.abs(wanted).max())


def checks(folder):
    """Every check by name: a generator of steps, each with what came and what was wanted."""
    for name, settings in MODULES.items():
        yield f"PyTorch: {name}", lambda to, s=settings: check_pytorch(s, to)
    for file in sorted([*(DATA / "models").glob("*.keras"), *(DATA / "legacy").glob("*.keras")]):
        if file.stem != "gru":
            yield f"Keras: {file.name}", lambda to, f=file: check_loaded(f, to)
    for file in sorted((DATA / "legacy").glob("*.h5")):
        yield f"Keras: {file.name}", lambda to, f=file: check_recorded(f, to)
    for name, model in keras_models():
        yield f"Keras: {name}", lambda to, m=model: check_saved(m, to)
    for file in sorted(Path(folder).glob("*.keras")) if folder else []:
        # Of its eleven steps windows need an odd one at the end, see `random_inputs`.
        odd = (file.stem, keras.backend.backend()) == ("windows", "torch")
        if recorded(file).exists() and not odd:
            yield f"written: {file.name}", lambda to, f=file: check_written(f, to)
    for name, network, given in own_networks():
        yield f"ONNX: {name}", lambda to, n=network, g=given: check_own(n, g, to)
    for name, cell in CELLS.items():
        yield f"ONNX: {name}, carried", lambda to, c=cell: check_carried(c, to)
    for name, mixture in MIXTURES.items():
        yield f"ONNX: memory that goes on: {name}", lambda to, m=mixture: check_remembered(m, to)
    yield "ONNX: largest features", lambda to: check_edges("tag.dy_dyn", to)
    yield "refusals", check_refusals


def main(folder):
    torch.manual_seed(1)
    count, failures, largest = 0, 0, 0.0
    for name, check in checks(folder):
        count, worst, where, problem = count + 1, 0.0, "", ""
        with tempfile.TemporaryDirectory() as to:
            try:
                for step, got, wanted in check(Path(to)):
                    e = error(got, wanted)
                    if not e <= worst:
                        worst, where = e, step
            # A model that cannot be said, or that another program cannot read, is off too.
            except Exception as e:
                problem = f"{type(e).__name__}: {e}"
        failed = bool(problem) or not worst <= TOLERANCE
        failures, largest = failures + failed, max(largest, worst)
        place = f" at {where}" if failed and where else ""
        print(f"{'FAIL' if failed else 'ok':<4} {worst:.1e} {name}{place} {problem}".rstrip(), flush=True)
    print(f"{count} models, {failures} failed, largest error {largest:.1e}")
    return failures > 0


if __name__ == "__main__":
    MNEMON = sys.argv[1]
    sys.exit(main(sys.argv[2] if len(sys.argv) > 2 else None))
