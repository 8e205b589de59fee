"""Who owns a group or a temporary path. The start time in a name tells a live owner from a recycled pid.

A group is called `lamella-{pid}-{start ticks}-{name}`. A temporary path ends in `-lamella-{pid}-{start ticks}-{place}-`
and something random: a path may lie on a disk that other machines and containers share, whose pids mean nothing here.
"""

from __future__ import annotations

import enum
import os
import re
import zlib
from functools import cache

from lamella.errors import ConfigError
from lamella.limits.procfs import PROC, stat_field

_SHORT = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_FULL = re.compile(r"lamella-(\d{1,9})-(\d+)-.+")
_TEMPORARY = re.compile(r".+-(lamella-\d{1,9}-\d+-([0-9a-f]{8})-[^-]+)")
_LABEL = 50  # characters of it in a temporary name, which has 255 bytes
_STATE, _START = 3, 22  # field numbers, proc(5)


class Owner(enum.Enum):
    """What became of an owner."""

    US = enum.auto()
    ALIVE = enum.auto()
    DEAD = enum.auto()
    ELSEWHERE = enum.auto()
    """On another machine or in another container: only there can it be told."""


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


def mark(label: str) -> str:
    """How the name of a temporary file or directory of this process begins; the caller adds something random."""
    return f"{label[:_LABEL]}-{full_name(_place())}-"


def is_ours(name: str) -> bool:
    """Whether this is the full name of a lamella group."""
    return _FULL.fullmatch(name) is not None


def owner_of(name: str) -> Owner:
    """What became of the owner in this full name; a zombie is dead."""
    match = _FULL.fullmatch(name)
    assert match, name
    pid, ticks = int(match[1]), int(match[2])
    try:
        if start_ticks(pid) != ticks or stat_field(pid, _STATE) in {"Z", "X"}:
            return Owner.DEAD
    except ProcessLookupError:
        return Owner.ALIVE if _is_hidden(pid) else Owner.DEAD
    except PermissionError:
        return Owner.ALIVE
    return Owner.US if pid == os.getpid() else Owner.ALIVE


def owner_of_temporary(name: str) -> Owner | None:
    """What became of the owner of a path of this name; None where the name has no `mark`."""
    match = _TEMPORARY.fullmatch(name)
    if not match:
        return None
    return owner_of(match[1]) if match[2] == _place() else Owner.ELSEWHERE


def _is_hidden(pid: int) -> bool:
    """Whether a process exists that /proc does not show: there is none, or it hides what others run."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not PROC.exists()


@cache
def _place() -> str:
    """Where this process's pid means something: the machine and its pid namespace."""
    try:
        space = os.readlink(PROC / "self" / "ns" / "pid")
    except OSError:
        space = ""
    return f"{zlib.crc32(f'{os.uname().nodename} {space}'.encode()):08x}"
