"""What the shelves do in cases that chance seldom makes: threads, refusals, other processes, broken files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from lamella.errors import (
    ConfigError,
    ModelLeased,
    StorageError,
    StoreConflict,
    StoreDamaged,
    StoreError,
    StoreFull,
    UnknownModel,
)
from lamella.store.backings import _Tmpfs
from lamella.store.records import ModelRecord, SegmentRef, Settings
from lamella.store.shelves import Shelves
from tests.processes import beside
from tests.unit.store.blobs import flip, open_files, read, record_of, ref, written

A, B, C = (bytes([k]) * 4096 for k in b"abc")
Open = Callable[..., Shelves]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    made: list[Shelves] = []

    def make(**settings: object) -> Shelves:
        made.append(Shelves(msgspec.structs.replace(Settings(root=tmp_path / "root", backing="memfd"), **settings)))
        return made[-1]

    before = open_files()
    yield make
    for shelves in made:
        shelves.close()
    assert open_files() == before


def put(shelves: Shelves, name: str, *segments: bytes, directory: Path) -> ModelRecord:
    graph = f"graph of {name}".encode()
    record = record_of(name, graph, segments)
    shelves.put(record, written(directory, [graph, *segments]))
    return record


def test_a_model_of_two_segments_is_read_whole_and_its_status_counts_what_it_shares(
    opened: Open, tmp_path: Path
) -> None:
    shelves = opened()
    put(shelves, "one@1", A, B, directory=tmp_path / "in")
    put(shelves, "two@1", B, C, directory=tmp_path / "in")
    held = [shelves.acquire("one@1"), shelves.acquire("two@1"), shelves.acquire("one@1")]
    assert read(held[1]) == [b"graph of two@1", B, C]
    memory, disk = shelves.status().tiers
    assert (memory.used_bytes, memory.blobs, memory.backing) == (3 * 4096 + 28, 5, "memfd")
    assert disk.used_bytes == 3 * 4096 + 28
    one = shelves.status().models[0]
    assert (one.shared_bytes, one.leases, one.hits, one.loads) == (4096, 2, 1, 1)
    assert held[0].descriptors[2] == held[1].descriptors[1]
    assert shelves.holders(ref(B).id) == ["one@1", "two@1"]
    for lease in held:
        shelves.release(lease)


def test_several_threads_run_one_load_once(opened: Open, tmp_path: Path) -> None:
    shelves = opened()
    put(shelves, "one@1", A, directory=tmp_path / "in")
    loads = shelves.plan_load("one@1")
    assert shelves.plan_load("one@1") == loads
    before = open_files()
    with beside(*(load.run for load in loads for _ in range(4))):
        pass
    assert open_files() == before + len(loads)
    for load in [*loads, *loads]:
        shelves.commit(load)
    assert shelves.plan_load("one@1") == []
    held = shelves.acquire("one@1")
    assert read(held)[1] == A
    assert shelves.status().models[0].loads == 1


def test_an_abandoned_load_gives_its_room_back_however_far_it_came(opened: Open, tmp_path: Path) -> None:
    shelves = opened(memory_bytes=5000)
    put(shelves, "one@1", A, directory=tmp_path / "in")
    put(shelves, "two@1", B, directory=tmp_path / "in")
    loads = shelves.plan_load("one@1")
    loads[0].run()
    with pytest.raises(StoreFull):
        shelves.acquire("two@1")
    for load in loads:
        shelves.abandon(load)
        load.run()  # by a thread that came late
    assert shelves.status().tiers[0].used_bytes == 0
    assert read(shelves.acquire("two@1"))[1] == B


def test_a_budget_of_zero_refuses_with_the_numbers_and_disturbs_nobody(opened: Open, tmp_path: Path) -> None:
    shelves = opened(memory_bytes=0)
    put(shelves, "one@1", A, directory=tmp_path / "in")
    with pytest.raises(StoreFull, match=r"no room in memory for 4110 bytes: the budget is 0, 0 are used"):
        shelves.acquire("one@1")
    assert shelves.names() == ["one@1"]


def test_policy_never_keeps_what_is_there(opened: Open, tmp_path: Path) -> None:
    shelves = opened(memory_bytes=5000, policy="never")
    for name, data in (("one@1", A), ("two@1", B)):
        put(shelves, name, data, directory=tmp_path / "in")
    shelves.prefetch("one@1")
    with pytest.raises(StoreFull, match="4110 idle, which policy never keeps"):
        shelves.prefetch("two@1")
    shelves.evict("one@1")
    shelves.prefetch("two@1")


def test_the_one_used_longest_ago_leaves_and_is_loaded_again(opened: Open, tmp_path: Path) -> None:
    shelves = opened(memory_bytes=2 * 4110)
    for name, data in (("one@1", A), ("two@1", B), ("tri@1", C)):
        put(shelves, name, data, directory=tmp_path / "in")
    for name in ("one@1", "two@1", "one@1", "tri@1"):
        shelves.release(shelves.acquire(name))
    assert {m.name: m.memory_bytes for m in shelves.status().models} == {"one@1": 4110, "two@1": 0, "tri@1": 4110}
    assert shelves.status().evictions == 2
    held = shelves.acquire("two@1")
    assert read(held)[1] == B
    with pytest.raises(ModelLeased, match="leased 1 times"):
        shelves.evict("two@1")


@pytest.mark.parametrize(
    ("blobs", "what"),
    [
        ([SegmentRef("0" * 64, 0)], "a blob of 0 bytes"),
        ([SegmentRef("../../etc/passwd", 9)], "is no sha256"),
        ([SegmentRef("a" * 64, 9)] * 2, "named twice"),
        ([SegmentRef("b" * 64, 9)], "neither in the store nor given"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(
    opened: Open, tmp_path: Path, blobs: list[SegmentRef], what: str
) -> None:
    shelves = opened()
    good = record_of("one@1", b"graph", [])
    with pytest.raises(StoreError, match=what):
        shelves.put(msgspec.structs.replace(good, segments=tuple(blobs)), written(tmp_path / "in", [b"graph"]))
    with pytest.raises(StoreError, match="no name"):
        shelves.put(msgspec.structs.replace(good, name="../one@1"), {})
    assert shelves.names() == []
    assert not [p for p in (tmp_path / "root" / "objects").rglob("*") if p.is_file()]


def test_names_that_are_none_and_models_that_are_not_there(opened: Open) -> None:
    shelves = opened()
    for name in ("../../etc/passwd", "one", "one@1/../two@1", "one@", "@1", "a/b/c@1", "one@1\n", ""):
        with pytest.raises(ConfigError):
            shelves.acquire(name)
    with pytest.raises(UnknownModel, match="no model 'one@1' in the store\n"):
        shelves.acquire("one@1")


def test_a_flipped_byte_of_a_record_costs_that_model_only(opened: Open, tmp_path: Path) -> None:
    shelves = opened()
    for name, data in (("one@1", A), ("sub/two@1", B)):
        put(shelves, name, data, directory=tmp_path / "in")
    shelves.close()
    path = tmp_path / "root" / "models" / "one@1.json"
    flip(path, path.read_bytes().index(b'"threads":1') + len(b'"threads":'))  # still a record
    again = opened()
    assert again.names() == ["sub/two@1"]
    assert read(again.acquire("sub/two@1"))[1] == B
    put(again, "one@1", A, directory=tmp_path / "in")
    assert read(again.acquire("one@1"))[1] == A


def test_a_file_cut_short_is_set_aside_at_the_start_and_put_again_heals(opened: Open, tmp_path: Path) -> None:
    shelves = opened()
    put(shelves, "one@1", A, directory=tmp_path / "in")
    shelves.close()
    path = tmp_path / "root" / "objects" / ref(A).id[:2] / ref(A).id
    os.truncate(path, 100)
    again = opened()
    with pytest.raises(StoreDamaged, match="is missing from the disk"):
        again.acquire("one@1")
    put(again, "one@1", A, directory=tmp_path / "in")
    assert read(again.acquire("one@1"))[1] == A


def test_a_disk_that_refuses_to_move_or_remove_is_an_error_and_the_store_goes_on(opened: Open, tmp_path: Path) -> None:
    shelves, root = opened(), tmp_path / "root"
    for name, data in (("one@1", A), ("two@1", B), ("tri@1", C)):
        put(shelves, name, data, directory=tmp_path / "in")
    (root / "damaged").rmdir()
    (root / "damaged").touch()
    flip(root / "objects" / ref(A).id[:2] / ref(A).id, 7)
    for _ in range(2):
        with pytest.raises(StoreDamaged):
            shelves.acquire("one@1")
    blob = root / "objects" / ref(B).id[:2] / ref(B).id
    blob.unlink()
    blob.mkdir()
    shelves.remove("two@1")
    assert shelves.names() == ["one@1", "tri@1"]
    record = root / "models" / "tri@1.json"
    record.unlink()
    record.mkdir()
    with pytest.raises(StorageError, match="the store's disk refuses"):
        shelves.remove("tri@1")
    assert read(shelves.acquire("tri@1"))[1] == C


def test_what_is_no_file_in_the_root_is_passed_over(opened: Open, tmp_path: Path) -> None:
    shelves, root = opened(), tmp_path / "root"
    put(shelves, "one@1", A, directory=tmp_path / "in")
    shelves.close()
    os.mkfifo(root / "models" / "two@1.json")
    (root / "models" / "tri@1.json").symlink_to("/nowhere")
    for place in ("models/for@1.json", "objects/ab/cd", "incoming/dir", "damaged/dir"):
        (root / place).mkdir(parents=True)
    again = opened()
    assert again.names() == ["one@1"]
    assert read(again.acquire("one@1"))[1] == A


def test_what_a_put_left_that_did_not_end_is_removed(opened: Open, tmp_path: Path) -> None:
    shelves = opened()
    put(shelves, "one@1", A, directory=tmp_path / "in")
    shelves.close()
    (tmp_path / "root" / "models" / "one@1.json").unlink()
    again = opened()
    assert again.status().tiers[1].used_bytes == 0
    assert not [p for p in (tmp_path / "root" / "objects").rglob("*") if p.is_file()]


def test_nothing_is_readable_for_others_and_files_are_not_even_writable(opened: Open, tmp_path: Path) -> None:
    put(opened(), "one@1", A, directory=tmp_path / "in")
    modes = {p.is_dir(): p.stat().st_mode & 0o777 for p in (tmp_path / "root").rglob("*") if p.name != "lock"}
    assert modes == {True: 0o700, False: 0o400}
    assert (tmp_path / "root").stat().st_mode & 0o777 == 0o700


def test_a_second_store_on_the_same_directory_is_refused(opened: Open) -> None:
    opened()
    with pytest.raises(StoreConflict, match="another store is open"):
        opened()


def test_another_model_of_the_same_name_is_refused_and_the_same_one_is_not(opened: Open, tmp_path: Path) -> None:
    shelves = opened()
    put(shelves, "one@1", A, directory=tmp_path / "in")
    put(shelves, "one@1", A, directory=tmp_path / "in")
    with pytest.raises(StoreConflict, match="is another model"):
        put(shelves, "one@1", B, directory=tmp_path / "in")
    shelves.pin("one@1")
    with pytest.raises(ModelLeased, match="pinned"):
        shelves.remove("one@1")
    shelves.unpin("one@1")
    shelves.remove("one@1")
    put(shelves, "one@1", B, directory=tmp_path / "in")
    assert read(shelves.acquire("one@1"))[1] == B


def test_puts_under_way_keep_what_they_need_and_count_against_the_budget(opened: Open, tmp_path: Path) -> None:
    shelves = opened(disk_bytes=9000)
    put(shelves, "one@1", A, directory=tmp_path / "in")
    files = written(tmp_path / "in", [b"graph", A, B])
    first = shelves.plan_put(record_of("two@1", b"graph", [A]), files)
    with pytest.raises(StoreConflict):
        shelves.plan_put(record_of("two@1", b"graph", [B]), files)
    shelves.remove("one@1")
    first.run()
    shelves.commit_put(first)
    assert read(shelves.acquire("two@1")) == [b"graph", A]
    second = shelves.plan_put(record_of("tri@1", b"graph", [B]), files)
    with pytest.raises(StoreFull):
        shelves.plan_put(record_of("for@1", b"graph", [C]), written(tmp_path / "in", [C]))
    second.run()
    shelves.abandon_put(second)
    second.run()
    assert shelves.names() == ["two@1"]
    assert shelves.status().tiers[1].used_bytes == 4101
    assert not any((tmp_path / "root" / "incoming").iterdir())


def test_the_disk_budget_refuses_what_does_not_fit_and_leaves_nothing_of_it(opened: Open, tmp_path: Path) -> None:
    shelves = opened(disk_bytes=5000)
    put(shelves, "one@1", A, directory=tmp_path / "in")
    with pytest.raises(StoreFull, match="without remote storage nothing may leave"):
        put(shelves, "two@1", B, directory=tmp_path / "in")
    assert shelves.status().tiers[1].used_bytes == 4110
    assert shelves.names() == ["one@1"]


def test_a_full_disk_is_an_error_of_the_store_and_the_store_goes_on(opened: Open, tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("only root can mount a small disk")
    with _Tmpfs({"size": "65536"}) as small:
        shelves = opened(root=Path(f"/proc/{os.getpid()}/fd/{small.root}/root"))
        put(shelves, "one@1", A, directory=tmp_path / "in")
        with pytest.raises(StorageError, match="the store's disk refuses: No space"):
            put(shelves, "two@1", os.urandom(100_000), directory=tmp_path / "in")
        assert read(shelves.acquire("one@1"))[1] == A
        assert shelves.status().tiers[1].used_bytes == 4110
        shelves.close()
