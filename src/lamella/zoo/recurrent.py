"""Recurrent networks: stacks of LSTMs with a dense head on every step, and a GRU encoder and decoder with attention.

Requests stack on the first axis outside; ONNX's LSTM and GRU want time first (`layout=1` is not implemented by
onnxruntime's CPU kernels), so one Transpose leads in and one leads out. Tensors between the layers therefore have the
batch on axis 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lamella.units import BATCH
from lamella.zoo.draft import Blueprint, Draft
from lamella.zoo.spec import InputSpec

_NEW_BORN = 0.35
"""Standard deviation of embeddings: near that of the states they join."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The sizes of one stack: `layers` LSTMs, each `width` wide, over `steps` steps, then `head` outputs per step.

    With two `directions` every layer reads the steps forwards and backwards, and gives both states side by side.
    """

    layers: int
    width: int
    steps: int
    head: int
    directions: int = 1

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """`x` float32 ["N", steps, width], standard normal."""
        return (InputSpec("x", "float32", (BATCH, self.steps, self.width), -3.0, 3.0, normal=True),)

    def build(self, name: str) -> Blueprint:
        """The model called `name`; output `y` float32 ["N", steps, head]."""
        draft = Draft(name)
        wide = self.directions * self.width
        if self.directions == 1:
            axis = draft.constant("direction", np.array([1], np.int64))
        else:
            axis = draft.constant("side_by_side", np.array([0, 0, wide], np.int64))
        state = draft.node("Transpose", "x", name="time_first", perm=[1, 0, 2])
        for layer in range(self.layers):
            label = f"lstm{layer}"
            made = self._lstm(draft, label, state, wide if layer else self.width)
            if self.directions == 1:
                state = draft.node("Squeeze", made, axis, name=f"{label}.state")
            else:
                turned = draft.node("Transpose", made, name=f"{label}.turned", perm=[0, 2, 1, 3])
                state = draft.node("Reshape", turned, axis, name=f"{label}.state")
        back = draft.node("Transpose", state, name="batch_first", perm=[1, 0, 2])
        product = draft.node("MatMul", back, draft.weight("head.weight", wide, self.head, std=wide**-0.5), name="head")
        output = draft.node("Add", product, draft.weight("head.bias", self.head, std=0.02), name="y")
        return draft.finish(
            {spec.name: (spec.dtype, spec.shape) for spec in self.inputs}, output, (BATCH, self.steps, self.head)
        )

    def _lstm(self, draft: Draft, name: str, state: str, width_in: int) -> str:
        # A state lies in (-1, 1), so at 1/sqrt(width) the signal shrinks from layer to layer; twice that holds it.
        gates, both = 4 * self.width, self.directions
        kernel = draft.weight(f"{name}.kernel", both, gates, width_in, std=2 * width_in**-0.5)
        recurrent = draft.weight(f"{name}.recurrent", both, gates, self.width, std=self.width**-0.5)
        bias = draft.weight(f"{name}.bias", both, 2 * gates, std=0.05)
        direction = {"direction": "bidirectional"} if both == 2 else {}
        return draft.node("LSTM", state, kernel, recurrent, bias, name=name, hidden_size=self.width, **direction)


@dataclass(frozen=True, slots=True)
class Translator:
    """The sizes of a GRU encoder and decoder that scores a translation (teacher forcing), as training and ranking do.

    One recurrent node per side: greedy decoding would feed every word back, and one ulp could change a whole answer.
    Sizes as in Bahdanau et al. 2015, appendix A; attention as in Luong et al. 2015, section 3.1 ("dot"), because it
    reads all states of the decoder at once.
    """

    vocabulary: int
    embedding: int
    width: int
    steps: int

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Token ids of the source and of the target shifted by one, each int64 ["N", steps]."""
        shape = (BATCH, self.steps)
        return tuple(InputSpec(name, "int64", shape, 0, self.vocabulary) for name in ("source", "target"))

    def build(self, name: str) -> Blueprint:
        """The model called `name`; output `logits` float32 ["N", steps, vocabulary]."""
        draft = Draft(name)
        draft.constant("direction", np.array([1], np.int64))
        draft.constant("last", np.array(self.steps - 1, np.int64))
        read = self._gru(draft, "encoder", self._embed(draft, "source"))
        final = draft.node("Gather", read, "last", name="encoder.last", axis=0)  # [1, N, width]: the one direction
        written = self._gru(draft, "decoder", self._embed(draft, "target"), final)
        keys = self._states(draft, "encoder", read, [1, 2, 0])  # [N, width, steps]
        values = self._states(draft, "encoder.values", read, [1, 0, 2])
        queries = self._states(draft, "decoder", written, [1, 0, 2])
        root = draft.constant("root_width", np.array(self.width**0.5, np.float32))
        product = draft.node("MatMul", queries, keys, name="attention.product")
        scaled = draft.node("Div", product, root, name="attention.scaled")  # else seeded states point at one word
        scores = draft.node("Softmax", scaled, name="attention.scores", axis=-1)
        context = draft.node("MatMul", scores, values, name="attention.context")
        both = draft.node("Concat", context, queries, name="attention.both", axis=-1)
        joined = draft.dense("attention.combine", both, 2 * self.width, self.width, std=self.width**-0.5)
        mixed = draft.node("Tanh", joined, name="attention.state")
        kernel = draft.weight("head.weight", self.width, self.vocabulary, std=self.width**-0.5)
        product = draft.node("MatMul", mixed, kernel, name="head")
        output = draft.node("Add", product, draft.weight("head.bias", self.vocabulary, std=0.02), name="logits")
        return draft.finish(
            {spec.name: (spec.dtype, spec.shape) for spec in self.inputs}, output, (BATCH, self.steps, self.vocabulary)
        )

    def _embed(self, draft: Draft, side: str) -> str:
        """The words of one side, time first."""
        table = draft.weight(f"{side}.words", self.vocabulary, self.embedding, std=_NEW_BORN)
        rows = draft.node("Gather", table, side, name=f"{side}.rows")
        return draft.node("Transpose", rows, name=f"{side}.time_first", perm=[1, 0, 2])

    def _gru(self, draft: Draft, name: str, data: str, initial: str = "") -> str:
        gates = 3 * self.width
        kernel = draft.weight(f"{name}.kernel", 1, gates, self.embedding, std=2 / _NEW_BORN * self.embedding**-0.5)
        recurrent = draft.weight(f"{name}.recurrent", 1, gates, self.width, std=self.width**-0.5)
        bias = draft.weight(f"{name}.bias", 1, 2 * gates, std=0.05)
        start = ("", initial) if initial else ()
        return draft.node(
            "GRU", data, kernel, recurrent, bias, *start, name=name, hidden_size=self.width, linear_before_reset=1
        )

    def _states(self, draft: Draft, name: str, made: str, order: list[int]) -> str:
        flat = draft.node("Squeeze", made, "direction", name=f"{name}.states")
        return draft.node("Transpose", flat, name=f"{name}.batch_first", perm=order)


BASE = Stack(layers=4, width=1024, steps=64, head=16)
TINY = Stack(layers=2, width=64, steps=8, head=4)
WIDE = Stack(layers=4, width=2048, steps=32, head=16)
BOTH = Stack(layers=2, width=1024, steps=64, head=16, directions=2)
BOTH_TINY = Stack(layers=2, width=32, steps=8, head=4, directions=2)
TRANSLATOR = Translator(vocabulary=30000, embedding=620, width=1000, steps=16)
TRANSLATOR_TINY = Translator(vocabulary=200, embedding=24, width=32, steps=16)
