"""`lamella plan`: decide how to divide a model and what to give each function."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from lamella import documents
from lamella.cli.options import Json, Model, Output, Planning, Predicted, check_outputs
from lamella.cli.prepare import check_planners, foretold, imported, measured
from lamella.cli.show import print_json, show_plan
from lamella.errors import ConfigError
from lamella.frameworks.loading import named_for_later
from lamella.plan.make import BASELINES, make_plan
from lamella.plan.request import variant


def plan(
    model: Model,
    *,
    asked: Planning,
    planner: Annotated[str, Parameter(help="exact, mopar, amps-inf, single, uniform-K, ort or ort-default.")] = "exact",
    predicted: Predicted = False,
    output: Output = None,
    json: Json = False,
) -> None:
    """Find the cheapest way to serve MODEL on a platform; measures what the profile does not hold yet."""
    check_outputs(output)
    check_planners([planner], asked.request())
    graph, rules = imported(model, asked)
    if predicted and variant(planner, asked.request())[0] in BASELINES:
        raise ConfigError(f"{planner} is measured whole, it is not predicted", try_="--planner single")
    request = asked.request(graph)  # data that do not fit are told before minutes of work
    profiled = foretold if predicted else measured
    made = make_plan(
        graph,
        profiled(graph, rules, asked, (planner,)),
        rules,
        planner,
        given=named_for_later(model, graph),
        request=request,
    )
    if output:
        documents.write(output, made)
    if json:
        print_json(made)
    else:
        show_plan(made)
