"""Clearing away what dead owners left behind: a driver that was killed cannot remove its own groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.limits.owner import Owner, owner_of

if TYPE_CHECKING:
    from lamella.limits.group import Limiter


def abandoned(limiter: Limiter, whose: Owner = Owner.DEAD) -> list[str]:
    """Full names of the groups of dead owners, or of others.

    Groups with members in another pid namespace are left out: their owner is beyond us.
    """
    return [name for name in limiter.names() if owner_of(name) is whose and 0 not in limiter.open(name).pids()]


def sweep(limiter: Limiter, whose: Owner = Owner.DEAD) -> list[str]:
    """Full names of the groups removed: those `abandoned`, after killing their members.

    Groups of live owners are never touched, unless they are asked for as `Owner.US`. What lies outside this limiter's
    place (a driver that lived elsewhere in the tree) is left to a sweep from there.
    """
    removed = []
    for name in abandoned(limiter, whose):
        group = limiter.open(name)
        group.kill()
        group.remove()
        removed.append(name)
    return removed
