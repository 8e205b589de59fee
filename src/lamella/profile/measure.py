"""Measure a model: a list of steps, each saved when it is done.

The state of a profile lives in the cache under the model's hash, the machine and the runtime version. An interrupted
run (Ctrl-C at any time) goes on at the first step that is missing, and asking for more (another batch, more threads)
measures only what is new. What is computed once is never computed again.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from lamella import documents
from lamella.codecs import installed
from lamella.errors import ConfigError
from lamella.graph.blocked import block
from lamella.graph.cuts import Cut, plan_cuts
from lamella.graph.divide import Divider
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.limits import Limiter, detect
from lamella.limits.owner import mark
from lamella.machine import this_machine
from lamella.profile.document import (
    CutProfile,
    Profile,
    Saving,
    Timing,
    Unit,
    UnitMemory,
    Variant,
)
from lamella.profile.layouts import may_block
from lamella.profile.pace import History, known
from lamella.profile.probes import COPIES_MB
from lamella.profile.products import ProductShape, Timer, product_times, unknown
from lamella.profile.shards import PACKED, SHARDS_VERSION, candidates, signature
from lamella.profile.steps import (
    Borders,
    Progress,
    State,
    Step,
    Timed,
    run_steps,
    take_codecs,
    take_floor,
    take_int8,
    take_live,
    take_memory,
    take_product,
    take_products,
    take_shards,
    take_times,
)
from lamella.profile.timing import Span
from lamella.profile.usual import at_usual, noise, usual_pace
from lamella.runtime.function import LOSSLESS, Layout

PROFILE_VERSION = "29"
"""Part of the cache key: raise it when measuring changes."""
Precision = Literal["int8"]
"""Of weights and products, beside the model's own."""
FINDING = 0.05
"""Share of the progress in which products are looked for."""


def units_of(graph: Graph) -> tuple[list[Span], list[Cut]]:
    """The spans of operators between planning cuts, and those cuts."""
    cuts = plan_cuts(graph)
    marks = [0, *(c.position for c in cuts), len(graph.operators)]
    return list(pairwise(marks)), cuts


def variants_for(
    graph: Graph, batches: Sequence[int], threads: Sequence[int], precisions: Sequence[Precision] = ()
) -> list[Variant]:
    """What to run: every layout that this CPU has, plain first, and precisions; larger batches on one thread only.

    Raises:
        ConfigError: a batch above 1 is asked of a model whose batch axis is bound.
    """
    if max(batches) > 1 and not graph.batchable:
        raise ConfigError(
            f"batch {max(batches)} needs a free batch axis, {graph.name} has none",
            try_="--shape NAME=N,... on its inputs",
        )
    cores = this_machine().cores
    layouts = [layout for layout in (*LOSSLESS, *precisions) if layout != "blocked" or block()]
    counts = sorted({t for t in threads if t <= cores})
    return [
        Variant(batch, layout, count)
        for batch in sorted(set(batches))
        for layout in layouts
        for count in counts
        if batch == 1 or count == 1
    ]


def threads_needed(coupling: str, vcpu: float) -> tuple[int, ...]:
    """Thread counts a platform's functions may use on this machine: one below one vCPU, more above."""
    cores = this_machine().cores
    most = cores if coupling == "memory" else min(cores, max(1, math.ceil(vcpu)))
    return tuple(range(1, most + 1))


def cache_path(graph: Graph) -> Path:
    """Where the state of this model's profile on this machine lies."""
    return (
        documents.cache_dir() / "profiles" / f"{graph.name}-{graph.hash}-{this_machine().key}-v{PROFILE_VERSION}.json"
    )


def measure(
    graph: Graph,
    *,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    budget_s: float = 10.0,
    progress: Progress = lambda share, what: None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    shards: bool = False,
    at_once: int | None = None,
    timer: Timer = product_times,
    precisions: Sequence[Precision] = (),
) -> Profile:
    """The profile of a model on this machine; measures only what the cache does not hold.

    Args:
        graph: the model.
        batches: where the batch axis is free; 1 is always measured.
        threads: intra-op threads to try; those beyond the machine's cores are left out, 1 is always measured.
        budget_s: time for the rounds of a batch and number of threads, up to four times as much where they do not
            settle; at least five rounds are run (three of a larger batch).
        progress: told how far it is.
        ranges: value ranges of integer inputs, by name.
        shards: measure what is worth dividing among shards, too.
        at_once: how many of them may be busy at a time; this machine's cores by default.
        timer: where times of products come from, which say what the blocked layout is of a unit.
        precisions: in which units run, too; without one nothing of it is measured, nor told where it is known.
    """
    batches, threads = sorted({1, *batches}), sorted({1, *threads})
    path = cache_path(graph)
    anew = f"rm {path} (what it held is measured anew)"
    state = documents.read(path, State, made_by=anew) if path.exists() else State()
    units, cuts = units_of(graph)
    wanted = [v for v in variants_for(graph, batches, threads, precisions) if v not in {t.variant for t in state.timed}]
    scratch = Path(tempfile.mkdtemp(prefix=mark(".profile"), dir=graph.directory))
    try:
        begun = 0.0
        steps = _product_steps(graph, state, units, wanted, scratch)
        if steps:  # which sizes to time depends on what the optimiser makes of the units
            state = run_steps(steps, state, path, lambda done, what: progress(done * FINDING, what))
            begun = FINDING
        steps = _steps(graph, state, units, cuts, wanted, batches, scratch, budget_s, ranges, timer, precisions)
        end = 0.75 if shards and steps else 1.0
        state = run_steps(steps, state, path, _between(progress, begun, end))
        if shards:  # what to try depends on the times
            steps = _shard_steps(graph, state, units, batches, scratch, ranges, at_once)
            state = run_steps(steps, state, path, _between(progress, end if end < 1 else begun, 1.0))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    progress(1.0, "done")
    return _assemble(graph, units, cuts, _with_precisions(state, precisions), known())


def _between(progress: Progress, begun: float, end: float) -> Progress:
    """Tells of the part of the work from one share to another."""
    return lambda done, what: progress(begun + done * (end - begun), what)


def _product_steps(graph: Graph, state: State, units: list[Span], wanted: list[Variant], scratch: Path) -> list[Step]:
    """What is not known yet of the products that can run blocked."""
    if not any(v.layout == "blocked" for v in wanted):
        return []
    new = [span for span in units if str(span[0]) not in state.products and may_block(graph, *span)]
    run = partial(take_products, Extractor(graph), new, scratch)
    return [Step("products that can run blocked", 0.3 * len(new), run)] if new else []


def _steps(
    graph: Graph,
    state: State,
    units: list[Span],
    cuts: list[Cut],
    wanted: list[Variant],
    batches: Sequence[int],
    scratch: Path,
    budget_s: float,
    ranges: Mapping[str, tuple[float, float]] | None,
    timer: Timer,
    precisions: Sequence[Precision],
) -> list[Step]:
    """What the state does not hold yet."""
    rng = np.random.default_rng(0)
    steps = [] if state.hop else [Step("runtime floor and hops", 6.0, partial(take_floor, scratch), timed=True)]
    steps += [
        Step(f"time of {shape}", 2.0, partial(take_product, shape, timer))
        for shape in unknown(_products(state, wanted))
    ]
    for batch, count in sorted({(v.batch, v.threads) for v in wanted}):
        group = [v for v in wanted if (v.batch, v.threads) == (batch, count)]
        if group[0].layout != "plain":  # known already: it takes turns with the others again, since they share of it
            group = [Variant(batch, "plain", count), *group]
        requests = partial(request, graph, rng, batch, ranges)
        steps.append(
            Step(
                f"times, batch {batch}, {count} thread{'s' * (count > 1)}",
                budget_s * (1 + 0.5 * batch),
                partial(take_times, graph, units, group, requests, scratch, budget_s, timer),
                timed=True,
            )
        )
    limiter = detect()
    extractor = Extractor(graph)
    for batch in batches:
        todo = [span for span in units if _lacks_memory(state, span, batch, limiter)]
        known = {r.codec for c in cuts for r in state.codecs.get(str(c.position), ()) if r.batch == batch}
        names = [n for n in installed() if cuts and n not in known]
        new = [span for span in units if precisions and batch == 1 and str(span[0]) not in state.int8]
        if not todo and not names and not new:
            continue
        values = Borders(graph, units, batch, ranges)
        of_batch = f", batch {batch}" if batch > 1 else ""
        for span in todo:
            if batch > 1:
                run = partial(take_live, extractor, span, values, scratch, batch)
            else:
                run = partial(take_memory, extractor, span, values, scratch, limiter, timer)
            what = "memory and quotas" if batch == 1 else "memory"
            steps.append(Step(f"{what} of unit {span[0]}{of_batch}", 0.9 if batch == 1 else 0.3, run))
        for span in new:
            run = partial(take_int8, extractor, span, values, scratch)
            steps.append(Step(f"memory of unit {span[0]} on 8-bit integers", 0.5, run))
        if names:
            steps.append(Step(f"codecs{of_batch}", 0.05 * len(cuts), partial(take_codecs, cuts, values, batch, names)))
    return steps


def _products(state: State, wanted: Sequence[Variant]) -> Iterator[ProductShape]:
    """What products the choice of a blocked layout asks about."""
    sizes = [size for found in state.products.values() for size in found]
    for variant in wanted:
        if variant.layout == "blocked":
            for size in sizes:
                yield from size.shapes({1, variant.batch}, variant.threads)


def _shard_steps(
    graph: Graph,
    state: State,
    units: list[Span],
    batches: Sequence[int],
    scratch: Path,
    ranges: Mapping[str, tuple[float, float]] | None,
    at_once: int | None,
) -> list[Step]:
    """Shards that are worth trying by the times measured, and are not measured yet."""
    divider = Divider(graph)
    layouts: tuple[Layout, Layout] = ("plain", "prepacked")
    times, packed = (next(t for t in state.timed if t.variant == Variant(1, way, 1)).median_ms for way in layouts)
    steps = []
    tried = candidates(divider, units, times, at_once)
    names = {one: signature(graph, one, units) for one in tried}
    for batch in batches:
        borders = Borders(graph, units, batch, ranges)
        for name in dict.fromkeys(names.values()):
            alike = [one for one in tried if names[one] == name]
            first, last, span = alike[0]
            quicker = sum(packed[first:last]) <= PACKED * sum(times[first:last])
            copies = any(_copies(state.memory[str(span[0])]) for span in units[first:last])
            for layout in layouts if quicker and copies else layouts[:1]:
                key = f"{SHARDS_VERSION}-{batch}-{name}-{layout}"
                if {(a.first, a.last) for a in alike} == {(s.first, s.last) for s in state.shards.get(key, ())}:
                    continue
                what = f"{span.shards} {layout} shards by {span.way} of units {first} to {last - 1}"
                space = scratch / f"shards-{key}"
                run = partial(take_shards, divider, units, alike, borders, space, batch, layout, key)
                steps.append(Step(what, 0.5 + 0.6 * span.shards, run))
    return steps


def _copies(memory: Sequence[UnitMemory]) -> bool:
    """Whether prepacking does anything to a unit."""
    held = {m.layout: m.private_mb for m in memory}
    return held["prepacked"] > held["plain"] + COPIES_MB


def _lacks_memory(state: State, span: Span, batch: int, limiter: Limiter) -> bool:
    """Whether a unit's memory is to be measured; at batch 1 also its quotas, once they can be enforced."""
    key = str(span[0])
    if batch > 1:
        return all(live.batch != batch for live in state.lives.get(key, ()))
    return key not in state.memory or (limiter.enforced and not state.quotas[key])


def _with_precisions(state: State, precisions: Sequence[Precision]) -> State:
    """Without what is known of precisions that are not asked for."""
    kept = {*LOSSLESS, *precisions}
    return msgspec.structs.replace(
        state,
        timed=tuple(t for t in state.timed if t.variant.layout in kept),
        memory={unit: tuple(m for m in found if m.layout in kept) for unit, found in state.memory.items()},
        int8=state.int8 if "int8" in kept else {},
    )


def _assemble(graph: Graph, units: list[Span], cuts: list[Cut], measured: State, history: History) -> Profile:
    """What was measured, as it is at the machine's usual pace."""
    state = at_usual(graph, units, measured, history)
    assert state.floor
    assert state.hop
    by_unit = [
        Unit(
            first=first,
            last=last,
            kinds=kinds_of(graph, first, last),
            flops=sum(op.flops for op in graph.operators[first:last]),
            weight_bytes=graph.weight_bytes(first, last),
            live_bytes=graph.live_bytes(first, last),
            times=tuple(_timing(t, i) for t in state.timed),
            memory=state.memory[str(first)],
            lives=state.lives.get(str(first), ()),
            quotas=state.quotas[str(first)],
            int8=state.int8.get(str(first), ()),
        )
        for i, (first, last) in enumerate(units)
    ]
    by_cut = [
        CutProfile(
            position=cut.position,
            tensors=cut.tensors,
            side=cut.side,
            bytes=cut.bytes,
            savings=tuple(Saving(t.variant, t.saving_ms[i], t.shared_cuts[i]) for t in state.timed),
            codecs=state.codecs[str(cut.position)],
        )
        for i, cut in enumerate(cuts)
    ]
    return Profile(
        model=graph.name,
        model_hash=graph.hash,
        machine=this_machine(),
        floor=state.floor,
        hop=state.hop,
        noise=noise(graph, units, state, history),
        units=tuple(by_unit),
        cuts=tuple(by_cut),
        shards=tuple(s for key, found in state.shards.items() if key.startswith(f"{SHARDS_VERSION}-") for s in found),
        pace=usual_pace(measured, history),
    )


def _timing(timed: Timed, unit: int) -> Timing:
    return Timing(
        timed.variant,
        timed.median_ms[unit],
        timed.p95_ms[unit],
        timed.shared[unit],
        paused_ms=timed.paused_ms[unit] if timed.paused_ms else None,
        paused_p95_ms=timed.paused_p95_ms[unit] if timed.paused_ms else None,
        cpu_ms=timed.cpu_ms[unit] if timed.variant.threads > 1 else None,
    )


def kinds_of(graph: Graph, first: int, last: int) -> str:
    """The operators with weights, or the first ones, for a reader."""
    ops = graph.operators[first:last]
    heavy = [op.kind for op in ops if graph.weight_bytes(op.index, op.index + 1) > 4096] or [op.kind for op in ops]
    names = list(dict.fromkeys(heavy))
    return "+".join(names[:3])
