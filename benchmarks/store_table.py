"""What `benchmarks/store.py` found, and the page it makes: the targets first, then everything measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks.store_ways import Began, Together
from lamella.compare.rounds import interval
from lamella.machine import Machine

PLAIN = "(a) plain session"
EXTERNAL = "(b) external data"
STORE = "store, fresh Python"
ZYGOTE = "store, zygote"
FORKED = "store, forked with the session"
WORKERS = 4
FEW_ROWS = 32


class Count(msgspec.Struct, frozen=True):
    """How the rounds went: kept, rejected because the machine was busy, and busy ones among the kept."""

    kept: int
    rejected: int
    noisy: int


class Starts(msgspec.Struct, frozen=True):
    """A model started in every way, round by round."""

    size: str
    """Which of the sizes that have targets it stands for; empty for others."""
    weights_mb: float
    began: dict[str, tuple[Began, ...]]
    together: dict[str, tuple[Together, ...]]
    rounds: Count


class Steady(msgspec.Struct, frozen=True):
    """A model's p50 in each round, ms, by how it is opened."""

    model: str
    rows: int
    threads: int
    p50_ms: dict[str, tuple[float, ...]]
    rounds: Count


class HandedOver(msgspec.Struct, frozen=True):
    """Opening models of so many descriptors: the median of each round, ms."""

    descriptors: int
    alone_ms: tuple[float, ...]
    hostile_ms: tuple[float, ...]
    """Beside clients that misbehave."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    date: str
    machine: Machine
    backing: str
    starts: dict[str, Starts] = {}
    steady: tuple[Steady, ...] = ()
    handover: tuple[HandedOver, ...] = ()


class Figure(NamedTuple):
    """A median with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 1 if self.value >= 10 else 2
        return f"{self.value:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


class Target(NamedTuple):
    """A row of the issue."""

    measure: str
    model: str
    found: Figure
    unit: str
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the median keeps the bound."""
        return self.found.value >= self.bound if self.at_least else self.found.value <= self.bound


class Bounds(NamedTuple):
    """How many times better than (a) at a size; None where nothing is asked."""

    session: float
    fresh: float
    zygote: float
    forked: float
    first: float
    together: float | None


BOUNDS = {"434 MB": Bounds(25, 4, 20, 100, 6, 8), "1.5 GB": Bounds(60, 15, 60, 400, 12, None)}
LEAST_TOTAL = {PLAIN: 5.0, EXTERNAL: 3.0}
MOST_PRIVATE_MB = {ZYGOTE: 20.0, STORE: 40.0}
MOST_SLOWER = {"start": 1.05, "steady": 1.03}
MOST_OVER_FORK = 1.5
MOST_HANDOVER_MS = 0.5


def figure(values: Sequence[float]) -> Figure:
    """Of one thing measured in every round."""
    return Figure(float(np.median(values)), *interval([[v] for v in values], lambda v: float(np.median(v))))


def ratio(above: Sequence[float], below: Sequence[float]) -> Figure:
    """Of medians of two things measured in the same rounds; rounds are drawn as pairs."""
    a, b = np.asarray(above), np.asarray(below)

    def statistic(rounds: np.ndarray) -> float:
        drawn = rounds.astype(int)
        return float(np.median(a[drawn]) / np.median(b[drawn]))

    return Figure(statistic(np.arange(len(a))), *interval([[k] for k in range(len(a))], statistic))


def targets(result: Result) -> Iterator[Target]:
    """Every row of the issue for which something was measured."""
    for name, starts in result.starts.items():
        if starts.size in BOUNDS:
            yield from _starts(name, starts, BOUNDS[starts.size])
            yield from _memory(name, starts)
    for steady in result.steady:
        for favour, bound in MOST_SLOWER.items():
            if favour in steady.p50_ms and (favour == "steady" or steady.rows <= FEW_ROWS):
                found = ratio(steady.p50_ms[favour], steady.p50_ms[PLAIN])
                measure = f"steady latency to (a), `{favour}`, {steady.threads} thread(s)"
                yield Target(measure, steady.model, found, "x", bound, False)
    for handed in result.handover:
        measure = f"handing over {handed.descriptors} descriptors"
        yield Target(measure, "", figure(handed.alone_ms), " ms", MOST_HANDOVER_MS, False)


def _starts(name: str, starts: Starts, bounds: Bounds) -> Iterator[Target]:
    def better(way: str, what: str) -> Figure:
        return ratio(_column(starts.began[PLAIN], what), _column(starts.began[way], what))

    for measure, way, what, bound in (
        ("session creation", STORE, "session_ms", bounds.session),
        ("spawn to ready, fresh Python", STORE, "ready_ms", bounds.fresh),
        ("spawn to ready, zygote", ZYGOTE, "ready_ms", bounds.zygote),
        ("spawn to ready, forked with the session", FORKED, "ready_ms", bounds.forked),
        ("spawn to first result, zygote", ZYGOTE, "first_ms", bounds.first),
    ):
        yield Target(measure, name, better(way, what), "x", bound, True)
    forked = [began.ready_ms + began.warm_ms for began in starts.began[FORKED]]
    found = ratio(_column(starts.began[ZYGOTE], "first_ms"), forked)
    yield Target("the same to a fork and one warm inference", name, found, "x", MOST_OVER_FORK, False)
    if bounds.together:
        for way in (STORE, ZYGOTE):
            found = ratio(_column(starts.together[PLAIN], "first_ms"), _column(starts.together[way], "first_ms"))
            measure = f"{WORKERS} workers together, first result, {way.removeprefix('store, ')}"
            yield Target(measure, name, found, "x", bounds.together, True)


def _memory(name: str, starts: Starts) -> Iterator[Target]:
    for way, most in MOST_PRIVATE_MB.items():
        found = figure([float(np.mean(t.private_mb)) for t in starts.together[way]])
        yield Target(f"private memory per worker, {way.removeprefix('store, ')}", name, found, " MiB", most, False)
    for base, least in LEAST_TOTAL.items():
        for way in MOST_PRIVATE_MB:
            found = ratio(_column(starts.together[base], "total_mb"), _column(starts.together[way], "total_mb"))
            measure = f"memory of {WORKERS} workers, less than {base[:3]}, {way.removeprefix('store, ')}"
            yield Target(measure, name, found, "x", least, True)


def _column(rows: Sequence[Began] | Sequence[Together], what: str) -> list[float]:
    return [float(getattr(row, what)) for row in rows]


def page(result: Result) -> str:
    """`docs/benchmarks-store.md`."""
    machine = result.machine
    lines = [
        "# The store",
        "",
        f"Printed by `benchmarks/store.py` on {result.date}: {machine.cpu}, {machine.cores} cores, "
        f"{machine.memory_mb} MB, onnxruntime {machine.onnxruntime}; segments in {result.backing}. Baseline (a) is a "
        "plain `InferenceSession` on the self-contained file in a fresh process, (b) the same with external data, both "
        "with pages cached and every default but the threads (one, unless said). Ours are packages made with `--favour "
        "start` in a real daemon. All ways of a model take turns in one run; ratios are of medians, with 95 % "
        "intervals of rounds; a known load before and after each round rejects noisy ones. No session sends telemetry. "
        "Weights are random: time and memory do not depend on them. A model in two slices is two processes, "
        "started at once.",
        "",
        "## What was asked, and what was found",
        "",
        "| measure | model | found | asked | |",
        "|---|---|---|---|---|",
    ]
    for target in targets(result):
        asked = f"at {'least' if target.at_least else 'most'} {target.bound:g}{target.unit}"
        met = "met" if target.met else "**missed**"
        lines.append(f"| {target.measure} | {target.model} | {target.found}{target.unit} | {asked} | {met} |")
    lines += ["", "## Starts", "", *_start_tables(result.starts)]
    lines += ["## Steady latency", "", *_steady_table(result.steady)]
    lines += ["", "## Handing over", "", *_handover_table(result.handover)]
    return "\n".join(lines) + "\n"


def _start_tables(found: Mapping[str, Starts]) -> Iterator[str]:
    yield (
        "Times in ms, from spawn; how many times less than (a) beside them. *Session* is creating it alone (with the "
        f"store: asking, mapping and creating). *{WORKERS} together* is until the last one's first result, *private* "
        f"what each of them takes alone, *total* what all {WORKERS} and the processes that serve them take, MiB."
    )
    for name, starts in found.items():
        rounds = starts.rounds
        yield ""
        yield (
            f"**{name}**, {starts.weights_mb:.0f} MB: {rounds.kept} rounds, {rounds.rejected} noisy ones rejected, "
            f"{rounds.noisy} kept."
        )
        yield ""
        yield f"| | session | ready | first result | warm | {WORKERS} together | private | total |"
        yield "|" + "---|" * 8
        for way, began in starts.began.items():
            cells = [
                _beside(_column(starts.began[PLAIN], what), _column(began, what))
                for what in ("session_ms", "ready_ms", "first_ms")
            ]
            cells.append(str(figure(_column(began, "warm_ms"))))
            if way in starts.together:
                base, ours = starts.together[PLAIN], starts.together[way]
                cells.append(_beside(_column(base, "first_ms"), _column(ours, "first_ms")))
                cells.append(str(figure([float(np.mean(t.private_mb)) for t in ours])))
                cells.append(_beside(_column(base, "total_mb"), _column(ours, "total_mb")))
            else:
                cells += ["", "", ""]
            yield f"| {way} | {' | '.join(cells)} |"
    yield ""


def _beside(base: Sequence[float], ours: Sequence[float]) -> str:
    median = float(np.median(ours))
    return f"{figure(ours)}, {np.median(base) / median:.1f}x" if median else "0"


def _steady_table(found: Sequence[Steady]) -> Iterator[str]:
    yield "p50 in ms, and over (a)'s."
    yield ""
    yield "| model | rows | threads | (a) | `start` | `steady` | rounds | rejected | noisy |"
    yield "|" + "---|" * 9
    for each in found:
        rounds = each.rounds
        yield (
            f"| {each.model} | {each.rows or ''} | {each.threads} | {figure(each.p50_ms[PLAIN])} | "
            f"{_steady_cell(each, 'start')} | {_steady_cell(each, 'steady')} | {rounds.kept} | {rounds.rejected} | "
            f"{rounds.noisy} |"
        )


def _steady_cell(found: Steady, favour: str) -> str:
    if favour not in found.p50_ms:
        return ""
    ours = found.p50_ms[favour]
    return f"{figure(ours)}, {ratio(ours, found.p50_ms[PLAIN]).value:.3f}x"


def _handover_table(found: Sequence[HandedOver]) -> Iterator[str]:
    yield "ms from the request to the last descriptor; medians of rounds."
    yield ""
    yield "| descriptors | alone | beside hostile clients |"
    yield "|---|---|---|"
    for each in found:
        yield f"| {each.descriptors} | {figure(each.alone_ms)} | {figure(each.hostile_ms)} |"
