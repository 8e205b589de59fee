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

from lamella.plan.choice import Choice
from lamella.plan.document import Cold
from lamella.plan.fan_out import join_alone
from lamella.plan.predict import SliceModel, throttled_ms
from lamella.platforms import Platform


def cold_share(platform: Platform, rate_per_s: float | None) -> float:
    """Share of requests that find their functions stopped; 0 where no rate is given.

    Raises:
        ConfigError: the platform's keep-alive is unknown.
    """
    return math.exp(-rate_per_s * platform.start.keep_alive_s.value) if rate_per_s else 0.0


def starts(model: SliceModel, choices: Sequence[Choice]) -> Iterator[tuple[int, float, float]]:
    """Memory (MB), vCPU, and CPU time of one start (ms) of every function of a plan."""
    floor = model.profile.floor.start_ms
    for choice, after in pairwise([*choices, None]):
        assert choice
        load = opening_ms(model, choice)
        total = sum(shard_weights_mb(model, choice))
        for shard, weights in zip(choice.shards, shard_weights_mb(model, choice), strict=True):
            part = weights / total if total else 1 / len(choice.shards)
            yield shard.memory_mb, model.platform.vcpu(shard.memory_mb, model.vcpu), floor + part * load
        if not choice.shards:
            yield choice.memory_mb, choice.vcpu, floor + load
        elif choice.join and (after is None or after.shards):
            alone = join_alone(model, choice.join)
            yield alone.memory_mb, alone.vcpu, floor


def opening_ms(model: SliceModel, choice: Choice) -> float:
    """Opening the session of a slice, its files read from disk where that was measured."""
    parts = [model.memory_of(unit, choice.layout) for unit in range(choice.first, choice.last)]
    return sum(part.load_ms + part.read_ms for part in parts)


def shard_weights_mb(model: SliceModel, choice: Choice) -> list[float]:
    """Weights of each shard: what law 4 demands of it beyond the runtime floor."""
    return [max(0.0, shard.floor_mb - model.profile.floor.resident_mb) for shard in choice.shards]


def starts_usd(model: SliceModel, choices: Sequence[Choice]) -> float:
    """Price of starting every function of a plan once."""
    return sum(start_usd(model.platform, *one) for one in starts(model, choices))


def start_usd(platform: Platform, memory_mb: float, vcpu: float, cpu_ms: float) -> float:
    """Price of one start.

    Raises:
        ConfigError: it is unknown whether the platform bills starts.
    """
    if not platform.billing.init_billed.value:
        return 0.0
    return throttled_ms(cpu_ms, vcpu, platform.cpu.period_ms.value) * platform.usd_per_ms(memory_mb, vcpu)


def cold(
    model: SliceModel, choices: Sequence[Choice], cost_usd: float, alone: Choice | None, rate_per_s: float | None
) -> Cold | None:
    """What starts cost a plan, and up to which rate of requests one function would be cheaper; None where unknown.

    Args:
        model: prices.
        choices: of the plan.
        cost_usd: of a request that finds all functions ready.
        alone: the model as one function, if one holds it.
        rate_per_s: at which requests come, if that is known.
    """
    platform = model.platform
    start, billed = platform.start, platform.billing.init_billed
    if not (start.keep_alive_s.known and billed.known):
        return None
    functions = list(starts(model, choices))
    period, usd = platform.cpu.period_ms.value, starts_usd(model, choices)
    known = start.spawn_ms.known and start.fetch_mb_per_s.known
    return Cold(
        rate_per_s=rate_per_s,
        share=cold_share(platform, rate_per_s),
        keep_alive_s=start.keep_alive_s.value,
        starts=len(functions),
        init_ms=sum(throttled_ms(cpu, vcpu, period) for _, vcpu, cpu in functions),
        spawn_ms=start.spawn_ms.value * len(functions) if known else None,
        usd_per_million_starts=usd * 1e6,
        one_function_below_per_s=_break_even(model, alone, cost_usd, usd) if len(functions) > 1 else None,
    )


def _break_even(model: SliceModel, alone: Choice | None, cost_usd: float, starts_usd: float) -> float | None:
    """The rate below which the starts of a divided plan cost more than it saves; 0 where they never do."""
    saved = alone.cost_usd - cost_usd if alone else 0.0
    if alone is None or saved <= 0:
        return None
    ((memory_mb, vcpu, cpu_ms),) = starts(model, [alone])
    more = starts_usd - start_usd(model.platform, memory_mb, vcpu, cpu_ms)
    share = saved / more if more > 0 else math.inf
    return 0.0 if share >= 1 else -math.log(share) / model.platform.start.keep_alive_s.value
