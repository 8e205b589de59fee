"""Transformers that normalise before each part: ViT (Dosovitskiy et al. 2021) and GPT-2 (Radford et al. 2019).

Unlike BERT they carry one residual state from end to end, so a cut between layers has a single tensor. GPT-2's output
embedding is the word table itself, read by the first operator and by the last, and stored once: a Gemm with transB
reads it as it lies, where a Transpose would be folded into a second copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lamella.units import BATCH
from lamella.zoo.draft import Blueprint, Draft
from lamella.zoo.spec import InputSpec
from lamella.zoo.transformer import HIDDEN, STD, Block


@dataclass(frozen=True, slots=True)
class Vision:
    """The sizes of an image classifier: `side` pixels cut into patches of `patch` pixels."""

    layers: int
    block: Block
    side: int
    patch: int
    classes: int

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """`x` float32 ["N", 3, side, side], standard normal like a normalised photo."""
        return (InputSpec("x", "float32", (BATCH, 3, self.side, self.side), -3.0, 3.0, normal=True),)

    def build(self, name: str) -> Blueprint:
        """The model called `name`; output `logits` float32 ["N", classes]."""
        draft = Draft(name)
        self.block.constants(draft)
        state = _layers(draft, self.block, self.layers, self._embed(draft))
        first = draft.node("Gather", state, draft.constant("first", np.array(0, np.int64)), name="pooled", axis=1)
        normed = self.block.norm(draft, "norm", first)
        hidden = self.block.hidden
        weight = draft.weight("head.weight", self.classes, hidden, std=hidden**-0.5)
        bias = draft.weight("head.bias", self.classes, std=STD)
        output = draft.node("Gemm", normed, weight, bias, name="logits", transB=1)
        return draft.finish(
            {spec.name: (spec.dtype, spec.shape) for spec in self.inputs}, output, (BATCH, self.classes)
        )

    def _embed(self, draft: Draft) -> str:
        """The patches after a row for the class, whose token is part of row 0 of the position table."""
        hidden, patch, patches = self.block.hidden, self.patch, (self.side // self.patch) ** 2
        weight = draft.weight("patch.weight", hidden, 3, patch, patch, std=(3 * patch * patch) ** -0.5)
        bias = draft.weight("patch.bias", hidden, std=STD)
        image = draft.node("Conv", "x", weight, bias, name="patch", kernel_shape=[patch] * 2, strides=[patch] * 2)
        grid = draft.constant("grid", np.array([0, hidden, patches], np.int64))
        rows = draft.node("Transpose", draft.node("Reshape", image, grid, name="flat"), name="rows", perm=[0, 2, 1])
        pads = draft.constant("pads", np.array([0, 1, 0, 0, 0, 0], np.int64))
        padded = draft.node("Pad", rows, pads, name="class.row")
        positions = draft.weight("position", patches + 1, hidden, std=STD)
        return draft.node("Add", padded, positions, name="embeddings")


@dataclass(frozen=True, slots=True)
class Decoder:
    """The sizes of a language model's prefill: `sequence` tokens in, the scores of the next one out."""

    layers: int
    block: Block
    vocabulary: int
    sequence: int

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """`input_ids` int64 ["N", sequence]."""
        return (InputSpec("input_ids", "int64", (BATCH, self.sequence), 0, self.vocabulary),)

    def build(self, name: str) -> Blueprint:
        """The model called `name`; output `logits` of the last position, float32 ["N", vocabulary]."""
        draft = Draft(name)
        self.block.constants(draft)
        causal = np.triu(np.full((self.sequence, self.sequence), HIDDEN, np.float32), 1)
        mask = draft.constant("causal", causal)
        words = draft.weight("words", self.vocabulary, self.block.hidden, std=STD)
        positions = draft.weight("positions", self.sequence, self.block.hidden, std=STD)
        rows = draft.node("Gather", words, "input_ids", name="words.rows")
        state = draft.node("Add", rows, positions, name="embeddings")
        state = _layers(draft, self.block, self.layers, state, mask)
        index = draft.constant("last", np.array(self.sequence - 1, np.int64))
        last = self.block.norm(draft, "norm", draft.node("Gather", state, index, name="last.row", axis=1))
        output = draft.node("Gemm", last, words, name="logits", transB=1)
        return draft.finish(
            {spec.name: (spec.dtype, spec.shape) for spec in self.inputs}, output, (BATCH, self.vocabulary)
        )


def _layers(draft: Draft, block: Block, layers: int, state: str, mask: str = "") -> str:
    for layer in range(layers):
        label = f"layer{layer}"
        normed = block.norm(draft, f"{label}.attention.norm", state)
        attended = block.attend(draft, f"{label}.attention", normed, mask)
        state = draft.node("Add", state, attended, name=f"{label}.attended")
        fed = block.feed(draft, f"{label}.ffn", block.norm(draft, f"{label}.ffn.norm", state))
        state = draft.node("Add", state, fed, name=f"{label}.fed")
    return state


VIT_LARGE = Vision(layers=24, block=Block(1024, 16, 4096, 1e-6), side=224, patch=16, classes=1000)
VIT_TINY = Vision(layers=2, block=Block(64, 4, 128, 1e-6), side=32, patch=8, classes=10)
GPT2_MEDIUM = Decoder(layers=24, block=Block(1024, 16, 4096, 1e-5), vocabulary=50257, sequence=128)
GPT2_TINY = Decoder(layers=2, block=Block(64, 4, 128, 1e-5), vocabulary=500, sequence=16)
