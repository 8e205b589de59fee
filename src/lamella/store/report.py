"""The status of a daemon: that of its tiers, and who is connected."""

from __future__ import annotations

import msgspec

from lamella.documents import Document
from lamella.store.records import Status


class UserStatus(msgspec.Struct, frozen=True):
    """What one user holds."""

    uid: int
    connections: int
    leases: int
    leased_bytes: int
    """Distinct blobs of its leases."""


class Report(Document, frozen=True, kw_only=True):
    """`lamella store status --json`."""

    pid: int
    uptime_s: float
    refused: int
    """Connections and requests that were denied, beyond a quota, or no requests at all."""
    users: tuple[UserStatus, ...]
    """Yourself alone, unless you administer the store."""
    store: Status
