"""Makes tests/data/adam.safetensors: 20 steps of PyTorch's Adam on a two-layer LSTM and a linear layer.

    python tests/data/make_adam.py     needs torch and safetensors

The task is regression by the mean squared error; float64 inside, from exact float32 values. The file holds the first
weights under their PyTorch names, `x` [T, B, I], `target` [T, B, O] and the loss before each step, `losses` [20].
"""
from pathlib import Path

import torch
from safetensors.torch import save_file

I, H, O, L, B, T, STEPS, LR = 5, 7, 3, 2, 4, 9, 20, 1e-2

torch.manual_seed(11)
lstm, dense = torch.nn.LSTM(I, H, L), torch.nn.Linear(H, O)
tensors = {f"lstm.{k}": v.detach().clone() for k, v in lstm.named_parameters()}
tensors |= {f"dense.{k}": v.detach().clone() for k, v in dense.named_parameters()}
tensors |= {"x": torch.randn(T, B, I), "target": torch.randn(T, B, O)}
lstm, dense = lstm.double(), dense.double()
x, target = tensors["x"].double(), tensors["target"].double()
adam = torch.optim.Adam([*lstm.parameters(), *dense.parameters()], lr=LR)
losses = []
for _ in range(STEPS):
    loss = torch.nn.functional.mse_loss(dense(lstm(x)[0]), target)
    adam.zero_grad()
    loss.backward()
    adam.step()
    losses.append(loss.item())
tensors["losses"] = torch.tensor(losses)
save_file(tensors, Path(__file__).resolve().parent / "adam.safetensors")
print(losses)
