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

_STD = 0.02  # initializer_range of the paper's code


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
        for constant, value in (("one", 1.0), ("half", 0.5), ("root2", 2.0**0.5), ("minus", -10000.0)):
            draft.constant(constant, np.array(value, np.float32))
        draft.constant("root_head", np.array((self.hidden // self.heads) ** 0.5, np.float32))
        draft.constant("split", np.array([0, 0, self.heads, self.hidden // self.heads], np.int64))
        draft.constant("merge", np.array([0, 0, self.hidden], np.int64))
        mask = _mask(draft)
        state = self._embed(draft)
        for layer in range(self.layers):
            attended = self._attend(draft, f"layer{layer}.attention", state, mask)
            state = self._norm(draft, f"layer{layer}.attention.norm", attended, state)
            fed = self._feed(draft, f"layer{layer}.ffn", state)
            last = layer == self.layers - 1
            state = self._norm(draft, "last_hidden_state" if last else f"layer{layer}.norm", fed, state)
        return draft.finish(
            {spec.name: (spec.dtype, spec.shape) for spec in self.inputs}, state, (BATCH, self.sequence, self.hidden)
        )

    def _embed(self, draft: Draft) -> str:
        words = draft.weight("embeddings.word", self.vocabulary, self.hidden, std=_STD)
        types = draft.weight("embeddings.type", 2, self.hidden, std=_STD)
        positions = draft.weight("embeddings.position", self.sequence, self.hidden, std=_STD)
        word = draft.node("Gather", words, "input_ids", name="embeddings.word.rows")
        kind = draft.node("Gather", types, "token_type_ids", name="embeddings.type.rows")
        both = draft.node("Add", word, kind, name="embeddings.sum")
        return self._norm(draft, "embeddings.norm", both, positions)

    def _norm(self, draft: Draft, name: str, data: str, residual: str) -> str:
        total = draft.node("Add", data, residual, name=f"{name}.sum")
        scale = draft.weight(f"{name}.scale", self.hidden, std=_STD, mean=1.0)
        bias = draft.weight(f"{name}.bias", self.hidden, std=_STD)
        return draft.node("LayerNormalization", total, scale, bias, name=name, axis=-1, epsilon=1e-12)

    def _attend(self, draft: Draft, name: str, state: str, mask: str) -> str:
        def head(part: str, order: list[int]) -> str:
            flat = draft.dense(f"{name}.{part}", state, self.hidden, self.hidden, std=_STD)
            split = draft.node("Reshape", flat, "split", name=f"{name}.{part}.heads")
            return draft.node("Transpose", split, name=f"{name}.{part}.turned", perm=order)

        query, key, value = head("query", [0, 2, 1, 3]), head("key", [0, 2, 3, 1]), head("value", [0, 2, 1, 3])
        product = draft.node("MatMul", query, key, name=f"{name}.product")
        scaled = draft.node("Div", product, "root_head", name=f"{name}.scaled")
        masked = draft.node("Add", scaled, mask, name=f"{name}.masked")
        scores = draft.node("Softmax", masked, name=f"{name}.scores", axis=-1)
        context = draft.node("MatMul", scores, value, name=f"{name}.context")
        turned = draft.node("Transpose", context, name=f"{name}.context.turned", perm=[0, 2, 1, 3])
        merged = draft.node("Reshape", turned, "merge", name=f"{name}.context.merged")
        return draft.dense(f"{name}.output", merged, self.hidden, self.hidden, std=_STD)

    def _feed(self, draft: Draft, name: str, state: str) -> str:
        wide = draft.dense(f"{name}.up", state, self.hidden, self.feed_forward, std=_STD)
        erf = draft.node("Erf", draft.node("Div", wide, "root2", name=f"{name}.div"), name=f"{name}.erf")
        gate = draft.node("Mul", wide, draft.node("Add", erf, "one", name=f"{name}.plus"), name=f"{name}.gate")
        gelu = draft.node("Mul", gate, "half", name=f"{name}.gelu")
        return draft.dense(f"{name}.down", gelu, self.feed_forward, self.hidden, std=_STD)


def _mask(draft: Draft) -> str:
    """(1 - mask) * -10000 as [N, 1, 1, sequence]."""
    first = draft.node("Unsqueeze", "attention_mask", draft.constant("axis1", np.array([1], np.int64)), name="mask.1")
    second = draft.node("Unsqueeze", first, draft.constant("axis2", np.array([2], np.int64)), name="mask.2")
    floats = draft.node("Cast", second, name="mask.float", to=1)
    return draft.node("Mul", draft.node("Sub", "one", floats, name="mask.not"), "minus", name="mask")


BASE = Encoder(layers=12, hidden=768, heads=12, feed_forward=3072, vocabulary=30522, sequence=128)
TINY = Encoder(layers=2, hidden=128, heads=2, feed_forward=512, vocabulary=1000, sequence=32)
