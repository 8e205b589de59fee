"""Which runs of units are worth dividing among parallel shards, and what each shard takes.

MOPAR's test for resource-dominant operators, on units, memory and time apart: a unit dominates when it has more than
`DOMINANT` of the model's weights or time, or lies two standard deviations above the mean unit. One that dominates
memory is tried by channels in 2, 4 and 8 shards, alone and with the unit after it (two dense layers need no exchange
between them). Time is tried where it lies: bands of the image over runs of units that hold all, a half or a quarter of
what can be computed in bands, and channels of the units that dominate.

A shard is measured as it would run: a process of its own, one after the other and as many at a time as there are cores
(where they share the memory bus: dense layers of batch 1 may then gain nothing but memory), caches emptied between
requests as the other stages would do.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from lamella.errors import ShardRefused
from lamella.graph.divide import Divider, ShardSpan
from lamella.graph.normalise import reads
from lamella.graph.optimise import optimise
from lamella.graph.shard import Sharded, Way
from lamella.graph.weights import write_weights
from lamella.limits.unlimited import Unlimited
from lamella.machine import on_cores, this_machine
from lamella.profile.document import ShardPart, ShardProfile
from lamella.profile.probes import write_function
from lamella.profile.timing import Span
from lamella.runtime.chain import Chain, Size
from lamella.runtime.function import Function, TensorSpec, open_session
from lamella.units import MB

DOMINANT = 0.2
"""Share of the model's weights or time from which a unit dominates."""
SPREAD = 2.0
"""Or so many standard deviations above the mean unit."""
FAN_OUTS = (2, 4, 8)
RUNS = 9
OTHER_WORK_MB = 64


class Candidate(NamedTuple):
    """Units `first` to `last - 1`, to be divided in a way among so many shards."""

    first: int
    last: int
    way: Way
    shards: int


def dominant(values: Sequence[float]) -> list[int]:
    """Which of the units dominate."""
    array = np.asarray(values, float)
    if not array.sum():
        return []
    bound = min(DOMINANT * array.sum(), array.mean() + SPREAD * array.std())
    return [i for i, v in enumerate(array.tolist()) if v > bound]


def candidates(divider: Divider, units: Sequence[Span], times: Sequence[float]) -> list[Candidate]:
    """What to try, of which the operators can be divided.

    Args:
        divider: of the model.
        units: spans of operators.
        times: of the units, ms.
    """
    weights = [float(divider.graph.weight_bytes(*span)) for span in units]
    heavy = dominant(weights)
    tried = [
        Candidate(unit, end, way, count)
        for unit in heavy
        for end in (unit + 1, unit + 2)
        for way in _ways(divider, units[unit:end])
        for count in FAN_OUTS
        if end <= len(units)
    ]
    cores = this_machine().cores
    if cores > 1:
        tried += [Candidate(u, u + 1, "channels", cores) for u in dominant(times) if u not in heavy]
        for first, last in _tileable(divider, units):
            tried += [Candidate(a, b, "tiles", cores) for a, b in _windows(times, first, last)]
    return [c for c in dict.fromkeys(tried) if _parts(divider, units, c)]


def _ways(divider: Divider, spans: Sequence[Span]) -> tuple[Way, ...]:
    """By channels; an embedding also by rows."""
    kinds = {op.kind for first, last in spans for op in divider.graph.operators[first:last]}
    return ("channels", "rows") if "Gather" in kinds else ("channels",)


def _parts(divider: Divider, units: Sequence[Span], tried: Candidate) -> Sharded | None:
    span = ShardSpan(units[tried.first][0], units[tried.last - 1][1], tried.shards, tried.way)
    try:
        return divider.parts(span)
    except ShardRefused:
        return None


def _tileable(divider: Divider, units: Sequence[Span]) -> list[tuple[int, int]]:
    """The longest runs of units that can each be computed in bands."""
    alone = [_parts(divider, units, Candidate(u, u + 1, "tiles", 2)) is not None for u in range(len(units))]
    found, begin = [], None
    for unit, fits in enumerate([*alone, False]):
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
    batch: int = 1,
) -> list[ShardProfile]:
    """Measure a candidate, its shards one at a time and, on several cores, as many at once as those.

    Args:
        divider: of the model.
        units: spans of operators.
        tried: what to divide how.
        values: the real tensors at the units' borders for one request, by name.
        scratch: an empty directory to work in; removed afterwards.
        batch: rows of the request.
    """
    parts = _parts(divider, units, tried)
    assert parts
    wanted = {n for node in parts.join for n in node.input}
    try:
        functions = [
            _function(divider, nodes, parts.weights, wanted, values, scratch / f"shard-{k + 1}")
            for k, nodes in enumerate(parts.shards)
        ]
        weights = [(d / "weights.bin").stat().st_size / MB for _, d in functions]
        found = []
        for at_once in sorted({1, min(this_machine().cores, tried.shards)}):
            times, peaks = _run(functions, values, at_once)
            parts_ = tuple(ShardPart(*figures) for figures in zip(times, peaks, weights, strict=True))
            found.append(ShardProfile(tried.first, tried.last, tried.way, at_once, batch, parts_))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


def _run(
    functions: Sequence[tuple[Function, Path]], values: Mapping[str, np.ndarray], at_once: int
) -> tuple[list[float], list[float]]:
    """Median run, ms, and VmHWM, MB, of shards of which `at_once` are busy at a time."""
    names = [f.name for f, _ in functions]
    inputs = {s.name: values[s.name] for f, _ in functions for s in f.inputs}
    everywhere = os.sched_getaffinity(0)
    with (
        on_cores(1),
        Chain(
            functions,
            [s.name for f, _ in functions for s in f.outputs],
            {name: Size(None, 1.0) for name in names},
            limiter=Unlimited("profiling"),
            cpus=frozenset(sorted(everywhere)[-at_once:]),
            stages=[names],
            at_once=[at_once],
        ) as chain,
    ):
        chain.start()
        other_work = np.zeros(OTHER_WORK_MB << 18, np.float32)
        runs = []
        for _ in range(RUNS + 2):
            other_work += 1.0
            runs.append([s.run_ms for s in chain.infer(inputs).stages])
        peaks = [chain.instances[name].report().peak_mb for name in names]
    return np.median(np.array(runs[2:]), axis=0).tolist(), peaks


def _function(
    divider: Divider,
    nodes: Sequence[NodeProto],
    new: Mapping[str, np.ndarray],
    wanted: Iterable[str],
    values: Mapping[str, np.ndarray],
    directory: Path,
) -> tuple[Function, Path]:
    """A shard as a function in a directory of its own, optimised as a package would be."""
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
    optimise(path)
    specs = [
        tuple(TensorSpec(n, a.dtype.name, a.shape) for n, a in side)
        for side in (((n, values[n]) for n in takes), zip(gives, outputs, strict=True))
    ]
    return write_function(directory, specs[0], specs[1], prepack=False), directory
