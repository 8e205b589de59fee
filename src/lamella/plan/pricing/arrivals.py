"""What requests that come now and then pay for: functions that were stopped meanwhile, and have to start.

Requests are taken to come one by one, at exponential distances (a Poisson process), and an instance to stay for the
platform's keep-alive after each. So a request finds every function stopped with probability exp(-rate x keep-alive),
or none. A stopped chain starts function by function, as the request reaches them: K slices are K starts, each with the
imports and the opening of its part, billed where the platform bills starts. Requests that overlap, and so need a second
instance, are left out: where starts matter they are rare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lamella.plan.choice import Choice
from lamella.plan.document import Cold
from lamella.plan.pricing.cold import init_ms, platform_ms, start_usd, starts, starts_usd
from lamella.plan.pricing.predict import SliceModel
from lamella.platforms import Platform


def cold_share(platform: Platform, rate_per_s: float | None) -> float:
    """Share of requests that find their functions stopped; 0 where no rate is given.

    Raises:
        ConfigError: the platform's keep-alive is unknown.
    """
    return math.exp(-rate_per_s * platform.start.keep_alive_s.value) if rate_per_s else 0.0


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
    usd = starts_usd(model, choices)
    said = start.spawn_ms.known and start.fetch_mb_per_s.known
    return Cold(
        rate_per_s=rate_per_s,
        share=cold_share(platform, rate_per_s),
        keep_alive_s=start.keep_alive_s.value,
        starts=len(functions),
        init_ms=sum(init_ms(platform, one) for one in functions),
        platform_ms=platform_ms(platform, functions) if said else None,
        usd_per_million_starts=usd * 1e6,
        one_function_below_per_s=_break_even(model, alone, cost_usd, usd) if len(functions) > 1 else None,
    )


def _break_even(model: SliceModel, alone: Choice | None, cost_usd: float, starts_usd: float) -> float | None:
    """The rate below which the starts of a divided plan cost more than it saves; 0 where they never do."""
    saved = alone.cost_usd - cost_usd if alone else 0.0
    keep_alive_s = model.platform.start.keep_alive_s.value
    if alone is None or saved <= 0 or not keep_alive_s:  # without keep-alive every request starts, at any rate
        return None
    (one,) = starts(model, [alone])
    more = starts_usd - start_usd(model.platform, one)
    share = saved / more if more > 0 else math.inf
    return 0.0 if share >= 1 else -math.log(share) / keep_alive_s
