"""`lamella package`: write what ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lamella.cli.options import Json, progress
from lamella.cli.show import print_json
from lamella.graph.load import import_model
from lamella.package import build
from lamella.plan.document import read_plan
from lamella.plan.laws import check
from lamella.platforms import platform


def package(
    plan: Path,
    *,
    output: Annotated[Path, Parameter(name=["-o", "--output"], help="Directory to write.")],
    json: Json = False,
) -> None:
    """Build a plan's functions: optimised graphs, mapped weights, manifests with hashes."""
    read = read_plan(plan)
    graph = import_model(read.model.given, read.model.shapes)
    check(read, graph, platform(read.platform))
    with progress("package") as move:
        manifest = build(read, graph, output, move)
    if json:
        print_json(manifest)
        return
    for name in manifest.functions:
        files = sorted(p for p in (output / name).iterdir() if p.is_file())
        print(f"{output / name}: " + ", ".join(f"{p.name} {p.stat().st_size / 2**20:.1f} MB" for p in files))
