"""`lamella plan`: decide how to divide a model and what to give each function."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from lamella import documents
from lamella.cli.options import Json, Model, Output, Planning, check_outputs
from lamella.cli.prepare import check_planners, imported, measured
from lamella.cli.show import print_json, show_plan
from lamella.frameworks.loading import named_for_later
from lamella.plan.make import make_plan


def plan(
    model: Model,
    *,
    asked: Planning,
    planner: Annotated[
        str,
        Parameter(help="exact, mopar, amps-inf, gillis, latency-greedy, random, single, uniform-K, ort, ort-default."),
    ] = "exact",
    output: Output = None,
    json: Json = False,
) -> None:
    """Find the cheapest way to serve MODEL on a platform; measures what the profile does not hold yet."""
    check_outputs(output)
    check_planners([planner], asked.request())
    graph, rules = imported(model, asked)
    request = asked.request(graph)  # data that do not fit are told before minutes of work
    made = make_plan(
        graph,
        measured(graph, rules, asked, (planner,)),
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
