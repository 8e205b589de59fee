"""The shelves against a simple model: whatever happens in whatever order, nobody is ever served a wrong byte.

The model knows the bytes of every blob, who holds what, and which file was damaged. It does not know what is in memory,
which is the policy's to decide; so it says when a refusal is allowed, and what must hold after every step.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lamella.errors import ConfigError, ModelLeased, StoreConflict, StoreDamaged, StoreError, StoreFull, UnknownModel
from lamella.store.backings import probe
from lamella.store.records import Held, ModelRecord, Settings
from lamella.store.shelves import Load, Put, Shelves
from tests.unit.store.blobs import flip, open_files, read, record_of, ref, written

SEGMENTS = [bytes([k]) * (1000 * k) for k in range(1, 7)]
GRAPHS = [b"graph %d" % k for k in range(5)]
MODELS: dict[str, list[bytes]] = {
    "base@1": [GRAPHS[0], SEGMENTS[0], SEGMENTS[1], SEGMENTS[5]],
    "tuned@1": [GRAPHS[1], SEGMENTS[0], SEGMENTS[1], SEGMENTS[2]],
    "tuned/head@1": [GRAPHS[2], SEGMENTS[2]],
    "other@1": [GRAPHS[3], SEGMENTS[3], SEGMENTS[4]],
    "bare@1": [GRAPHS[4]],
}
RECORDS = {name: record_of(name, blobs[0], blobs[1:]) for name, blobs in MODELS.items()}
SIZE = {b.id: b.bytes for r in RECORDS.values() for b in r.blobs}
QUICK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where to sync a file takes no time."""
names = st.sampled_from(sorted(MODELS))


def ids(record: ModelRecord) -> set[str]:
    return {b.id for b in record.blobs}


def total(blobs: set[str]) -> int:
    return sum(SIZE[id] for id in blobs)


class Machine(RuleBasedStateMachine):
    backing = "memfd"

    @initialize(
        memory=st.sampled_from([None, 0, 5_000, 11_000, 16_000]),
        disk=st.sampled_from([None, None, 12_000, 20_000]),
        policy=st.sampled_from(["lru", "lfu", "cost-aware"]),
    )
    def begin(self, memory: int | None, disk: int | None, policy: str) -> None:
        self.directory = Path(tempfile.mkdtemp(dir=QUICK))
        self.files = written(self.directory / "given", [*SEGMENTS, *GRAPHS])
        self.settings = Settings(
            root=self.directory / "root", memory_bytes=memory, disk_bytes=disk, policy=policy, backing=self.backing
        )
        self.now = 0.0
        self.base = open_files()
        self.there: set[str] = set()
        self.held: list[Held] = []
        self.pinned: set[str] = set()
        self.bad: set[str] = set()
        self.under_way: dict[str, Load] = {}
        self.puts: list[Put] = []
        self.open()

    def open(self) -> None:
        self.shelves = Shelves(self.settings, clock=self.clock)

    def clock(self) -> float:
        self.now += 1.0
        return self.now

    def path(self, id: str) -> Path:
        return self.settings.root / "objects" / id[:2] / id

    @rule(name=names)
    def put(self, name: str) -> None:
        record = RECORDS[name]
        new = {id for id in ids(record) if not self.path(id).exists()}
        before = self.shelves.status()
        try:
            self.shelves.put(record, self.files)
        except StoreFull:
            assert self.settings.disk_bytes is not None
            promised = sum(put.bytes for put in self.puts)
            assert before.tiers[1].used_bytes + promised + total(new) > self.settings.disk_bytes
            assert set(self.shelves.names()) == self.there
            return
        self.there.add(name)
        self.bad -= new

    @rule(name=names)
    def plan_put(self, name: str) -> None:
        try:
            self.puts.append(self.shelves.plan_put(RECORDS[name], self.files))
        except StoreFull:
            assert self.settings.disk_bytes is not None

    @precondition(lambda self: self.puts)
    @rule(data=st.data(), committed=st.booleans(), ran=st.booleans())
    def settle_put(self, data: st.DataObject, committed: bool, ran: bool) -> None:
        put = self.puts.pop(data.draw(st.integers(0, len(self.puts) - 1)))
        gone = {id for id in ids(put.record) if not self.path(id).exists()}
        if committed or ran:
            put.run()
        if not committed:
            self.shelves.abandon_put(put)
            return
        self.shelves.commit_put(put)
        self.there.add(put.record.name)
        self.bad -= {id for id in gone if self.path(id).exists()}

    @rule(name=names)
    def put_something_else_under_the_name(self, name: str) -> None:
        other = record_of(name, b"another", [SEGMENTS[0]])
        files = written(self.directory / "given", [b"another"]) | self.files
        if name in self.there:
            with pytest.raises(StoreConflict):
                self.shelves.put(other, files)

    @rule(name=names)
    def put_with_a_wrong_byte(self, name: str) -> None:
        data = b"x" * 700
        files = written(self.directory / "given", [data])
        flip(files[ref(data).id])
        taken = self.there | {put.record.name for put in self.puts}
        if name not in taken and self.settings.disk_bytes is None:
            with pytest.raises(StoreDamaged):
                self.shelves.put(record_of(name, data, [SEGMENTS[0]]), files | self.files)
            assert set(self.shelves.names()) == self.there

    def refused(self, error: StoreError, name: str) -> None:
        """Whether that was right."""
        if isinstance(error, UnknownModel):
            assert name not in self.there
            return
        if isinstance(error, StoreDamaged):
            assert ids(RECORDS[name]) & self.bad
            return
        fixed = ids(RECORDS[name]) | set(self.under_way)
        for kept in [*self.pinned, *(h.name for h in self.held)]:
            fixed |= ids(RECORDS[kept])
        # a leased blob that was damaged under its holders is in memory beside its successor
        fixed_bytes = total(fixed) + sum(total(ids(h.record) & self.bad) for h in self.held)
        assert self.settings.memory_bytes is not None
        assert fixed_bytes > self.settings.memory_bytes

    @rule(name=names)
    def acquire(self, name: str) -> None:
        try:
            held = self.shelves.acquire(name)
        except (UnknownModel, StoreDamaged, StoreFull) as error:
            self.refused(error, name)
        else:
            assert name in self.there
            self.held.append(held)
        self.forget_settled()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.shelves.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule(name=names)
    def plan(self, name: str) -> None:
        try:
            loads = self.shelves.plan_load(name)
        except (UnknownModel, StoreFull) as error:
            self.refused(error, name)
            return
        for load in loads:
            assert self.under_way.setdefault(load.id, load) is load

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), committed=st.booleans())
    def settle(self, data: st.DataObject, committed: bool) -> None:
        load = self.under_way.pop(data.draw(st.sampled_from(sorted(self.under_way))))
        load.run()
        if not committed:
            self.shelves.abandon(load)
            return
        try:
            self.shelves.commit(load)
        except StoreDamaged:
            assert load.id in self.bad

    def forget_settled(self) -> None:
        """Loads that `acquire` finished, or gave up with its own."""
        self.under_way = {id: load for id, load in self.under_way.items() if not load.done}

    @rule(name=names)
    def pin(self, name: str) -> None:
        try:
            self.shelves.pin(name)
        except (UnknownModel, StoreDamaged, StoreFull) as error:
            self.refused(error, name)
        else:
            self.pinned.add(name)
        self.forget_settled()

    @rule(name=names)
    def unpin(self, name: str) -> None:
        self.shelves.unpin(name)
        self.pinned.discard(name)

    @rule(name=names, off_disk=st.booleans())
    def evict(self, name: str, off_disk: bool) -> None:
        leased = any(h.name == name for h in self.held)
        loading = off_disk and ids(RECORDS[name]) & set(self.under_way)
        try:
            self.shelves.remove(name) if off_disk else self.shelves.evict(name)
        except UnknownModel:
            assert name not in self.there
        except ModelLeased:
            assert leased or name in self.pinned or loading
        else:
            assert not leased
            assert name not in self.pinned
            if off_disk:
                self.there.discard(name)

    @rule(segment=st.sampled_from(sorted(SIZE)))
    def damage(self, segment: str) -> None:
        in_place = self.backing == "page-cache" and any(segment in ids(h.record) for h in self.held)
        if self.path(segment).exists() and segment not in self.bad and not in_place:
            flip(self.path(segment))
            self.bad.add(segment)

    @rule()
    def restart(self) -> None:
        self.shelves.close()
        assert open_files() == self.base
        self.held.clear()
        self.under_way.clear()
        self.puts.clear()
        (self.settings.root / "incoming" / "left by a killed one").write_bytes(b"part")
        self.open()
        assert not any((self.settings.root / "incoming").iterdir())

    @invariant()
    def what_is_held_is_right(self) -> None:
        for held in self.held:
            assert read(held) == MODELS[held.name]

    @invariant()
    def what_it_says_is_so(self) -> None:
        status = self.shelves.status()
        assert {m.name for m in status.models} == self.there
        for tier in status.tiers:
            assert tier.budget_bytes is None or tier.used_bytes <= tier.budget_bytes
        on_disk = [
            p for place in ("objects", "damaged") for p in (self.settings.root / place).rglob("*") if p.is_file()
        ]
        assert status.tiers[1].used_bytes == sum(p.stat().st_size for p in on_disk)
        assert self.puts or not any((self.settings.root / "incoming").iterdir())
        for model in status.models:
            assert model.leases == sum(h.name == model.name for h in self.held)
            assert model.pinned == (model.name in self.pinned)
            assert model.leases == 0 or model.memory_bytes == model.bytes
        assert open_files() == self.base + 1 + status.tiers[0].blobs  # the lock, and one for each blob

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            for held in self.held:
                self.shelves.release(held)
            self.shelves.close()
            assert open_files() == self.base
            shutil.rmtree(self.directory)


@pytest.mark.parametrize("backing", ["huge-tmpfs", "page-cache", "memfd"])
def test_the_shelves_do_as_the_model_says(backing: str, tmp_path: Path) -> None:
    try:
        probe(tmp_path, backing)
    except ConfigError as error:
        pytest.skip(error.message)
    machine: type[Machine] = type(backing, (Machine,), {"backing": backing})
    run_state_machine_as_test(machine, settings=settings(max_examples=30, stateful_step_count=30, deadline=None))
