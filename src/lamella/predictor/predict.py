"""A whole profile without running the model: the same document as a measured one, which says that it is predicted.

Each unit is optimised as `profile` would have it, and its nodes are priced by the calibration. What two units beside a
cut save in one session is a call, and the copies into and out of the blocked layout that only the cut asks for. Batches
come from the shapes, thread counts between the measured ones from Amdahl's law. Not predicted: codecs on what crosses
(their ratio is the data's), shards, the blocked layout of weights, time under quotas (it follows from the CPU time).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from lamella.errors import ConfigError
from lamella.graph.cuts import Cut
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.graph.optimise import optimise
from lamella.machine import this_machine
from lamella.predictor.document import Calibration
from lamella.predictor.fitting import FIGURES
from lamella.predictor.footprint import Footprint, footprint
from lamella.predictor.optimised import Node, nodes_of
from lamella.predictor.sampling import LAYOUTS
from lamella.predictor.work import Work, work_of
from lamella.profile.document import (
    BatchLive,
    CutProfile,
    Noise,
    PredictedBy,
    Profile,
    Saving,
    Timing,
    Unit,
    UnitMemory,
    Variant,
)
from lamella.profile.layouts import shapes_of
from lamella.profile.measure import kinds_of, units_of
from lamella.profile.scaling import amdahl
from lamella.profile.timing import Span
from lamella.runtime.function import Layout
from lamella.scratch import scratch

Progress = Callable[[float, str], None]


class _Seen(NamedTuple):
    """A unit at a batch, optimised."""

    nodes: list[Node]
    works: list[Work]
    held: Footprint


def predict(
    graph: Graph,
    calibration: Calibration,
    *,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    progress: Progress = lambda share, what: None,
) -> Profile:
    """The profile of a model by a calibration of this machine.

    Args:
        graph: the model.
        calibration: of this machine and this version of the runtime.
        batches: 1 is always among them.
        threads: intra-op threads; those beyond the machine's cores are left out.
        progress: told how far it is.

    Raises:
        ConfigError: the calibration is another machine's; or a batch above 1 is asked of a model whose batch is bound.
    """
    _check(graph, calibration, batches)
    units, cuts = units_of(graph)
    counts = sorted({1, *(t for t in threads if t <= calibration.machine.cores)})
    seen: list[dict[int, _Seen]] = []
    for k, span in enumerate(units):
        progress(k / len(units), "operators")
        seen.append(_look(graph, span, sorted({1, *batches})))
    progress(1.0, "done")
    variants = [
        Variant(batch, layout, count)
        for batch in sorted({1, *batches})
        for layout in LAYOUTS
        for count in counts
        if batch == 1 or count == 1
    ]
    priced = _Prices(calibration, seen)
    return Profile(
        model=graph.name,
        model_hash=graph.hash,
        machine=calibration.machine,
        floor=calibration.floor,
        hop=calibration.hop,
        noise=Noise.of(calibration.loads),
        units=tuple(_unit(graph, span, at, variants, priced) for span, at in zip(units, seen, strict=True)),
        cuts=tuple(
            _cut(cut, before, after, variants, priced)
            for cut, (before, after) in zip(cuts, pairwise(seen), strict=True)
        ),
        predicted=PredictedBy(calibration.networks, calibration.network_error),
    )


def _check(graph: Graph, calibration: Calibration, batches: Sequence[int]) -> None:
    here, there = this_machine(), calibration.machine
    if (here.cpu, here.cores, here.onnxruntime) != (there.cpu, there.cores, there.onnxruntime):
        raise ConfigError(
            f"the calibration is of {there.cpu}, {there.cores} cores, onnxruntime {there.onnxruntime}; this is "
            f"{here.cpu}, {here.cores} cores, onnxruntime {here.onnxruntime}",
            try_="lamella calibrate",
        )
    if max(batches) > 1 and not graph.batchable:
        raise ConfigError(
            f"batch {max(batches)} needs a free batch axis, {graph.name} has none",
            try_="--shape NAME=N,... on its inputs",
        )


def _look(graph: Graph, span: Span, batches: Sequence[int]) -> dict[int, _Seen]:
    """A unit's nodes at each batch."""
    takes, gives = graph.border(*span)
    with scratch("predicted", graph.directory) as space:
        proto, weights = optimise(Extractor(graph).write(*span, space))
        shapes = shapes_of(graph, proto)
        found = {}
        for batch in batches:
            nodes = nodes_of(proto, weights, shapes, batch)
            found[batch] = _Seen(nodes, [work_of(n) for n in nodes], footprint(nodes, takes, gives))
    return found


class _Prices:
    """Times by the calibration, as cold as the whole model leaves the caches."""

    def __init__(self, calibration: Calibration, seen: Sequence[dict[int, _Seen]]) -> None:
        self.calibration = calibration
        self._seen = seen

    def share(self, batch: int) -> float:
        """How cold a request leaves the caches; all cold where it touches what a calibration overwrites between runs.

        Of tables it touches rows only; what a node writes the next one reads. A row that is in no cache costs a
        fraction of a microsecond: a lookup behind a flush takes ten times that since its code is cold, too, which it is
        not in a small model.
        """
        touched = sum(at[batch].held.mapped_mb + sum(w.moved_mb for w in at[batch].works) / 2 for at in self._seen)
        return min(1.0, touched / self.calibration.hop.cold_mb)

    def of(self, works: Sequence[Work], variant: Variant) -> float:
        """Nodes that run one behind the other."""
        counts = self.calibration.threads
        if variant.threads in counts:
            share = self.share(variant.batch)
            return sum(self.calibration.node_ms(work, variant, share) for work in works)
        one, most = (self.of(works, Variant(variant.batch, variant.layout, n)) for n in (1, max(counts)))
        return amdahl(one, most, max(counts), variant.threads)


def _unit(graph: Graph, span: Span, seen: dict[int, _Seen], variants: Sequence[Variant], priced: _Prices) -> Unit:
    calibration = priced.calibration
    times = [calibration.call_ms + priced.of(seen[v.batch].works, v) for v in variants]
    first, last = span
    return Unit(
        first=first,
        last=last,
        kinds=kinds_of(graph, first, last),
        flops=sum(op.flops for op in graph.operators[first:last]),
        weight_bytes=graph.weight_bytes(first, last),
        live_bytes=graph.live_bytes(first, last),
        times=tuple(Timing(v, ms, ms) for v, ms in zip(variants, times, strict=True)),
        memory=tuple(_memory(calibration, layout, seen[1].held) for layout in LAYOUTS),
        lives=tuple(
            BatchLive(batch, calibration.figure("plain", "live_mb", at.held)) for batch, at in seen.items() if batch > 1
        ),
    )


def _memory(calibration: Calibration, layout: Layout, held: Footprint) -> UnitMemory:
    figures: dict[str, Any] = {name: calibration.figure(layout, name, held) for name in FIGURES}
    return UnitMemory(layout=layout, **figures)


def _cut(
    cut: Cut,
    before: dict[int, _Seen],
    after: dict[int, _Seen],
    variants: Sequence[Variant],
    priced: _Prices,
) -> CutProfile:
    savings = []
    for variant in variants:
        a, b = before[variant.batch], after[variant.batch]
        savings.append(Saving(variant, priced.calibration.call_ms + priced.of(_reorders(a, b), variant)))
    return CutProfile(
        position=cut.position, tensors=cut.tensors, side=cut.side, bytes=cut.bytes, savings=tuple(savings)
    )


def _reorders(before: _Seen, after: _Seen) -> list[Work]:
    """Copies out of the blocked layout before a cut and into it behind, of the same tensor."""
    out = {n.outputs[0].name: w for n, w in zip(before.nodes, before.works, strict=True) if n.kind == "ReorderOutput"}
    into = {n.inputs[0].name: w for n, w in zip(after.nodes, after.works, strict=True) if n.kind == "ReorderInput"}
    return [w for name in out.keys() & into.keys() for w in (out[name], into[name])]
