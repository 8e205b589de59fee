"""`lamella package`: write what ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lamella import documents
from lamella.cli.options import Json, progress
from lamella.cli.show import print_json
from lamella.graph.load import import_model
from lamella.package import Favour, build
from lamella.plan.document import read_plan
from lamella.plan.laws import check
from lamella.platforms import platform
from lamella.runtime.function import Function, Layouts


def package(
    plan: Path,
    *,
    output: Annotated[Path, Parameter(name=["-o", "--output"], help="Directory to write.")],
    favour: Annotated[
        Favour | None,
        Parameter(
            help="What wins where a quick start, steady time and memory conflict: weights of matrix products are "
            "stored in this CPU's blocks where measured times say so. By default each function is as planned."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Build a plan's functions: optimised graphs, mapped weights, manifests with hashes."""
    read = read_plan(plan)
    graph = import_model(read.model.given, read.model.shapes)
    check(read, graph, platform(read.platform))
    with progress("package") as move:
        manifest = build(read, graph, output, move, favour=favour)
    if json:
        print_json(manifest)
        return
    for name in manifest.functions:
        files = sorted(p for p in (output / name).iterdir() if p.is_file())
        print(f"{output / name}: " + ", ".join(f"{p.name} {p.stat().st_size / 2**20:.1f} MB" for p in files))
        layouts = documents.read(output / name / "function.json", Function, made_by="lamella package PLAN").layouts
        if layouts:
            print(f"  {told(layouts)}")


def told(layouts: Layouts) -> str:
    """What became of a function's products, in a line."""
    asked = f"favouring {layouts.favour}" if layouts.favour else "blocked as planned"
    if layouts.refused:
        return f"{asked}: refused, {'as planned' if layouts.favour else 'plain'} instead: {layouts.refused}"
    if not layouts.block:
        return f"{asked}: not on this CPU, whose runtime has no blocked layout; plain instead"
    kinds = {"blocked": layouts.blocked, "prepacked": layouts.prepacked, "plain": layouts.plain}
    parts = [f"{count} {kind}" for kind, count in kinds.items() if count] or ["nothing to choose"]
    if layouts.slower:
        parts.append(f"{layouts.slower} of them more than 5 % slower than prepacked")
    parts += [f"{count} left: {reason}" for reason, count in layouts.left.items()]
    return f"{asked}: {', '.join(parts)}"
