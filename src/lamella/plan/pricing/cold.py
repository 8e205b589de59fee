"""What the starts of a plan's functions would take, from the profile and the platform's figures.

Spawning and fetching are the platform's and none of the CPU's; importing and loading are work of the function. The
first run is not part of it: it is a run, counted and billed as every one. Not counted: mapping weights that are in the
page cache, 0.1 ms per MB, and a faster CPU while a function starts, which some platforms grant and none promises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from lamella.plan.choice import Choice
from lamella.plan.pricing.fan_out import join_alone
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.throttle import throttled_ms
from lamella.platforms import Platform
from lamella.runtime.function import Layout
from lamella.units import MB


class Started(NamedTuple):
    """A function that starts."""

    memory_mb: float
    vcpu: float
    imports_ms: float
    """The process and the runtime's import,"""
    load_ms: float
    """the session, and reading weights that it copies: work, both."""
    package_mb: float
    """What has to be fetched, without its graph."""

    @property
    def cpu_ms(self) -> float:
        """Work of the start, which a share below one vCPU stretches as it does a run."""
        return self.imports_ms + self.load_ms


def starts(model: SliceModel, choices: Sequence[Choice]) -> Iterator[Started]:
    """Every function of a plan."""
    floor, platform = model.profile.floor, model.platform
    for choice, after in pairwise([*choices, None]):
        assert choice
        load = load_ms(model, choice.first, choice.last, layout=choice.layout)
        weights_mb = [max(0.0, shard.floor_mb - floor.resident_mb) for shard in choice.shards]  # by law 4
        for shard, part_mb in zip(choice.shards, weights_mb, strict=True):
            part = part_mb / sum(weights_mb) if any(weights_mb) else 1 / len(weights_mb)
            vcpu = platform.vcpu(shard.memory_mb, model.vcpu)
            yield Started(shard.memory_mb, vcpu, floor.start_ms, part * load, part_mb)
        if not choice.shards:
            span = choice.first, choice.last
            shipped = model.graph.weight_bytes(*model.span(*span)) / MB
            shipped -= model.quantised.spared_mb(*span, choice.layout)
            yield Started(choice.memory_mb, choice.vcpu, floor.start_ms, load, shipped)
        elif choice.join and (after is None or after.shards):
            alone = join_alone(model, choice.join)
            yield Started(alone.memory_mb, alone.vcpu, floor.start_ms, 0.0, 0.0)


def load_ms(model: SliceModel, first: int, last: int, *, layout: Layout) -> float:
    """Opening the slice's session: an empty one once, what each unit adds, and reading what is copied."""
    empty = model.memory.empty_ms
    held = [model.memory.of_unit(unit, layout) for unit in range(first, last)]
    return empty + sum(m.load_ms - empty + m.read_ms for m in held)


def init_ms(platform: Platform, one: Started) -> float:
    """The function's part of a start, under its share."""
    return throttled_ms(one.cpu_ms, one.vcpu, platform.cpu.period_ms.value)


def platform_ms(platform: Platform, functions: Sequence[Started]) -> float:
    """The platform's part of starting them one after the other: until each one's process begins, with its package.

    Raises:
        ConfigError: nobody knows how long the platform takes to spawn or to fetch.
    """
    rate = platform.start.fetch_mb_per_s.value
    fetched = sum(one.package_mb for one in functions) / rate * 1000 if rate else 0.0
    return platform.start.spawn_ms.value * len(functions) + fetched


def start_usd(platform: Platform, one: Started) -> float:
    """Price of one start; what the platform itself takes for it is not billed.

    Raises:
        ConfigError: it is unknown whether the platform bills starts.
    """
    if not platform.billing.init_billed.value:
        return 0.0
    return init_ms(platform, one) * platform.usd_per_ms(one.memory_mb, one.vcpu)


def starts_usd(model: SliceModel, choices: Sequence[Choice]) -> float:
    """Price of starting every function of a plan once."""
    return sum(start_usd(model.platform, one) for one in starts(model, choices))
