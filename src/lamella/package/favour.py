"""Which layout each product of a package gets, and whether the result answers as before.

A package favours one of three things where they conflict. `start` loads nothing twice: no session prepacks, and a
product runs blocked where that is at most 5 % slower than the quickest other way, or quicker than the plain one at
least. `memory` does the same, but never lets a weight be mapped twice: one that somebody else reads too (the word
table of a language model) stays plain. `steady` takes what is quickest: where the plan prepacks, the products
that are quicker so stay prepacked. It does not begin to prepack where the plan does not: the plan's allocation holds no
copies.

Times are the machine's table (`profile.products`), at one request and at the plan's batch. What comes out is compared
with the graph before on random requests that run through all functions in order, so on real activations.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from onnx import ModelProto, TensorShapeProto

from lamella.graph.blocked import block, rewrite
from lamella.graph.model import Graph
from lamella.graph.normalise import reads
from lamella.graph.products import Product, products
from lamella.graph.requests import request
from lamella.plan.document import FunctionPlan
from lamella.plan.metrics import LARGEST, difference
from lamella.profile.products import MOST_ROWS, ProductShape, ProductTimes, Timer
from lamella.runtime.function import Layout, Layouts, open_session
from lamella.units import BATCH, Dim, dim_at

Favour = Literal["start", "steady", "memory"]
FAVOURS: tuple[Favour, ...] = get_args(Favour)
SLOWER = 1.05
"""What a quick start may cost in steady time."""
TOLERANCE = 1e-4
"""Law 3's, over the range of the output."""
UNKNOWN = "?"
"""A dimension that the runtime made up a name for, or has none for."""

Values = dict[str, np.ndarray]


def choose(favour: Favour, times: Sequence[ProductTimes], *, prepack: bool) -> Layout:
    """The layout of a product by its times at all numbers of rows it may meet; `prepack` is the plan's."""
    if favour == "steady":
        other: Layout = "prepacked" if prepack else "plain"
        return "blocked" if all(t.blocked_ms <= t.of(other) for t in times) else other
    fits = all(t.blocked_ms <= max(t.plain_ms, SLOWER * min(t.plain_ms, t.prepacked_ms)) for t in times)
    return "blocked" if fits else "plain"


class Remade(NamedTuple):
    """A function's graph in the layouts chosen."""

    proto: ModelProto
    weights: Mapping[str, np.ndarray]
    prepack: bool
    layouts: Layouts


class Favouring:
    """Decides the layouts of a plan's functions, which have to come in order; holds the requests they answer."""

    def __init__(self, graph: Graph, favour: Favour, batch: int, timer: Timer) -> None:
        """Make the requests.

        Args:
            graph: the plan's, its shards divided.
            favour: what wins where start, steady time and memory conflict.
            batch: the plan's.
            timer: where times come from.
        """
        self._graph, self._favour, self._timer = graph, favour, timer
        self._batches = sorted({1, batch})
        rng = np.random.default_rng(0)
        checked = {1, batch, 2} if graph.batchable else {1}
        self._requests: list[Values] = [request(graph, rng, size) for size in sorted(checked)]

    def remake(self, plan: FunctionPlan, proto: ModelProto, weights: Mapping[str, np.ndarray], path: Path) -> Remade:
        """The function's optimised graph in the layouts that times tell; `path` is a file for blocked weights."""
        size = block()
        shapes = self._shapes(proto)
        found, left = products(proto, weights, shapes, size)
        chosen, kinds, slower = [], Counter[str](), 0
        for product in self._single(proto, found, left):
            times = self._times(product, plan.threads)
            if not times:
                left["shape not known"] += 1
                continue
            layout = choose(self._favour, times, prepack=plan.prepack)
            kinds[layout] += 1
            slower += any(t.of(layout) > SLOWER * t.prepacked_ms for t in times)
            if layout == "blocked":
                chosen.append(product)
        made, kept = rewrite(proto, weights, chosen, size, path)
        layouts = Layouts(
            favour=self._favour,
            block=size,
            plain=kinds["plain"],
            prepacked=kinds["prepacked"],
            blocked=len(chosen),
            left=dict(sorted(left.items())),
            slower=slower,
            error=0.0,
        )
        return Remade(made, kept, plan.prepack and self._favour == "steady", layouts)

    def _shapes(self, proto: ModelProto) -> dict[str, tuple[Dim, ...]]:
        """Of every tensor: as the model's facts say, and of what the runtime added by what it wrote down."""
        told = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
        shapes: dict[str, tuple[Dim, ...]] = {
            v.name: tuple(_dim(d) for d in v.type.tensor_type.shape.dim)
            for v in told
            if v.type.tensor_type.HasField("shape")
        }
        known = self._graph.tensors
        shapes.update((n, t.shape) for n, t in known.items())
        return {n: shape for n, shape in shapes.items() if n not in known or not known[n].dynamic}

    def _single(self, proto: ModelProto, found: list[Product], left: Counter[str]) -> list[Product]:
        """Those whose weight would not be mapped twice, where that counts."""
        if self._favour != "memory":
            return found
        readers = Counter(n for node in proto.graph.node for n in set(reads(node)))
        blocked = Counter(p.weight for p in found)
        alone = [p for p in found if readers[p.weight] == blocked[p.weight]]
        if len(alone) < len(found):
            left["weights that others read too"] += len(found) - len(alone)
        return alone

    def _times(self, product: Product, threads: int) -> list[ProductTimes]:
        """At every batch that counts; none where the number of rows cannot be told."""
        if UNKNOWN in product.lead:
            return []
        rows = {min(MOST_ROWS, math.prod(dim_at(d, batch) for d in product.lead)) for batch in self._batches}
        return [self._timer(ProductShape(r, product.inner, product.outer, threads)) for r in sorted(rows)]

    def check(self, plan: FunctionPlan, before: Path, after: Path) -> tuple[float, str]:
        """The largest difference of two graphs of a function on the requests, and why the second is refused, if it is.

        Answers of the first are kept for the functions that come next.
        """
        takes, gives = self._graph.border(plan.first, plan.last)
        old, new = (open_session(path, "packaged", threads=plan.threads, prepack=False) for path in (before, after))
        worst = 0.0
        for values in self._requests:
            feeds = {name: values[name] for name in takes if name in values}
            try:
                want = dict(zip(gives, old.run(list(gives), feeds), strict=True))
            except Exception as error:  # noqa: BLE001 - the binding raises bare exceptions
                return (
                    0.0,
                    f"cannot be compared: the model refuses a random request ({str(error).splitlines()[0][:200]})",
                )
            values.update(want)
            try:
                got = dict(zip(gives, new.run(list(gives), feeds), strict=True))
            except Exception as error:  # noqa: BLE001 - as above
                return LARGEST, f"does not run: {str(error).splitlines()[0][:200]}"
            worst = max(worst, *(difference(want[n], got[n])[1] for n in gives), 0.0)
        worst = min(LARGEST, worst)
        return (
            worst,
            "" if worst <= TOLERANCE else f"answers differ by {worst:.1e} of their range, {TOLERANCE:g} allowed",
        )


def _dim(dim: TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return dim.dim_value
    return dim.dim_param if re.fullmatch(rf"(\d+\*)?{BATCH}", dim.dim_param) else UNKNOWN
