"""Peak memory of a training step beside PyTorch's, for each configuration of `mnemon bench`, in MiB.

    python benches/memory.py target/release/mnemon

Each is a process of its own: the most that it held (its peak resident set), and in brackets that less what it held before the
model was made. A step is loss and gradients of all weights and of the input; three are run.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

CONFIGS = json.loads((Path(__file__).parent / "configs.json").read_text())
MIB = 1024  # ru_maxrss is in KiB on Linux


def torch_step(c):
    """PyTorch's part, in a process of its own; prints what it held before."""
    import torch

    torch.set_num_threads(2)
    (torch.ones(64, 64) @ torch.ones(64, 64)).sum()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
    lstm = torch.nn.LSTM(c["I"], c["H"], c["layers"])
    x = torch.randn(c["T"], c["B"], c["I"], requires_grad=True)
    for _ in range(3):
        lstm.zero_grad(set_to_none=True)
        x.grad = None
        (lstm(x)[0] ** 2).mean().backward()


def peak(command):
    """What the process wrote, and the most that it held."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed")
    return out, usage.ru_maxrss


def main():
    mnemon = [sys.argv[1], "bench", "--device", "cpu", "--threads", "2", "--modes", "train", "--only"]
    # A model of nothing: what the program itself takes.
    _, before = peak([sys.argv[1], "--version"])
    print("| configuration | mnemon | PyTorch |\n| --- | --- | --- |")
    for c in CONFIGS:
        _, ours = peak(mnemon + [c["name"]])
        out, theirs = peak([sys.executable, __file__, "torch", json.dumps(c)])
        own, other = (ours - before) / MIB, (theirs - int(out)) / MIB
        print(f"| {c['name']} | {ours / MIB:.0f} ({own:.0f}) | {theirs / MIB:.0f} ({other:.0f}) |", flush=True)


if sys.argv[1] == "torch":
    torch_step(json.loads(sys.argv[2]))
else:
    main()
