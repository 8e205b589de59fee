"""Judges lossy codecs and precisions by what they do to the model's output, on the user's own requests.

The model is run in slices, unoptimised, and what crosses goes through the very codecs that will serve; then without a
codec every bit is the whole model's own, and all of the difference is the codecs'. Requests that a codec was fitted on
are never judged on: without data of its own for fitting, every second request of the validation goes there.

Rejected: judging the tensor at the cut. Which error matters, only what comes behind it says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from lamella.codecs import Codecs, is_fitted
from lamella.errors import ConfigError, InputRefused
from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.graph.quantise import quantisable, quantise
from lamella.graph.requests import load_inputs
from lamella.plan.validation.metrics import Metric, metric
from lamella.profile.fitting import Basis, activations, fit
from lamella.runtime.function import open_session
from lamella.scratch import scratch

LEAST_JUDGED = 4
LEAST_FITTED = 4
"""Requests; fewer say nothing."""
KEPT_BYTES = 256 << 20
"""Of tensors at first lossy cuts, so that each codec there runs only what comes behind it."""
SESSIONS = 256

Span = tuple[int, int]
"""Operators, the last one not included."""
Values = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Validation:
    """The user's requests, what they are judged by, and those kept apart for fitting."""

    source: str
    sha256: str
    """Of the file."""
    judged: tuple[Values, ...]
    fitted: tuple[Values, ...]
    fitted_source: str
    metric: Metric
    bound: float


class Coded(NamedTuple):
    """A lossy hop: before which operator, by which codec, and which of the crossing tensors the stage before gives."""

    position: int
    codec: str
    tensors: tuple[str, ...]


class Trial(NamedTuple):
    """What is judged together: lossy hops, and spans of operators whose products run on 8-bit integers; in order."""

    hops: tuple[Coded, ...] = ()
    int8: tuple[Span, ...] = ()


class Verdict(NamedTuple):
    """What was measured, on how many requests: it ends with the first that breaks the bound beyond repair."""

    value: float
    requests: int
    kept: bool


def validation(
    path: Path,
    graph: Graph,
    batch: int,
    *,
    metric_name: str = "max_rel",
    tolerance: float | None = None,
    calibrate: Path | None = None,
) -> Validation:
    """The requests of `path`, to judge by.

    Args:
        path: an .npz file with one array per input; a longer leading axis is split into requests.
        graph: the model.
        batch: rows of a request.
        metric_name: see `metrics.metric`.
        tolerance: the bound, in place of the metric's own.
        calibrate: requests to fit on; by default every second one of `path`. What is judged on is never fitted on.

    Raises:
        InputRefused: a file cannot be read, is no set of requests, or holds too few, or a value that is no number.
        ConfigError: there is no such metric, or nothing keeps the tolerance.
    """
    judge = metric(metric_name)
    bound = judge.bound if tolerance is None else tolerance
    judge.check(bound)
    requests = _numbers(path, load_inputs(path, graph, batch))
    if calibrate:
        judged, fitted = requests, _numbers(calibrate, load_inputs(calibrate, graph, batch))
    else:
        judged, fitted = requests[::2], requests[1::2]
    known = {_digest(r) for r in judged}
    apart = [r for r in fitted if _digest(r) not in known]
    shared, fitted = len(fitted) - len(apart), apart
    if len(judged) < LEAST_JUDGED or len(fitted) < LEAST_FITTED:
        short = path if not calibrate or len(judged) < LEAST_JUDGED else calibrate
        least = LEAST_JUDGED if calibrate else LEAST_JUDGED + LEAST_FITTED
        count = len(fitted) if short == calibrate else len(requests)
        why = "" if calibrate else ": every second one to fit the learned codec on, the others to judge by"
        beside = f", beside {shared} to fit on that are judged on, too" if shared and calibrate else ""
        if shared and not calibrate:
            beside = f", {shared} of which are to be both fitted and judged on"
        raise InputRefused(
            f"{short} holds {count} request(s) of batch {batch}{beside}; at least {least} are needed{why}",
            where=str(short),
            try_="more requests" if calibrate else "more requests, or others to fit on: --calibrate other.npz",
        )
    return Validation(
        source=str(path),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        judged=tuple(judged),
        fitted=tuple(fitted),
        fitted_source=str(calibrate or path),
        metric=judge,
        bound=bound,
    )


def _digest(request: Values) -> bytes:
    """Equal for equal requests."""
    return hashlib.sha256(b"".join(value.tobytes() for _, value in sorted(request.items()))).digest()


def _numbers(path: Path, requests: Sequence[Values]) -> Sequence[Values]:
    """The requests; InputRefused where a value is NaN or infinite."""
    for k, request in enumerate(requests):
        for name, value in request.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise InputRefused(
                    f"{path}: input {name!r} of request {k} holds {int((~np.isfinite(value)).sum())} values that are "
                    "NaN or infinite; answers to them cannot be judged",
                    where=f"input {name!r}",
                    try_="leave the request out",
                )
    return requests


class Judge:
    """Measures codecs on one model; remembers what it measured."""

    def __init__(self, graph: Graph, asked: Validation) -> None:
        """Nothing is run before it is asked."""
        self.graph, self.asked = graph, asked
        self._bases: dict[str, Basis | None] = {}
        self._verdicts: dict[Trial, Verdict] = {}
        self._sessions: dict[tuple[Span, bool], ort.InferenceSession] = {}
        self._kept: dict[int, list[Values]] = {}

    @cached_property
    def expected(self) -> list[dict[str, np.ndarray]]:
        """The whole model's own answers to the requests that are judged on.

        Raises:
            InputRefused: it cannot take one of them.
        """
        return list(activations(self.graph, self.graph.outputs, self.asked.judged))

    @cached_property
    def metric(self) -> Metric:
        """What it judges by."""
        return self.asked.metric

    def bases(self, names: Iterable[str], batch: int) -> dict[str, Basis]:
        """What could be fitted to these tensors."""
        new = [n for n in dict.fromkeys(names) if n not in self._bases]
        if new:
            found = fit(self.graph, new, self.asked.fitted, batch)
            self._bases |= {n: found.get(n) for n in new}
        return {n: basis for n in names if (basis := self._bases[n])}

    def codecs(self, coded: Coded) -> Codecs:
        """The codecs of a hop's tensors."""
        if not is_fitted(coded.codec):
            return Codecs()
        ratio = int(coded.codec.rpartition("-")[2])
        return Codecs({n: basis.codec(ratio) for n in coded.tensors if (basis := self._bases.get(n))})

    def verdict(self, trial: Trial) -> Verdict:
        """What lossy hops and precisions together do to the output.

        Raises:
            ConfigError: the user's metric failed.
            InputRefused: the model cannot take one of the requests.
        """
        trial = Trial(tuple(sorted(trial.hops)), tuple(sorted(trial.int8)))
        if trial not in self._verdicts:
            self._verdicts[trial] = self._measure(trial)
        return self._verdicts[trial]

    def _measure(self, trial: Trial) -> Verdict:
        seen: list[float] = []
        early = not self.metric.mean
        for k, want in enumerate(self.expected):
            seen.append(self.metric.of(want, self._answer(k, trial)))
            if early and not self.metric.keeps(seen[-1], self.asked.bound):
                break
        value = self.metric.over(seen)
        return Verdict(value, len(seen), self.metric.keeps(value, self.asked.bound))

    def _answer(self, request: int, trial: Trial) -> dict[str, np.ndarray]:
        """The outputs of a request whose tensors go through the codecs of the hops, its spans in their precision."""
        hops = {hop.position: hop for hop in trial.hops}
        begun = min([*hops, *(first for first, _ in trial.int8)], default=0)
        values: dict[str, np.ndarray] = dict(self.asked.judged[request])
        if begun:
            values |= self._first(request, begun)
        marks = {begun, *hops, *(mark for span in trial.int8 for mark in span), len(self.graph.operators)}
        for span in pairwise(sorted(marks)):
            if hop := hops.get(span[0]):
                values |= self._coded(hop, values)
            values |= self._run(span, values, int8=span in trial.int8)
        return {n: values[n] for n in self.graph.outputs}

    def _coded(self, hop: Coded, values: Values) -> dict[str, np.ndarray]:
        """What the readers of a hop's tensors get."""
        codecs = self.codecs(hop)
        names = codecs.fitted if is_fitted(hop.codec) else hop.tensors
        found = {}
        for name in names:
            one, value = codecs.of(hop.codec, name), values[name]
            found[name] = one.decode(one.encode(value), value.dtype.name, value.shape)
        return found

    def _first(self, request: int, position: int) -> Values:
        """What operators before `position` give, kept where there is room."""
        if position not in self._kept:
            gives = [self._run((0, position), self.asked.judged[0])]
            size = sum(v.nbytes for v in gives[0].values()) * len(self.asked.judged)
            used = sum(v.nbytes for kept in self._kept.values() for values in kept for v in values.values())
            if size + used > KEPT_BYTES:
                return self._run((0, position), self.asked.judged[request])
            self._kept[position] = gives + [self._run((0, position), r) for r in self.asked.judged[1:]]
        return self._kept[position][request]

    def _run(self, span: Span, values: Values, *, int8: bool = False) -> dict[str, np.ndarray]:
        """What a run of operators gives."""
        takes, gives = self.graph.border(*span)
        if (span, int8) not in self._sessions:
            if len(self._sessions) >= SESSIONS:
                self._sessions.clear()
            self._sessions[span, int8] = self._opened(span, int8)
        found = self._sessions[span, int8].run(list(gives), {n: values[n] for n in takes})
        return dict(zip(gives, found, strict=True))

    def _opened(self, span: Span, int8: bool) -> ort.InferenceSession:
        """A session over a span, unoptimised; `int8` where its products run on 8-bit integers, which all can."""
        extractor = Extractor(self.graph)
        with scratch("judge") as space:
            path = extractor.write(*span, space)
            if int8:
                path = quantise(path, quantisable(self.graph, extractor.slice(*span)))
            return open_session(path, "reference", threads=1, prepack=False)


def unasked(**options: object) -> None:
    """ConfigError for an option that says how to judge, where nothing is judged."""
    for name, value in options.items():
        if value is not None:
            raise ConfigError(
                f"--{name} says how codecs and precisions are judged that lose, and without --validate none is allowed",
                try_=f"--validate data.npz --{name} {value}",
            )
