"""What holds a plan back, and the same question with one of those constraints loosened.

A constraint is a number of the request (SLO, stages) or of the platform (memory, package, payload, timeout). What it
costs is found by planning again with another number, not by a derivative: plans are discrete, and a megabyte more
mostly buys nothing, until it buys a division. `reach` is the number beyond which no plan could use more; it ends the
search, and where a limit is there already nothing has to be planned again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from lamella.graph.model import Graph
from lamella.plan.document import Plan
from lamella.plan.planners.space import Chosen, Space
from lamella.plan.pricing.predict import SliceModel
from lamella.plan.request import Request
from lamella.platforms import Platform
from lamella.platforms.figures import Figure
from lamella.profile.document import Profile
from lamella.units import MB

SPARE = 2.0
"""Of a reach, over what the whole model takes alone: joins and buffers of codecs come beside it."""
LATENCY = "latency SLO"


class Asked(NamedTuple):
    """A question to the planner: all that decides the answer."""

    graph: Graph
    profile: Profile
    platform: Platform
    request: Request
    given: str
    """What the user called the model."""

    def model(self) -> SliceModel:
        """Prices, without loss."""
        return SliceModel(self.graph, self.profile, self.platform, self.request)

    def space(self) -> Space:
        """All its plans."""
        return Space.of(self.model(), self.request)

    def cheapest(self) -> Chosen | None:
        """The cheapest plan within the SLO; None where there is none."""
        slo = self.request.slo_ms
        return self.space().cheapest(math.inf if slo is None else slo).chosen

    def asking(self, **changed: object) -> Asked:
        """With other fields of the request."""
        return self._replace(request=Request(**{**self.request._asdict(), **changed}))


class Constraint(NamedTuple):
    """A limit, what more of it is counted in, and the question without so much of it."""

    name: str
    unit: str
    limit: float
    step: float
    """The least that is worth asking for."""
    reach: float
    """No plan could use more."""
    change: Callable[[Asked, float], Asked]
    """A question with another limit in place of this one."""

    def grid(self) -> int:
        """How many steps lie between the limit and its reach; 0 where the limit is beyond."""
        return max(0, math.ceil((self.reach - self.limit) / self.step - 1e-9))

    def after(self, steps: int) -> float:
        """The limit so many steps further."""
        return self.limit + steps * self.step


def constraints(asked: Asked) -> tuple[Constraint, ...]:
    """What a platform and a request hold every plan to, but for the SLO, whose price the front tells."""
    model, platform, request = asked.model(), asked.platform, asked.request
    limits = platform.limits
    payload = max((platform.hop_mb(model.codings(unit)[0].bytes) for unit in range(1, model.units)), default=0.0)
    return (
        Constraint(
            "largest memory",
            "MB",
            platform.most_mb(request.vcpu),
            platform.step_mb,
            _most_memory_mb(model),
            lambda asked, mb: asked._replace(platform=with_memory(asked.platform, mb, asked.request.vcpu)),
        ),
        Constraint("package", "MB", limits.package_mb.value, 1.0, _most_package_mb(model), _bound("package_mb")),
        Constraint("payload of a hop", "MB", platform.hop_limit_mb, 1.0, payload, _payload),
        Constraint("timeout", "s", limits.timeout_s.value, 1.0, _most_run_s(model), _bound("timeout_s")),
        Constraint(
            "stages",
            "",
            request.max_stages,
            1,
            2 * model.units,
            lambda asked, most: asked.asking(max_stages=int(most)),
        ),
    )


def _bound(name: str) -> Callable[[Asked, float], Asked]:
    """Another limit of the platform."""

    def change(asked: Asked, value: float) -> Asked:
        limits = asked.platform.limits
        looser = replace(limits, **{name: _what_if(getattr(limits, name), value)})
        return asked._replace(platform=replace(asked.platform, limits=looser))

    return change


def _payload(asked: Asked, mb: float) -> Asked:
    """The limit of the channel, where it has one of its own; else that of requests."""
    own = asked.platform.hop.payload_mb
    if own is None:
        return _bound("payload_mb")(asked, mb)
    hop = replace(asked.platform.hop, payload_mb=_what_if(own, mb))
    return asked._replace(platform=replace(asked.platform, hop=hop))


def used(plan: Plan, platform: Platform) -> dict[str, float]:
    """What a plan takes of each constraint, by its name; hops over another channel than the platform's own have its."""
    own = [h for h in plan.hops if h.channel == platform.hop.channel]
    return {
        LATENCY: plan.bounded_ms,
        "largest memory": float(max(f.memory_mb for f in plan.functions)),
        "package": max(f.package_mb for f in plan.functions),
        "payload of a hop": max((platform.hop_mb(h.encoded_bytes) for h in own), default=0.0),
        "timeout": max(f.run_ms for f in plan.functions) / 1000,
        "stages": float(plan.stages),
    }


def with_memory(platform: Platform, mb: float, vcpu: float) -> Platform:
    """The platform where sizes go on to `mb` with so many vCPU; one more size where it sells only some."""
    most, sold = platform.most_mb(vcpu), platform.memory
    larger = _what_if(sold.max_mb, max(mb, sold.max_mb.value))
    only = (*sold.only_mb, _what_if(sold.max_mb, mb)) if sold.only_mb else ()
    ranges = tuple(
        replace(r, max_mb=_what_if(r.max_mb, mb)) if r.max_mb.value == most else r for r in platform.cpu.ranges
    )
    return replace(
        platform, memory=replace(sold, max_mb=larger, only_mb=only), cpu=replace(platform.cpu, ranges=ranges)
    )


def _what_if(figure: Figure, value: float) -> Figure:
    return replace(figure, number=value, source="what if", confidence="assumed")


def _most_memory_mb(model: SliceModel) -> float:
    """Room for the whole model, or what buys every core of the machine, where memory buys CPU."""
    room = SPARE * max(max(model.held_mb(0, model.units, layout=way)) for way in model.layouts)
    per_vcpu = model.platform.cpu.mb_per_vcpu
    return max(room, per_vcpu.value * model.profile.machine.cores) if per_vcpu else room


def _most_package_mb(model: SliceModel) -> float:
    whole = model.graph.weight_bytes(*model.span(0, model.units)) / MB
    return whole + max(model.more_mb(0, model.units, way) for way in model.layouts)


def _most_run_s(model: SliceModel) -> float:
    """The whole model on the least CPU that is sold."""
    vcpu = model.platform.vcpu(model.platform.memory.min_mb.value, model.vcpu)
    return SPARE * max(model.run_ms(0, model.units, layout=way, vcpu=vcpu) for way in model.layouts) / 1000
