"""Time of units and what each cut adds, measured as the model would run.

The idea: a round runs the model unit by unit, each on the output of the one before, then again in neighbouring pairs.
So every unit meets caches as cold or warm as in the real pipeline, all units see the same noise, and for each cut the
difference `t(i) + t(i+1) - t(i,i+1)` says what dividing there costs: lost fusions, layout changes at the border, one
more call. The time of a slice is then the sum of its units less the savings at its inner cuts; no slice is ever run.
Every pass has a request of its own: rows of a table that one request asked for are in no cache for the next.

Rejected: timing each unit alone in a loop (weights of up to the cache's size stay in cache: 30 % too fast), and the
runtime's own node profile (its fused nodes do not map back to units, and borders are missing).
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort

from lamella.channels.segments import create
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.graph.optimise import optimise
from lamella.graph.quantise import quantisable, quantise
from lamella.limits.owner import mark
from lamella.limits.pagecache import load
from lamella.profile.document import Pace, Rounds, Variant
from lamella.profile.hops import PAUSE_S
from lamella.profile.layouts import blocked_graph, may_block
from lamella.profile.pace import BUCKET_S, Watch, median, mixed, works
from lamella.profile.products import Timer, product_times
from lamella.runtime.function import Layout, open_session
from lamella.runtime.memory import populate

Span = tuple[int, int]
SHORT_MS = 20.0
"""Of a model: the units of shorter ones are timed behind a pause as well, which takes them up to 0.3 ms longer in all
(code, tables of pages and cores' clocks are cold)."""
SETTLED = 0.02
"""Rounds end at this standard error of their median, at one pace of the machine."""
BLOCKS = 4
"""Of rounds that follow each other, whose medians tell that error."""
PATIENCE = 4.0
"""So many budgets may be spent on rounds that do not settle."""
MEDIAN = math.sqrt(math.pi / 2)
"""A median's standard error over a mean's."""


class Took(NamedTuple):
    """Time of a run and what CPU time all its threads used, ms."""

    wall_ms: float
    cpu_ms: float


class Piece:
    """A session over operators `first` to `last - 1` with its tensors bound to shared arrays."""

    def __init__(self, session: ort.InferenceSession, takes: Sequence[str], gives: Sequence[str]) -> None:
        """Bind later, when the arrays exist."""
        self.session, self.takes, self.gives = session, takes, gives
        self._binding: ort.IOBinding | None = None

    def run(self, values: dict[str, np.ndarray]) -> Took:
        """Run on the arrays in `values`. The first run makes the outputs' arrays, later ones write in place."""
        if self._binding is None:
            outputs = self.session.run(self.gives, {n: values[n] for n in self.takes})
            for name, array in zip(self.gives, outputs, strict=True):
                if name not in values:
                    values[name] = in_segment(array)
            self._binding = self.session.io_binding()
            for name in self.takes:
                a = values[name]
                self._binding.bind_input(name, "cpu", 0, a.dtype, a.shape, a.ctypes.data)
            for name in self.gives:
                a = values[name]
                self._binding.bind_output(name, "cpu", 0, a.dtype, a.shape, a.ctypes.data)
        used, start = time.process_time(), time.perf_counter()
        self.session.run_with_iobinding(self._binding)
        end = time.perf_counter()
        return Took((end - start) * 1000, (time.process_time() - used) * 1000)

    def warm(self, values: dict[str, np.ndarray]) -> None:
        """Run once more, if it ran before."""
        if self._binding:
            self.run(values)


def in_segment(array: np.ndarray) -> np.ndarray:
    """A copy in shared memory, as on a real hop: its small pages are slower to write than a session's own huge ones."""
    segment, fd = create(array.nbytes)
    os.close(fd)
    view = segment.view(array.dtype.name, array.shape)
    view[...] = array
    return view


def open_piece(extractor: Extractor, span: Span, variant: Variant, directory: Path, timer: Timer) -> Piece | None:
    """A session over a span, optimised as a package would be; none where no product of it lies as the variant says."""
    session = OPENED[variant.layout](extractor, span, variant, directory, timer)
    return Piece(session, *extractor.graph.border(*span)) if session else None


def _open(extractor: Extractor, span: Span, variant: Variant, directory: Path, _: Timer) -> ort.InferenceSession:
    path = extractor.write(*span, directory)
    try:
        return open_session(path, "portable", threads=variant.threads, prepack=variant.layout == "prepacked")
    finally:
        path.unlink()


def _open_blocked(
    extractor: Extractor, span: Span, variant: Variant, directory: Path, timer: Timer
) -> ort.InferenceSession | None:
    if not may_block(extractor.graph, *span):
        return None
    work = directory / "blocked"
    try:
        optimised = optimise(extractor.write(*span, work))
        path = work / "made" / "blocked.onnx"
        if not blocked_graph(extractor.graph, optimised, variant.batch, variant.threads, timer, path):
            return None
        return _mapped(open_session(path, "packaged", threads=variant.threads, prepack=False), path.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _open_int8(
    extractor: Extractor, span: Span, variant: Variant, directory: Path, _: Timer
) -> ort.InferenceSession | None:
    names = quantisable(extractor.graph, extractor.slice(*span))
    if not names:
        return None
    work = directory / "int8"
    try:
        optimise(quantise(extractor.write(*span, work), names))
        return _mapped(open_session(work / "optimised.onnx", "packaged", threads=variant.threads, prepack=False), work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _mapped(session: ort.InferenceSession, directory: Path) -> ort.InferenceSession:
    """With the weights that it maps from there, whose names will be gone, in its tables of pages, as in a function."""
    for path in directory.glob("*.bin"):
        populate(path)
    return session


OPENED: Mapping[Layout, Callable[[Extractor, Span, Variant, Path, Timer], ort.InferenceSession | None]] = {
    "plain": _open,
    "prepacked": _open,
    "blocked": _open_blocked,
    "int8": _open_int8,
}


class UnitTimes(NamedTuple):
    """What a variant took: `alone` [rounds, units], CPU time of that, and `savings` [rounds, units - 1], ms."""

    alone: np.ndarray
    cpu: np.ndarray
    savings: np.ndarray
    shared: tuple[bool, ...]
    """Units whose times are those of the plain variant beside it,"""
    shared_cuts: tuple[bool, ...]
    """and cuts."""
    paused: np.ndarray | None
    """`alone`, each pass behind a pause; only of short models."""


class Timings(NamedTuple):
    """Of variants, and the machine's pace in each round."""

    variants: list[UnitTimes]
    paces: list[Pace]


def time_units(
    graph: Graph,
    units: Sequence[Span],
    variants: Sequence[Variant],
    requests: Callable[[], Mapping[str, np.ndarray]],
    directory: Path,
    *,
    watch: Watch,
    budget_s: float,
    min_rounds: int = 5,
    max_rounds: int = 25,
    tick: Callable[[float], None] = lambda _: None,
    timer: Timer = product_times,
) -> Timings:
    """Times of units and savings at cuts, for each variant; the variants take turns, so they see the same noise.

    A unit in which nothing is blocked is not run a second time for the blocked variant: it has the plain one's time.

    Args:
        graph: the model.
        units: consecutive spans of operators.
        variants: of one batch and number of threads, the plain one first.
        requests: makes another one of that batch, with tensors of the same shapes every time.
        directory: scratch space on the file system of the model's weights.
        watch: takes the machine's pace between rounds.
        budget_s: stop when this is spent, `min_rounds` are done and rounds have settled; where they do not settle, when
            `PATIENCE` times as much is spent.
        min_rounds: at least so many rounds after the discarded one.
        max_rounds: of a short model, which is not waited for to settle, at most so many.
        tick: called with the share that is done.
        timer: where times of products come from, which say what runs blocked.
    """
    assert variants[0].layout == "plain"
    extractor = Extractor(graph)
    pairs = [(a[0], b[1]) for a, b in pairwise(units)]
    singles = [[open_piece(extractor, span, v, directory, timer) for span in units] for v in variants]
    joined = [
        [
            open_piece(extractor, span, v, directory, timer) if a or b else None
            for span, (a, b) in zip(pairs, pairwise(pieces), strict=True)
        ]
        for v, pieces in zip(variants, singles, strict=True)
    ]
    load(graph.weights_file)
    populate(directory / graph.weights_file.name)  # as in a function: else rows of a table cost a page fault each
    values = {name: in_segment(array) for name, array in requests().items()}
    alone: list[list[list[Took]]] = [[] for _ in variants]
    together: list[list[list[Took]]] = [[] for _ in variants]
    passes = [[range(len(units))], [range(0, len(pairs), 2), range(1, len(pairs), 2)]]
    paused: list[list[list[Took]]] = [[] for _ in variants]
    likes = works(graph, units, variants[0].batch)
    begun = time.monotonic()
    rounds_ms, looks = list[float](), list[tuple[float, Pace]]()
    for round_ in count():
        looks.append((time.monotonic(), watch.look()))
        if round_:  # looking leaves other caches than a request before
            _turn(singles[0], values, [], passes[0], requests)
        ones, twos = list[list[Took]](), list[list[Took]]()
        for one, two in zip(singles, joined, strict=True):
            for pieces, found, orders in zip((one, two), (ones, twos), passes, strict=True):
                found.append(_turn(pieces, values, found, orders, requests))
        if round_ == 0:
            begun = time.monotonic()
            looks.clear()
            continue  # the first round makes arrays and touches weights
        rounds_ms.append(sum(took.wall_ms for took in ones[0]))
        short = rounds_ms[0] < SHORT_MS
        late = list[list[Took]]()
        for one in singles if short else []:
            late.append(_turn(one, values, late, passes[0], requests, PAUSE_S))
        for k in range(len(variants)):
            alone[k].append(ones[k])
            together[k].append(twos[k])
            paused[k] += late[k : k + 1]
        spent = time.monotonic() - begun
        tick(min(1.0, max(round_ / max_rounds if short else 0.0, spent / budget_s)))
        if round_ < min_rounds or (spent <= budget_s and not (short and round_ >= max_rounds)):
            continue
        work = mixed((took.wall_ms, one) for took, one in zip(ones[0], likes, strict=True))
        slow = np.array([pace.over(looks[0][1], work) for pace in around(looks)])
        if short or spent > PATIENCE * budget_s or standard_error(rounds_ms / slow) <= SETTLED:
            break
    results = []
    for k in range(len(variants)):
        t, cpu = np.moveaxis(np.array(alone[k]), -1, 0)
        pair = np.array([[took.wall_ms for took in turn] for turn in together[k]]).reshape(len(t), -1)
        shared, shared_cuts = (tuple(piece is None for piece in side[k]) for side in (singles, joined))
        late_ms = np.array(paused[k])[..., 0] if len(paused[k]) >= min_rounds else None
        results.append(UnitTimes(t, cpu, t[:, :-1] + t[:, 1:] - pair, shared, shared_cuts, late_ms))
    return Timings(results, around(looks))


def around(looks: Sequence[tuple[float, Pace]]) -> list[Pace]:
    """The pace at each look, by those of some seconds: one alone is as noisy as what is timed."""
    return [median([pace for when, pace in looks if abs(when - at) <= BUCKET_S / 2]) for at, _ in looks]


def standard_error(rounds: Sequence[float] | np.ndarray) -> float:
    """Of the median, relative to it, by the medians of blocks of rounds that follow each other; infinite for too few.

    Neighbours in time are alike on a machine whose speed drifts, so that single rounds would make it far too small.
    """
    if len(rounds) < 2 * BLOCKS:
        return float("inf")
    medians = [float(np.median(block)) for block in np.array_split(np.array(rounds), BLOCKS)]
    return float(np.std(medians, ddof=1) / np.sqrt(BLOCKS) / np.mean(medians))


def told_by(times: np.ndarray) -> Rounds:
    """What rounds tell of the machine.

    Their error is never below what they end at: they end when an estimate of four blocks happens to be.

    Args:
        times: [rounds, units], at one pace.
    """
    rounds = times.sum(axis=1)
    error = standard_error(rounds)
    if math.isinf(error):  # few and long, so that each is as good as a block
        error = MEDIAN * float(rounds.std() / (math.sqrt(len(rounds)) * rounds.mean()))
    return Rounds(common_deviation(times), max(error, SETTLED))


def common_deviation(alone: np.ndarray) -> float:
    """Relative standard deviation that all units share, of times [rounds, units].

    A unit's time varies by what it has in common with the others of its round and by its own: the variance of the sum
    is `c^2 T^2 + sum(own^2)`, those of the units add up to `c^2 sum(t^2) + sum(own^2)`. Of one unit nothing is known to
    be common, and no more is than the sum varies by.
    """
    if alone.shape[1] < 2:
        return 0.0
    means, whole = alone.mean(axis=0), alone.sum(axis=1)
    room = float(means.sum() ** 2 - (means**2).sum())
    excess = max(0.0, float(whole.var() - alone.var(axis=0).sum()))
    return math.sqrt(min(excess / room, float(whole.var()) / float(whole.mean()) ** 2))


def _turn(
    pieces: Sequence[Piece | None],
    values: dict[str, np.ndarray],
    before: list[list[Took]],
    passes: Iterable[Sequence[int]],
    requests: Callable[[], Mapping[str, np.ndarray]],
    pause_s: float = 0.0,
) -> list[Took]:
    """The times of a variant's pieces, run in that order; of those it shares what the first variant took this round."""
    taken = [Took(0.0, 0.0)] * len(pieces)
    for order in passes:
        for name, array in requests().items():
            values[name][...] = array
        if pause_s:
            time.sleep(pause_s)
        elif order and (last := pieces[order[-1]]):
            last.warm(values)  # making a request leaves the caches to Python, a unit before the first would not
        for k in order:
            piece = pieces[k]
            taken[k] = piece.run(values) if piece else before[0][k]
    return taken


def border_values(graph: Graph, units: Sequence[Span], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The real tensors at every border of `units` for one request, by name."""
    names = dict.fromkeys(name for span in units for name in graph.border(*span)[1])
    proto = Extractor(graph).slice(0, len(graph.operators))
    known = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    with tempfile.NamedTemporaryFile(dir=graph.directory, prefix=mark(".borders")) as file:
        file.write(proto.SerializeToString())
        file.flush()
        session = open_session(Path(file.name), "portable", threads=1, prepack=False)
        return {**inputs, **dict(zip(names, session.run(list(names), dict(inputs)), strict=True))}
