"""Measure a model: a list of steps, each saved when it is done.

The state of a profile lives in the cache under the model's hash, the machine and the runtime version. An interrupted
run (Ctrl-C at any time) goes on at the first step that is missing, and asking for more (another batch, more threads)
measures only what is new. What is computed once is never computed again.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from lamella import documents
from lamella.codecs import installed
from lamella.documents import Document
from lamella.errors import ConfigError
from lamella.graph.cuts import Cut, plan_cuts
from lamella.graph.divide import Divider
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.limits import Limiter, detect
from lamella.limits.owner import mark
from lamella.machine import on_cores, this_machine
from lamella.profile.codecs import codec_result
from lamella.profile.document import (
    BatchLive,
    CodecResult,
    CutProfile,
    Floor,
    HopCosts,
    Noise,
    Profile,
    QuotaTime,
    Saving,
    ShardProfile,
    Timing,
    Unit,
    UnitMemory,
    Variant,
)
from lamella.profile.hops import floor_and_hops
from lamella.profile.probes import probe_live, probe_unit
from lamella.profile.shards import SHARDS_VERSION, Candidate, candidates, measure_shards, signature
from lamella.profile.timing import Span, border_values, known_load, time_units

PROFILE_VERSION = "17"
"""Part of the cache key: raise it when measuring changes."""

RETAKES = 2
NOISY = 1.25
"""A timed step is taken again while the known load beside it took this much longer than the fastest seen."""

Progress = Callable[[float, str], None]
"""Called with the share that is done, 0 to 1, and what is going on."""


class _Timed(msgspec.Struct, frozen=True):
    """A variant's results, one entry per unit or cut."""

    variant: Variant
    median_ms: tuple[float, ...]
    p95_ms: tuple[float, ...]
    saving_ms: tuple[float, ...]


class _State(Document, frozen=True, kw_only=True):
    """What is measured so far."""

    floor: Floor | None = None
    hop: HopCosts | None = None
    timed: tuple[_Timed, ...] = ()
    memory: dict[str, tuple[UnitMemory, ...]] = msgspec.field(default_factory=dict)
    lives: dict[str, tuple[BatchLive, ...]] = msgspec.field(default_factory=dict)
    quotas: dict[str, tuple[QuotaTime, ...]] = msgspec.field(default_factory=dict)
    codecs: dict[str, tuple[CodecResult, ...]] = msgspec.field(default_factory=dict)
    shards: dict[str, tuple[ShardProfile, ...]] = msgspec.field(default_factory=dict)
    loads_ms: tuple[float, ...] = ()


def units_of(graph: Graph) -> tuple[list[Span], list[Cut]]:
    """The spans of operators between planning cuts, and those cuts."""
    cuts = plan_cuts(graph)
    marks = [0, *(c.position for c in cuts), len(graph.operators)]
    return list(pairwise(marks)), cuts


def variants_for(graph: Graph, batches: Sequence[int], threads: Sequence[int]) -> list[Variant]:
    """What to run: prepacking off and on; larger batches on one thread only.

    Raises:
        ConfigError: a batch above 1 is asked of a model whose batch axis is bound.
    """
    if max(batches) > 1 and not graph.batchable:
        raise ConfigError(
            f"batch {max(batches)} needs a free batch axis, {graph.name} has none",
            try_="--shape NAME=N,... on its inputs",
        )
    cores = this_machine().cores
    grid = [
        Variant(b, p, t) for b in batches for t in threads if t <= cores and (b == 1 or t == 1) for p in (False, True)
    ]
    return sorted(set(grid))


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
) -> Profile:
    """The profile of a model on this machine; measures only what the cache does not hold.

    Args:
        graph: the model.
        batches: 1, and others where the batch axis is free.
        threads: intra-op threads to try; those beyond the machine's cores are left out.
        budget_s: time for the rounds of one variant; at least five rounds are run (three of a larger batch).
        progress: told how far it is.
        ranges: value ranges of integer inputs, by name.
        shards: measure what is worth dividing among shards, too.
    """
    path = cache_path(graph)
    state = documents.read(path, _State, made_by="lamella profile MODEL") if path.exists() else _State()
    units, cuts = units_of(graph)
    wanted = [v for v in variants_for(graph, batches, threads) if v not in {t.variant for t in state.timed}]
    scratch = Path(tempfile.mkdtemp(prefix=mark(".profile"), dir=graph.directory))
    try:
        steps = _steps(graph, state, units, cuts, wanted, batches, scratch, budget_s, ranges)
        share = 0.75 if shards and steps else 1.0
        state = _take(steps, state, path, lambda done, what: progress(done * share, what))
        if shards:  # what to try depends on the times
            steps = _shard_steps(graph, state, units, batches, scratch, ranges)
            begun = share if share < 1 else 0.0
            state = _take(steps, state, path, lambda done, what: progress(begun + done * (1 - begun), what))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    progress(1.0, "done")
    return _assemble(graph, units, cuts, state)


class _Step(NamedTuple):
    """A piece of measuring that is kept when it is done."""

    what: str
    weight: float
    """Expected time, s."""
    run: Callable[[_State, Callable[[float], None]], _State]
    timed: bool = False


def _take(steps: Sequence[_Step], state: _State, path: Path, progress: Progress) -> _State:
    """Take the steps one by one, the state saved after each."""
    total = sum(step.weight for step in steps) or 1.0
    done = 0.0
    for step in steps:
        tick = partial(_tick, progress, done, step, total)
        tick(0.0)
        state = _quietly(step, state, tick)
        documents.write(path, state)
        done += step.weight
    return state


def _tick(progress: Progress, done: float, step: _Step, total: float, share: float) -> None:
    progress((done + share * step.weight) / total, step.what)


def _quietly(step: _Step, state: _State, tick: Callable[[float], None]) -> _State:
    """Run a step; one that measures time is taken again, twice at most, while a known load says the machine is busy."""
    best: tuple[float, _State] | None = None
    for _ in range(1 + RETAKES * step.timed):
        before = known_load()
        new = step.run(state, tick)
        loads = (*state.loads_ms, before, known_load())
        noise = max(loads[-2:]) / min(loads)
        new = msgspec.structs.replace(new, loads_ms=loads[-400:])
        if best is None or noise < best[0]:
            best = (noise, new)
        if noise < NOISY:
            break
    assert best
    return best[1]


def _steps(
    graph: Graph,
    state: _State,
    units: list[Span],
    cuts: list[Cut],
    wanted: list[Variant],
    batches: Sequence[int],
    scratch: Path,
    budget_s: float,
    ranges: Mapping[str, tuple[float, float]] | None,
) -> list[_Step]:
    """What the state does not hold yet."""
    rng = np.random.default_rng(0)
    steps = [] if state.hop else [_Step("runtime floor and hops", 6.0, partial(_floor, scratch), timed=True)]
    for batch, count in sorted({(v.batch, v.threads) for v in wanted}):
        group = [v for v in wanted if (v.batch, v.threads) == (batch, count)]
        steps.append(
            _Step(
                f"times, batch {batch}, {count} thread{'s' * (count > 1)}",
                budget_s * (1 + 0.5 * batch),
                partial(_time, graph, units, group, request(graph, rng, batch, ranges), scratch, budget_s),
                timed=True,
            )
        )
    limiter = detect()
    extractor = Extractor(graph)
    for batch in sorted({1, *batches}):
        todo = [span for span in units if _lacks_memory(state, span, batch, limiter)]
        known = {r.codec for c in cuts for r in state.codecs.get(str(c.position), ()) if r.batch == batch}
        names = [n for n in installed() if cuts and n not in known]
        if not todo and not names:
            continue
        values = _Borders(graph, units, batch, ranges)
        of_batch = f", batch {batch}" if batch > 1 else ""
        for span in todo:
            if batch > 1:
                run = partial(_live, extractor, span, values, scratch, batch)
            else:
                run = partial(_memory, extractor, span, values, scratch, limiter)
            what = "memory and quotas" if batch == 1 else "memory"
            steps.append(_Step(f"{what} of unit {span[0]}{of_batch}", 0.9 if batch == 1 else 0.3, run))
        if names:
            steps.append(_Step(f"codecs{of_batch}", 0.05 * len(cuts), partial(_codecs, cuts, values, batch, names)))
    return steps


def _shard_steps(
    graph: Graph,
    state: _State,
    units: list[Span],
    batches: Sequence[int],
    scratch: Path,
    ranges: Mapping[str, tuple[float, float]] | None,
) -> list[_Step]:
    """Shards that are worth trying by the times measured, and are not measured yet."""
    divider = Divider(graph)
    times = next(t for t in state.timed if t.variant == Variant(1, False, 1)).median_ms
    steps = []
    tried = candidates(divider, units, times)
    names = {one: signature(graph, one, units) for one in tried}
    for batch in sorted(set(batches)):
        borders = _Borders(graph, units, batch, ranges)
        for name in dict.fromkeys(names.values()):
            alike = [one for one in tried if names[one] == name]
            key = f"{SHARDS_VERSION}-{batch}-{name}"
            if {(one.first, one.last) for one in alike} != {(s.first, s.last) for s in state.shards.get(key, ())}:
                span = alike[0].span
                what = f"{span.shards} shards by {span.way} of units {alike[0].first} to {alike[0].last - 1}"
                run = partial(_shards, divider, units, alike, borders, scratch / f"shards-{key}", batch, key)
                steps.append(_Step(what, 0.5 + 0.6 * span.shards, run))
    return steps


def _shards(
    divider: Divider,
    units: list[Span],
    alike: Sequence[Candidate],
    borders: _Borders,
    scratch: Path,
    batch: int,
    key: str,
    state: _State,
    tick: Callable[[float], None],
) -> _State:
    """Measure the first of several candidates that do the same work; the others have its figures."""
    assert state.hop
    measured = measure_shards(divider, units, alike[0], borders.values, scratch, state.hop.cold, batch)
    found = tuple(
        msgspec.structs.replace(m, first=one.first, last=one.last, span=one.span) for one in alike for m in measured
    )
    return msgspec.structs.replace(state, shards={**state.shards, key: found})


def _lacks_memory(state: _State, span: Span, batch: int, limiter: Limiter) -> bool:
    """Whether a unit's memory is to be measured; at batch 1 also its quotas, once they can be enforced."""
    key = str(span[0])
    if batch > 1:
        return all(live.batch != batch for live in state.lives.get(key, ()))
    return key not in state.memory or (limiter.enforced and not state.quotas[key])


class _Borders:
    """The real tensors at the units' borders for one request, made when they are first asked for."""

    def __init__(
        self, graph: Graph, units: list[Span], batch: int, ranges: Mapping[str, tuple[float, float]] | None
    ) -> None:
        self._make = partial(self._run, graph, units, batch, ranges)
        self._held: dict[str, np.ndarray] | None = None

    @staticmethod
    def _run(
        graph: Graph, units: list[Span], batch: int, ranges: Mapping[str, tuple[float, float]] | None
    ) -> dict[str, np.ndarray]:
        return border_values(graph, units, request(graph, np.random.default_rng(0), batch, ranges))

    @property
    def values(self) -> dict[str, np.ndarray]:
        """By name."""
        if self._held is None:
            self._held = self._make()
        return self._held


def _floor(scratch: Path, state: _State, tick: Callable[[float], None]) -> _State:
    with on_cores(1):
        floor, hop = floor_and_hops(scratch)
    return msgspec.structs.replace(state, floor=floor, hop=hop)


def _time(
    graph: Graph,
    units: list[Span],
    variants: list[Variant],
    inputs: dict[str, np.ndarray],
    scratch: Path,
    budget_s: float,
    state: _State,
    tick: Callable[[float], None],
) -> _State:
    least = 5 if variants[0].batch == 1 else 3
    with on_cores(max(v.threads for v in variants)):
        results = time_units(graph, units, variants, inputs, scratch, budget_s=budget_s, min_rounds=least, tick=tick)
    timed = [
        _Timed(
            variant,
            tuple(np.median(times.alone, axis=0).tolist()),
            tuple(np.percentile(times.alone, 95, axis=0).tolist()),
            tuple(np.median(times.savings, axis=0).tolist()),
        )
        for variant, times in zip(variants, results, strict=True)
    ]
    return msgspec.structs.replace(state, timed=(*state.timed, *timed))


def _memory(
    extractor: Extractor,
    span: Span,
    borders: _Borders,
    scratch: Path,
    limiter: Limiter,
    state: _State,
    tick: Callable[[float], None],
) -> _State:
    with on_cores(1):
        found = probe_unit(extractor, *span, borders.values, scratch / f"unit-{span[0]}", limiter)
    key = str(span[0])
    return msgspec.structs.replace(
        state, memory={**state.memory, key: found.memory}, quotas={**state.quotas, key: found.quotas}
    )


def _live(
    extractor: Extractor,
    span: Span,
    borders: _Borders,
    scratch: Path,
    batch: int,
    state: _State,
    tick: Callable[[float], None],
) -> _State:
    with on_cores(1):
        live = probe_live(extractor, *span, borders.values, scratch / f"unit-{span[0]}")
    key = str(span[0])
    held = state.lives.get(key, ())
    return msgspec.structs.replace(state, lives={**state.lives, key: (*held, BatchLive(batch, live))})


def _codecs(
    cuts: Sequence[Cut],
    borders: _Borders,
    batch: int,
    names: Sequence[str],
    state: _State,
    tick: Callable[[float], None],
) -> _State:
    results = {
        key: (*state.codecs.get(key, ()), *(codec_result(name, cut, borders.values, batch) for name in names))
        for cut in cuts
        for key in [str(cut.position)]
    }
    return msgspec.structs.replace(state, codecs=results)


def _assemble(graph: Graph, units: list[Span], cuts: list[Cut], state: _State) -> Profile:
    assert state.floor
    assert state.hop
    by_unit = [
        Unit(
            first=first,
            last=last,
            kinds=_kinds(graph, first, last),
            flops=sum(op.flops for op in graph.operators[first:last]),
            weight_bytes=graph.weight_bytes(first, last),
            live_bytes=graph.live_bytes(first, last),
            times=tuple(Timing(t.variant, t.median_ms[i], t.p95_ms[i]) for t in state.timed),
            memory=state.memory[str(first)],
            lives=state.lives.get(str(first), ()),
            quotas=state.quotas[str(first)],
        )
        for i, (first, last) in enumerate(units)
    ]
    by_cut = [
        CutProfile(
            position=cut.position,
            tensors=cut.tensors,
            side=cut.side,
            bytes=cut.bytes,
            savings=tuple(Saving(t.variant, t.saving_ms[i]) for t in state.timed),
            codecs=state.codecs[str(cut.position)],
        )
        for i, cut in enumerate(cuts)
    ]
    loads = state.loads_ms
    return Profile(
        model=graph.name,
        model_hash=graph.hash,
        machine=this_machine(),
        floor=state.floor,
        hop=state.hop,
        noise=Noise(loads[0], loads[-1], max(loads) / min(loads)),
        units=tuple(by_unit),
        cuts=tuple(by_cut),
        shards=tuple(s for key, found in state.shards.items() if key.startswith(f"{SHARDS_VERSION}-") for s in found),
    )


def _kinds(graph: Graph, first: int, last: int) -> str:
    """The operators with weights, or the first ones, for a reader."""
    ops = graph.operators[first:last]
    heavy = [op.kind for op in ops if graph.weight_bytes(op.index, op.index + 1) > 4096] or [op.kind for op in ops]
    names = list(dict.fromkeys(heavy))
    return "+".join(names[:3])
