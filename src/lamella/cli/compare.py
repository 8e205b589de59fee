"""`lamella compare`: deploy several plans for real and measure them side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lamella import documents
from lamella.cli.options import Json, Model, Output, Planning, arguments, check_outputs, positive, progress
from lamella.cli.prepare import check_planners, imported, measured
from lamella.cli.show import print_json, show_comparison
from lamella.compare.compare import DEFAULT_PLANNERS, Settings
from lamella.compare.compare import compare as run_comparison
from lamella.compare.record import check_answers
from lamella.errors import ConfigError
from lamella.graph.requests import load_inputs


def compare(
    model: Model,
    *,
    asked: Planning,
    planners: Annotated[str, Parameter(help="Comma-separated.")] = ",".join(DEFAULT_PLANNERS),
    requests: Annotated[int, Parameter(help="Requests per plan.")] = 40,
    over_s: Annotated[
        float,
        Parameter(
            help="Spread rounds over so many seconds at least: a shared machine changes its speed by the second."
        ),
    ] = 0.0,
    inputs: Annotated[Path | None, Parameter(help="Real requests, .npz; random ones by default.")] = None,
    output: Output = None,
    report: Annotated[Path | None, Parameter(help="Where to write a page to read, .html.")] = None,
    json: Json = False,
) -> None:
    """Deploy each planner's plan under enforced limits, send interleaved requests, and print what they really cost."""
    positive(requests=requests)
    if not 0 <= over_s < math.inf:
        raise ConfigError(f"--over-s is {over_s}, it must be a number of seconds, 0 or more", try_="--over-s 60")
    check_outputs(output, report)
    if asked.max_batch > 1:
        raise ConfigError("--max-batch: compared plans take the same requests", try_="--batch 8")
    names = [name.strip() for name in planners.split(",") if name.strip()]
    check_planners(names, asked.request())
    graph, rules = imported(model, asked)
    settings = Settings(
        given=model,
        planners=names,
        request=asked.request(graph),
        requests=requests,
        over_s=over_s,
        inputs=load_inputs(inputs, graph, asked.batch) if inputs else None,
        command=arguments.get(),
    )
    profile = measured(graph, rules, asked, settings.planners)
    with progress("compare") as move:
        record = run_comparison(graph, profile, rules, settings, progress=move)
    if output:
        documents.write(output, record)
    if report:
        from lamella.report import write  # here: templates are for those who ask

        write(report, record)
    if json:
        print_json(record)
    else:
        show_comparison(record)
    check_answers(record)
