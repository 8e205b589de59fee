"""FLOPs against figures worked out by hand, or published."""

from __future__ import annotations

from typing import Any

import pytest

from lamella.graph.flops import flops

CASES: dict[str, tuple[str, list[tuple[int, ...]], list[tuple[int, ...]], dict[str, Any], int]] = {
    # The first layer of resnet50: 118 million multiply-accumulates (He et al. 2015, table 1 at 224 x 224).
    "resnet50 conv1": ("Conv", [(1, 3, 224, 224), (64, 3, 7, 7)], [(1, 64, 112, 112)], {}, 2 * 118_013_952),
    "grouped conv": ("Conv", [(1, 8, 4, 4), (8, 1, 3, 3), (8,)], [(1, 8, 4, 4)], {"group": 8}, 2 * 128 * 9),
    "quantised conv": (
        "QLinearConv", [(1, 3, 8, 8), (), (), (16, 3, 3, 3), (), (), (), ()], [(1, 16, 8, 8)], {}, 2 * 1024 * 27,
    ),
    "transposed conv": ("ConvTranspose", [(1, 4, 5, 5), (4, 2, 3, 3)], [(1, 2, 7, 7)], {}, 2 * 100 * 18),
    "matmul": ("MatMul", [(4, 128, 768), (768, 3072)], [(4, 128, 3072)], {}, 2 * 4 * 128 * 768 * 3072),
    # The last layer of vgg19.
    "gemm": ("Gemm", [(1, 4096), (1000, 4096), (1000,)], [(1, 1000)], {"transB": 1}, 2 * 4096 * 1000),
    "gemm, a transposed": ("Gemm", [(4096, 3), (4096, 7)], [(3, 7)], {"transA": 1}, 2 * 3 * 7 * 4096),
    # Four gates, each of input and hidden state, per step.
    "lstm": (
        "LSTM", [(64, 1, 1024), (1, 4096, 1024), (1, 4096, 1024)], [(64, 1, 1, 1024)], {},
        2 * 64 * 4 * 1024 * (1024 + 1024),
    ),
    "lstm, both directions": (
        "LSTM", [(5, 2, 3), (2, 16, 3), (2, 16, 4)], [(5, 2, 2, 4)], {}, 2 * 5 * 2 * 2 * 4 * 4 * (3 + 4),
    ),
    "gru": ("GRU", [(5, 2, 3), (1, 12, 3), (1, 12, 4)], [(5, 1, 2, 4)], {}, 2 * 5 * 2 * 3 * 4 * (3 + 4)),
    "max pool": ("MaxPool", [(1, 8, 6, 6)], [(1, 8, 3, 3)], {"kernel_shape": [2, 2]}, 72 * 4),
    "global pool": ("GlobalAveragePool", [(1, 8, 6, 6)], [(1, 8, 1, 1)], {}, 288),
    "one per element": ("Relu", [(2, 3)], [(2, 3)], {}, 6),
    "an operator nobody knows": ("Frobnicate", [(2, 3)], [(2, 5)], {}, 10),
    "movement is free": ("Transpose", [(2, 3)], [(3, 2)], {}, 0),
    "no output": ("Relu", [(2, 3)], [], {}, 0),
    "shapes a formula does not know": ("LSTM", [(), (), ()], [(5, 1, 2, 4)], {}, 40),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_flops_are_those_worked_out_by_hand(case: str) -> None:
    kind, inputs, outputs, attributes, expected = CASES[case]
    assert flops(kind, list(inputs), list(outputs), attributes) == expected
