"""Which products of a span of operators run blocked, decided by their measured times; and the span in that layout.

Profiles and packages ask here, so that what was measured is what ships. `blocked` of a span is what favouring a quick
start makes of it: no session prepacks, and a product runs in the CPU's blocks where that is at most 5 % slower than the
quickest other way, or no slower than plain; else it stays plain. A span where no product does is the plain one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec
import numpy as np
from onnx import ModelProto, TensorShapeProto

from lamella.graph.blocked import block, rewrite
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.graph.optimise import optimise
from lamella.graph.products import PRODUCTS, SMALL_BYTES, Product, products
from lamella.graph.weights import write_weights
from lamella.profile.products import MOST_ROWS, ProductShape, ProductTimes, Timer
from lamella.runtime.function import Layout
from lamella.units import BATCH, Dim, dim_at

Favour = Literal["start", "steady", "memory"]
"""What wins where a quick start, steady time and memory conflict (`package.favour`)."""
FAVOURS: tuple[Favour, ...] = get_args(Favour)
SLOWER = 1.05
"""What a quick start may cost in steady time."""
UNKNOWN = "?"
"""A dimension that the runtime made up a name for, or has none for."""


class ProductSize(msgspec.Struct, frozen=True):
    """What of a product its times depend on: `lead` are the dimensions of its left side but the last."""

    lead: tuple[Dim, ...]
    inner: int
    outer: int

    def shapes(self, batches: Iterable[int], threads: int) -> list[ProductShape]:
        """At each batch; none where the number of rows cannot be told."""
        if UNKNOWN in self.lead:
            return []
        rows = {min(MOST_ROWS, math.prod(dim_at(d, batch) for d in self.lead)) for batch in batches}
        return [ProductShape(r, self.inner, self.outer, threads) for r in sorted(rows)]


def choose(favour: Favour, times: Sequence[ProductTimes], *, planned: Layout) -> Layout:
    """The layout of a product by its times at all numbers of rows it may meet; `planned` is its function's."""
    if favour == "steady":
        other: Layout = "prepacked" if planned == "prepacked" else "plain"
        return "blocked" if all(t.blocked_ms <= t.of(other) for t in times) else other
    fits = all(t.blocked_ms <= max(t.plain_ms, SLOWER * min(t.plain_ms, t.prepacked_ms)) for t in times)
    return "blocked" if fits else "plain"


def size_of(product: Product) -> ProductSize:
    """Of a product of a graph."""
    return ProductSize(tuple(product.lead), product.inner, product.outer)


def times_of(size: ProductSize, batches: Iterable[int], threads: int, timer: Timer) -> list[ProductTimes]:
    """A product's times at every batch that counts; none where the number of rows cannot be told."""
    return [timer(shape) for shape in size.shapes(batches, threads)]


def starts_blocked(size: ProductSize, batch: int, threads: int, timer: Timer) -> bool:
    """Whether a function that favours a quick start runs the product blocked, at one request and at the batch."""
    times = times_of(size, {1, batch}, threads, timer)
    return bool(times) and choose("start", times, planned="plain") == "blocked"


def shapes_of(graph: Graph, proto: ModelProto) -> dict[str, tuple[Dim, ...]]:
    """Of an optimised graph's tensors: as the model's facts say; what the runtime added as it wrote down."""
    shapes = written_shapes(proto)
    known = graph.tensors
    shapes.update((n, t.shape) for n, t in known.items())
    return {n: shape for n, shape in shapes.items() if n not in known or not known[n].dynamic}


def written_shapes(proto: ModelProto) -> dict[str, tuple[Dim, ...]]:
    """What the runtime wrote down of an optimised graph's tensors."""
    told = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    return {
        v.name: tuple(_dim(d) for d in v.type.tensor_type.shape.dim)
        for v in told
        if v.type.tensor_type.HasField("shape")
    }


def _dim(dim: TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return dim.dim_value
    return dim.dim_param if re.fullmatch(rf"(\d+\*)?{BATCH}", dim.dim_param) else UNKNOWN


def may_block(graph: Graph, first: int, last: int) -> bool:
    """Whether operators `first` to `last - 1` may hold a product that can run blocked; a quick look."""
    kinds = {op.kind for op in graph.operators[first:last]}
    return bool(kinds & PRODUCTS) and graph.weight_bytes(first, last) >= SMALL_BYTES and block() > 0


def product_sizes(extractor: Extractor, first: int, last: int, directory: Path) -> tuple[ProductSize, ...]:
    """The sizes of a span's products that can run blocked, each once.

    Args:
        extractor: of the model.
        first: first operator.
        last: one past the last operator.
        directory: absent, to work in.
    """
    proto, weights = optimise(extractor.write(first, last, directory))
    found, _ = products(proto, weights, shapes_of(extractor.graph, proto), block())
    return tuple(dict.fromkeys(size_of(p) for p in found))


def blocked_graph(
    graph: Graph,
    optimised: tuple[ModelProto, Mapping[str, np.ndarray]],
    batch: int,
    threads: int,
    timer: Timer,
    path: Path,
) -> bool:
    """Write a span blocked as `path`, its weights beside it; whether any product of it is.

    Args:
        graph: the model.
        optimised: what the runtime's optimiser made of the span, and its large weights.
        batch: that counts beside 1.
        threads: of the session.
        timer: where times of products come from.
        path: a file in a directory of its own.
    """
    proto, weights = optimised
    found, _ = products(proto, weights, shapes_of(graph, proto), block())
    chosen = [p for p in found if starts_blocked(size_of(p), batch, threads, timer)]
    if not chosen:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = path.with_name("packed.bin")
    made, kept = rewrite(proto, weights, chosen, block(), packed)
    made.graph.initializer.extend(write_weights(path.with_suffix(".bin"), kept)[1])
    path.write_bytes(made.SerializeToString())
    packed.unlink()
    return True
