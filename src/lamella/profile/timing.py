"""Time of units and what each cut adds, measured as the model would run.

The idea: a round runs the model unit by unit, each on the output of the one before, then again in neighbouring pairs.
So every unit meets caches as cold or warm as in the real pipeline, all units see the same noise, and for each cut the
difference `t(i) + t(i+1) - t(i,i+1)` says what dividing there costs: lost fusions, layout changes at the border, one
more call. The time of a slice is then the sum of its units less the savings at its inner cuts; no slice is ever run.

Rejected: timing each unit alone in a loop (weights of up to the cache's size stay in cache: 30 % too fast), and the
runtime's own node profile (its fused nodes do not map back to units, and borders are missing).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort

from lamella.channels.segments import create
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.limits.owner import mark
from lamella.profile.document import Variant
from lamella.runtime.function import open_session

Span = tuple[int, int]


class Piece:
    """A session over operators `first` to `last - 1` with its tensors bound to shared arrays."""

    def __init__(self, session: ort.InferenceSession, takes: Sequence[str], gives: Sequence[str]) -> None:
        """Bind later, when the arrays exist."""
        self.session, self.takes, self.gives = session, takes, gives
        self._binding: ort.IOBinding | None = None

    def run(self, values: dict[str, np.ndarray]) -> float:
        """Run on the arrays in `values`; ms. The first run makes the outputs' arrays, later ones write in place."""
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
        start = time.perf_counter()
        self.session.run_with_iobinding(self._binding)
        return (time.perf_counter() - start) * 1000


def in_segment(array: np.ndarray) -> np.ndarray:
    """A copy in shared memory, as on a real hop: its small pages are slower to write than a session's own huge ones."""
    segment, fd = create(array.nbytes)
    os.close(fd)
    view = segment.view(array.dtype.name, array.shape)
    view[...] = array
    return view


def open_pieces(
    graph: Graph, spans: Sequence[Span], variant: Variant, directory: Path, extractor: Extractor
) -> list[Piece]:
    """A session per span, optimised as a package would be."""
    pieces = []
    for first, last in spans:
        path = extractor.write(first, last, directory)
        session = open_session(path, "portable", threads=variant.threads, prepack=variant.prepack)
        path.unlink()
        pieces.append(Piece(session, *graph.border(first, last)))
    return pieces


class UnitTimes(NamedTuple):
    """What a variant took: `alone` [rounds, units] and `savings` [rounds, units - 1], ms."""

    alone: np.ndarray
    savings: np.ndarray


def time_units(
    graph: Graph,
    units: Sequence[Span],
    variants: Sequence[Variant],
    inputs: Mapping[str, np.ndarray],
    directory: Path,
    *,
    budget_s: float,
    min_rounds: int = 5,
    max_rounds: int = 25,
    tick: Callable[[float], None] = lambda _: None,
) -> list[UnitTimes]:
    """Times of units and savings at cuts, for each variant; the variants take turns, so they see the same noise.

    Args:
        graph: the model.
        units: consecutive spans of operators.
        variants: of one batch.
        inputs: one request of that batch.
        directory: scratch space on the file system of the model's weights.
        budget_s: stop when this is spent and `min_rounds` are done.
        min_rounds: at least so many rounds after the discarded one.
        max_rounds: at most so many.
        tick: called with the share that is done.
    """
    extractor = Extractor(graph)
    pairs = [(a[0], b[1]) for a, b in pairwise(units)]
    singles = [open_pieces(graph, units, v, directory, extractor) for v in variants]
    joined = [open_pieces(graph, pairs, v, directory, extractor) for v in variants]
    values = {name: in_segment(array) for name, array in inputs.items()}
    alone: list[list[list[float]]] = [[] for _ in variants]
    together: list[list[list[float]]] = [[] for _ in variants]
    begun = time.monotonic()
    for round_ in range(max_rounds + 1):
        for k in range(len(variants)):
            one = [piece.run(values) for piece in singles[k]]
            two = [0.0] * len(joined[k])
            for parity in (0, 1):
                for i in range(parity, len(two), 2):
                    two[i] = joined[k][i].run(values)
            if round_:
                alone[k].append(one)
                together[k].append(two)
        if round_ == 0:
            begun = time.monotonic()
            continue  # the first round makes arrays and touches weights
        spent = time.monotonic() - begun
        tick(min(1.0, max(round_ / max_rounds, spent / budget_s)))
        if round_ >= min_rounds and spent > budget_s:
            break
    found = []
    for one_, two_ in zip(alone, together, strict=True):
        t, pair = np.array(one_), np.array(two_).reshape(len(one_), -1)
        found.append(UnitTimes(t, t[:, :-1] + t[:, 1:] - pair))
    return found


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


def known_load() -> float:
    """A fixed piece of work for one core, ms: slower than before means the machine is busy.

    Rejected: matrix products, whose library has threads of its own that wait for each other on a busy machine.
    """
    a = np.full(1 << 15, 0.5, np.float32)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(80):
            np.sqrt(a, out=a)
        best = min(best, (time.perf_counter() - start) * 1000)
    return best
