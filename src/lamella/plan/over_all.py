"""Holds an SLO at a percentile of all requests, those that have to wait for functions to start among them.

A request that finds its functions stopped is late, unless the start fits into the SLO, too. So of those that find them
ready more have to be in time: of a share `s` that waits, percentile `p` of all is percentile `p / (1 - s)` of the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import msgspec

from lamella.errors import LamellaError
from lamella.plan.document import Plan
from lamella.plan.request import Request

SAME = 1e-9
"""Relative: a percentile of all requests that is lower by less is the same."""


def over_all(request: Request, planned: Callable[[Request], Plan]) -> Plan:
    """The plan for the percentile of all requests; where no plan keeps that the one for those that need not wait.

    Args:
        request: what is asked; with `ready` its percentile is of those that need not wait already.
        planned: the plan for a percentile of those.

    Raises:
        InfeasiblePlan: by `planned`, of requests that need not wait.
    """
    plan = planned(request)
    if request.ready or plan.in_time is None or plan.percentile is None or plan.cold is None:
        return plan
    asked = plan.percentile
    if plan.in_time * 100 < asked * (1 - SAME) and (stricter := asked / (1 - plan.cold.share)) < 100:
        with suppress(LamellaError):  # the plan for requests that need not wait is one in any case
            plan = planned(request._replace(percentile=stricter))
    return msgspec.structs.replace(plan, asked_percentile=asked)
