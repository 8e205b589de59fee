"""Temporary names of other owners."""

from __future__ import annotations

import re

from lamella.limits.owner import mark


def owned_by(pid: int, ticks: int, label: str = ".package") -> str:
    """A temporary name as a process of this machine would have given it."""
    return re.sub(r"-lamella-\d+-\d+-", f"-lamella-{pid}-{ticks}-", mark(label)) + "0123abcd"
