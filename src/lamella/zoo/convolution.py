"""A small residual network, for tests that want a convolution, a branch and a head in milliseconds."""

from __future__ import annotations

from lamella.units import BATCH
from lamella.zoo.draft import Blueprint, Draft
from lamella.zoo.spec import InputSpec

_SIDE, _CLASSES = 32, 10
INPUTS = (InputSpec("x", "float32", (BATCH, 3, _SIDE, _SIDE), -3.0, 3.0, normal=True),)


def build(name: str) -> Blueprint:
    """The model called `name`; output `probabilities` float32 ["N", 10]."""
    draft = Draft(name)

    def conv(label: str, data: str, channels_in: int, channels_out: int, stride: int = 1) -> str:
        # He et al. 2015, equation 10: variance 2 / fan-in keeps the signal through ReLUs.
        std = (2 / (9 * channels_in)) ** 0.5
        weight = draft.weight(f"{label}.weight", channels_out, channels_in, 3, 3, std=std)
        bias = draft.weight(f"{label}.bias", channels_out, std=0.05)
        return draft.node(
            "Conv", data, weight, bias, name=label, kernel_shape=[3, 3], pads=[1] * 4, strides=[stride, stride]
        )

    stem = draft.node("Relu", conv("stem", "x", 3, 16), name="stem.relu")
    down = draft.node("Relu", conv("down", stem, 16, 32, stride=2), name="down.relu")
    left = draft.node("Relu", conv("left", down, 32, 32), name="left.relu")
    joined = draft.node("Add", conv("right", left, 32, 32), down, name="joined")
    pooled = draft.node("GlobalAveragePool", draft.node("Relu", joined, name="joined.relu"), name="pooled")
    flat = draft.node("Flatten", pooled, name="flat", axis=1)
    weight = draft.weight("head.weight", _CLASSES, 32, std=32**-0.5)
    bias = draft.weight("head.bias", _CLASSES, std=0.05)
    logits = draft.node("Gemm", flat, weight, bias, name="head", transB=1)
    output = draft.node("Softmax", logits, name="probabilities", axis=-1)
    return draft.finish({spec.name: (spec.dtype, spec.shape) for spec in INPUTS}, output, (BATCH, _CLASSES))
