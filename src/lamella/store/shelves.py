"""The core of the store, without sockets: which model is in which tier, who leases it, what leaves for whom.

Single-threaded: every method is called from one thread. Only `Load.run` may run in another, since it touches files and
no state; what it found is believed when it is committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lamella.store.records import Held, ModelRecord, Settings, Status


class Load:
    """One blob on its way into memory."""

    id: str
    bytes: int

    def run(self) -> None:
        """Read, verify, place; what goes wrong is raised when the load is committed."""
        raise NotImplementedError


class Shelves:
    """The tiers of one host's store."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Open or make the disk tier, and recover what it holds."""
        raise NotImplementedError

    def put(self, record: ModelRecord, blobs: Mapping[str, Path]) -> None:
        """Take in a model. `blobs` are the files of those blobs that the store may not have, by id; copied."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """The models on disk."""
        raise NotImplementedError

    def record(self, name: str) -> ModelRecord:
        """A model's record, from disk, else from remote."""
        raise NotImplementedError

    def holders(self, id: str) -> list[str]:
        """The models that use a blob."""
        raise NotImplementedError

    def known(self, name: str) -> dict[str, Path]:
        """The segments of a model that are on disk, for `putting.prepare` to share."""
        raise NotImplementedError

    def plan_load(self, name: str) -> list[Load]:
        """What has to be loaded before `acquire` finds all in memory; the same objects for loads under way."""
        raise NotImplementedError

    def commit(self, load: Load) -> None:
        """Make a load that ran part of memory; raises what went wrong in it."""
        raise NotImplementedError

    def abandon(self, load: Load) -> None:
        """Give up a load that is not running; its room is free again."""
        raise NotImplementedError

    def acquire(self, name: str) -> Held:
        """Lease a model."""
        raise NotImplementedError

    def release(self, held: Held) -> None:
        """End a lease."""
        raise NotImplementedError

    def pin(self, name: str) -> None:
        """Load a model and keep it in memory."""
        raise NotImplementedError

    def unpin(self, name: str) -> None:
        """Let a pinned model leave memory again."""
        raise NotImplementedError

    def prefetch(self, name: str) -> None:
        """Load a model without leasing it."""
        raise NotImplementedError

    def evict(self, name: str) -> None:
        """Take a model out of memory."""
        raise NotImplementedError

    def remove(self, name: str) -> None:
        """Take a model out of memory and off the disk."""
        raise NotImplementedError

    def status(self) -> Status:
        """What is where."""
        raise NotImplementedError

    def close(self) -> None:
        """Close every descriptor."""
        raise NotImplementedError
