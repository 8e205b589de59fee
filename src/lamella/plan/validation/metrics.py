"""How far answers are from the model's own: the measures that a lossy choice is judged by.

Each compares, of one request, the outputs of the whole model in full precision with those of what is judged. Over the
requests the worst counts; of `top1`, which is a share already, the mean.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np

from lamella.errors import ConfigError

Outputs = Mapping[str, np.ndarray]
"""By name."""
LARGEST = sys.float_info.max
"""What an infinite difference is written as: JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A measure of one request, and what is good."""

    name: str
    bound: float
    """Where the user gives none."""
    of: Callable[[Outputs, Outputs], float]
    """Of the model's own outputs and of others."""
    more_is_better: bool = False
    mean: bool = False

    def over(self, values: Sequence[float]) -> float:
        """The measure of several requests."""
        if self.mean:
            return math.fsum(values) / len(values)
        return min(values) if self.more_is_better else max(values)

    def keeps(self, value: float, bound: float) -> bool:
        """Whether a value is within a bound."""
        return value >= bound if self.more_is_better else value <= bound

    def check(self, bound: float) -> None:
        """ConfigError for a bound that not even an answer without loss keeps."""
        perfect = 1.0 if self.more_is_better else 0.0
        if not self.keeps(perfect, bound):
            raise ConfigError(
                f"--tolerance is {bound:g}: no answer has {self.name} {self.limit} that, "
                f"one without loss has {perfect:g}",
                try_=f"--tolerance {self.bound:g}",
            )

    @property
    def limit(self) -> str:
        """`at least` or `at most`."""
        return "at least" if self.more_is_better else "at most"


def difference(want: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    """Largest difference of two outputs, and relative to the range of the first; infinite where shapes differ."""
    if want.shape != got.shape:
        return float("inf"), float("inf")
    if want.size == 0:
        return 0.0, 0.0
    if want.dtype.kind == "f" and got.dtype.kind == "f":
        if not np.array_equal(np.isnan(want), np.isnan(got)):
            return float("inf"), float("inf")
        want, got = np.nan_to_num(want), np.nan_to_num(got)
    wide = want.astype(np.float64)
    absolute = float(np.max(np.abs(wide - got.astype(np.float64))))
    span = float(np.ptp(wide)) or float(np.max(np.abs(wide))) or 1.0
    return absolute, absolute / span


def _max_rel(want: Outputs, got: Outputs) -> float:
    """Law 3's: the largest difference over the range of the output, of the worst output."""
    return min(LARGEST, max((difference(want[n], got[n])[1] for n in want), default=0.0))


def _top1(want: Outputs, got: Outputs) -> float:
    """Rows (of a classifier a request, of a tagger a token) whose largest value is at the same place; worst output."""
    shares = [
        float(np.mean(np.argmax(w, axis=-1) == np.argmax(got[n], axis=-1))) if w.shape == got[n].shape else 0.0
        for n, w in want.items()
        if w.dtype.kind == "f" and w.ndim and w.shape[-1] > 1 and w.size
    ]
    if not shares:
        raise ConfigError("top1: no output of the model has scores to choose from", try_="--metric max_rel")
    return min(shares)


def _cosine(want: Outputs, got: Outputs) -> float:
    """Cosine of the angle between the outputs as vectors; of the worst output."""
    found = [1.0]
    for name, one in want.items():
        if one.dtype.kind != "f" or not one.size:
            continue
        if one.shape != got[name].shape:
            return -1.0
        a, b = one.astype(np.float64).ravel(), got[name].astype(np.float64).ravel()
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = float(a @ b) / lengths if lengths else float(not a.any() and not b.any())
        found.append(cosine if math.isfinite(cosine) else -1.0)
    return min(found)


METRICS = {
    m.name: m
    for m in (
        Metric("max_rel", 0.01, _max_rel),
        Metric("top1", 0.99, _top1, more_is_better=True, mean=True),
        Metric("cosine", 0.999, _cosine, more_is_better=True),
    )
}


def metric(name: str) -> Metric:
    """The metric of that name; `module:function` is the user's own, a loss: 0 is perfect, and 0.01 the bound.

    The function is given two dictionaries of arrays, the model's own outputs and those to judge, of one request. Its
    module is looked for in the current directory, too.

    Raises:
        ConfigError: there is none, or no such function.
    """
    if name in METRICS:
        return METRICS[name]
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise ConfigError(
            f"no metric {name!r}; there are {', '.join(METRICS)}, and module:function", try_="--metric max_rel"
        )
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise ConfigError(
            f"--metric {name}: {module} cannot be imported: {type(error).__name__}: {error}",
            try_=f"python -c 'import {module}'",
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ConfigError(f"--metric {name}: {module} has no function {function!r}", try_="--metric module:function")
    return Metric(name, METRICS["max_rel"].bound, _checked(name, found))


def _checked(name: str, function: Callable[[Outputs, Outputs], object]) -> Callable[[Outputs, Outputs], float]:
    """The user's function, what it raises and returns told apart from our own faults."""

    def of(want: Outputs, got: Outputs) -> float:
        try:
            value = function(_shown(want), _shown(got))
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"the metric {name} raised {type(error).__name__}: {error}",
                where=f"--metric {name}",
                try_="call it with two dictionaries of arrays",
            ) from error
        number = _number(value)
        if number is None:
            raise ConfigError(
                f"the metric {name} gave {value!r}, not a finite number",
                where=f"--metric {name}",
                try_="return float(...), 0 where nothing is lost",
            )
        return number

    return of


def _shown(outputs: Outputs) -> dict[str, np.ndarray]:
    """The outputs to look at only: those of the model are compared with others again."""
    found = {name: array.view() for name, array in outputs.items()}
    for array in found.values():
        array.flags.writeable = False
    return found


def _number(value: object) -> float | None:
    """A finite number; None for all else. A truth value is none: False is meant as `differs`, and would be no loss."""
    if isinstance(value, bool) or not isinstance(value, Real | np.integer | np.floating):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
