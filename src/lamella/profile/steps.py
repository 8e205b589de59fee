"""The steps of measuring a model: each is kept when it is done, and taken again where the machine was busy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from lamella import documents
from lamella.documents import Document
from lamella.graph.cuts import Cut
from lamella.graph.divide import Divider
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.graph.quantise import quantisable
from lamella.graph.requests import request
from lamella.limits import Limiter
from lamella.machine import on_cores
from lamella.profile.codecs import codec_result
from lamella.profile.document import (
    BatchLive,
    CodecResult,
    Floor,
    HopCosts,
    Pace,
    QuotaTime,
    Rounds,
    ShardProfile,
    UnitMemory,
    Variant,
)
from lamella.profile.hops import floor_and_hops
from lamella.profile.layouts import ProductSize, product_sizes
from lamella.profile.pace import Watch, calling_ms, median, works
from lamella.profile.probes import probe_int8, probe_live, probe_unit
from lamella.profile.products import ProductShape, Timer
from lamella.profile.quiet import RETAKES, Load, quietly
from lamella.profile.shards import Candidate, measure_shards
from lamella.profile.timing import Span, border_values, time_units, told_by
from lamella.runtime.function import Layout

LEAST_MS = 1e-6
"""A clock may see no time pass."""
Progress = Callable[[float, str], None]
"""Called with the share that is done, 0 to 1, and what is going on."""


class Timed(msgspec.Struct, frozen=True):
    """A variant's results, one entry per unit or cut."""

    variant: Variant
    pace: Pace
    """That times are at: the median of the rounds'."""
    median_ms: tuple[float, ...]
    p95_ms: tuple[float, ...]
    saving_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]
    """Median CPU time of all threads, of units."""
    shared: tuple[bool, ...]
    """Units whose figures are the plain variant's,"""
    shared_cuts: tuple[bool, ...]
    """and cuts."""
    paused_ms: tuple[float, ...] = ()
    """Of units behind a pause, where that was measured."""
    paused_p95_ms: tuple[float, ...] = ()


class State(Document, frozen=True, kw_only=True):
    """What is measured so far."""

    floor: Floor | None = None
    hop: HopCosts | None = None
    calls_ms: float | None = None
    """What short calls took while `hop` was measured."""
    products: dict[str, tuple[ProductSize, ...]] = msgspec.field(default_factory=dict)
    """Of each unit that may hold some: those that can run blocked."""
    timed: tuple[Timed, ...] = ()
    rounds: Rounds | None = None
    """Of the first variant, plain."""
    memory: dict[str, tuple[UnitMemory, ...]] = msgspec.field(default_factory=dict)
    lives: dict[str, tuple[BatchLive, ...]] = msgspec.field(default_factory=dict)
    quotas: dict[str, tuple[QuotaTime, ...]] = msgspec.field(default_factory=dict)
    codecs: dict[str, tuple[CodecResult, ...]] = msgspec.field(default_factory=dict)
    shards: dict[str, tuple[ShardProfile, ...]] = msgspec.field(default_factory=dict)
    loads: tuple[Load, ...] = ()
    int8: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """Of each unit, where it was asked for: what its products give that can run on 8-bit integers."""


class Step(NamedTuple):
    """A piece of measuring that is kept when it is done."""

    what: str
    weight: float
    """Expected time, s."""
    run: Callable[[State, Callable[[float], None]], State]
    timed: bool = False


def run_steps(steps: Sequence[Step], state: State, path: Path, progress: Progress) -> State:
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


def _tick(progress: Progress, done: float, step: Step, total: float, share: float) -> None:
    progress((done + share * step.weight) / total, step.what)


def _quietly(step: Step, state: State, tick: Callable[[float], None]) -> State:
    """Run a step; one that measures time is taken again, twice at most, while a known load says the machine is busy."""
    if not step.timed:
        return step.run(state, tick)
    new, loads = quietly(partial(step.run, state, tick), state.loads, RETAKES)
    return msgspec.structs.replace(new, loads=loads)


class Borders:
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


def take_floor(scratch: Path, state: State, tick: Callable[[float], None]) -> State:
    """The runtime without a model, and what a hop takes."""
    looks = list[float]()
    with on_cores(1):
        floor, hop = floor_and_hops(scratch, lambda: looks.append(calling_ms()))
    return msgspec.structs.replace(state, floor=floor, hop=hop, calls_ms=float(np.median(looks)))


def take_products(
    extractor: Extractor, units: Sequence[Span], scratch: Path, state: State, tick: Callable[[float], None]
) -> State:
    """Which products of the units can run blocked."""
    found = {}
    for k, span in enumerate(units):
        tick(k / len(units))
        found[str(span[0])] = product_sizes(extractor, *span, scratch / "products")
        shutil.rmtree(scratch / "products")
    return msgspec.structs.replace(state, products={**state.products, **found})


def take_product(shape: ProductShape, timer: Timer, state: State, tick: Callable[[float], None]) -> State:
    """Have a product timed in each layout; the machine's table keeps it, beside a known load of its own."""
    timer(shape)
    return state


def take_times(
    graph: Graph,
    units: list[Span],
    variants: list[Variant],
    requests: Callable[[], dict[str, np.ndarray]],
    scratch: Path,
    budget_s: float,
    timer: Timer,
    state: State,
    tick: Callable[[float], None],
) -> State:
    """Every unit alone and every cut's saving, for variants of one batch and thread count, in rounds."""
    least = 5 if variants[0].batch == 1 else 3
    threads = max(v.threads for v in variants)
    watch = Watch(threads)
    with on_cores(threads):
        results, paces = time_units(
            graph,
            units,
            variants,
            requests,
            scratch,
            budget_s=budget_s,
            min_rounds=least,
            tick=tick,
            timer=timer,
            watch=watch,
        )
    plain = results[0]
    known = {t.variant: t for t in state.timed}.get(variants[0])
    likes = works(graph, units, variants[0].batch)
    rounds, pace = state.rounds, known.pace if known else median(paces)
    watch.keep()
    if known:  # its times tell better than any other load how fast the machine is now
        scales = np.array(known.median_ms) / np.maximum(np.median(plain.alone, axis=0), LEAST_MS)
        paced = np.ones((len(plain.alone), 1)) * scales
    else:
        paced = np.array([[pace.over(at, work) for work in likes] for at in paces])
        rounds = rounds or told_by(paced * (plain.alone if plain.paused is None else plain.paused))
    timed = [
        Timed(
            variant,
            pace,
            *_median_and_p95(times.alone * paced),
            tuple(np.median(times.savings * paced[:, :-1], axis=0).tolist()),
            tuple(np.median(times.cpu * paced, axis=0).tolist()),
            times.shared,
            times.shared_cuts,
            *(((), ()) if times.paused is None else _median_and_p95(times.paused * paced)),
        )
        for variant, times in zip(variants, results, strict=True)
        if variant not in {t.variant for t in state.timed}
    ]
    return msgspec.structs.replace(state, timed=(*state.timed, *timed), rounds=rounds)


def _median_and_p95(times: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each unit, of `times` [rounds, units]."""
    median, p95 = (np.percentile(times, share, axis=0) for share in (50, 95))
    return tuple(median.tolist()), tuple(p95.tolist())


def take_memory(
    extractor: Extractor,
    span: Span,
    borders: Borders,
    scratch: Path,
    limiter: Limiter,
    timer: Timer,
    state: State,
    tick: Callable[[float], None],
) -> State:
    """A unit in processes of its own: memory in each layout, and time under quotas."""
    with on_cores(1):
        found = probe_unit(extractor, *span, borders.values, scratch / f"unit-{span[0]}", limiter, timer)
    key = str(span[0])
    integers = tuple(m for m in state.memory.get(key, ()) if m.layout == "int8")  # `take_int8` measures that
    memory = {**state.memory, key: (*found.memory, *integers)}
    return msgspec.structs.replace(state, memory=memory, quotas={**state.quotas, key: found.quotas})


def take_int8(
    extractor: Extractor,
    span: Span,
    borders: Borders,
    scratch: Path,
    state: State,
    tick: Callable[[float], None],
) -> State:
    """Which products of a unit can run on 8-bit integers, and the unit in a process of its own with those that do."""
    key = str(span[0])
    names = quantisable(extractor.graph, extractor.slice(*span))
    memory = state.memory[key]
    if names:
        with on_cores(1):
            memory = (*memory, probe_int8(extractor, *span, names, borders.values, scratch / f"unit-{span[0]}"))
    return msgspec.structs.replace(state, memory={**state.memory, key: memory}, int8={**state.int8, key: names})


def take_live(
    extractor: Extractor,
    span: Span,
    borders: Borders,
    scratch: Path,
    batch: int,
    state: State,
    tick: Callable[[float], None],
) -> State:
    """The live memory of a unit at a larger batch."""
    with on_cores(1):
        live = probe_live(extractor, *span, borders.values, scratch / f"unit-{span[0]}")
    key = str(span[0])
    held = state.lives.get(key, ())
    return msgspec.structs.replace(state, lives={**state.lives, key: (*held, BatchLive(batch, live))})


def take_codecs(
    cuts: Sequence[Cut],
    borders: Borders,
    batch: int,
    names: Sequence[str],
    state: State,
    tick: Callable[[float], None],
) -> State:
    """Codecs on what crosses each cut."""
    results = {
        key: (*state.codecs.get(key, ()), *(codec_result(name, cut, borders.values, batch) for name in names))
        for cut in cuts
        for key in [str(cut.position)]
    }
    return msgspec.structs.replace(state, codecs=results)


def take_shards(
    divider: Divider,
    units: list[Span],
    alike: Sequence[Candidate],
    borders: Borders,
    scratch: Path,
    batch: int,
    layout: Layout,
    key: str,
    state: State,
    tick: Callable[[float], None],
) -> State:
    """Measure the first of several candidates that do the same work; the others have its figures."""
    assert state.hop
    hop = state.hop.cold
    tried = alike[0]
    timed = next(t for t in state.timed if t.variant == Variant(batch, layout, 1))
    inner = sum(max(0.0, saving) for saving in timed.saving_ms[tried.first : tried.last - 1])
    whole_ms = sum(timed.median_ms[tried.first : tried.last]) - inner
    measured = measure_shards(divider, units, tried, borders.values, scratch, hop, batch, layout, whole_ms=whole_ms)
    found = tuple(
        msgspec.structs.replace(m, first=one.first, last=one.last, span=one.span) for one in alike for m in measured
    )
    return msgspec.structs.replace(state, shards={**state.shards, key: found})
