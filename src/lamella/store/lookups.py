"""A model's record on its way from remote storage: asked for by a thread, believed by the shelves.

As a load it is planned and committed by the shelves; only `run` may be called in another thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.errors import LamellaError

if TYPE_CHECKING:
    from lamella.store.records import ModelRecord
    from lamella.store.remote import Remote


class Lookup:
    """Made by `Shelves.plan_lookup`."""

    def __init__(self, name: str, remote: Remote) -> None:
        """Nothing is asked yet."""
        self.name = name
        self.record: ModelRecord | None = None
        """What remote storage has; None where it has no such model."""
        self.error: LamellaError | None = None
        self.done = False
        self._remote = remote

    def run(self) -> None:
        """Ask. What goes wrong is raised by the commit."""
        try:
            self.record = self._remote.record(self.name)
        except LamellaError as error:
            self.error = error
        self.done = True
