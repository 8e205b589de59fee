"""Which runs of units are worth dividing among parallel shards, and what each shard takes.

MOPAR's test for resource-dominant operators, on units, memory and time apart: a unit dominates when it has more than
`DOMINANT` of the model's weights or time, or lies two standard deviations above the mean unit. One that dominates
memory is tried by channels in 2, 4 and 8 shards, alone and with the unit after it (two dense layers need no exchange
between them). Time is tried where it lies, in 2, 4 and 8 shards but in no more than may be busy at a time: bands of the
image over runs of units that hold all, a half or a quarter of what can be computed in bands, and channels of the units
that dominate.

A shard is measured as it would run: a process of its own, one after the other and as many at a time as there are cores
(where they share the memory bus: dense layers of batch 1 may then gain nothing but memory), caches emptied between
requests as the other stages would do. It takes turns with its units in one function: a machine that is slower in these
seconds than in those of the units' rounds would make every division look worse, and a quicker one better, where the
best of many is chosen. So shards' times are scaled by what the units took in the rounds over what they take meanwhile.
Where the units are quicker with their weights packed at load (an LSTM by a quarter, a large dense layer by a third),
the shards are measured that way, too. They are not tried blocked: each would have
to be rewritten and checked apart, and what shards gain is memory and time, not their start.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from lamella.errors import ShardRefused
from lamella.graph.divide import Divider, ShardSpan
from lamella.graph.model import Graph
from lamella.graph.normalise import reads
from lamella.graph.optimise import optimise
from lamella.graph.shard import Sharded, Way
from lamella.graph.weights import write_weights
from lamella.limits.unlimited import Unlimited
from lamella.machine import on_cores, this_machine
from lamella.profile.document import HopCost, ShardPart, ShardProfile
from lamella.profile.hops import deviation
from lamella.profile.probes import write_function
from lamella.profile.timing import Span
from lamella.runtime.chain import Chain, Size
from lamella.runtime.function import Function, Layout, TensorSpec, open_session
from lamella.units import MB

SHARDS_VERSION = "6"
"""Part of what a measurement is kept under: raise it when measuring changes."""
DOMINANT = 0.2
"""Share of the model's weights or time from which a unit dominates."""
SPREAD = 2.0
"""Or so many standard deviations above the mean unit."""
WORTHWHILE = 0.02
"""Share of the model's time from which a unit is tried at all."""
PACKED = 0.95
"""Units that take at most this share of their time with weights packed at load are tried that way, too."""
TAIL = 0.1
"""Share of a unit's work that may stay undivided, behind its shards or in each of them."""
FAN_OUTS = (2, 4, 8)
RUNS = 15
"""Of which the slowest says how far times spread."""
OTHER_WORK_MB = 64
LEAST_MS = 1.0
"""Of units in one function, that tell how fast the machine is just now; shorter ones are mostly what serving takes."""


class Candidate(NamedTuple):
    """Units `first` to `last - 1`, of which the operators of `span` are to be divided."""

    first: int
    last: int
    span: ShardSpan


def dominant(values: Sequence[float]) -> list[int]:
    """Which of the units dominate."""
    array = np.asarray(values, float)
    if not array.sum():
        return []
    bound = min(DOMINANT * array.sum(), array.mean() + SPREAD * array.std())
    return [i for i, v in enumerate(array.tolist()) if v > bound]


def candidates(
    divider: Divider, units: Sequence[Span], times: Sequence[float], at_once: int | None = None
) -> list[Candidate]:
    """What to try, of which the operators can be divided.

    Args:
        divider: of the model.
        units: spans of operators.
        times: of the units, ms.
        at_once: how many shards may be busy at a time, which is what dividing time is for; as many as there are cores
            by default.
    """
    weights = [float(divider.graph.weight_bytes(*span)) for span in units]
    heavy = dominant(weights)
    found = []
    for unit in heavy:
        for begin, end in dict.fromkeys([*_around(divider, units, unit, 2), (unit, unit + 2)]):
            if end <= len(units):
                ways = _ways(divider, units[begin:end])
                found += [_longest(divider, units, begin, end, way, count) for way in ways for count in FAN_OUTS]
    lanes = at_once or this_machine().cores
    for count in sorted({min(2, lanes), *(n for n in FAN_OUTS if n <= lanes)} - {1}):
        long = [u for u, time in enumerate(times) if time >= WORTHWHILE * sum(times) and u not in heavy]
        for unit in long:
            spans = _around(divider, units, unit, count)
            found += [_longest(divider, units, begin, end, "channels", count) for begin, end in spans]
        for first, last in _tileable(divider, units):
            for a, b in _windows(times, first, last):
                found.append(Candidate(a, b, ShardSpan(units[a][0], units[b - 1][1], count, "tiles")))
    return [c for c in dict.fromkeys(found) if c and _parts(divider, c.span)]


def _around(divider: Divider, units: Sequence[Span], unit: int, shards: int) -> list[tuple[int, int]]:
    """Runs of units to divide for the sake of one: itself, or where that cannot be, with its neighbours.

    A product with the entries of a graph, say, has no weights to divide by: those before it have.
    """
    if _longest(divider, units, unit, unit + 1, "channels", shards):
        return [(unit, unit + 1)]
    found = [(unit - 1, unit + 1), (unit, unit + 2), (unit - 1, unit + 2)]
    return [(begin, end) for begin, end in found if begin >= 0 and end <= len(units)]


def signature(graph: Graph, tried: Candidate, units: Sequence[Span]) -> str:
    """Equal for candidates that do the same work on other tensors, such as the layers of a transformer."""
    operators = graph.operators[tried.span.first : units[tried.last - 1][1]]
    shapes = [
        (
            op.kind,
            [(graph.tensors[n].dtype, graph.tensors[n].shape) for n in (*op.inputs, *op.outputs)],
            [(graph.weights[n].dtype, graph.weights[n].shape) for n in op.weights],
        )
        for op in operators
    ]
    kept = tried.span.last - tried.span.first
    return hashlib.sha256(repr((shapes, kept, tried.span.shards, tried.span.way)).encode()).hexdigest()[:24]


def _longest(divider: Divider, units: Sequence[Span], unit: int, end: int, way: Way, shards: int) -> Candidate | None:
    """The most operators from a unit's first on that can be divided, where they are nearly all of its work."""
    graph, (first, last) = divider.graph, (units[unit][0], units[end - 1][1])
    whole = sum(op.flops for op in graph.operators[first:last])
    for stop in range(last, first, -1):
        if sum(op.flops for op in graph.operators[stop:last]) > TAIL * whole:
            return None
        span = ShardSpan(first, stop, shards, way)
        parts = _parts(divider, span)
        if parts:
            producer = graph.producer
            repeated = {producer[n] for n in parts.repeated}
            work = sum(graph.operators[k].flops for k in repeated)
            return Candidate(unit, end, span) if work <= TAIL * whole else None
    return None


def _ways(divider: Divider, spans: Sequence[Span]) -> tuple[Way, ...]:
    """By channels; an embedding also by rows."""
    kinds = {op.kind for first, last in spans for op in divider.graph.operators[first:last]}
    return ("channels", "rows") if "Gather" in kinds else ("channels",)


def _parts(divider: Divider, span: ShardSpan) -> Sharded | None:
    try:
        return divider.parts(span)
    except ShardRefused:
        return None


def _tileable(divider: Divider, units: Sequence[Span]) -> list[tuple[int, int]]:
    """The longest runs of units that can each be computed in bands."""
    found, begin = [], None
    for unit, span in enumerate([*units, None]):
        fits = span is not None and _parts(divider, ShardSpan(*span, 2, "tiles")) is not None
        if fits and begin is None:
            begin = unit
        elif not fits and begin is not None:
            found.append((begin, unit))
            begin = None
    return found


def _windows(times: Sequence[float], first: int, last: int) -> list[tuple[int, int]]:
    """The run itself, its halves and its quarters, by time."""
    total = np.concatenate([[0.0], np.cumsum(times[first:last])])
    found = []
    for pieces in (1, 2, 4):
        marks = [first + int(np.searchsorted(total, total[-1] * k / pieces)) for k in range(pieces)]
        found += [(a, b) for a, b in pairwise([*marks, last]) if b > a]
    return list(dict.fromkeys(found))


def measure_shards(
    divider: Divider,
    units: Sequence[Span],
    tried: Candidate,
    values: Mapping[str, np.ndarray],
    scratch: Path,
    hop: HopCost,
    batch: int = 1,
    layout: Layout = "plain",
    *,
    whole_ms: float,
) -> list[ShardProfile]:
    """Measure a candidate, its shards one at a time and, on several cores, as many at once as those.

    Args:
        divider: of the model.
        units: spans of operators.
        tried: what to divide how.
        values: the real tensors at the units' borders for one request, by name.
        scratch: an empty directory to work in; removed afterwards.
        hop: what a request takes in cold caches before and after its stage.
        batch: rows of the request.
        layout: of the shards' weights, plain or prepacked.
        whole_ms: what the units took undivided, in that layout, by the rounds of the profile.
    """
    parts = _parts(divider, tried.span)
    assert parts
    last = units[tried.last - 1][1]
    tail = divider.nodes[tried.span.last : last]
    gives = divider.graph.border(tried.span.first, last)[1]
    wanted = {n for node in (*parts.join, *tail) for n in reads(node)} | set(gives)
    held = dict(values)
    try:
        functions = [
            _function(divider, nodes, parts.weights, wanted, held, scratch / f"shard-{k + 1}", layout)
            for k, nodes in enumerate(parts.shards)
        ]
        nodes = divider.nodes[units[tried.first][0] : last]
        whole = _function(divider, nodes, {}, gives, dict(held), scratch / "whole", layout)
        join, directory = _function(divider, [*parts.join, *tail], parts.weights, gives, held, scratch / "join")
        join_ms = _time_of(directory, join, held)
        join_mb = sum(held[s.name].nbytes for s in (*join.inputs, *join.outputs)) / MB
        weights = [(d / "weights.bin").stat().st_size / MB for _, d in functions]
        found = []
        for at_once in sorted({1, min(this_machine().cores, tried.span.shards)}):
            seen = _run(functions, whole, held, at_once, hop)
            pace = whole_ms / seen.whole_ms if min(whole_ms, seen.whole_ms) >= LEAST_MS else 1.0
            times = [pace * time for time in seen.times]
            measured = tuple(ShardPart(*figures) for figures in zip(times, seen.peaks, weights, strict=True))
            found.append(
                ShardProfile(
                    first=tried.first,
                    last=tried.last,
                    span=tried.span,
                    at_once=at_once,
                    batch=batch,
                    parts=measured,
                    stage_ms=pace * seen.stage_ms,
                    join_ms=join_ms,
                    join_mb=join_mb,
                    layout=layout,
                    deviation_ms=pace * seen.deviation_ms,
                )
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


def _time_of(directory: Path, function: Function, values: Mapping[str, np.ndarray]) -> float:
    """Median time of a function in this process with cold caches, ms."""
    session = open_session(directory / function.graph, "packaged", threads=1, prepack=False)
    feeds = {s.name: values[s.name] for s in function.inputs}
    other_work = np.zeros(OTHER_WORK_MB << 18, np.float32)
    times = []
    for _ in range(RUNS):
        other_work += 1.0
        begun = time.perf_counter()
        session.run(None, feeds)
        times.append((time.perf_counter() - begun) * 1000)
    return float(np.median(times))


class _Seen(NamedTuple):
    """What shards took, ms and MB: each, the stage, and the operators of the same units in one function meanwhile."""

    times: list[float]
    peaks: list[float]
    stage_ms: float
    deviation_ms: float
    whole_ms: float


def _run(
    functions: Sequence[tuple[Function, Path]],
    whole: tuple[Function, Path],
    values: Mapping[str, np.ndarray],
    at_once: int,
    hop: HopCost,
) -> _Seen:
    """Shards of which `at_once` are busy at a time, in turns with the whole."""
    other_work = np.zeros(OTHER_WORK_MB << 18, np.float32)
    runs, stage, whole_ms = list[list[float]](), list[float](), list[float]()
    lanes = frozenset(sorted(os.sched_getaffinity(0))[-at_once:])
    alone = frozenset({max(lanes)})  # never beside the driver on one core and apart from it on the other
    with on_cores(1), _chain(functions, lanes) as divided, _chain([whole], alone) as undivided:
        takes, same = ({s.name: values[s.name] for f, _ in ones for s in f.inputs} for ones in (functions, [whole]))
        for chain in (divided, undivided):
            chain.start()
        for _ in range(RUNS + 2):
            other_work += 1.0
            answer = divided.infer(takes)
            runs.append([s.run_ms for s in answer.stages])
            stage.append(answer.latency_ms)
            other_work += 1.0
            whole_ms.append(undivided.infer(same).stages[0].compute_ms)
        peaks = [divided.instances[f.name].report().peak_mb for f, _ in functions]
    copied_mb = sum(a.nbytes for a in (*takes.values(), *answer.outputs.values())) / MB
    times = np.median(runs[2:], axis=0).tolist()
    stage_ms = float(np.median(stage[2:])) - hop.entry_ms - hop.entry_mb_ms * copied_mb
    return _Seen(times, peaks, max(stage_ms, max(times)), deviation(stage[2:]), float(np.median(whole_ms[2:])))


def _chain(functions: Sequence[tuple[Function, Path]], lanes: frozenset[int]) -> Chain:
    """One stage of these functions, unlimited, as many at a time as there are cores for them."""
    names = [f.name for f, _ in functions]
    return Chain(
        functions,
        [s.name for f, _ in functions for s in f.outputs],
        {name: Size(None, 1.0) for name in names},
        limiter=Unlimited("profiling"),
        cpus=lanes,
        stages=[names],
        at_once=[len(lanes)],
    )


def _function(
    divider: Divider,
    nodes: Sequence[NodeProto],
    new: Mapping[str, np.ndarray],
    wanted: Iterable[str],
    values: dict[str, np.ndarray],
    directory: Path,
    layout: Layout = "plain",
) -> tuple[Function, Path]:
    """A shard as a function, optimised as a package would be; what it gives joins `values`."""
    directory.mkdir(parents=True)
    made = {n for node in nodes for n in node.output}
    read = dict.fromkeys(n for node in nodes for n in reads(node))
    constants = {n: new[n] if n in new else divider.weights[n] for n in read if n in new or n in divider.weights}
    takes = [n for n in read if n not in made and n not in constants]
    gives = [n for n in dict.fromkeys(wanted) if n in made]
    _, initialisers = write_weights(directory / "weights.bin", constants)
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(values[n].dtype), values[n].shape)
        for n in takes
    ]
    graph = helper.make_graph(nodes, "shard", infos, [onnx.ValueInfoProto(name=n) for n in gives], initialisers)
    model: ModelProto = divider.model(graph)
    path = directory / "shard.onnx"
    path.write_bytes(model.SerializeToString())
    session = open_session(path, "reference", threads=1, prepack=False)
    outputs = session.run(gives, {n: values[n] for n in takes})
    values.update(zip(gives, outputs, strict=True))
    optimise(path)
    specs = [
        tuple(TensorSpec(n, a.dtype.name, a.shape) for n, a in side)
        for side in (((n, values[n]) for n in takes), zip(gives, outputs, strict=True))
    ]
    return write_function(directory, specs[0], specs[1], layout), directory
