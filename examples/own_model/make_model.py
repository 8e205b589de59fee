"""Write `model.onnx`, a small encoder with a mask beside its data, and `x.npz`, one request for it.

Eight layers of matrix product, gate (x times sigmoid of x) and mask. The mask comes with the request and is read by
every layer, so it crosses every cut as a side input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS, ROWS, WIDTH = 8, 32, 128


def model() -> onnx.ModelProto:
    """Inputs `x` float32 [batch, 32, 128] and `mask` float32 [batch, 32, 1]; output `y` like `x`."""
    rng = np.random.default_rng(0)
    nodes, weights, at = [], [], "x"
    for k in range(LAYERS):
        weight = (rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{k}"))
        nodes += [
            helper.make_node("MatMul", [at, f"w{k}"], [f"product{k}"]),
            helper.make_node("Sigmoid", [f"product{k}"], [f"gate{k}"]),
            helper.make_node("Mul", [f"product{k}", f"gate{k}"], [f"gated{k}"]),
            helper.make_node("Mul", [f"gated{k}", "mask"], ["y" if k == LAYERS - 1 else f"masked{k}"]),
        ]
        at = f"masked{k}"
    shapes: dict[str, list[str | int | None]] = {
        "x": ["batch", ROWS, WIDTH],
        "mask": ["batch", ROWS, 1],
        "y": ["batch", ROWS, WIDTH],
    }
    values = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    graph = helper.make_graph(nodes, "own", [values["x"], values["mask"]], [values["y"]], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def main(directory: Path) -> None:
    """Write both files."""
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(model(), directory / "model.onnx")
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, ROWS, WIDTH), dtype=np.float32)
    mask = (np.arange(ROWS) < 20).astype(np.float32).reshape(1, ROWS, 1)
    np.savez(directory / "x.npz", x=x, mask=mask)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
