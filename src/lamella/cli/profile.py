"""`lamella profile`: measure a model on this machine, or predict what would be measured."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from lamella import documents
from lamella.cli.options import (
    Json,
    Model,
    Output,
    Precisions,
    Predicted,
    Range,
    Shape,
    check_outputs,
    parse_precisions,
    parse_ranges,
    positive,
    progress,
)
from lamella.cli.prepare import loaded
from lamella.cli.show import print_json, show_profile
from lamella.errors import ConfigError
from lamella.graph.requests import check_ranges
from lamella.machine import this_machine
from lamella.predictor.calibrate import held_calibration
from lamella.predictor.predict import predict
from lamella.profile.measure import measure


def profile(
    model: Model,
    *,
    output: Output = None,
    shape: Shape = None,
    range_: Range = None,
    batch: Annotated[str | None, Parameter(help="Batches to measure; 1,2,4,8 where the axis is free.")] = None,
    predicted: Predicted = False,
    precision: Precisions = None,
    budget_s: Annotated[
        float,
        Parameter(help="Time for rounds of a batch and thread count, s; 4 times it if they drift."),
    ] = 10.0,
    json: Json = False,
) -> None:
    """Measure time, memory and hops per unit and per cut; resumable, cached by model, machine and runtime version."""
    positive(budget_s=budget_s)
    check_outputs(output)
    ranges = parse_ranges(range_)
    graph = loaded(model, shape)
    check_ranges(graph, ranges)
    precisions = parse_precisions(precision)
    if predicted and precisions:
        raise ConfigError("--predicted knows fp32 only", try_=f"--precision {precision} without --predicted")
    batches = _batches(batch) if batch else ((1, 2, 4, 8) if graph.batchable else (1,))
    threads = tuple(range(1, min(this_machine().cores, 4) + 1))
    known = held_calibration() if predicted else None
    with progress("profile") as move:
        if known:
            found = predict(graph, known, batches=batches, threads=threads, progress=move)
        else:
            found = measure(
                graph,
                batches=batches,
                threads=threads,
                budget_s=budget_s,
                progress=move,
                ranges=ranges,
                shards=True,
                precisions=precisions,
            )
    if output:
        documents.write(output, found)
    if json:
        print_json(found)
    else:
        show_profile(found)


def _batches(text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(v) for v in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise ConfigError(f"--batch {text!r} is not a list of numbers above zero", try_="--batch 1,2,4,8")
    return values
