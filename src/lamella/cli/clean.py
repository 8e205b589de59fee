"""`lamella clean`: remove what dead runs left behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from lamella.cli.options import Json
from lamella.cli.show import print_json
from lamella.limits import detect, sweep
from lamella.limits.owner import Owner
from lamella.limits.sweep import abandoned
from lamella.scratch import leftovers, remove


class Cleaned(msgspec.Struct, frozen=True):
    """`lamella clean --json`."""

    groups: tuple[str, ...]
    paths: tuple[str, ...]
    elsewhere: tuple[str, ...]
    """Left alone: their owner is, or was, on another machine or in another container."""
    dry_run: bool


def clean(
    *directories: Annotated[Path, Parameter(help="Where else documents and packages were written.")],
    dry_run: Annotated[bool, Parameter(name="--dry-run", negative="", help="Only say what would be removed.")] = False,
    json: Json = False,
) -> None:
    """Remove processes, control groups and temporary files of runs that are dead; never what a living run uses.

    Looks in the cache, in the current directory and in those given. Runs clean up after themselves and workers die with
    their driver, so there is something to do only after one was killed.
    """
    limiter = detect()
    groups = abandoned(limiter) if dry_run else sweep(limiter)
    found = leftovers([Path(), *directories])
    dead = [left.path for left in found if left.owner is Owner.DEAD]
    gone = [path for path in dead if dry_run or remove(path)]
    cleaned = Cleaned(
        groups=tuple(groups),
        paths=tuple(map(str, gone)),
        elsewhere=tuple(str(left.path) for left in found if left.owner is Owner.ELSEWHERE),
        dry_run=dry_run,
    )
    if json:
        print_json(cleaned)
        return
    for name in (*cleaned.groups, *cleaned.paths):
        print(name)
    for name in cleaned.elsewhere:
        print(f"left alone, its owner is on another machine or in another container: {name}")
    for path in sorted(set(dead) - set(gone)):
        print(f"cannot remove {path}", file=sys.stderr)
    print(
        f"{'would remove' if dry_run else 'removed'} {len(groups)} control group(s) "
        f"and {len(gone)} temporary file(s) or directories"
    )
