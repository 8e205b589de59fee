"""What requests that come now and then pay for: functions that were stopped meanwhile, and have to start.

Requests are taken to come one by one, at exponential distances (a Poisson process), and an instance to stay for the
platform's keep-alive after each. So a request finds every function stopped with probability exp(-rate x keep-alive),
or none. A stopped chain starts function by function, as the request reaches them: K slices are K starts, each with the
imports and the opening of its part, billed where the platform bills starts. Requests that overlap, and so need a second
instance, are left out: where starts matter they are rare.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from lamella.plan.choice import Choice
from lamella.plan.document import Cold
from lamella.plan.pricing.cold import load_ms
from lamella.plan.pricing.fan_out import join_alone
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.pricing.throttle import throttled_ms
from lamella.platforms import Platform
from lamella.units import MB


def cold_share(platform: Platform, rate_per_s: float | None) -> float:
    """Share of requests that find their functions stopped; 0 where no rate is given.

    Raises:
        ConfigError: the platform's keep-alive is unknown.
    """
    return math.exp(-rate_per_s * platform.start.keep_alive_s.value) if rate_per_s else 0.0


class Started(NamedTuple):
    """A function that starts."""

    memory_mb: float
    vcpu: float
    cpu_ms: float
    """Work of the start: imports, and opening the session."""
    package_mb: float
    """What has to be fetched, without its graph."""


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
            yield Started(shard.memory_mb, vcpu, floor.start_ms + part * load, part_mb)
        if not choice.shards:
            shipped = model.graph.weight_bytes(*model.span(choice.first, choice.last)) / MB
            yield Started(choice.memory_mb, choice.vcpu, floor.start_ms + load, shipped)
        elif choice.join and (after is None or after.shards):
            alone = join_alone(model, choice.join)
            yield Started(alone.memory_mb, alone.vcpu, floor.start_ms, 0.0)


def starts_usd(model: SliceModel, choices: Sequence[Choice]) -> float:
    """Price of starting every function of a plan once."""
    return sum(start_usd(model.platform, one) for one in starts(model, choices))


def start_usd(platform: Platform, one: Started) -> float:
    """Price of one start; what the platform itself takes for it is not billed.

    Raises:
        ConfigError: it is unknown whether the platform bills starts.
    """
    if not platform.billing.init_billed.value:
        return 0.0
    return throttled_ms(one.cpu_ms, one.vcpu, platform.cpu.period_ms.value) * platform.usd_per_ms(
        one.memory_mb, one.vcpu
    )


def cold(
    model: SliceModel, choices: Sequence[Choice], cost_usd: float, alone: Choice | None, rate_per_s: float | None
) -> Cold | None:
    """What starts cost a plan, and up to which rate of requests one function would be cheaper; None where unknown.

    Args:
        model: prices.
        choices: of the plan.
        cost_usd: of a request that finds all functions ready.
        alone: the model as one function, if one holds it.
        rate_per_s: at which functions run, if that is known.
    """
    platform = model.platform
    start, billed = platform.start, platform.billing.init_billed
    if not (start.keep_alive_s.known and billed.known):
        return None
    functions = list(starts(model, choices))
    period, usd = platform.cpu.period_ms.value, starts_usd(model, choices)
    own_ms = None
    if start.spawn_ms.known and start.fetch_mb_per_s.known:
        rate = start.fetch_mb_per_s.value
        fetched = sum(one.package_mb for one in functions) / rate * 1000 if rate else 0.0
        own_ms = start.spawn_ms.value * len(functions) + fetched
    return Cold(
        rate_per_s=rate_per_s,
        share=cold_share(platform, rate_per_s),
        keep_alive_s=start.keep_alive_s.value,
        starts=len(functions),
        init_ms=sum(throttled_ms(one.cpu_ms, one.vcpu, period) for one in functions),
        platform_ms=own_ms,
        usd_per_million_starts=usd * 1e6,
        one_function_below_per_s=_break_even(model, alone, cost_usd, usd) if len(functions) > 1 else None,
    )


def _break_even(model: SliceModel, alone: Choice | None, cost_usd: float, starts_usd: float) -> float | None:
    """The rate below which the starts of a divided plan cost more than it saves; 0 where they never do."""
    saved = alone.cost_usd - cost_usd if alone else 0.0
    if alone is None or saved <= 0:
        return None
    (one,) = starts(model, [alone])
    more = starts_usd - start_usd(model.platform, one)
    share = saved / more if more > 0 else math.inf
    return 0.0 if share >= 1 else -math.log(share) / model.platform.start.keep_alive_s.value
