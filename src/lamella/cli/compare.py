"""`lamella compare`: deploy several plans for real and measure them side by side."""

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
from lamella.cli.show import print_json, show_comparison
from lamella.compare.compare import DEFAULT_PLANNERS, Settings
from lamella.compare.compare import compare as run_comparison
from lamella.compare.feed import load_inputs
from lamella.compare.record import check_answers
from lamella.graph.load import import_model
from lamella.platforms import platform as platform_named
from lamella.profile.measure import measure, threads_needed


def compare(
    model: Model,
    *,
    platform: PlatformName,
    slo_ms: Slo = None,
    planners: Annotated[str, Parameter(help="Comma-separated.")] = ",".join(DEFAULT_PLANNERS),
    requests: Annotated[int, Parameter(help="Requests per plan.")] = 40,
    inputs: Annotated[Path | None, Parameter(help="Real requests, .npz; random ones by default.")] = None,
    max_stages: MaxStages = 8,
    vcpu: Vcpu = 1.0,
    batch: Batch = 1,
    shape: Shape = None,
    range_: Range = None,
    output: Output = None,
    json: Json = False,
) -> None:
    """Deploy each planner's plan under enforced limits, send interleaved requests, and print what they really cost."""
    positive(slo_ms=slo_ms, max_stages=max_stages, vcpu=vcpu, batch=batch, requests=requests)
    rules = platform_named(platform)
    graph = import_model(model, parse_shapes(shape))
    ranges = parse_ranges(range_)
    feeds = load_inputs(inputs, graph, batch) if inputs else None
    with progress("profile") as move:
        measured = measure(
            graph,
            batches=sorted({1, batch}),
            threads=threads_needed(rules.cpu.coupling, vcpu),
            progress=move,
            ranges=ranges,
        )
    with progress("compare") as move:
        record = run_comparison(
            graph,
            measured,
            rules,
            Settings(
                given=model,
                planners=[name.strip() for name in planners.split(",") if name.strip()],
                slo_ms=slo_ms,
                max_stages=max_stages,
                vcpu=vcpu,
                batch=batch,
                requests=requests,
                inputs=feeds,
                ranges=ranges,
            ),
            progress=move,
        )
    if output:
        documents.write(output, record)
    if json:
        print_json(record)
    else:
        show_comparison(record)
    check_answers(record)
