"""`lamella clean`: remove what dead runs left behind."""

from __future__ import annotations

import shutil
import time

import msgspec

from lamella.cli.options import Json
from lamella.cli.show import print_json
from lamella.documents import cache_dir
from lamella.limits import detect, sweep

STALE_S = 3600
"""Scratch directories untouched for this long belong to nobody."""


class Cleaned(msgspec.Struct, frozen=True):
    """`lamella clean --json`."""

    groups: tuple[str, ...]
    directories: tuple[str, ...]


def clean(*, json: Json = False) -> None:
    """Remove processes and control groups of dead runs, and scratch directories older than an hour.

    Workers die with their driver and shared memory is freed with its last process, so usually nothing is left.
    """
    groups = tuple(sweep(detect()))
    gone = []
    root = cache_dir()
    for pattern in ("work/*", "models/.import-*", "models/*/.profile-*", "models/*/.whole-*"):
        for path in root.glob(pattern):
            if path.is_dir() and time.time() - path.stat().st_mtime > STALE_S:
                shutil.rmtree(path, ignore_errors=True)
                gone.append(str(path))
    if json:
        print_json(Cleaned(groups, tuple(gone)))
    else:
        print(f"removed {len(groups)} control group(s) and {len(gone)} scratch directories")
