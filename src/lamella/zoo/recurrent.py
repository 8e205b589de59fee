"""Stacked one-directional LSTMs with a dense head on every step.

Requests stack on the first axis outside; ONNX's LSTM wants time first (its `layout=1` is not implemented by
onnxruntime's CPU kernel), so one Transpose leads in and one leads out. Tensors between the layers therefore have the
batch on axis 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lamella.units import BATCH
from lamella.zoo.draft import Blueprint, Draft
from lamella.zoo.spec import InputSpec


@dataclass(frozen=True, slots=True)
class Stack:
    """The sizes of one stack: `layers` LSTMs, each `width` wide, over `steps` steps, then `head` outputs per step."""

    layers: int
    width: int
    steps: int
    head: int

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """`x` float32 ["N", steps, width], standard normal."""
        return (InputSpec("x", "float32", (BATCH, self.steps, self.width), -3.0, 3.0, normal=True),)

    def build(self, name: str) -> Blueprint:
        """The model called `name`; output `y` float32 ["N", steps, head]."""
        draft = Draft(name)
        axis = draft.constant("direction", np.array([1], np.int64))
        state = draft.node("Transpose", "x", name="time_first", perm=[1, 0, 2])
        for layer in range(self.layers):
            state = draft.node("Squeeze", self._lstm(draft, f"lstm{layer}", state), axis, name=f"lstm{layer}.state")
        back = draft.node("Transpose", state, name="batch_first", perm=[1, 0, 2])
        product = draft.node(
            "MatMul", back, draft.weight("head.weight", self.width, self.head, std=self.width**-0.5), name="head"
        )
        output = draft.node("Add", product, draft.weight("head.bias", self.head, std=0.02), name="y")
        return draft.finish(
            {spec.name: (spec.dtype, spec.shape) for spec in self.inputs}, output, (BATCH, self.steps, self.head)
        )

    def _lstm(self, draft: Draft, name: str, state: str) -> str:
        # A state lies in (-1, 1), so at 1/sqrt(width) the signal shrinks from layer to layer; twice that holds it.
        kernel = draft.weight(f"{name}.kernel", 1, 4 * self.width, self.width, std=2 * self.width**-0.5)
        recurrent = draft.weight(f"{name}.recurrent", 1, 4 * self.width, self.width, std=self.width**-0.5)
        bias = draft.weight(f"{name}.bias", 1, 8 * self.width, std=0.05)
        return draft.node("LSTM", state, kernel, recurrent, bias, name=name, hidden_size=self.width)


BASE = Stack(layers=4, width=1024, steps=64, head=16)
TINY = Stack(layers=2, width=64, steps=8, head=4)
