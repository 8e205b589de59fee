"""`lamella check`: the laws and limits as a gate."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lamella.cli.options import Json
from lamella.cli.show import print_json
from lamella.errors import PlatformLimit
from lamella.graph.load import import_model
from lamella.machine import this_machine
from lamella.plan.document import read_plan
from lamella.plan.laws import broken_laws
from lamella.platforms import platform


class Verdict(msgspec.Struct, frozen=True):
    """`lamella check --json`."""

    plan: str
    ok: bool
    broken: tuple[str, ...]
    notes: tuple[str, ...]


def check(plan: Path, *, json: Json = False) -> None:
    """Check a plan against its model, the laws and its platform's limits; exit code 4 when one is broken."""
    read = read_plan(plan)
    graph = import_model(read.model.given, read.model.shapes)
    broken = broken_laws(read, graph, platform(read.platform))
    notes = []
    if read.machine != this_machine():
        notes.append(f"its profile was measured on another machine ({read.machine.cpu}): predictions may not hold here")
    if json:
        print_json(Verdict(str(plan), not broken, tuple(str(e) for e in broken), tuple(notes)))
    else:
        for note in notes:
            print(f"note: {note}")
        if not broken:
            print(f"{plan}: {len(read.functions)} function(s) on {read.platform}, every law and limit kept")
    if broken:
        raise PlatformLimit(f"{plan} breaks {len(broken)} law(s) or limit(s):\n" + "\n".join(f"- {e}" for e in broken))
