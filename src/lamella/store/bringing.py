"""Brings models into memory by lookups and loads that run in threads: each once, however many wait for it.

A model is there when `Shelves.plan_load` has nothing left to load; between the commit of its last load and the calls
of those who wait for it nothing else is decided, so nothing can be evicted there. A model that lost a blob meanwhile to
another's admission is planned again, a few times. What asks remote storage has threads of its own: who waits for a
network is not in the way of who waits for the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lamella.errors import LamellaError, StoreFull
from lamella.store.lookups import Lookup
from lamella.store.shelves import Load, Shelves
from lamella.store.workers import Workers

Then = Callable[[LamellaError | None], None]
TRIES = 4


class _Awaited:
    """One model on its way."""

    def __init__(self) -> None:
        self.then: list[Then] = []
        self.missing: set[str] = set()
        self.tries = 0


class Bringing:
    """Models on their way into memory."""

    def __init__(self, shelves: Shelves, near: Workers, far: Workers) -> None:
        """None yet. `near` reads the disk, `far` asks remote storage."""
        self._shelves, self._near, self._far = shelves, near, far
        self._models: dict[str, _Awaited] = {}
        self._running: set[str] = set()

    def bring(self, name: str, then: Then) -> None:
        """Call `then` when the model is in memory, at once if it is, or with what stands in its way."""
        awaited = self._models.get(name)
        if awaited:
            awaited.then.append(then)
            return
        awaited = self._models[name] = _Awaited()
        awaited.then.append(then)
        try:
            lookup = self._shelves.plan_lookup(name)
        except LamellaError as error:
            self._end(name, error)
            return
        if lookup:
            self._far.start(lookup.run, partial(self._looked, lookup))
        else:
            self._go_on(name)

    def _looked(self, lookup: Lookup, error: LamellaError | None) -> None:
        """Remote storage told of a model, or did not."""
        try:
            if error:
                raise error
            self._shelves.commit_lookup(lookup)
        except LamellaError as failed:
            self._end(lookup.name, failed)
        else:
            self._go_on(lookup.name)

    def _go_on(self, name: str) -> None:
        awaited = self._models[name]
        awaited.tries += 1
        try:
            loads = self._shelves.plan_load(name)
            if loads and awaited.tries > TRIES:
                raise StoreFull(f"{name} lost its place in memory {TRIES} times while it was loaded", try_="again")
        except LamellaError as error:
            self._end(name, error)
            return
        if not loads:
            self._end(name, None)
            return
        awaited.missing = {load.id for load in loads}
        for load in loads:
            if load.id not in self._running:
                self._running.add(load.id)
                (self._near if load.near else self._far).start(load.run, partial(self._ran, load))

    def _ran(self, load: Load, error: LamellaError | None) -> None:
        """A load ended: believe it, and go on with whoever waits for it."""
        self._running.discard(load.id)
        try:
            if error:
                self._shelves.abandon(load)
                raise error
            self._shelves.commit(load)
        except LamellaError as failed:
            error = failed
        for name, awaited in [(n, a) for n, a in self._models.items() if load.id in a.missing]:
            awaited.missing.discard(load.id)
            if error:
                self._end(name, error)
            elif not awaited.missing:
                self._go_on(name)

    def _end(self, name: str, error: LamellaError | None) -> None:
        for then in self._models.pop(name).then:
            then(error)
