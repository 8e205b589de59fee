"""What is asked of a plan, and how a planner's name may ask for something else.

Contenders of one comparison differ by their names: `single@2` is `single` with 2 vCPU per function, `mopar-no-shards`
is `mopar` without shards, and `mopar-no-shared-memory` sends over sockets. So each part's own contribution is measured
in one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from lamella.errors import ConfigError
from lamella.objects import Bucket
from lamella.plan.validation.judge import Judge
from lamella.platforms.platform import Architecture

LEAST_VCPU, MOST_VCPU = 0.01, 64.0
"""What a function may be asked to have."""
WITHOUT: dict[str, dict[str, bool | str]] = {
    "shards": {"shards": False},
    "codec": {"codec": False},
    "lossy": {"lossy": False},
    "similarity": {"similarity": False},
    "shared-memory": {"channel": "socket"},
}
"""What a planner can go without, and what it is asked then: fields of `Request`."""


class Request(NamedTuple):
    """What is asked of a planner."""

    slo_ms: float | None = None
    """Latency bound; None for the planner's own rule."""
    max_stages: int = 16
    batch: int = 1
    """Rows per request."""
    vcpu: float = 1.0
    """Per function, where the platform lets one choose."""
    at_once: int | None = None
    """How many shards may be busy at a time; this machine's cores by default. What exceeds them is emulated."""
    shards: bool = True
    """Whether a stage may be divided among shards, where the profile has measured some."""
    codec: bool = True
    """Whether hops may be encoded."""
    lossy: bool = True
    """Whether by a codec that loses, where `judge` allows it."""
    similarity: bool = True
    """Whether similar neighbours count as one before dividing."""
    channel: str | None = None
    """Between functions; the platform's own by default. Not to be chosen where that is emulated."""
    objects: Bucket | None = None
    """Where channel `s3` keeps what travels."""
    solver_s: float = 60.0
    """What a solver may take, where a planner asks one."""
    ranges: Mapping[str, tuple[float, float]] | None = None
    """Value ranges of integer inputs, for the measured baselines."""
    judge: Judge | None = None
    """Of lossy choices, by the user's own data; without one nothing lossy is chosen."""
    rate_per_s: float | None = None
    """Of requests, which come one by one: how often functions have to start. None where they are always ready."""
    architecture: Architecture | Literal["any"] = "x86"
    """Of the functions; `any` takes the one with the lower price."""
    max_batch: int = 1
    """Above 1 rows that come one by one may share a run, at most so many; how many is for `exact` to choose."""
    budget_usd: float | None = None
    """Of a million requests, in place of a latency bound: the quickest plan within it, which `exact` finds."""
    percentile: float | None = 95.0
    """Of latency, that the bound is on; None for the mean."""
    ready: bool = False
    """Whether that is of requests that find their functions ready, not of all (`plan.over_all`)."""
    asked_ms: float | None = None
    """The bound on the percentile, where `slo_ms` is that on the mean which stands for it (`plan.held`)."""

    @property
    def bound(self) -> str:
        """The latency bound, in words."""
        if self.slo_ms is None:
            return "no SLO"
        if self.asked_ms is None:
            return f"the SLO of {self.slo_ms:g} ms"
        return f"{self.slo_ms:.4g} ms on average, for the SLO of {self.asked_ms:g} ms at percentile {self.percentile:g}"


def variant(name: str, request: Request) -> tuple[str, Request]:
    """The planner behind a contender's name, and what it is asked.

    Raises:
        ConfigError: what follows `@` is no number of vCPU that a function may have.
    """
    name, at, vcpu = name.partition("@")
    if at:
        try:
            request = request._replace(vcpu=float(vcpu))
        except ValueError:
            request = request._replace(vcpu=0.0)
        if not LEAST_VCPU <= request.vcpu <= MOST_VCPU:
            raise ConfigError(
                f"{name}@{vcpu}: behind @ stands a number of vCPU from {LEAST_VCPU:g} to {MOST_VCPU:g}",
                try_=f"--planners {name}@2",
            )
    for what, asked in WITHOUT.items():
        if name.endswith(f"-no-{what}"):
            return variant(name.removesuffix(f"-no-{what}"), Request(**{**request._asdict(), **asked}))
    return name, request
