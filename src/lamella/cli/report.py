"""`lamella report`: a page to read from a stored comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lamella import documents
from lamella.cli.options import check_outputs
from lamella.compare.record import Comparison
from lamella.report import write


def report(
    comparison: Path,
    *,
    output: Annotated[Path, Parameter(name=["-o", "--output"], help="Where to write the page, .html.")],
) -> None:
    """Make one self-contained HTML page of COMPARISON, a document of `lamella compare -o`."""
    check_outputs(output)
    made_by = "lamella compare MODEL --platform openfaas -o comparison.json"
    write(output, documents.read(comparison, Comparison, made_by=made_by))
    print(f"wrote {output}")
