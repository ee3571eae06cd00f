"""Makes the `.pt` files of tests/data/models from the state dicts there: the same parameters as `torch.save` writes them.

    python tests/data/make_checkpoints.py     needs torch and safetensors
"""
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent / "models"


def state(name):
    return OrderedDict(load_file(HERE / f"{name}.state.safetensors"))


# A checkpoint of training; the linear layer's weight is the embedding's, in one storage.
tied = state("tied")
tied["linear.weight"] = tied["embedding.weight"]
module = torch.nn.ParameterDict({k.replace(".", "_"): v.clone() for k, v in tied.items()})
optimizer = torch.optim.Adam(module.parameters())
sum(p.square().sum() for p in module.parameters()).backward()
optimizer.step()
torch.save({"epoch": 3, "model_state_dict": tied, "optimizer": optimizer.state_dict(), "note": "ε"}, HERE / "tied.pt")

# DataParallel's names, and parameters as such.
deep = OrderedDict((f"module.{k}", torch.nn.Parameter(v)) for k, v in state("deep").items())
torch.save(deep, HERE / "deep.pt")

# A matrix that is stored by columns, and views of one storage.
square = state("square")
square["b.weight_ih_l0"] = square["b.weight_ih_l0"].t().contiguous().t()
square["a.weight"], square["c.weight"] = torch.stack([square["a.weight"], square["c.weight"]]).unbind()
assert not square["b.weight_ih_l0"].is_contiguous() and square["c.weight"].storage_offset() == 64
torch.save(square, HERE / "square.pt")
