"""Where a model should run, and divided how: the same request put to several platforms.

A platform that cannot is a result, not an error: which constraint stands in the way, and by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from lamella.documents import Document
from lamella.errors import ConfigError, InfeasiblePlan, LamellaError, PlatformLimit
from lamella.plan.document import ModelRef, Plan, model_ref
from lamella.plan.explanation.document import Way
from lamella.plan.explanation.loosen import Asked
from lamella.plan.explanation.refusal import refused
from lamella.plan.laws import payloads
from lamella.plan.make import make_plan, on_channel

TIGHT = 0.9
"""A constraint of which so much is used holds a plan back, or nearly."""


class Tightest(msgspec.Struct, frozen=True):
    """The constraint of which a plan uses the largest share."""

    constraint: str
    share: float


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A platform's plan; or none, and what stands in the way."""

    platform: str
    title: str
    price: str
    """How far its price per GB-second can be believed: a figure's confidence."""
    plan: Plan | None = None
    tightest: Tightest | None = None
    """Of a plan."""
    refused: str = ""
    """The error, where there is no plan."""
    try_: str = ""
    binding: Way | None = None
    """What would have to give way, and the plan there is then; none where no one constraint would do."""


class Places(Document, frozen=True, kw_only=True):
    """`lamella plan --platforms --json`: the cheapest first, those that cannot last."""

    model: ModelRef
    planner: str
    slo_ms: float | None
    batch: int
    places: tuple[Place, ...]

    @property
    def possible(self) -> list[tuple[Place, Plan]]:
        """Those that have a plan, with it."""
        return [(p, p.plan) for p in self.places if p.plan]


def survey(asked: Sequence[Asked], planner: str, done: Callable[[int], None] = lambda count: None) -> Places:
    """The same request on each platform, the cheapest first.

    Args:
        asked: of one model, a platform each, with the request's own channel not yet put on it.
        planner: who plans.
        done: told how many platforms have been planned for.

    Raises:
        ConfigError: there is no platform in question, or no such planner.
    """
    if not asked:
        raise ConfigError("no platform is named", try_="--platforms openfaas,aws-lambda")
    found = []
    for number, one in enumerate(asked, 1):
        found.append(_place(one, planner))
        done(number)
    found.sort(key=lambda p: p.plan.request_usd if p.plan else float("inf"))
    first = asked[0]
    return Places(
        model=model_ref(first.graph, first.given),
        planner=planner,
        slo_ms=first.request.slo_ms,
        batch=first.request.batch,
        places=tuple(found),
    )


def _place(asked: Asked, planner: str) -> Place:
    platform = asked.platform
    bare = Place(
        platform=platform.name, title=platform.title, price=str(platform.billing.usd_per_gb_s.confidence), plan=None
    )
    try:
        for error in payloads(asked.graph, asked.request.batch, platform):
            raise error
        asked = asked._replace(platform=on_channel(platform, asked.request))
        plan = make_plan(asked.graph, asked.profile, platform, planner, given=asked.given, request=asked.request)
    except InfeasiblePlan as error:
        ways = _ways(asked, error)
        return msgspec.structs.replace(bare, refused=error.message, try_=error.try_, binding=next(iter(ways), None))
    except (PlatformLimit, ConfigError) as error:
        return msgspec.structs.replace(bare, refused=error.message, try_=error.try_)
    return msgspec.structs.replace(bare, plan=plan, tightest=_tightest(plan))


def _ways(asked: Asked, error: LamellaError) -> tuple[Way, ...]:
    said = refused(asked, error)
    return () if said.together else said.ways


def _tightest(plan: Plan) -> Tightest | None:
    shares = [Tightest(s.constraint, s.used / s.limit) for s in plan.slack if s.limit > 0]
    return max(shares, key=lambda t: t.share, default=None)


def held_back(place: Place) -> str:
    """Of a plan the constraint it uses most of; where there is none what stands in the way, and by how much."""
    if place.tightest:
        used = f"{place.tightest.constraint}, {place.tightest.share:.0%} used"
        return used if place.tightest.share >= TIGHT else f"nothing ({used})"
    way = place.binding
    if way:
        return f"{way.constraint}: {way.needed:.4g} {way.unit} needed, {way.limit:g} allowed"
    name, _, rest = place.refused.partition(": ")
    return rest if name == "law 5" else name if " " not in name else place.refused
