"""Clearing away what dead owners left behind: a driver that was killed cannot remove its own groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.limits.owner import is_alive

if TYPE_CHECKING:
    from lamella.limits.group import Limiter


def sweep(limiter: Limiter) -> list[str]:
    """Full names of the groups removed: those whose owner is dead, after killing their members.

    Groups of live owners are never touched, nor those with members in another pid namespace: their owner is beyond us.
    What lies outside this limiter's place (a driver that lived elsewhere in the tree) is left to a sweep from there.
    """
    removed = []
    for name in limiter.names():
        group = limiter.open(name)
        if is_alive(name) or 0 in group.pids():
            continue
        group.kill()
        group.remove()
        removed.append(name)
    return removed
