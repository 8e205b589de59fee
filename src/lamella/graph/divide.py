"""A graph with some spans of its operators divided among parallel shards: an ordinary graph, and where its shards lie.

The operators of a span are replaced by those of shard 1, shard 2, ..., and the ones that join what the shards give;
each is a run of operators that can be extracted, measured, packaged and cut like any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import msgspec
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper

from lamella.errors import ShardRefused
from lamella.graph.model import Graph
from lamella.graph.normalise import reads
from lamella.graph.shard import Sharded, Task, Way, divide
from lamella.graph.stored import kept, write
from lamella.graph.weights import read_tensor
from lamella.units import Dim

SHARD_VERSION = "1"
"""Part of a divided graph's hash: raise it when a rule changes."""

Range = tuple[int, int]
"""Operators: the first, and one past the last."""


class ShardSpan(msgspec.Struct, frozen=True):
    """Operators `first` to `last - 1` of a graph, to be divided among `shards` in one `way`."""

    first: int
    last: int
    shards: int
    way: Way


@dataclass(frozen=True)
class Placed:
    """Where a divided span lies in the new graph."""

    span: ShardSpan
    shards: tuple[Range, ...]
    join: Range


@dataclass(frozen=True)
class ShardedGraph:
    """A graph with divided spans, in order."""

    graph: Graph
    spans: tuple[Placed, ...]


def shard(graph: Graph, spans: Sequence[ShardSpan]) -> ShardedGraph:
    """The graph with these spans divided, kept in the cache beside the original.

    Args:
        graph: the whole model.
        spans: in any order, apart from each other.

    Raises:
        ShardRefused: a span cannot be divided; says which operator stands in the way.
        StorageError: the cache's disk is full.
    """
    return Divider(graph).shard(spans)


class Divider:
    """Divides one graph in several ways; holds the parsed skeleton and the mapped weights."""

    def __init__(self, graph: Graph) -> None:
        """Parse the skeleton when the first span is asked for."""
        self.graph = graph

    @cached_property
    def _proto(self) -> ModelProto:
        return onnx.load(self.graph.skeleton, load_external_data=False)

    @property
    def nodes(self) -> Sequence[NodeProto]:
        """Its operators as ONNX nodes, in order."""
        nodes: Sequence[NodeProto] = self._proto.graph.node
        return nodes

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Every constant of the graph, mapped."""
        return {t.name: read_tensor(t, self.graph.directory) for t in self._proto.graph.initializer}

    @cached_property
    def _shapes(self) -> dict[str, tuple[Dim, ...]]:
        tensors = {n: t.shape for n, t in self.graph.tensors.items()}
        return {**tensors, **{n: a.shape for n, a in self.weights.items()}}

    def parts(self, span: ShardSpan) -> Sharded:
        """The operators a span would be divided into; nothing is written, and no weight is read.

        Raises:
            ShardRefused: it cannot be divided so.
        """
        _check(self.graph, [span])
        _, gives = self.graph.border(span.first, span.last)
        task = Task(
            nodes=self._proto.graph.node[span.first : span.last],
            outputs=gives,
            shapes=self._shapes,
            dtypes={n: t.dtype for n, t in self.graph.tensors.items()},
            weights=self.weights,
            shards=span.shards,
            opset=next(o.version for o in self._proto.opset_import if o.domain in ("", "ai.onnx")),
        )
        return divide(task, span.way)

    def model(self, graph: GraphProto) -> ModelProto:
        """A graph of some of these operators as a model."""
        return helper.make_model(graph, opset_imports=self._proto.opset_import, ir_version=self._proto.ir_version)

    def shard(self, spans: Sequence[ShardSpan]) -> ShardedGraph:
        """As the function `shard`."""
        graph, ordered = self.graph, tuple(sorted(spans, key=lambda s: s.first))
        if not ordered:
            return ShardedGraph(graph, ())
        _check(graph, ordered)
        parts = {span: self.parts(span) for span in ordered}
        nodes, placed = _arrange(self._proto.graph.node, parts)
        weights = dict(self.weights)
        for part in parts.values():
            weights.update(part.weights)
        key = hashlib.sha256(repr((SHARD_VERSION, graph.hash, ordered)).encode()).hexdigest()[:24]
        directory = graph.directory.parent / f"{graph.name}-{key}"
        stored = kept(
            directory,
            lambda scratch: write(_with(self._proto, nodes), _read_by(nodes, weights), graph.input_specs, scratch),
        )
        made = Graph(
            name=graph.name,
            hash=key,
            directory=directory,
            source=graph.source,
            input_specs=graph.input_specs,
            **msgspec.structs.asdict(stored),
        )
        return ShardedGraph(made, placed)


def _check(graph: Graph, spans: Sequence[ShardSpan]) -> None:
    """Refuse what is no span of this graph, or cannot be planned for."""
    count = len(graph.operators)
    for span in spans:
        if not 0 <= span.first < span.last <= count:
            raise ShardRefused(f"span {span.first}:{span.last} is no run of the {count} operators of {graph.name}")
        if span.shards < 2:
            raise ShardRefused(f"span {span.first}:{span.last} is to be divided among {span.shards}: at least 2")
        for op in graph.operators[span.first : span.last]:
            for tensor in (graph.tensors[n] for n in (*op.inputs, *op.outputs)):
                if tensor.dynamic or not tensor.portable:
                    why = "has a shape that depends on the data" if tensor.dynamic else "is no plain tensor"
                    raise ShardRefused(f"{tensor.name!r} {why}", where=f"operator {op.name}")
    for one, two in pairwise(spans):
        if two.first < one.last:
            raise ShardRefused(f"spans {one.first}:{one.last} and {two.first}:{two.last} overlap")


def _arrange(
    nodes: Sequence[NodeProto], parts: Mapping[ShardSpan, Sharded]
) -> tuple[list[NodeProto], tuple[Placed, ...]]:
    """All nodes with the spans replaced, and where the replacements lie."""
    made: list[NodeProto] = []
    placed = []

    def append(new: Iterable[NodeProto]) -> Range:
        first = len(made)
        made.extend(new)
        return first, len(made)

    done = 0
    for span, part in parts.items():
        append(nodes[done : span.first])
        placed.append(Placed(span, tuple(append(s) for s in part.shards), append(part.join)))
        done = span.last
    append(nodes[done:])
    return made, tuple(placed)


def _with(proto: ModelProto, nodes: Sequence[NodeProto]) -> ModelProto:
    """The model with these nodes, and without initialisers."""
    new = ModelProto()
    new.CopyFrom(proto)
    del new.graph.node[:], new.graph.initializer[:], new.graph.value_info[:]
    new.graph.node.extend(nodes)
    return new


def _read_by(nodes: Sequence[NodeProto], weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The constants that nodes read, in the order in which they do."""
    names = dict.fromkeys(n for node in nodes for n in reads(node))
    return {n: weights[n] for n in names if n in weights}
