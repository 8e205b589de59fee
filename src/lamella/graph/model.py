"""Our view of a model: operators in topological order, the tensors between them, the weights in one mapped file.

The graph is immutable and holds no weight bytes: a `Weight` is an offset into `weights.bin` next to `graph.onnx`. The
ONNX file beside it (the *skeleton*) refers to the same bytes as external data, so weights never pass through protobuf
again after import. Everything the planner asks about a model is answered from these values alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from lamella.units import Dim, dim_at
from lamella.zoo import InputSpec

TINY_BYTES = 1024
"""Constants up to this size (scalars, axes, shapes) are no weights worth speaking of."""
GATHERS = frozenset({"Gather", "GatherElements", "GatherND"})
"""Read rows of a table, not all of it."""


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """The numpy dtype of a tensor; bfloat16 and float8 come from ml-dtypes."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        made: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, name))
        return made


@dataclass(frozen=True, slots=True)
class Tensor:
    """An activation, or a graph input: what a hop may carry."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    dynamic: bool = False
    """Its shape depends on the data, so it can neither be planned for nor cross a cut."""
    portable: bool = True
    """False for sequences, maps and strings, which no hop carries."""

    def shape_at(self, batch: int = 1) -> tuple[int, ...]:
        """The shape for a batch."""
        return tuple(dim_at(d, batch) for d in self.shape)

    def bytes_at(self, batch: int = 1) -> int:
        """Its size for a batch, bytes."""
        size = numpy_dtype(self.dtype).itemsize if self.portable else 0
        for dim in self.shape:
            size *= dim_at(dim, batch)
        return size


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant of the model: a range of bytes in `weights.bin`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Operator:
    """One node. `inputs` are activations only (captured ones included), `weights` the constants it reads."""

    index: int
    name: str
    kind: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    flops: int
    """Multiply-accumulates count two; at batch 1."""
    has_subgraph: bool = False
    """If, Loop or Scan: indivisible, together with what it captures."""
    inner_bytes: int = 0
    """Constants inside its subgraphs, bytes."""


@dataclass(frozen=True)
class Graph:
    """A normalised model. `directory` holds `graph.onnx` and `weights.bin`."""

    name: str
    hash: str
    directory: Path
    operators: tuple[Operator, ...]
    tensors: dict[str, Tensor] = field(repr=False)
    weights: dict[str, Weight] = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: Path
    """The file the user gave."""
    input_specs: tuple[InputSpec, ...] = ()
    """Value ranges of the inputs, where known (zoo models)."""

    @property
    def skeleton(self) -> Path:
        """The ONNX file without weights."""
        return self.directory / "graph.onnx"

    @property
    def weights_file(self) -> Path:
        """Every weight, aligned, in one file."""
        return self.directory / "weights.bin"

    @cached_property
    def batchable(self) -> bool:
        """Whether the batch axis is free."""
        return any(isinstance(d, str) for name in self.inputs for d in self.tensors[name].shape)

    @cached_property
    def producer(self) -> dict[str, int]:
        """For each tensor the index of the operator that makes it, -1 for a graph input."""
        made = dict.fromkeys(self.inputs, -1)
        for op in self.operators:
            made.update(dict.fromkeys(op.outputs, op.index))
        return made

    @cached_property
    def last_use(self) -> dict[str, int]:
        """For each tensor the index of the last operator that reads it; its producer where none does."""
        last = dict(self.producer)
        for op in self.operators:
            last.update(dict.fromkeys(op.inputs, op.index))
        return last

    @cached_property
    def request_constants(self) -> frozenset[str]:
        """Tensors made from the request by operators without real weights, such as an attention mask."""
        known = set(self.inputs)
        for op in self.operators:
            light = sum(self.weights[w].bytes for w in op.weights) <= TINY_BYTES
            if light and not op.has_subgraph and all(i in known for i in op.inputs):
                known.update(op.outputs)
        return frozenset(known)

    @cached_property
    def _answers(self) -> dict[tuple[int, ...], int]:
        """What was asked before: planners price every slice of a model many times over."""
        return {}

    def weight_bytes(self, first: int, last: int) -> int:
        """Bytes of the distinct weights that operators `first` to `last - 1` read."""
        if (first, last) not in self._answers:
            self._answers[first, last] = self._weight_bytes(first, last)
        return self._answers[first, last]

    def _weight_bytes(self, first: int, last: int) -> int:
        names = {w for op in self.operators[first:last] for w in op.weights}
        inner = sum(op.inner_bytes for op in self.operators[first:last])
        return inner + sum(self.weights[w].bytes for w in names)

    def touched_bytes(self, batch: int) -> int:
        """Memory that a request of so many rows touches, bytes: weights, of tables rows only, and every tensor made."""
        tables = {op.weights[0] for op in self.operators if op.kind in GATHERS and op.weights}
        tables -= {w for op in self.operators if op.kind not in GATHERS for w in op.weights}
        made = sum(self.tensors[n].bytes_at(batch) for op in self.operators for n in op.outputs)
        return self.weight_bytes(0, len(self.operators)) - sum(self.weights[w].bytes for w in tables) + made

    def live_bytes(self, first: int, last: int, batch: int = 1) -> int:
        """Peak of live activations while operators `first` to `last - 1` run as one function, bytes.

        Inputs and outputs of the function live from its first to its last operator: they are its hop buffers.
        """
        if (first, last, batch) not in self._answers:
            self._answers[first, last, batch] = self._live_bytes(first, last, batch)
        return self._answers[first, last, batch]

    def _live_bytes(self, first: int, last: int, batch: int) -> int:
        takes, gives = self.border(first, last)
        hops = set(takes) | set(gives)
        size = self._sizes(batch)
        floor = sum(size[name] for name in hops)
        peak = live = floor
        ends: dict[int, list[str]] = {}
        for op in self.operators[first:last]:
            for name in op.outputs:
                if name not in hops:
                    live += size[name]
                    ends.setdefault(min(self.last_use[name], last - 1), []).append(name)
            peak = max(peak, live)
            live -= sum(size[name] for name in ends.pop(op.index, ()))
        return peak

    def _sizes(self, batch: int) -> dict[str, int]:
        """Of every tensor, bytes."""
        if batch not in self._sizes_at:
            self._sizes_at[batch] = {name: tensor.bytes_at(batch) for name, tensor in self.tensors.items()}
        return self._sizes_at[batch]

    @cached_property
    def _sizes_at(self) -> dict[int, dict[str, int]]:
        """By batch."""
        return {}

    def border(self, first: int, last: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What operators `first` to `last - 1` take from outside and give to the outside, in a fixed order."""
        inside = self.operators[first:last]
        made = {name for op in inside for name in op.outputs}
        takes = dict.fromkeys(name for op in inside for name in op.inputs if name not in made)
        out = set(self.outputs)
        gives = [n for op in inside for n in op.outputs if n in out or self.last_use[n] >= last]
        return tuple(takes), tuple(gives)
