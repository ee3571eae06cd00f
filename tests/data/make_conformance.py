"""Makes tests/data/conformance: a few tiny LSTM cases in the format of the project's conformance folder.

    python tests/data/make_conformance.py     needs torch and safetensors

Inputs and parameters are exact float32 values; results are computed in float64 and rounded once.
"""
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

HERE = Path(__file__).resolve().parent / "conformance"
#        name            I  H  L  bias   batch_first  state  B  T  lengths
CASES = [
    ("plain",            3, 5, 1, True,  False, True,  2, 4, None),
    ("two_layers",       2, 3, 2, True,  True,  False, 3, 5, None),
    ("no_bias",          4, 2, 1, False, False, True,  1, 3, None),
    ("lengths",          3, 4, 2, True,  False, True,  4, 6, [2, 5, 1, 5]),
    ("bidirectional",    2, 3, 1, True,  False, False, 2, 3, None),
]


def draw(generator, *shape):
    return torch.randn(*shape, generator=generator).double()


def run(lstm, x, state, lengths, batch_first):
    if lengths is None:
        return lstm(x, state)
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first, enforce_sorted=False)
    y, state = lstm(packed, state)
    time = x.shape[1 if batch_first else 0]
    return pad_packed_sequence(y, batch_first, total_length=time)[0], state


def make(seed, name, i, h, layers, bias, batch_first, has_state, batch, time, lengths):
    generator = torch.Generator().manual_seed(seed)
    both = name == "bidirectional"
    lstm = torch.nn.LSTM(i, h, layers, bias, batch_first, bidirectional=both).double()
    for p in lstm.parameters():
        p.data = (torch.rand(p.shape, generator=generator) * 2 - 1).div(h**0.5).float().double()
    x = draw(generator, *((batch, time) if batch_first else (time, batch)), i).requires_grad_()
    tensors, state = {"in.x": x}, None
    if has_state:
        state = [draw(generator, layers, batch, h).requires_grad_() for _ in range(2)]
        tensors |= {"in.h0": state[0], "in.c0": state[1]}
    y, (h_n, c_n) = run(lstm, x, state and tuple(state), lengths, batch_first)
    outputs = {"y": y, "h_n": h_n, "c_n": c_n}
    up = {k: draw(generator, *v.shape) for k, v in outputs.items()}
    sum((v * up[k]).sum() for k, v in outputs.items()).backward()
    tensors |= {f"grad.{k[3:]}": v.grad for k, v in tensors.items()}
    tensors |= {f"param.{k}": v for k, v in lstm.named_parameters()}
    tensors |= {f"grad.{k}": v.grad for k, v in lstm.named_parameters()}
    tensors |= {f"out.{k}": v for k, v in outputs.items()} | {f"up.{k}": v for k, v in up.items()}
    tensors = {k: v.detach().float().contiguous() for k, v in tensors.items()}
    if lengths is not None:
        tensors["in.lengths"] = torch.tensor(lengths)
    save_file(tensors, HERE / f"{name}.safetensors")
    return dict(name=name, file=f"{name}.safetensors", input_size=i, hidden_size=h, num_layers=layers, bias=bias,
                batch_first=batch_first, bidirectional=both, proj_size=0, batch=batch, time=time,
                has_initial_state=has_state, lengths=lengths, tol_forward=1e-5, tol_grad=1e-4)


HERE.mkdir(exist_ok=True)
cases = [make(seed, *case) for seed, case in enumerate(CASES)]
(HERE / "cases.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")
