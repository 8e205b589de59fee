"""Which layout each product of a package gets, and whether the result answers as before.

A function that is planned blocked is made so, by the rule of `profile.layouts` by which it was measured. On request all
functions favour one of three things where they conflict. `start`, which is what is planned as blocked, loads nothing
twice: no session prepacks, and a product runs blocked where that is at most 5 % slower than the quickest other way, or
quicker than the plain one at least. `memory` does the same, but never lets a weight be mapped twice: one that somebody
else reads too (the word table of a language model) stays plain. `steady` takes what is quickest: where the plan
prepacks, the products that are quicker so stay prepacked. It does not begin to prepack where the plan does not: the
plan's allocation holds no copies.

Times are the machine's table (`profile.products`), at one request and at the plan's batch. What comes out is compared
with the graph before on random requests that run through all functions in order, so on real activations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import ModelProto

from lamella.graph.blocked import block, rewrite
from lamella.graph.model import Graph
from lamella.graph.normalise import reads
from lamella.graph.products import Product, products
from lamella.graph.requests import request
from lamella.plan.document import FunctionPlan
from lamella.plan.validation.metrics import LARGEST, difference
from lamella.profile.layouts import SLOWER, Favour, choose, shapes_of, size_of, times_of
from lamella.profile.products import Timer
from lamella.runtime.function import Layouts, open_session

TOLERANCE = 1e-4
"""Law 3's, over the range of the output."""
Values = dict[str, np.ndarray]


class Remade(NamedTuple):
    """A function's graph in the layouts chosen."""

    proto: ModelProto
    weights: Mapping[str, np.ndarray]
    prepack: bool
    layouts: Layouts


class Favouring:
    """Decides the layouts of a plan's functions, which have to come in order; holds the requests they answer."""

    def __init__(self, graph: Graph, favour: Favour | None, batch: int, timer: Timer) -> None:
        """Make the requests.

        Args:
            graph: the plan's, its shards divided.
            favour: what wins where start, steady time and memory conflict; by default each function is as planned.
            batch: the plan's.
            timer: where times come from.
        """
        self._graph, self._favour, self._timer = graph, favour, timer
        self._batches = {1, batch}
        rng = np.random.default_rng(0)
        checked = {1, batch, 2} if graph.batchable else {1}
        self._requests: list[Values] = [request(graph, rng, size) for size in sorted(checked)]

    def of(self, plan: FunctionPlan) -> Favour | None:
        """What wins in a function: what is asked for, or a quick start where it is planned blocked; else as planned."""
        return self._favour or ("start" if plan.layout == "blocked" else None)

    def remake(
        self, plan: FunctionPlan, favour: Favour, proto: ModelProto, weights: Mapping[str, np.ndarray], path: Path
    ) -> Remade:
        """The function's optimised graph in the layouts that times tell; `path` is a file for blocked weights."""
        size = block()
        found, left = products(proto, weights, shapes_of(self._graph, proto), size)
        chosen, kinds, slower = [], Counter[str](), 0
        for product in _alone(proto, found, left) if favour == "memory" else found:
            times = times_of(size_of(product), self._batches, plan.threads, self._timer)
            if not times:
                left["shape not known"] += 1
                continue
            layout = choose(favour, times, planned=plan.layout)
            kinds[layout] += 1
            slower += any(t.of(layout) > SLOWER * t.prepacked_ms for t in times)
            if layout == "blocked":
                chosen.append(product)
        made, kept = rewrite(proto, weights, chosen, size, path)
        layouts = Layouts(
            favour=self._favour or "",
            block=size,
            plain=kinds["plain"],
            prepacked=kinds["prepacked"],
            blocked=len(chosen),
            left=dict(sorted(left.items())),
            slower=slower,
            error=0.0,
        )
        return Remade(made, kept, plan.layout == "prepacked" and favour == "steady", layouts)

    def follow(self, plan: FunctionPlan, path: Path) -> None:
        """Keep the answers of a function that stays as it is, for those that come next."""
        takes, gives = self._graph.border(plan.first, plan.last)
        session = open_session(path, "packaged", threads=plan.threads, prepack=False)
        for values in self._requests:
            feeds = {name: values[name] for name in takes if name in values}
            with suppress(Exception):  # the binding raises bare ones; what comes next cannot be compared, and says so
                values.update(zip(gives, session.run(list(gives), feeds), strict=True))

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


def _alone(proto: ModelProto, found: list[Product], left: Counter[str]) -> list[Product]:
    """Those whose weight would not be mapped twice."""
    readers = Counter(n for node in proto.graph.node for n in set(reads(node)))
    blocked = Counter(p.weight for p in found)
    alone = [p for p in found if readers[p.weight] == blocked[p.weight]]
    if len(alone) < len(found):
        left["weights that others read too"] += len(found) - len(alone)
    return alone
