"""The least-cost route of a graph of choices as a mixed-integer program, solved by HiGHS on one thread.

One binary per arc, one flow balance per state, one row for the latency, one for the number of stages. Without the last
two the matrix is a network's and the relaxation is integral; so they are all that there is to branch on. A program
with a variable per unit and partition and inequalities for every product says the same and has a relaxation that says
next to nothing (tests/unit/plan/planners/test_amps_inf.py holds the two against each other).

`planners.routes` answers the same question, and faster: this is for the planner that is defined by a program, and for
tests and benchmarks that want a second opinion. Rejected: CP-SAT, several times slower on these, and it cannot be in
one process with highspy, since both bring a HiGHS.
"""

from __future__ import annotations

import math
import time
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from lamella.errors import ConfigError, MissingExtra

GAP = 1e-7
"""Relative; the solver's own default is 1e-4."""
FEASIBLE = 1e-9
"""Of the latency bound and of a binary: the law's tolerance is 1e-6."""


class Solved(NamedTuple):
    """The best route that was found, and how sure that is. USD, seconds."""

    arcs: tuple[int, ...]
    """In order."""
    usd: float
    bound_usd: float
    """No route costs less."""
    seconds: float
    proven: bool
    """Whether bound and cost met; otherwise time was up."""
    considered: int
    """Arcs that the solver was given."""

    @property
    def gap(self) -> float:
        """By what share of its cost a route might be cheaper, at most."""
        return max(0.0, 1 - self.bound_usd / self.usd) if self.usd else 0.0


class Arcs(NamedTuple):
    """Choices between states 0, the begin, and `states - 1`, the end; each leads to a later one."""

    states: int
    tail: np.ndarray
    head: np.ndarray
    usd: np.ndarray
    ms: np.ndarray


def solver() -> Any:
    """The library.

    Raises:
        MissingExtra: it is not installed.
        ConfigError: it cannot be loaded, as beside another library that brings a HiGHS of its own.
    """
    try:
        return import_module("highspy")
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "a mixed-integer program needs highspy, which is not installed", try_="pip install 'lamella[milp]'"
        ) from error
    except ImportError as error:
        raise ConfigError(
            f"highspy cannot be loaded: {error}", try_="a process that has not imported ortools before"
        ) from error


def solver_name() -> str:
    """What solves, for people."""
    return f"HiGHS {version('highspy')}"


def cheapest(
    arcs: Arcs,
    most_ms: float = math.inf,
    *,
    most_stages: int | None = None,
    seconds: float = math.inf,
) -> Solved | None:
    """The cheapest route within a latency; None where there is none, or none was found in time.

    Args:
        arcs: the choices.
        most_ms: latency of the route, the sum of its arcs'.
        most_stages: arcs of the route.
        seconds: that the solver may take.

    Raises:
        MissingExtra: highspy is not installed.
    """
    library = solver()
    if not len(arcs.tail):
        return None
    begun = time.monotonic()
    highs = library.Highs()
    for name, value in _options(seconds).items():
        highs.setOptionValue(name, value)
    scale = float(arcs.usd.max()) or 1.0
    highs.passModel(_program(library, arcs, arcs.usd / scale, most_ms, most_stages))
    highs.run()
    ended, info = highs.getModelStatus(), highs.getInfo()
    if info.primal_solution_status != library.SolutionStatus.kSolutionStatusFeasible:
        return None
    taken = np.flatnonzero(np.array(highs.getSolution().col_value) > 0.5)
    route = tuple(taken[np.argsort(arcs.tail[taken])].tolist())
    usd = math.fsum(arcs.usd[list(route)])
    bound = max(0.0, min(usd, info.mip_dual_bound * scale))
    proven = ended == library.HighsModelStatus.kOptimal
    return Solved(route, usd, bound, time.monotonic() - begun, proven, len(arcs.tail))


def _options(seconds: float) -> dict[str, Any]:
    return {
        "output_flag": False,
        "threads": 1,
        "time_limit": seconds,
        "mip_rel_gap": GAP,
        "mip_abs_gap": 0.0,
        "mip_feasibility_tolerance": FEASIBLE,
        "primal_feasibility_tolerance": FEASIBLE,
    }


def _program(library: Any, arcs: Arcs, cost: np.ndarray, most_ms: float, most_stages: int | None) -> Any:
    """Rows: the balance of each state (one flows out of the first and into the last), the latency, the stages."""
    count, more = len(arcs.tail), np.arange(len(arcs.tail))
    balance = np.zeros(arcs.states)
    balance[0], balance[-1] = 1.0, -1.0
    lower, upper = [*balance], [*balance]
    entries = [(arcs.tail, more, np.ones(count)), (arcs.head, more, -np.ones(count))]
    if math.isfinite(most_ms):  # scaled to 1, so that the tolerance is relative
        entries.append((np.full(count, len(upper)), more, arcs.ms / most_ms))
        lower, upper = [*lower, -math.inf], [*upper, 1.0]
    if most_stages is not None:
        entries.append((np.full(count, len(upper)), more, np.ones(count)))
        lower, upper = [*lower, -math.inf], [*upper, float(most_stages)]
    row, column, value = (np.concatenate(x) for x in zip(*entries, strict=True))
    order = np.lexsort((row, column))
    program = library.HighsLp()
    program.num_col_, program.num_row_ = count, len(upper)
    program.col_cost_, program.col_lower_, program.col_upper_ = cost, np.zeros(count), np.ones(count)
    program.row_lower_, program.row_upper_ = np.array(lower), np.array(upper)
    program.a_matrix_.format_ = library.MatrixFormat.kColwise
    program.a_matrix_.start_ = np.r_[0, np.cumsum(np.bincount(column, minlength=count))]
    program.a_matrix_.index_, program.a_matrix_.value_ = row[order], value[order]
    program.integrality_ = [library.HighsVarType.kInteger] * count
    return program
