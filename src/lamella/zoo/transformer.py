"""BERT encoders (Devlin et al. 2019, section 3), without the pooler.

Plain MatMul + Add, erf Gelu and the Unsqueeze-Unsqueeze-Cast-Sub-Mul mask: the shape PyTorch exporters write, so that
onnxruntime's fusions meet here what they meet in users' files. The mask is computed once and read by every layer, so
there is no single-tensor cut between layers: that is the point of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lamella.units import BATCH
from lamella.zoo.draft import Blueprint, Draft
from lamella.zoo.spec import InputSpec

STD = 0.02  # initializer_range of the paper's code
HIDDEN = -10000.0
"""Added to the score of a position that may not be read."""


@dataclass(frozen=True, slots=True)
class Block:
    """The sizes of one layer, and the parts all our transformers share: attention, feed-forward, normalisation."""

    hidden: int
    heads: int
    feed_forward: int
    epsilon: float = 1e-12

    def constants(self, draft: Draft, **more: float) -> None:
        """The small constants that the other parts read, and `more` scalars by name."""
        for constant, value in {"one": 1.0, "half": 0.5, "root2": 2.0**0.5, **more}.items():
            draft.constant(constant, np.array(value, np.float32))
        draft.constant("root_head", np.array((self.hidden // self.heads) ** 0.5, np.float32))
        draft.constant("split", np.array([0, 0, self.heads, self.hidden // self.heads], np.int64))
        draft.constant("merge", np.array([0, 0, self.hidden], np.int64))

    def norm(self, draft: Draft, name: str, data: str) -> str:
        """Layer normalisation of `data`."""
        scale = draft.weight(f"{name}.scale", self.hidden, std=STD, mean=1.0)
        bias = draft.weight(f"{name}.bias", self.hidden, std=STD)
        return draft.node("LayerNormalization", data, scale, bias, name=name, axis=-1, epsilon=self.epsilon)

    def attend(self, draft: Draft, name: str, state: str, mask: str = "") -> str:
        """Self-attention over `state`; `mask`, if any, is added to the scores."""

        def head(part: str, order: list[int]) -> str:
            flat = draft.dense(f"{name}.{part}", state, self.hidden, self.hidden, std=STD)
            split = draft.node("Reshape", flat, "split", name=f"{name}.{part}.heads")
            return draft.node("Transpose", split, name=f"{name}.{part}.turned", perm=order)

        query, key, value = head("query", [0, 2, 1, 3]), head("key", [0, 2, 3, 1]), head("value", [0, 2, 1, 3])
        product = draft.node("MatMul", query, key, name=f"{name}.product")
        scaled = draft.node("Div", product, "root_head", name=f"{name}.scaled")
        masked = draft.node("Add", scaled, mask, name=f"{name}.masked") if mask else scaled
        scores = draft.node("Softmax", masked, name=f"{name}.scores", axis=-1)
        context = draft.node("MatMul", scores, value, name=f"{name}.context")
        turned = draft.node("Transpose", context, name=f"{name}.context.turned", perm=[0, 2, 1, 3])
        merged = draft.node("Reshape", turned, "merge", name=f"{name}.context.merged")
        return draft.dense(f"{name}.output", merged, self.hidden, self.hidden, std=STD)

    def feed(self, draft: Draft, name: str, state: str) -> str:
        """The feed-forward part, with an erf Gelu."""
        wide = draft.dense(f"{name}.up", state, self.hidden, self.feed_forward, std=STD)
        erf = draft.node("Erf", draft.node("Div", wide, "root2", name=f"{name}.div"), name=f"{name}.erf")
        gate = draft.node("Mul", wide, draft.node("Add", erf, "one", name=f"{name}.plus"), name=f"{name}.gate")
        gelu = draft.node("Mul", gate, "half", name=f"{name}.gelu")
        return draft.dense(f"{name}.down", gelu, self.feed_forward, self.hidden, std=STD)


@dataclass(frozen=True, slots=True)
class Encoder:
    """The sizes of one encoder. `sequence` is fixed: the position table has exactly that many rows."""

    layers: int
    hidden: int
    heads: int
    feed_forward: int
    vocabulary: int
    sequence: int

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Token ids, a mask of ones (nothing padded) and token types, each int64 ["N", sequence]."""
        shape = (BATCH, self.sequence)
        return (
            InputSpec("input_ids", "int64", shape, 0, self.vocabulary),
            InputSpec("attention_mask", "int64", shape, 1, 2),
            InputSpec("token_type_ids", "int64", shape, 0, 2),
        )

    def build(self, name: str) -> Blueprint:
        """The model called `name`; output `last_hidden_state` float32 ["N", sequence, hidden]."""
        draft = Draft(name)
        block = Block(self.hidden, self.heads, self.feed_forward)

        def norm(label: str, data: str, residual: str) -> str:
            return block.norm(draft, label, draft.node("Add", data, residual, name=f"{label}.sum"))

        block.constants(draft, minus=HIDDEN)
        mask = _mask(draft)
        state = norm("embeddings.norm", *self._embed(draft))
        for layer in range(self.layers):
            attended = block.attend(draft, f"layer{layer}.attention", state, mask)
            state = norm(f"layer{layer}.attention.norm", attended, state)
            fed = block.feed(draft, f"layer{layer}.ffn", state)
            last = layer == self.layers - 1
            state = norm("last_hidden_state" if last else f"layer{layer}.norm", fed, state)
        return draft.finish(
            {spec.name: (spec.dtype, spec.shape) for spec in self.inputs}, state, (BATCH, self.sequence, self.hidden)
        )

    def _embed(self, draft: Draft) -> tuple[str, str]:
        """The sum of word and type rows, and the position table."""
        words = draft.weight("embeddings.word", self.vocabulary, self.hidden, std=STD)
        types = draft.weight("embeddings.type", 2, self.hidden, std=STD)
        positions = draft.weight("embeddings.position", self.sequence, self.hidden, std=STD)
        word = draft.node("Gather", words, "input_ids", name="embeddings.word.rows")
        kind = draft.node("Gather", types, "token_type_ids", name="embeddings.type.rows")
        return draft.node("Add", word, kind, name="embeddings.sum"), positions


def _mask(draft: Draft) -> str:
    """(1 - mask) * -10000 as [N, 1, 1, sequence]."""
    first = draft.node("Unsqueeze", "attention_mask", draft.constant("axis1", np.array([1], np.int64)), name="mask.1")
    second = draft.node("Unsqueeze", first, draft.constant("axis2", np.array([2], np.int64)), name="mask.2")
    floats = draft.node("Cast", second, name="mask.float", to=1)
    return draft.node("Mul", draft.node("Sub", "one", floats, name="mask.not"), "minus", name="mask")


BASE = Encoder(layers=12, hidden=768, heads=12, feed_forward=3072, vocabulary=30522, sequence=128)
TINY = Encoder(layers=2, hidden=128, heads=2, feed_forward=512, vocabulary=1000, sequence=32)
