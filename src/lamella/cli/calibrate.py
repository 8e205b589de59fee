"""`lamella calibrate`: measure what single operators take on this machine."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from lamella import documents
from lamella.cli.options import Json, Output, check_outputs, positive, progress
from lamella.cli.show import print_json, show_calibration
from lamella.predictor.calibrate import calibrate as measure


def calibrate(
    *,
    budget_s: Annotated[float, Parameter(help="Begin no further network after so long, s.")] = 300.0,
    output: Output = None,
    json: Json = False,
) -> None:
    """Measure operators over a spread of shapes, once per machine: what --predicted goes by; resumable, cached."""
    positive(budget_s=budget_s)
    check_outputs(output)
    with progress("calibrate") as move:
        found = measure(budget_s=budget_s, progress=move)
    if output:
        documents.write(output, found)
    if json:
        print_json(found)
    else:
        show_calibration(found)
