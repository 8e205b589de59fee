"""Who owns a group: `lamella-{pid}-{start ticks}-{name}`. The start time tells a live owner from a recycled pid."""

from __future__ import annotations

import os
import re

from lamella.errors import ConfigError
from lamella.limits.procfs import PROC, stat_field

_SHORT = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_FULL = re.compile(r"lamella-(\d+)-(\d+)-.+")
_STATE, _START = 3, 22  # field numbers, proc(5)


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot.

    Raises:
        ProcessLookupError: the process is gone.
    """
    return int(stat_field(pid, _START))


def full_name(name: str) -> str:
    """The full name of a group of this process.

    Raises:
        ConfigError: the name has characters other than letters, digits, `_`, `.`, `-`, or over 100 of them.
    """
    if not _SHORT.fullmatch(name):
        raise ConfigError(f"a group's name takes 1 to 100 letters, digits, '_', '.', '-': {name!r}")
    pid = os.getpid()
    ticks = start_ticks(pid) if PROC.exists() else 0  # without /proc there are no groups either, only names
    return f"lamella-{pid}-{ticks}-{name}"


def is_ours(name: str) -> bool:
    """Whether this is the full name of a lamella group."""
    return _FULL.fullmatch(name) is not None


def is_alive(name: str) -> bool:
    """Whether the owner in this full name still runs; a zombie does not."""
    match = _FULL.fullmatch(name)
    assert match, name
    pid, ticks = int(match[1]), int(match[2])
    try:
        return start_ticks(pid) == ticks and stat_field(pid, _STATE) not in {"Z", "X"}
    except ProcessLookupError:
        return False
