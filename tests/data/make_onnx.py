"""Makes tests/data/onnx: graphs of ONNX with inputs and what they give.

    python tests/data/make_onnx.py [FOLDER]     needs onnx, onnxruntime, onnxscript, torch and safetensors

Three sources: the onnx package's own tests of the LSTM node, with what they expect; single LSTM nodes, with what ONNX
Runtime gives; and models that PyTorch exports, with what PyTorch gives. Of the last, `.ts` is by the exporter over
TorchScript and `.dy` by the one over torch.export (dynamo); in `_dyn` the sizes of batch and time are dynamic.
"""
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "onnx"
RANDOM = np.random.default_rng(0)


def save(name, inputs, outputs):
    data = {f"in.{k}": v for k, v in inputs.items()} | {f"out.{k}": v for k, v in outputs.items()}
    save_file({k: np.ascontiguousarray(v) for k, v in data.items()}, OUT / f"{name}.safetensors")


def package_tests(*names):
    for case in collect_testcases("LSTM"):
        if case.name in names:
            onnx.save(case.model, OUT / f"{case.name}.onnx")
            sides = zip((case.model.graph.input, case.model.graph.output), case.data_sets[0], strict=True)
            save(case.name, *({k.name: v for k, v in zip(ends, values, strict=True)} for ends, values in sides))


def lstm_node(name, inputs, constants="W R B P", lengths=(), direction="forward", layout=0, **attributes):
    """A graph of one node; `_` stands for an input left out, and `constants` are those that the graph holds."""
    steps, batch, size, hidden, d = 5, 3, 4, 6, 2 if direction == "bidirectional" else 1
    shapes = {"X": (steps, batch, size), "W": (d, 4 * hidden, size), "R": (d, 4 * hidden, hidden), "B": (d, 8 * hidden)}
    shapes |= {"initial_h": (d, batch, hidden), "initial_c": (d, batch, hidden), "P": (d, 3 * hidden)}
    order = [k.strip("_") for k in inputs.split()]
    values = {k: RANDOM.normal(0, 0.7, shapes.get(k, batch)).astype("f4") for k in order if k}
    if "sequence_lens" in values:
        values["sequence_lens"] = np.array(lengths, "i4")
    held = [numpy_helper.from_array(values.pop(k), k) for k in constants.split() if k in values]
    outputs = ["Y", "Y_h", "Y_c"]

    def model(layout):
        named = attributes | {"hidden_size": hidden, "direction": direction, "layout": layout}
        kinds = {k: helper.np_dtype_to_tensor_dtype(v.dtype) for k, v in values.items()}
        given = [helper.make_tensor_value_info(k, kinds[k], v.shape) for k, v in values.items()]
        results = [helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, None) for k in outputs]
        graph = helper.make_graph([helper.make_node("LSTM", order, outputs, **named)], name, given, results, held)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=9)

    session = onnxruntime.InferenceSession(model(0).SerializeToString())
    results = dict(zip(outputs, session.run(outputs, values), strict=True))
    if layout == 1:  # ONNX Runtime has only layout 0; in layout 1 the batch is first.
        values |= {k: values[k].swapaxes(0, 1) for k in ("X", "initial_h", "initial_c")}
        results = {k: np.moveaxis(v, 2 if k == "Y" else 1, 0) for k, v in results.items()}
    onnx.save(model(layout), OUT / f"{name}.onnx")
    save(name, values, results)


def lstm_nodes():
    stateful = "X W R B sequence_lens initial_h initial_c"
    lstm_node("forward_0_inputs", stateful, constants="", lengths=[2, 5, 4])
    lstm_node("bidirectional_1_all", f"{stateful} P", lengths=[5, 3, 1], direction="bidirectional", layout=1)
    lstm_node("clip_peep", "X W R B _ _ _ P", clip=0.3)
    lstm_node("lens_const", "X W R B sequence_lens", constants="W R B sequence_lens", lengths=[3, 2, 1])
    each = {"activations": ["Sigmoid", "Tanh", "Relu", "HardSigmoid", "Softsign", "Tanh"]}
    lstm_node("act_bi", "X W R B", direction="bidirectional", activation_alpha=[0.3], activation_beta=[0.4], **each)


def export(name, run, inputs, dynamic=None, axes=("d0", "d1"), **parts):
    """A module with `parts` whose forward is `run`. In `_dyn`, the axes `dynamic` of each input (the first two if not
    given) have no fixed size; the exporter over TorchScript names them as in `axes`."""
    model, given = type("Model", (nn.Module,), {"forward": run})(), tuple(inputs.values())
    for key, part in parts.items():
        setattr(model, key, part)
    with torch.no_grad():
        results = model.eval()(*given)
    results = {f"out{i}": v for i, v in enumerate(results if isinstance(results, tuple) else [results])}
    dynamic = (dynamic or [(0, 1)] * len(given)) if name.endswith("_dyn") else [()] * len(given)
    if ".ts" in name:
        named = {k: {a: axes[a] for a in free} for k, free in zip(inputs, dynamic, strict=True)}
        options = {"dynamo": False, "dynamic_axes": named, "opset_version": 14 if name.endswith("_dyn") else 17}
    else:
        free = tuple({a: torch.export.Dim.AUTO for a in free} for free in dynamic)
        options = {"dynamo": True, "dynamic_shapes": free, "external_data": False, "verbose": False}
    options |= {"input_names": list(inputs), "output_names": list(results)}
    torch.onnx.export(model, given, OUT / f"{name}.onnx", **options)
    save(name, *({k: v.numpy() for k, v in side.items()} for side in (inputs, results)))


def lstm(inputs, hidden, layers=1, **options):
    return nn.LSTM(inputs, hidden, layers, batch_first=True, **options)


def words():
    tokens = torch.randint(1, 20, (3, 7))
    tokens[1, 5:], tokens[2, 3:] = 0, 0  # padded after
    named, x, table = {"tokens": tokens}, {"x": tokens}, nn.Embedding(20, 8, padding_idx=0)

    def states(m, x, h, c):
        y, (h, c) = m.lstm(m.table(x), (h, c))
        return m.linear(y), h, c

    def joined(m, x):
        h = m.lstm(m.table(x))[1][0]
        return m.linear(torch.cat((h[-2], h[-1]), 1).relu()).softmax(-1)

    def masked(m, x):
        mask = (x != 0).float().unsqueeze(-1)
        return m.linear((m.lstm(m.table(x))[0] * mask).sum(1) / mask.sum(1).clamp(min=1))

    parts = {"table": nn.Embedding(20, 12), "lstm": lstm(12, 12, 2), "linear": nn.Linear(12, 20)}
    given = named | {"in1": torch.randn(2, 3, 12), "in2": torch.randn(2, 3, 12)}
    export("lm_state.ts_dyn", states, given, dynamic=[(0, 1), (1,), (1,)], **parts)
    given = {"tokens": tokens[:2, :5]}
    export("lm_logp.dy_dyn", lambda m, x: m.linear(m.lstm(m.table(x))[0]).log_softmax(-1), given, **parts)
    parts = {"table": nn.Embedding(20, 8), "lstm": lstm(8, 6, bidirectional=True), "linear": nn.Linear(12, 3)}
    export("cls_last.ts", lambda m, x: m.linear(m.lstm(m.table(x))[0][:, -1].relu()).softmax(-1), named, **parts)
    export("cls_cat.dy_dyn", joined, named, **parts)
    parts = {"table": table, "lstm": lstm(8, 6, 2, bidirectional=True, dropout=0.3), "linear": nn.Linear(12, 4)}
    export("tag.dy_dyn", lambda m, x: m.linear(m.lstm(m.table(x))[0]).argmax(-1), x, **parts)
    export("masked.dy", masked, x, table=table, lstm=lstm(8, 6), linear=nn.Linear(6, 4))
    export("onehot.ts", lambda m, x: m.lstm(F.one_hot(x, 20).float())[0], x, lstm=lstm(20, 4))


def lengths():
    count = torch.tensor([4, 6, 2])
    x, tokens = torch.randn(3, 6, 5), torch.randint(1, 20, (3, 6))
    given, read = {"x": x, "in1": count}, {"x": tokens, "in1": count}
    free = {"dynamic": [(0, 1), (0,)], "axes": ("batch", "time")}

    def packed(m, x, count, state=None):
        y, ends = m.lstm(pack_padded_sequence(x, count, batch_first=True, enforce_sorted=False), state)
        return pad_packed_sequence(y, batch_first=True)[0], ends[0]

    def attended(m, x, count):
        y = m.lstm(m.table(x))[0]
        inside = torch.arange(x.size(1))[None, :] < count[:, None]
        weights = m.fits(torch.tanh(y)).squeeze(-1).masked_fill(~inside, float("-inf")).softmax(1)
        return m.linear(torch.bmm(weights.unsqueeze(1), y).squeeze(1))

    def mean(m, x, count):
        y = m.lstm(m.table(x))[0]
        inside = (torch.arange(x.size(1))[None, :] < count[:, None]).unsqueeze(-1)
        return m.linear((y * inside).sum(1) / count.unsqueeze(1).float())

    def gathered(m, x, count):
        y = packed(m, m.table(x), count)[0]
        return m.linear(y.gather(1, (count - 1).view(-1, 1, 1).expand(-1, 1, 6)).squeeze(1))

    def both_ways(m, x):
        back = m.back(torch.flip(x, [1]))[0]
        return m.linear(torch.cat([m.lstm(x)[0], torch.flip(back, [1])], -1))

    def summed(m, x):
        y = m.lstm(x)[0]
        return torch.einsum("bt,bth->bh", torch.einsum("bth,bh->bt", y, y[:, -1]).softmax(1), y)

    both, words = lstm(5, 4, bidirectional=True), {"table": nn.Embedding(20, 8), "linear": nn.Linear(6, 2)}
    export("unsorted_bi.ts_dyn", packed, given, **free, lstm=both)
    state = {"in2": torch.randn(1, 3, 4), "in3": torch.randn(1, 3, 4)}
    export("unsorted_state.ts", lambda m, x, n, h, c: packed(m, x, n, (h, c)), given | state, lstm=lstm(5, 4))
    export("unsorted_last.ts_dyn", gathered, read, **free, **words, lstm=lstm(8, 6))
    last = lambda m, x, n: m.linear(m.lstm(x)[0][torch.arange(len(n)), n - 1])
    parts = {"lstm": lstm(5, 4), "linear": nn.Linear(4, 2)}
    export("last_by_length.ts_dyn", last, given, **free, **parts)
    export("last_by_length.dy_dyn", last, given, **free, **parts)
    parts = words | {"lstm": lstm(8, 3, bidirectional=True), "fits": nn.Linear(6, 1)}
    export("attended_to_length.dy_dyn", attended, read, **free, **parts)
    export("mean_by_length.ts_dyn", mean, read, **free, **words, lstm=lstm(8, 6))
    export("both_ways.ts_dyn", both_ways, {"x": x}, lstm=lstm(5, 4), back=lstm(5, 4), linear=nn.Linear(8, 2))
    export("summed.ts", summed, {"x": x}, lstm=lstm(5, 4))
    export("compared.dy_dyn", lambda m, x: m.lstm(F.one_hot(x, 20).float())[0], {"x": tokens}, lstm=lstm(20, 4))


def steps():
    def step(m, x, h, c):
        y, (h, c) = m.lstm(m.table(x.unsqueeze(1)), (h, c))
        return m.linear(y.squeeze(1)), h, c

    # Tokens in one dimension are no lengths.
    given = {"x": torch.randint(1, 20, (3,)), "in1": torch.randn(1, 3, 4), "in2": torch.randn(1, 3, 4)}
    export("one_step.dy", step, given, table=nn.Embedding(20, 5), lstm=lstm(5, 4), linear=nn.Linear(4, 9))


def attention():
    x = {"x": torch.randn(3, 6, 5)}

    def products(m, x):
        y, (h, _) = m.lstm(x)
        weights = torch.bmm(y, h[-1].unsqueeze(2)).squeeze(2).softmax(1)
        return m.linear(torch.bmm(y.transpose(1, 2), weights.unsqueeze(2)).squeeze(2))

    def luong(m, source, target):
        encoded, state = m.encoder(m.source(source))
        decoded = m.decoder(m.target(target), state)[0]
        return m.linear(torch.cat([decoded, torch.bmm(torch.bmm(decoded, encoded.mT).softmax(-1), encoded)], -1))

    def heads(m, x):
        y = m.lstm(x)[0]
        return m.linear(m.heads(y, y, y, need_weights=False)[0][:, -1])

    parts = {"lstm": lstm(5, 7, bidirectional=True), "score": nn.Linear(14, 1), "linear": nn.Linear(14, 3)}
    export("attn.dy", lambda m, x: m.linear((m.score(y := m.lstm(x)[0]).tanh().softmax(1) * y).sum(1)), x, **parts)
    export("attn_bmm.ts", products, x, lstm=lstm(5, 7), linear=nn.Linear(7, 3))
    parts = {"source": nn.Embedding(20, 5), "target": nn.Embedding(20, 5), "encoder": lstm(5, 4), "decoder": lstm(5, 4)}
    given = {"x": torch.randint(0, 20, (3, 7)), "in1": torch.randint(0, 20, (3, 4))}
    export("luong.dy_dyn", luong, given, **parts, linear=nn.Linear(8, 9))
    parts = {"lstm": lstm(5, 4), "heads": nn.MultiheadAttention(4, 2, batch_first=True), "linear": nn.Linear(4, 2)}
    export("mha.dy_dyn", heads, x, **parts)


def series():
    x, longer, named = {"x": torch.randn(3, 6, 5)}, {"x": torch.randn(3, 9, 5)}, ("batch", "time")

    def learned(m, x):
        return m.linear(m.lstm(x, [s.expand(1, x.size(0), 7).contiguous() for s in (m.h, m.c)])[0])

    def packed(m, x, lengths):
        y, (h, _) = m.lstm(pack_padded_sequence(x, lengths, batch_first=True))
        return pad_packed_sequence(y, batch_first=True)[0], h

    def cell(m, x, h, c):
        h, c = m.cell(x, (h, c))
        return m.linear(h), h, c

    def manual(m, x):
        h = c = torch.zeros(x.size(0), 4)
        for t in range(6):
            i, f, g, o = (m.input(x[:, t]) + m.hidden(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h

    parts = {"lstm": lstm(5, 4), "linear": nn.Linear(4, 2)}
    export("diff.ts_dyn", lambda m, x: m.linear(m.lstm(x[:, 1:] - x[:, :-1])[0][:, -1]), x, axes=named, **parts)
    parts["linear"] = nn.Linear(12, 2)
    export("last3.ts_dyn", lambda m, x: m.linear(m.lstm(x)[0][:, -3:].reshape(x.size(0), -1)), x, axes=named, **parts)
    parts["linear"] = nn.Linear(4, 6)
    export("l2norm.ts", lambda m, x: F.normalize(m.linear(m.lstm(x)[0][:, -1]), dim=1), x, **parts)
    parts = {"lstm": lstm(5, 4), "places": nn.Parameter(torch.randn(1, 30, 5))}
    export("posparam.ts", lambda m, x: m.lstm(x + m.places[:, : x.size(1)])[0], x, **parts)
    parts = {"lstm": lstm(4, 8, 2), "norm": nn.BatchNorm1d(8), "linear": nn.Linear(8, 1)}
    parts["norm"](torch.randn(9, 8) * 2 + 1)  # moves the statistics
    given = {"x": torch.randn(3, 6, 4)}
    export("fore_bn.ts", lambda m, x: m.linear(m.norm(m.lstm(x)[0][:, -1])).squeeze(-1), given, **parts)
    parts = {"conv": nn.Conv1d(5, 6, 4, stride=2, padding=1), "lstm": lstm(6, 4)}
    export("conv_k4s2p1.dy", lambda m, x: m.lstm(m.conv(x.mT).relu().mT)[0][:, -1], longer, **parts)
    parts = {"conv": nn.Sequential(nn.Conv1d(5, 8, 3), nn.LeakyReLU(), nn.MaxPool1d(2)), "lstm": lstm(8, 7)}
    parts["linear"] = nn.Linear(7, 3)
    export("convpool.dy", lambda m, x: m.linear(m.lstm(m.conv(x.mT).mT)[0][:, -1]), longer, **parts)
    parts = {"encoder": lstm(5, 4), "lstm": lstm(4, 5)}
    export("auto.dy_dyn", lambda m, x: m.lstm(m.encoder(x)[1][0][-1][:, None].repeat(1, x.size(1), 1))[0], x, **parts)
    parts = {k: nn.Parameter(torch.randn(1, 1, 7)) for k in ("h", "c")}
    export("learned.ts_dyn", learned, x, **parts, lstm=lstm(5, 7), linear=nn.Linear(7, 3))
    given = x | {"in1": torch.tensor([6, 4, 2])}
    export("packed_bi.ts_dyn", packed, given, dynamic=[(0, 1), ()], lstm=lstm(5, 7, bidirectional=True))
    given = {"x": torch.randn(3, 5), "in1": torch.randn(3, 4), "in2": torch.randn(3, 4)}
    export("cell.ts", cell, given, cell=nn.LSTMCell(5, 4), linear=nn.Linear(4, 2))
    export("manual.ts", manual, x, input=nn.Linear(5, 16), hidden=nn.Linear(4, 16))


if __name__ == "__main__":
    torch.manual_seed(0)
    OUT.mkdir(parents=True, exist_ok=True)
    package_tests("test_lstm_batchwise", "test_lstm_with_peepholes")
    lstm_nodes()
    words()
    attention()
    series()
    lengths()
    steps()
