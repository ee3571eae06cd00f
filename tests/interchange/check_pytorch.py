"""Asks PyTorch and ONNX Runtime whether a model of PyTorch comes back from `mnemon convert` as it was, and from ONNX.

    python tests/interchange/check_pytorch.py target/release/mnemon     needs torch, safetensors and onnxruntime
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime
import torch
from safetensors.torch import load_file


class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 8)
        self.bidirectional = torch.nn.LSTM(8, 6, 2, bidirectional=True, batch_first=True)
        self.dense = torch.nn.Linear(12, 5)

    def forward(self, tokens):
        return self.dense(self.bidirectional(self.embedding(tokens))[0])


torch.manual_seed(1)
model, tokens = Tagger(), torch.randint(0, 20, (3, 7))
wanted = model(tokens)
with tempfile.TemporaryDirectory() as folder:
    saved, state, graph = (Path(folder) / name for name in ["model.pt", "state.safetensors", "model.onnx"])
    torch.save(model.state_dict(), saved)
    subprocess.run([sys.argv[1], "convert", saved, state, "--format", "pytorch"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.argv[1], "convert", saved, graph], check=True, stdout=subprocess.DEVNULL)
    back = Tagger()
    back.load_state_dict(load_file(state))
    [run] = onnxruntime.InferenceSession(graph).run(["logits"], {"tokens": tokens.numpy()})
for name, got in [("PyTorch", back(tokens)), ("ONNX Runtime", torch.from_numpy(run))]:
    error = ((got - wanted).norm() / wanted.norm()).item()
    assert error <= 1e-5, f"{name}: {error}"
    print(f"ok {name}: {error:.1e}")
