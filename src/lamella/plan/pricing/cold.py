"""What a function's cold start would take, part by part, from the profile and the platform's figures.

Spawning and fetching are the platform's and none of the CPU's; importing, loading and the first run are work, which a
share below one vCPU stretches as it does a run. Not counted: mapping weights that are in the page cache, 0.1 ms per MB,
and a faster CPU while a function starts, which some platforms grant and none promises.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.throttle import throttled_ms
from lamella.runtime.function import Layout


class ColdParts(NamedTuple):
    """In order, ms."""

    spawn: float
    """Until the function's own process begins: the platform's."""
    fetch: float
    """Bringing the package there: the platform's."""
    imports: float
    """The process and the runtime's import."""
    load: float
    """The session, and reading weights that it copies."""
    first_run: float

    @property
    def total(self) -> float:
        """Until the first answer."""
        return sum(self)


def cold_parts(
    model: SliceModel, first: int, last: int, *, layout: Layout, vcpu: float, package_mb: float
) -> ColdParts:
    """A cold start of units `first` to `last - 1` as one function.

    Args:
        model: prices of the model on its platform.
        first: its first unit.
        last: one past its last.
        layout: of its weights.
        vcpu: its share.
        package_mb: what has to be fetched.

    Raises:
        ConfigError: nobody knows how long the platform takes to spawn or to fetch.
    """
    start, period = model.platform.start, model.platform.cpu.period_ms.value
    rate = start.fetch_mb_per_s.value

    def under_quota(cpu_ms: float) -> float:
        return throttled_ms(cpu_ms, vcpu, period)

    imports = model.profile.floor.start_ms
    load = load_ms(model, first, last, layout=layout)
    run = model.compute_ms(first, last, layout=layout, threads=1)
    # one stretch of work: what is throttled is the whole of it, and each part has its share
    marks = [0.0, *(under_quota(ms) for ms in (imports, imports + load, imports + load + run))]
    parts = [b - a for a, b in pairwise(marks)]
    return ColdParts(start.spawn_ms.value, package_mb / rate * 1000 if rate else 0.0, *parts)


def cold_ms(model: SliceModel, first: int, last: int, *, layout: Layout, vcpu: float, package_mb: float) -> float:
    """`cold_parts` together."""
    return cold_parts(model, first, last, layout=layout, vcpu=vcpu, package_mb=package_mb).total


def load_ms(model: SliceModel, first: int, last: int, *, layout: Layout) -> float:
    """Opening the slice's session: an empty one once, what each unit adds, and reading what is copied."""
    empty = min(m.load_ms for unit in model.profile.units for m in unit.memory)
    held = [model.memory.of_unit(unit, layout) for unit in range(first, last)]
    return empty + sum(m.load_ms - empty + m.read_ms for m in held)
