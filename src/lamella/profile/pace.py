"""How fast the machine is just now, and how fast it usually is: what was measured in one minute holds in another.

A machine that is shared with others changes its speed by a tenth for minutes, more than rounds of a profile or of a
comparison can even out: medians of a minute of resnet50 differ by 8 %. They do not over what small products take in the
same minute (1 %), whatever computes does likewise, and an LSTM with 128 MB of weights goes by what streaming through
memory takes (`python -m benchmarks.drift`). What serving takes beside the operators, Python and the kernel, changes
most: by 10 % from five seconds to the next, by 6 over what short calls of numpy and the kernel take. So the three are
timed beside rounds, every ten seconds of them are kept in the cache, and times are those of the machine's usual pace,
the median of all that is kept.

Rejected: a loop within a core's cache, which sees a quarter of it; one load for all: products vary by 8 % where an
LSTM varies by 4; and a loop of interpreted code in place of calls, which varies by more than serving does.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from lamella import documents
from lamella.documents import Document
from lamella.errors import ConfigError, StorageError
from lamella.graph.model import Graph
from lamella.machine import this_machine
from lamella.profile.document import HopCosts, Pace, Profile, Work
from lamella.profile.quiet import quickest, streaming

PACE_VERSION = 2
"""Part of the history's name: raise it when the loads change."""
SIDE = 256
"""Of the matrices: 768 KB, within a core's cache; for each thread as many rows."""
PRODUCTS = 12
LOOKS = 3
"""Of which the median is a pace: one alone may be interrupted for longer than it takes."""
CALLS = 50
"""Messages between two sockets; as many views, copies and reductions of small arrays."""
BUCKET_S = 10.0
"""What is kept is the median of so long."""
MOST_BUCKETS = 4000
STREAMED_BYTES = 32 << 20
"""Weights beyond caches, which are read from memory at every use."""
LEAST_USE, MOST_USE = 0.25, 4.0
"""Operations per byte of weights of units that wait for memory: a product with one row has half a one. Fewer are those
of tables, of which rows are read."""
CALLING = ("entry_ms", "fixed_ms", "call_ms", "entry_tensor_ms", "call_tensor_ms")
"""Prices of a hop that short calls tell the pace of."""
RECURRENT = ("LSTM", "GRU", "RNN")
"""These read their weights again at every step."""


class Bucket(msgspec.Struct, frozen=True):
    """Some seconds of a machine."""

    at: int
    """Seconds since 1970 over `BUCKET_S`."""
    pace: Pace
    threads: int = 1


class History(Document, frozen=True, kw_only=True):
    """What a machine was like whenever lamella measured on it."""

    buckets: tuple[Bucket, ...] = ()

    def usual(self, threads: int = 1) -> Pace | None:
        """The median; none where nothing is known."""
        paces = [b.pace for b in self.buckets if b.threads == threads]
        return median(paces) if paces else None

    def spread(self, work: Work, threads: int = 1) -> float:
        """Relative standard deviation of what work takes."""
        usual = self.usual(threads)
        if not usual:
            return 0.0
        low, high = np.percentile([b.pace.over(usual, work) for b in self.buckets if b.threads == threads], (16, 84))
        return float(high - low) / 2  # of a normal distribution; some seconds of a build beside it count for nothing


def pace(threads: int = 1) -> Pace:
    """Of this moment, on the cores of this process.

    Args:
        threads: that share the products: any of their cores may be slow, and all wait for it.

    Rejected: the quickest of several runs, which hides what slows the machine every other millisecond.
    """
    return median([Pace(took_ms(products(threads)), took_ms(streaming), calling_ms()) for _ in range(LOOKS)])


def took_ms(work: Callable[[], object]) -> float:
    """Of one run, ms."""
    return quickest(work, 1)


def calling_ms() -> float:
    """Of short calls in caches that they have filled, as those of requests in a row."""
    calls()
    return took_ms(calls)


def median(paces: Sequence[Pace]) -> Pace:
    """Of several."""
    return Pace(*np.median([msgspec.structs.astuple(p) for p in paces], axis=0).tolist())


class Watch:
    """Takes the pace beside what is timed."""

    def __init__(self, threads: int = 1) -> None:
        """Of so many threads; nothing is seen yet."""
        self._threads = threads
        self._seen: list[tuple[float, Pace]] = []

    def look(self) -> Pace:
        """Of this moment, which is remembered."""
        now = pace(self._threads)
        self._seen.append((time.time(), now))
        return now

    def keep(self) -> History:
        """Add what was seen to the machine's history; the history.

        One that cannot be read begins anew, and one that cannot be written is left as it is: it is no reason to lose
        minutes of measuring.
        """
        new: dict[int, list[Pace]] = {}
        for at, one in self._seen:
            new.setdefault(int(at // BUCKET_S), []).append(one)
        added = (Bucket(at, median(paces), self._threads) for at, paces in new.items())
        found = {(b.at, b.threads): b for b in (*known().buckets, *added)}  # what is new comes last, whatever the clock
        kept = History(buckets=tuple(found.values())[-MOST_BUCKETS:])
        with suppress(StorageError):
            documents.write(_path(), kept)
        return kept


def known() -> History:
    """The machine's history; empty where there is none, or it cannot be read."""
    with suppress(ConfigError):
        return documents.read(_path(), History, made_by="lamella profile MODEL")
    return History()


def waits_for_memory(kinds: Iterable[str], flops: int, weight_bytes: int) -> bool:
    """Whether what operators take is reading their weights: those of these kinds, all their operations and weights."""
    if weight_bytes < STREAMED_BYTES:
        return False
    return any(kind in RECURRENT for kind in kinds) or LEAST_USE <= flops / weight_bytes <= MOST_USE


def unit_work(graph: Graph, first: int, last: int, batch: int) -> Work:
    """Of operators `first` to `last - 1` on a batch: reading their weights, or products."""
    operators = graph.operators[first:last]
    kinds, flops = {op.kind for op in operators}, batch * sum(op.flops for op in operators)
    waits = waits_for_memory(kinds, flops, graph.weight_bytes(first, last))
    return Work(streaming=1.0) if waits else Work(products=1.0)


def works(graph: Graph, units: Iterable[tuple[int, int]], batch: int) -> list[Work]:
    """Of each unit."""
    return [unit_work(graph, first, last, batch) for first, last in units]


def mixed(parts: Iterable[tuple[float, Work]]) -> Work:
    """Of several pieces of work, each with what it takes."""
    times, works = zip(*parts, strict=True)
    return Work(*(np.array(times) @ np.array(works) / sum(times)).tolist())


def model_work(graph: Graph, profile: Profile, batch: int) -> Work:
    """Of a model's operators on a batch."""
    times = [unit.times[0].median_ms for unit in profile.units]
    return mixed(zip(times, works(graph, [(u.first, u.last) for u in profile.units], batch), strict=True))


def at_pace(hop: HopCosts, calls_ms: float, usual: Pace) -> HopCosts:
    """What serving takes at the machine's usual pace.

    Only what stays in caches changes: behind a pause, or in caches that others have filled, serving waits for cores and
    memory, and takes the same in any minute (4 and 7 %, over an afternoon). So do copies, and how far a request spreads
    that comes behind another function's work.

    Args:
        hop: as measured.
        calls_ms: of the known load meanwhile.
        usual: pace.
    """
    fields, scale = msgspec.structs.asdict(hop.warm), usual.calls_ms / calls_ms
    paced = {name: min(ms * scale, max(ms, getattr(hop.cold, name))) for name, ms in fields.items() if name in CALLING}
    return msgspec.structs.replace(hop, warm=msgspec.structs.replace(hop.warm, **paced))


def _path() -> Path:
    return documents.cache_dir() / "paces" / f"{this_machine().key}-v{PACE_VERSION}.json"


def calls() -> object:
    """Short calls, as serving a request is made of."""
    arrays, (ours, theirs) = _small()
    for _ in range(CALLS):
        for array in arrays:
            copy = np.empty_like(array)
            copy[...] = array
            copy.min()
        ours.send(b"x")
        theirs.recv(1)
    return None


@cache
def _small() -> tuple[list[np.ndarray], tuple[socket.socket, socket.socket]]:
    return [np.ones((1, size), np.float32) for size in (1, 8, 64)], socket.socketpair()


@cache
def products(threads: int) -> Callable[[], object]:
    """Runs small products on so many threads."""
    shapes = {"a": (SIDE * threads, SIDE), "b": (SIDE, SIDE), "c": (SIDE * threads, SIDE)}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "products", ends[:2], ends[2:])
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # beside what is timed next
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = {name: np.ones(shapes[name], np.float32) for name in "ab"}

    def run() -> None:
        for _ in range(PRODUCTS):
            session.run(None, values)

    run()
    return run
