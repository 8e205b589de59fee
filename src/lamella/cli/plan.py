"""`lamella plan`: decide how to divide a model and what to give each function; on one platform or on several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lamella import documents
from lamella.cli.options import Json, Model, Output, Predicted, Unplaced, arguments, check_outputs, progress
from lamella.cli.plans import show_front, show_places
from lamella.cli.prepare import Profiled, check_planners, foretold, imported, measured, on_functions
from lamella.cli.show import print_json, show_plan
from lamella.errors import ConfigError, InfeasiblePlan
from lamella.frameworks.loading import named_for_later
from lamella.plan.document import Plan
from lamella.plan.explanation.front import front as front_of
from lamella.plan.explanation.loosen import Asked
from lamella.plan.explanation.places import survey
from lamella.plan.make import BASELINES, for_exact, make_plan, on_channel
from lamella.plan.request import variant


def plan(
    model: Model,
    *,
    asked: Unplaced = Unplaced(),  # noqa: B008 - a value
    planner: Annotated[
        str,
        Parameter(help="exact, mopar, amps-inf, gillis, latency-greedy, random, single, uniform-K, ort, ort-default."),
    ] = "exact",
    platforms: Annotated[
        str | None, Parameter(help="Several, with commas between: where should the model run, and divided how.")
    ] = None,
    front: Annotated[
        bool,
        Parameter(negative="", help="Show every plan that no other beats in cost and latency."),
    ] = False,
    report: Annotated[
        Path | None, Parameter(help="Where to write a page to read, .html; of --platforms or --front.")
    ] = None,
    predicted: Predicted = False,
    output: Output = None,
    json: Json = False,
) -> None:
    """Find the cheapest way to serve MODEL on a platform; measures what the profile does not hold yet."""
    _check(asked, platforms, front, report)
    check_outputs(output, report)
    check_planners([planner], asked.request())
    for_exact(variant(planner, asked.request())[0], asked.request())
    if predicted and variant(planner, asked.request())[0] in BASELINES:
        raise ConfigError(f"{planner} is measured whole, it is not predicted", try_="--planner single")
    profiled: Profiled = foretold if predicted else measured
    if platforms is not None:
        made = _survey(model, asked, planner, platforms, report, json, profiled)
    else:
        made = _one(model, asked, planner, front, report, json, profiled)
    if output:
        documents.write(output, made)


def _check(asked: Unplaced, platforms: str | None, front: bool, report: Path | None) -> None:
    """ConfigError for options that contradict each other, or without which nothing can be planned."""
    if (platforms is None) == (not asked.platform):
        raise ConfigError(
            "--platform says where to run" if platforms is None else "--platform and --platforms",
            try_="--platform openfaas, or --platforms openfaas,aws-lambda for a choice",
        )
    if front and platforms is not None:
        raise ConfigError("--front is that of one platform", try_="--platform openfaas --front")
    if asked.budget_usd is not None and platforms is not None:
        raise ConfigError("--budget-usd is kept on one platform", try_="--platform openfaas --budget-usd 1")
    if report and not front and platforms is None:
        raise ConfigError("--report is a page of --front or of --platforms", try_="one of the two")


def _one(
    model: str, asked: Unplaced, planner: str, front: bool, report: Path | None, json: bool, profiled: Profiled
) -> Plan:
    graph, rules = imported(model, asked)
    request = asked.request(graph)  # data that do not fit are told before minutes of work
    profile = profiled(graph, rules, asked, (planner,))
    given = named_for_later(model, graph)
    made = make_plan(graph, profile, rules, planner, given=given, request=request)
    if not front:
        print_json(made) if json else show_plan(made)
        return made
    found = front_of(Asked(graph, profile, on_channel(rules, request), request, given), made)
    if report:
        from lamella.report import front_page, write_page  # here: templates are for those who ask

        write_page(report, front_page(found, arguments.get()))
    print_json(found) if json else show_front(found)
    return made


def _survey(
    model: str, asked: Unplaced, planner: str, platforms: str, report: Path | None, json: bool, profiled: Profiled
) -> Plan:
    """The cheapest platform's plan; InfeasiblePlan where none of them has one."""
    names = list(dict.fromkeys(name.strip() for name in platforms.split(",") if name.strip()))
    rules = [on_functions(name) for name in names]
    if not rules:
        raise ConfigError("no platform is named", try_="--platforms openfaas,aws-lambda")
    graph, _ = imported(model, replace(asked, platform=names[0]), payload=False)
    request = asked.request(graph)
    given = named_for_later(model, graph)
    questions = [Asked(graph, profiled(graph, one, asked, (planner,)), one, request, given) for one in rules]
    with progress("plan") as move:
        found = survey(questions, planner, lambda count: move(count / len(questions), names[count - 1]))
    if report:
        from lamella.report import places_page, write_page  # as above

        write_page(report, places_page(found, arguments.get()))
    print_json(found) if json else show_places(found)
    if not found.possible:
        raise InfeasiblePlan(
            f"none of {', '.join(names)} can serve {graph.name} as asked",
            where="--platforms",
            try_=f"lamella explain {given} --platform {names[0]}",
        )
    return found.possible[0][1]
