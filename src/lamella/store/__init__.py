"""One copy of the weights for every process of a host: artifacts on disk, segments in memory, leases of processes.

Content-addressed: a segment is called by the hash of its bytes, so equal weights of different models are one segment.
This package loads nothing by itself: what a client needs is light, what puts models needs the planner's libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.store.client import connect as connect
    from lamella.store.client import session as session
    from lamella.store.client import status as status


def __getattr__(name: str) -> Any:
    """`session`, `connect` and `status` of the client, when they are first asked for."""
    if name in ("connect", "session", "status"):
        from lamella.store import client

        return getattr(client, name)
    raise AttributeError(f"module 'lamella.store' has no attribute {name!r}")
