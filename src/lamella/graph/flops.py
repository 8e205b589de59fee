"""How many floating-point operations a node costs, from its shapes alone.

A multiply-accumulate counts two. The table covers the operators that carry nearly all the work of the models we serve;
everything else counts one per output element. Figures feed `inspect`, thinning and explanation only: time is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

Shape = Sequence[int]
Attributes = dict[str, Any]


def _matmul(ins: list[Shape], outs: list[Shape], attrs: Attributes) -> int:
    return 2 * prod(outs[0]) * (ins[0][-1] if ins[0] else 1)


def _gemm(ins: list[Shape], outs: list[Shape], attrs: Attributes) -> int:
    inner = ins[0][0] if attrs.get("transA") else ins[0][-1]
    return 2 * prod(outs[0]) * inner


def _conv(ins: list[Shape], outs: list[Shape], attrs: Attributes) -> int:
    return 2 * prod(outs[0]) * prod(ins[1][1:])


def _conv_quantised(ins: list[Shape], outs: list[Shape], attrs: Attributes) -> int:
    return 2 * prod(outs[0]) * prod(ins[3][1:])  # after the input come its scale and zero point


def _conv_transpose(ins: list[Shape], outs: list[Shape], attrs: Attributes) -> int:
    return 2 * prod(ins[0]) * prod(ins[1][1:])


def _recurrent(gates: int) -> Callable[[list[Shape], list[Shape], Attributes], int]:
    def count(ins: list[Shape], outs: list[Shape], attrs: Attributes) -> int:
        steps, batch, width = ins[0]
        directions, _, hidden = ins[2]
        return 2 * steps * batch * directions * gates * hidden * (width + hidden)

    return count


def _pool(ins: list[Shape], outs: list[Shape], attrs: Attributes) -> int:
    return prod(outs[0]) * prod(attrs.get("kernel_shape") or ins[0][2:])


def _per_input(factor: int) -> Callable[[list[Shape], list[Shape], Attributes], int]:
    return lambda ins, outs, attrs: factor * prod(ins[0])


TABLE: dict[str, Callable[[list[Shape], list[Shape], Attributes], int]] = {
    "MatMul": _matmul, "MatMulInteger": _matmul, "QLinearMatMul": _matmul, "FusedMatMul": _matmul,
    "DynamicQuantizeMatMul": _matmul, "Gemm": _gemm,
    "Conv": _conv, "ConvInteger": _conv, "FusedConv": _conv,
    "QLinearConv": _conv_quantised, "ConvTranspose": _conv_transpose,
    "LSTM": _recurrent(4), "GRU": _recurrent(3), "RNN": _recurrent(1),
    "MaxPool": _pool, "AveragePool": _pool, "GlobalAveragePool": _per_input(1), "GlobalMaxPool": _per_input(1),
    "ReduceMean": _per_input(1), "ReduceSum": _per_input(1), "ReduceMax": _per_input(1),
    "BatchNormalization": _per_input(2), "LayerNormalization": _per_input(8), "InstanceNormalization": _per_input(8),
    "Softmax": _per_input(4), "LogSoftmax": _per_input(4), "Erf": _per_input(8), "Gelu": _per_input(10),
}  # fmt: skip
"""Formulas by operator kind: (input shapes, output shapes, attributes) -> FLOPs."""

FREE = frozenset(
    "Reshape Flatten Squeeze Unsqueeze Identity Dropout Transpose Shape Gather Slice Concat Split Cast Expand".split()
)
"""Operators that move data without arithmetic."""


def flops(kind: str, ins: list[Shape], outs: list[Shape], attrs: Attributes) -> int:
    """FLOPs of one node; shapes are in the order of the node's inputs and outputs, () where unknown."""
    if kind in FREE or not outs:
        return 0
    formula = TABLE.get(kind)
    try:
        return int(formula(ins, outs, attrs)) if formula else int(prod(outs[0]))
    except (IndexError, ValueError):  # an optional input left out or a rank the formula does not know
        return int(prod(outs[0]))
