"""`lamella plan`: decide how to divide a model and what to give each function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lamella import documents
from lamella.cli.options import (
    Batch,
    Json,
    MaxStages,
    Model,
    Output,
    PlatformName,
    Range,
    Shape,
    Slo,
    Vcpu,
    parse_ranges,
    parse_shapes,
    positive,
    progress,
)
from lamella.cli.show import print_json, show_plan
from lamella.graph.load import import_model
from lamella.plan.make import BASELINES, make_plan
from lamella.plan.planners import planner as planner_named
from lamella.platforms import platform as platform_named
from lamella.profile.measure import measure, threads_needed


def plan(
    model: Model,
    *,
    platform: PlatformName,
    slo_ms: Slo = None,
    planner: Annotated[str, Parameter(help="mopar, single, uniform-K, ort or ort-default.")] = "mopar",
    max_stages: MaxStages = 8,
    vcpu: Vcpu = 1.0,
    batch: Batch = 1,
    shape: Shape = None,
    range_: Range = None,
    output: Output = None,
    json: Json = False,
) -> None:
    """Find the cheapest way to serve MODEL on a platform; measures what the profile does not hold yet."""
    positive(slo_ms=slo_ms, max_stages=max_stages, vcpu=vcpu, batch=batch)
    rules = platform_named(platform)
    if planner not in BASELINES:
        planner_named(planner)
    graph = import_model(model, parse_shapes(shape))
    ranges = parse_ranges(range_)
    with progress("profile") as move:
        measured = measure(
            graph,
            batches=sorted({1, batch}),
            threads=threads_needed(rules.cpu.coupling, vcpu),
            progress=move,
            ranges=ranges,
        )
    made = make_plan(
        graph,
        measured,
        rules,
        planner,
        given=model if model.startswith("zoo:") else str(Path(model).resolve()),
        slo_ms=slo_ms,
        max_stages=max_stages,
        batch=batch,
        vcpu=vcpu,
        ranges=ranges,
    )
    if output:
        documents.write(output, made)
    if json:
        print_json(made)
    else:
        show_plan(made)
