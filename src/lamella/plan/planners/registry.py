"""Planners by name."""

from __future__ import annotations

from lamella.errors import ConfigError
from lamella.plan.planners.amps_inf import AmpsInf
from lamella.plan.planners.drawn import Random
from lamella.plan.planners.exact import Exact
from lamella.plan.planners.gillis import Gillis
from lamella.plan.planners.greedy import LatencyGreedy
from lamella.plan.planners.mopar import Mopar
from lamella.plan.planners.plain import Single, Uniform
from lamella.plan.planners.planner import Planner


def planner(name: str) -> Planner:
    """The planner of that name.

    Raises:
        ConfigError: there is none, with the names there are.
    """
    if name.startswith("uniform-") and name.removeprefix("uniform-").isdecimal():
        stages = int(name.removeprefix("uniform-"))
        if stages >= 1:
            return Uniform(stages)
    if name.startswith("random-") and name.removeprefix("random-").isdecimal():
        return Random(int(name.removeprefix("random-")))
    found: dict[str, Planner] = {
        p.name: p for p in (Single(), Mopar(), Exact(), Gillis(), LatencyGreedy(), Random(), AmpsInf())
    }
    if name not in found:
        raise ConfigError(
            f"no planner {name!r}; there are ort, ort-default, single, uniform-K, mopar, exact, amps-inf, gillis, "
            "latency-greedy, random and random-SEED",
            try_="--planner exact",
        )
    return found[name]
