"""Checks in Keras the `.keras` files that `cargo test --test keras` wrote.

    python tests/interchange/check_keras.py target/tmp/keras     needs keras with a backend, and safetensors

Each NAME.keras is loaded and run on the `in.*` of NAME.safetensors, which lies beside it or in tests/data/models, and
has to give its `out.*`. NAME.weights.h5, where there is one, is then loaded into the same model.
"""
import sys
from pathlib import Path

import keras
import numpy as np
from safetensors.numpy import load_file

DATA = Path(__file__).resolve().parents[1] / "data" / "models"
# The order in which models of tests/data give several outputs; others have one.
ORDER = ["y", "turned", "mean", "h", "c", "h_reverse", "c_reverse"]


def check(path):
    beside = path.with_suffix(".safetensors")
    tensors = load_file(beside if beside.exists() else DATA / beside.name)
    given = {name[3:]: value for name, value in tensors.items() if name.startswith("in.")}
    wanted = sorted((ORDER.index(name[4:]), value) for name, value in tensors.items() if name.startswith("out."))
    model = keras.models.load_model(path)
    weights = path.with_suffix(".weights.h5")
    if weights.exists():
        for weight in model.weights:
            weight.assign(np.zeros(weight.shape))
        model.load_weights(weights)
    inputs = [given.get(x.name, next(iter(given.values()))).astype(x.dtype) for x in model.inputs]
    got = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
    got = got if isinstance(got, (list, tuple)) else [got]
    assert len(got) == len(wanted), f"{path}: expected {len(wanted)} outputs, got {len(got)}"
    for (_, value), result in zip(wanted, got, strict=True):
        assert result.shape == value.shape, f"{path}: expected {value.shape}, got {result.shape}"
        np.testing.assert_allclose(result, value, rtol=1e-5, atol=1e-5, err_msg=str(path))


if __name__ == "__main__":
    files = sorted(Path(sys.argv[1]).glob("*.keras"))
    assert files, "expected a folder of .keras files"
    for path in files:
        check(path)
        print("ok", path.name)
