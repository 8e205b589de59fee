"""The core of the store, without sockets: which model is in which tier, who leases it, what leaves for whom.

Single-threaded: every method is called from one thread. Only `run` of a `Lookup`, a `Load`, a `Put` and a `Survey` may
be called in another (see the modules of those names); what they found is believed when they are committed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.errors import ModelLeased, StorageError, StoreDamaged, StoreError, StoreFull, UnknownModel
from lamella.store.backings import probe
from lamella.store.disk import Disk
from lamella.store.loads import Load
from lamella.store.lookups import Lookup
from lamella.store.memory import Memory, Resident
from lamella.store.pins import Pins
from lamella.store.policies import policy
from lamella.store.puts import Put, conflict
from lamella.store.records import (
    Held,
    ModelRecord,
    ModelStatus,
    SegmentRef,
    Settings,
    Status,
    TierStatus,
    check_name,
    faults,
)
from lamella.store.surveys import Survey

if TYPE_CHECKING:
    from lamella.store.remote import Remote


class Shelves:
    """The tiers of one host's store: memory above disk above remote."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Open or make the disk tier, and recover what it holds.

        Raises:
            ConfigError: no such policy or backing, or no such remote storage.
            StorageError, StoreConflict: the disk tier cannot be opened.
        """
        self._clock = clock
        chosen = policy(settings.policy)
        self._remote = _remote(settings.remote) if settings.remote else None
        self._disk = Disk(settings.root, settings.disk_bytes)
        try:
            backing, self._why = probe(self._disk.incoming, settings.backing)
        except BaseException:
            self._disk.close()
            raise
        self._memory = Memory(backing, settings.memory_bytes, chosen)
        self._loads: dict[str, Load] = {}
        self._puts: list[Put] = []
        self._leases: dict[int, tuple[Held, list[Resident]]] = {}
        self._pins = Pins(self._disk)
        self._hits: Counter[str] = Counter()
        self._brought: set[str] = set()
        """Models for which something was loaded since their last lease."""
        self._loaded: Counter[str] = Counter()
        self._damaged = 0
        self._bad_remotely: set[str] = set()
        self._there: set[str] = set()
        """Blobs that remote storage was seen to have since the store was opened."""

    # ------------------------------------------------------------------------------------------------ what there is

    def names(self) -> list[str]:
        """The models on disk; remote storage may have more."""
        return sorted(self._disk.records)

    def record(self, name: str) -> ModelRecord:
        """A model's record, if it is on disk: `look_up` brings it there from remote storage.

        Raises:
            ConfigError: the name is none.
            UnknownModel: it is not there.
        """
        record = self._disk.records.get(check_name(name))
        if record is None:
            raise UnknownModel(
                f"there is no model {name!r} in the store",  # which there are is not everybody's to know
                try_="lamella store status, or lamella store put PACKAGE NAME@VERSION",
            )
        return record

    def plan_lookup(self, name: str) -> Lookup | None:
        """What remote storage has to be asked before there is a record; None where nobody has to be.

        To be run, perhaps in another thread, and committed.

        Raises:
            ConfigError: the name is none.
        """
        here = check_name(name) in self._disk.records
        return None if here or self._remote is None else Lookup(name, self._remote)

    def commit_lookup(self, lookup: Lookup) -> None:
        """Believe a record that came from remote storage; nothing where there was none.

        Raises:
            StoreDamaged: remote has it damaged.
            RemoteAway: nobody answers.
        """
        assert lookup.done, "a lookup is run before it is committed"
        if lookup.error:
            raise lookup.error
        if lookup.record is None or lookup.name in self._disk.records:
            return
        for fault in faults(lookup.record):
            raise StoreDamaged(f"the record of {lookup.name} in remote storage is none: {fault}", where=lookup.name)
        with suppress(StorageError):  # a full disk: after a restart it is asked for again
            self._disk.keep(lookup.record)
        self._disk.records[lookup.name] = lookup.record

    def look_up(self, name: str) -> None:
        """Have a model's record here if remote storage has it, which takes as long as it takes; raises as the above."""
        lookup = self.plan_lookup(name)
        if lookup:
            lookup.run()
            self.commit_lookup(lookup)

    def has(self, name: str, graph: str) -> bool:
        """Whether a model is on disk, and is the one with this graph."""
        record = self._disk.records.get(name)
        return record is not None and record.graph.id == graph

    def holders(self, id: str) -> list[str]:
        """The models on disk that use a blob. Who may open none of them must not name it in a record of his own."""
        return sorted(r.name for r in self._disk.records.values() if any(b.id == id for b in r.blobs))

    def known(self, name: str) -> dict[str, Path]:
        """The segments of a model that are on disk, by id: what `putting.prepare` can share.

        Raises:
            UnknownModel: there is no such model.
        """
        segments = self.record(name).segments
        return {s.id: self._disk.path(s.id) for s in segments if s.id in self._disk.sizes}

    # ------------------------------------------------------------------------------------------------- putting

    def put(self, record: ModelRecord, blobs: Mapping[str, Path]) -> None:
        """Take in a model, whole or not at all; with remote storage, it is there too when this returns.

        Args:
            record: what it is.
            blobs: files of the blobs that the store may not have yet, by id. They are copied, and the copies verified.

        Raises:
            StoreError: the record makes no sense, or a blob is neither given nor there.
            StoreDamaged: a file is not what its id says.
            StoreConflict: another model has this name and version.
            StoreFull: the disk budget has no room.
            RemoteAway, StorageError: remote storage or the disk refuses.
        """
        survey = self.plan_survey()
        if survey:
            survey.run()
            self.commit_survey(survey)
        put = self.plan_put(record, blobs)
        put.run()
        self.commit_put(put)

    def plan_put(self, record: ModelRecord, blobs: Mapping[str, Path]) -> Put:
        """The first step of `put`: has to be run, perhaps in another thread, and committed, or abandoned.

        Raises:
            StoreError, StoreConflict, StoreFull: as `put`, as far as can be said without reading anything.
        """
        for fault in faults(record):
            raise StoreError(f"this is no record of a model: {fault}", where=record.name[:200])
        present = [self._disk.records.get(record.name), *(p.record for p in self._puts if p.record.name == record.name)]
        if any(other is not None and other != record for other in present):
            raise conflict(record.name)
        missing = [blob for blob in record.blobs if self._is_missing(blob)]
        new = [blob for blob in missing if blob.id in blobs]
        self._make_disk_room(new, {b.id for b in record.blobs})
        elsewhere = [blob for blob in missing if blob.id not in blobs]
        put = Put(record, {b: blobs[b.id] for b in new}, elsewhere, self._bad_remotely, self._disk, self._remote)
        self._puts.append(put)
        self._disk.promised += put.bytes
        return put

    def commit_put(self, put: Put) -> None:
        """Make a model that ran part of the store.

        Raises:
            StoreError, StoreDamaged, StoreConflict, RemoteAway, StorageError: what went wrong, as `put`.
        """
        assert put.done, "a put is run before it is committed"
        self._bad_remotely -= put.sent
        try:
            if put.error:
                raise put.error
            if self._disk.records.get(put.record.name) not in (None, put.record):  # it came from remote meanwhile
                raise conflict(put.record.name)
            for blob in list(put.staged):
                self._disk.adopt(blob, put.staged[blob])
                del put.staged[blob]
            self._disk.keep(put.record)
            if self._remote:
                self._there.update(blob.id for blob in put.record.blobs)
        finally:
            self.abandon_put(put)

    def abandon_put(self, put: Put) -> None:
        """Give up a put, after waiting for it where it runs. Nothing where it is committed."""
        if put in self._puts:
            self._puts.remove(put)
            self._disk.promised -= put.bytes
            put.discard()
            if put.record.name not in self._disk.records:
                self._drop_unused(b.id for b in put.record.blobs)

    def _is_missing(self, blob: SegmentRef) -> bool:
        size = self._disk.sizes.get(blob.id)
        if size is not None and size != blob.bytes:
            raise StoreError(f"blob {blob.id[:12]} has {size} bytes, the record says {blob.bytes}")
        return size is None

    def _make_disk_room(self, blobs: list[SegmentRef], keep: set[str]) -> None:
        """Take blobs off the disk that remote storage has too, and that nobody leases, has pinned or needs now.

        Raises:
            StoreFull: that is not enough; nothing was taken.
        """
        wanted = sum(b.bytes for b in blobs)
        excess, victims = self._disk.room_for(wanted), []
        sizes = self._disk.sizes
        leased = {r.blob.id for r in self._memory.residents.values() if r.leases}
        free = set(sizes) - keep - leased - self._pinned_ids() - set(self._loads) - self._needed_by_puts()
        candidates = [self._memory.history.candidate(id, sizes[id]) for id in sorted(free & self._there)]
        while excess > 0:
            victim = self._memory.policy.choose(candidates, self._clock()) if candidates else None
            if victim is None:
                raise StoreFull(
                    f"no room on disk for {wanted} bytes: the budget is {self._disk.budget}, {self._disk.used} are used"
                    + ("" if self._remote else ", and without remote storage nothing may leave"),
                    where=str(self._disk.root),
                    try_="lamella store remove a model, or a larger --disk-mb",
                )
            candidates.remove(victim)
            victims.append(victim.id)
            excess -= victim.bytes
        for id in victims:
            self._disk.drop(id)

    def plan_survey(self) -> Survey | None:
        """What may leave a disk of bounded size: to be run, perhaps in another thread, and committed.

        None where nothing has to be asked.
        """
        unseen = [SegmentRef(id, size) for id, size in self._disk.sizes.items() if id not in self._there]
        return Survey(unseen, self._remote) if self._remote and self._disk.budget is not None and unseen else None

    def commit_survey(self, survey: Survey) -> None:
        """Believe what was found, all or, where remote storage went away meanwhile, some of it."""
        self._there |= survey.found

    def _drop_unused(self, ids: Iterable[str]) -> None:
        """Remove blobs from disk and memory that no model uses."""
        used = {b.id for r in self._disk.records.values() for b in r.blobs}
        for id in set(ids) - used - self._needed_by_puts():
            with suppress(StorageError):  # then it counts, and goes with the next restart
                self._disk.drop(id)
            if id in self._memory.residents:
                self._memory.drop(id)

    def _needed_by_puts(self) -> set[str]:
        return {b.id for put in self._puts for b in put.record.blobs}

    # ------------------------------------------------------------------------------------------------- loading

    def plan_load(self, name: str) -> list[Load]:
        """What has to be loaded before `acquire` finds all in memory; the same objects for loads under way.

        Room is promised to each: every load has to be run and committed, or abandoned. What is not leased may leave
        again meanwhile, so plan again until nothing is to be loaded.

        Raises:
            ConfigError, UnknownModel: there is no record here.
            StoreFull: no room beside what is leased or pinned; nothing was evicted.
        """
        blobs = self.record(name).blobs
        for resident in [self._memory.residents[b.id] for b in blobs if b.id in self._memory.residents]:
            if not self._memory.backing_of(resident.blob).unchanged(resident.blob, resident.descriptor):
                self._memory.drop(resident.blob.id)
        missing = [b for b in blobs if b.id not in self._memory.residents]
        new = [b for b in missing if b.id not in self._loads]
        self._memory.promise(new, {b.id for b in blobs} | self._pinned_ids(), self._clock())
        if new:
            self._loaded[name] += 1
            self._brought.add(name)
        for blob in new:
            self._loads[blob.id] = Load(blob, self._memory.backing_of(blob), self._disk, self._remote, self._clock)
        return [self._loads[b.id] for b in missing]

    def commit(self, load: Load) -> None:
        """Make a load that ran part of memory; one that is committed already stays so.

        Raises:
            StoreDamaged: no tier has the blob whole.
            RemoteAway: it is in remote storage only, and nobody answers.
            StoreError: there is no memory for it, or no file.
        """
        if self._loads.get(load.id) is load:
            assert load.done, "a load is run before it is committed"
            del self._loads[load.id]
            self._settle(load)
        if load.error:
            raise load.error

    def _settle(self, load: Load) -> None:
        self._damaged += load.bad_on_disk + load.bad_remotely
        if load.bad_on_disk:
            self._disk.set_aside(load.id)
        if load.bad_remotely:
            self._bad_remotely.add(load.id)
            self._there.discard(load.id)
        elif load.fetched:
            self._there.add(load.id)
        if load.fetched and not load.error:
            with suppress(StoreFull, StorageError):  # then memory has it, and the disk does not
                self._make_disk_room([load.blob], {load.id})
                self._disk.adopt(load.blob, load.fetched)
        descriptor, load.descriptor = load.descriptor, -1
        load.discard()
        if load.error:
            self._memory.withdraw(load.id)
        else:
            self._memory.shelve(load.blob, descriptor, self._clock(), load.seconds)

    def abandon(self, load: Load) -> None:
        """Give up a load, after waiting for it where it runs; its room is free again. Nothing where it is committed."""
        if self._loads.get(load.id) is load:
            del self._loads[load.id]
            self._memory.withdraw(load.id)
            load.discard()

    def prefetch(self, name: str) -> None:
        """Load a model without leasing it; raises what `acquire` does."""
        self.look_up(name)
        loads = self.plan_load(name)
        try:
            for load in loads:
                load.run()
                self.commit(load)
        finally:
            for load in loads:
                self.abandon(load)

    # ------------------------------------------------------------------------------------------------- leasing

    def acquire(self, name: str) -> Held:
        """Lease a model. What is not here is fetched first, for as long as it takes: see `plan_lookup`, `plan_load`.

        Raises:
            ConfigError: the name is none.
            UnknownModel: there is no such model.
            StoreFull: no room in memory beside what is leased or pinned.
            StoreDamaged: no tier has it whole.
            RemoteAway: it is in remote storage only, and nobody answers.
        """
        self.prefetch(name)
        self._hits[name] += name not in self._brought
        self._brought.discard(name)
        record = self.record(name)
        residents = self._memory.lease((b.id for b in record.blobs), self._clock())
        held = Held(name, record, tuple(r.descriptor for r in residents))
        self._leases[id(held)] = (held, residents)
        return held

    def release(self, held: Held) -> None:
        """End a lease; the very object that `acquire` gave, once."""
        _, residents = self._leases.pop(id(held))
        self._memory.release(residents)

    def _leased(self) -> Counter[str]:
        return Counter(held.name for held, _ in self._leases.values())

    def pin(self, name: str) -> None:
        """Load a model and keep it in memory; raises what `acquire` does.

        After a restart it is pinned, and to be loaded by whoever opened the store: see `pinned`.

        Raises:
            StorageError: the disk refuses to remember it; it is not pinned.
        """
        self.prefetch(name)
        self._pins.add(name)

    def unpin(self, name: str) -> None:
        """Let a pinned model leave memory again.

        Raises:
            StorageError: the disk refuses to forget it; it stays pinned.
        """
        self._pins.discard(name)

    def pinned(self) -> list[str]:
        """The models that are to stay in memory once they are there."""
        return list(self._pins)

    def _pinned_ids(self) -> set[str]:
        return {b.id for name in self._pins for b in self._disk.records[name].blobs}

    def evict(self, name: str) -> None:
        """Take a model out of memory, except what it shares with leased or pinned ones.

        Raises:
            UnknownModel: there is no such model.
            ModelLeased: it is leased or pinned.
        """
        self._check_idle(name, self.record(name))
        keep = self._pinned_ids()
        for blob in self.record(name).blobs:
            resident = self._memory.residents.get(blob.id)
            if resident and not resident.leases and blob.id not in keep:
                self._memory.drop(blob.id)

    def remove(self, name: str) -> None:
        """Take a model out of memory and off the disk; remote storage keeps what it has.

        Raises:
            UnknownModel: there is no such model.
            ModelLeased: it is leased, pinned or being loaded.
        """
        record = self.record(name)
        self._check_idle(name, record)
        if any(b.id in self._loads for b in record.blobs):
            raise ModelLeased(f"{name} is being loaded", where=name, try_="again")
        self._disk.forget(name)
        self._drop_unused(b.id for b in record.blobs)
        del self._hits[name], self._loaded[name]
        self._brought.discard(name)

    def _check_idle(self, name: str, record: ModelRecord) -> None:
        if count := self._leased()[name]:
            raise ModelLeased(f"{name} is leased {count} times", where=name, try_="stop the processes that hold it")
        if name in self._pins:
            raise ModelLeased(f"{name} is pinned", where=name, try_=f"lamella store pin {name} --off")

    # ------------------------------------------------------------------------------------------------- telling

    def status(self) -> Status:
        """What is where. Remote storage is not asked."""
        disk, memory = self._disk, self._memory
        tiers = [
            TierStatus(
                "memory",
                memory.budget,
                memory.used,
                len(memory.residents),
                memory.backing.name,
                self._why,
                memory.cached,
            ),
            TierStatus("disk", disk.budget, disk.used, len(disk.sizes), "files", str(disk.root)),
        ]
        if self._remote:
            tiers.append(TierStatus("remote", None, 0, 0, "s3", self._remote.address))
        users = Counter(b.id for r in disk.records.values() for b in r.blobs)
        leases = self._leased()
        return Status(
            policy=memory.policy.name,
            tiers=tuple(tiers),
            models=tuple(self._told(name, users, leases[name]) for name in self.names()),
            evictions=memory.evictions,
            damaged=self._damaged,
            notes=self._pins.notes,
        )

    def _told(self, name: str, users: Counter[str], leases: int) -> ModelStatus:
        blobs = self._disk.records[name].blobs
        return ModelStatus(
            name=name,
            bytes=sum(b.bytes for b in blobs),
            shared_bytes=sum(b.bytes for b in blobs if users[b.id] > 1),
            memory_bytes=sum(b.bytes for b in blobs if b.id in self._memory.residents),
            leases=leases,
            pinned=name in self._pins,
            hits=self._hits[name],
            loads=self._loaded[name],
        )

    def close(self) -> None:
        """Close every descriptor, leased ones too, and let another process open the disk tier."""
        for load in list(self._loads.values()):
            self.abandon(load)
        for put in list(self._puts):
            self.abandon_put(put)
        self._memory.close()
        self._leases.clear()
        self._disk.close()


def _remote(address: str) -> Remote:
    """Imported here, since TLS takes some MB of every daemon's memory."""
    from lamella.store.remote import Remote

    return Remote(address)


__all__ = ["Load", "Put", "Shelves"]
