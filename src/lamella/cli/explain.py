"""`lamella explain`: why a plan is as it is, and what would change it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

from cyclopts import Parameter

from lamella.cli.options import Json, Predicted, Unplaced, progress
from lamella.cli.plans import show_explanation, show_refusal
from lamella.cli.prepare import Profiled, check_planners, foretold, imported, measured
from lamella.cli.show import print_json
from lamella.errors import ConfigError, InfeasiblePlan
from lamella.frameworks.loading import named_for_later
from lamella.graph.load import import_model
from lamella.machine import this_machine
from lamella.plan.document import Plan, read_plan
from lamella.plan.explanation.document import Explanation, Refusal
from lamella.plan.explanation.explain import explain as explained
from lamella.plan.explanation.loosen import Asked
from lamella.plan.explanation.refusal import refused
from lamella.plan.laws import check
from lamella.plan.make import make_plan, on_channel
from lamella.plan.planners.amps_inf import AmpsInf
from lamella.plan.request import Request, variant
from lamella.platforms import platform as platform_named

DECIDED = (
    "platform",
    "slo_ms",
    "budget_usd",
    "percentile",
    "rate_per_s",
    "batch",
    "max_batch",
    "architecture",
    "channel",
    "vcpu",
    "shape",
)
"""Options that a plan answers by itself."""


def explain(
    plan: Annotated[str, Parameter(help="A plan.json; or a model, with the options of `lamella plan`.")],
    *,
    asked: Unplaced = Unplaced(),  # noqa: B008 - a value
    planner: Annotated[str | None, Parameter(help="Of a model: whose plan is explained; exact by default.")] = None,
    planners: Annotated[str, Parameter(help="Whose plans it is held against, with commas between.")] = "exact,mopar",
    predicted: Predicted = False,
    json: Json = False,
) -> None:
    """Hold PLAN against the best of every other kind; price its constraints, or what stands in the way of any plan.

    Exit code 3 where no plan satisfies the request.
    """
    names = [name.strip() for name in planners.split(",") if name.strip()]
    _priced(asked.budget_usd, plan)
    check_planners([*names, planner or "exact"], asked.request())
    stored = plan.endswith(".json")
    profiled = foretold if predicted else measured
    if stored:
        question = _of_plan(Path(plan), asked, planner, names, profiled)
    else:
        question = _of_model(plan, asked, planner, names, profiled)
    with progress("explain") as move:
        try:
            answer = question.plan or _planned(question.asked, planner or "exact")
            said: Explanation | Refusal = explained(question.asked, answer, names, move)
        except InfeasiblePlan as error:
            said = refused(question.asked, error, move)
    if json:
        print_json(said)
    elif isinstance(said, Explanation):
        show_explanation(said)
    else:
        show_refusal(said)
    if isinstance(said, Refusal):
        raise InfeasiblePlan(said.error, where=plan, try_=_next(said))


def _priced(budget_usd: float | None, model: str) -> None:
    """ConfigError for what is the quickest within a budget: constraints are priced in what they save."""
    if budget_usd is not None:
        raise ConfigError(
            "a plan within a budget is explained by the front, which says what the next millisecond costs",
            try_=f"lamella plan {model} --platform NAME --budget-usd {budget_usd:g} --front",
        )


class _Question(NamedTuple):
    asked: Asked
    plan: Plan | None


def _of_plan(path: Path, options: Unplaced, planner: str | None, names: list[str], profiled: Profiled) -> _Question:
    """What a plan answers, its profile measured where the cache has none."""
    plain = Unplaced()
    told = [n for n in DECIDED if getattr(options, n) != getattr(plain, n)] + ["planner"] * (planner is not None)
    if told:
        raise ConfigError(
            f"--{told[0].replace('_', '-')}: {path} says that itself",
            try_=f"lamella explain {path}, or a model in place of the plan",
        )
    read = read_plan(path)
    _priced(read.budget_usd, read.model.given)
    graph, platform = import_model(read.model.given, read.model.shapes), platform_named(read.platform)
    check(read, graph, platform)
    vcpu = max(f.vcpu for f in read.functions)
    rate = read.cold.rate_per_s if read.cold else None
    asked = replace(
        options,
        platform=read.platform,
        slo_ms=read.slo_ms,
        percentile=read.percentile,
        rate_per_s=rate,
        batch=read.batch,
        vcpu=vcpu,
    )
    if read.machine != this_machine():
        raise ConfigError(
            f"the profile behind {path} was measured on another machine ({read.machine.cpu}), which "
            "this one's does not explain",
            try_=f"lamella explain {read.model.given} --platform {read.platform} plans with this machine's",
        )
    by_storage = variant(read.planner, Request())[0] == AmpsInf().name  # unasked
    wished = read.channel != platform.hop.channel and not by_storage
    request = asked.request()._replace(channel=read.channel if wished else None)
    profile = profiled(graph, platform, asked, (read.planner, *names))
    return _Question(Asked(graph, profile, on_channel(platform, request), request, read.model.given), read)


def _of_model(model: str, options: Unplaced, planner: str | None, names: list[str], profiled: Profiled) -> _Question:
    if not options.platform:
        raise ConfigError(
            "--platform is missing: it goes with a model", try_=f"lamella explain {model} --platform openfaas"
        )
    graph, platform = imported(model, options)
    request = options.request(graph)
    profile = profiled(graph, platform, options, (planner or "exact", *names))
    given = named_for_later(model, graph)
    return _Question(Asked(graph, profile, on_channel(platform, request), request, given), None)


def _planned(asked: Asked, planner: str) -> Plan:
    return make_plan(asked.graph, asked.profile, asked.platform, planner, given=asked.given, request=asked.request)


def _next(said: Refusal) -> str:
    """The option that does it, where one does."""
    if not said.ways or said.together:
        return "another --platform"
    near = said.ways[0]
    options = {"latency SLO": f"--slo-ms {-int(-near.needed // 1)}", "stages": f"--max-stages {near.needed:g}"}
    return options.get(near.constraint, "another --platform")
