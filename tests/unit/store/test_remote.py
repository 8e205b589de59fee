"""The remote tier against a real S3-compatible server: away, damaged, shared between hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from lamella.errors import ConfigError, RemoteAway, StoreConflict, StoreDamaged, StoreFull, UnknownModel
from lamella.objects import Bucket, ObjectStore
from lamella.store import remote
from lamella.store.records import Settings
from lamella.store.remote import Remote
from lamella.store.shelves import Shelves
from tests.faults.s3 import Server, bucket, server
from tests.unit.store.blobs import flip, read, record_of, ref, written

__all__ = ["bucket", "server"]

A, B = (bytes([k]) * 5000 for k in b"ab")
RECORD = record_of("one@1", b"graph", [A, B])
Open = Callable[..., Shelves]


@pytest.fixture
def opened(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    made: list[Shelves] = []

    def make(host: str, at: Bucket = bucket, **settings: object) -> Shelves:
        monkeypatch.setenv("AWS_ENDPOINT_URL", at.endpoint)
        base = Settings(root=tmp_path / host, backing="memfd", remote=f"s3://{at.name}/{tmp_path.name}")
        made.append(Shelves(msgspec.structs.replace(base, **settings)))
        return made[-1]

    yield make
    for shelves in made:
        shelves.close()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return written(tmp_path / "in", [b"graph", A, B])


def test_what_one_host_puts_another_serves_and_keeps(opened: Open, files: dict[str, Path]) -> None:
    opened("first").put(RECORD, files)
    second = opened("second")
    assert second.names() == []
    held = second.acquire("one@1")
    assert read(held) == [b"graph", A, B]
    assert second.names() == ["one@1"]
    assert second.status().tiers[1].blobs == 3
    with pytest.raises(UnknownModel):
        second.acquire("two@1")


def test_a_put_of_what_is_there_needs_no_files_and_another_of_the_name_is_refused(
    opened: Open, files: dict[str, Path]
) -> None:
    opened("first").put(RECORD, files)
    second = opened("second")
    second.put(record_of("copy@1", b"graph", [A]), {})
    assert read(second.acquire("copy@1")) == [b"graph", A]
    with pytest.raises(StoreConflict):
        second.put(record_of("one@1", b"graph", [A]), files)


@pytest.mark.parametrize("part", [7, 1 << 24])
def test_a_flipped_byte_on_disk_is_fetched_again_and_one_in_remote_storage_is_refused(
    opened: Open, files: dict[str, Path], tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(remote, "PART", max(part, 700))
    shelves = opened("host")
    shelves.put(RECORD, files)
    path = tmp_path / "host" / "objects" / ref(A).id[:2] / ref(A).id
    flip(path)
    held = shelves.acquire("one@1")
    assert read(held) == [b"graph", A, B]
    assert path.read_bytes() == A
    assert (tmp_path / "host" / "damaged" / ref(A).id).exists()
    assert shelves.status().damaged == 1
    shelves.release(held)
    shelves.evict("one@1")
    flip(path)
    ObjectStore(bucket).write(f"{tmp_path.name}/objects/{ref(A).id}", b"x" + A[1:])
    with pytest.raises(StoreDamaged, match="is damaged in s3://"):
        shelves.acquire("one@1")
    assert shelves.status().damaged == 3
    shelves.put(RECORD, files)  # both are whole again
    assert read(shelves.acquire("one@1")) == [b"graph", A, B]
    assert read(opened("another").acquire("one@1")) == [b"graph", A, B]


def test_a_record_that_changed_in_remote_storage_is_refused(
    opened: Open, files: dict[str, Path], tmp_path: Path, bucket: Bucket
) -> None:
    opened("first").put(RECORD, files)
    key, store = f"{tmp_path.name}/models/one@1.json", ObjectStore(bucket)
    size = store.size(key)
    assert size
    store.write(key, store.read(key, 0, size).replace(b'"threads":1', b'"threads":9'))
    with pytest.raises(StoreDamaged):
        opened("second").acquire("one@1")


def test_what_remote_storage_has_may_leave_the_disk_for_others(opened: Open, files: dict[str, Path]) -> None:
    shelves = opened("host", disk_bytes=5005, memory_bytes=5005)
    for name, data in (("a@1", A), ("b@1", B)):
        shelves.put(record_of(name, b"graph", [data]), files)
    assert shelves.status().tiers[1].used_bytes == 5005
    for name, data in (("a@1", A), ("b@1", B), ("a@1", A)):
        held = shelves.acquire(name)
        assert read(held) == [b"graph", data]
        shelves.release(held)
        assert all(t.used_bytes <= 5005 for t in shelves.status().tiers)


def test_what_was_on_disk_before_leaves_it_once_remote_storage_was_seen_to_have_it(
    opened: Open, files: dict[str, Path], server: Server
) -> None:
    first = opened("host", server.bucket, disk_bytes=5005)
    first.put(record_of("a@1", b"graph", [A]), files)
    assert first.plan_survey() is None
    first.close()
    again, other = opened("host", server.bucket, disk_bytes=5005), record_of("b@1", b"graph", [B])
    server.kill()
    survey = again.plan_survey()
    assert survey
    survey.run()
    again.commit_survey(survey)
    assert not survey.done
    with pytest.raises(StoreFull):
        again.plan_put(other, files)
    server.start()
    again.put(other, files)
    assert again.status().tiers[1].blobs == 2
    assert read(again.acquire("a@1")) == [b"graph", A]


def test_with_remote_storage_away_what_is_here_is_served_and_a_put_changes_nothing(
    opened: Open, server: Server, files: dict[str, Path], tmp_path: Path
) -> None:
    shelves = opened("host", server.bucket)
    shelves.put(record_of("one@1", b"graph", [A]), files)
    server.kill()
    assert read(shelves.acquire("one@1")) == [b"graph", A]
    with pytest.raises(RemoteAway):
        shelves.put(record_of("two@1", b"graph", [B]), files)
    with pytest.raises(RemoteAway):
        shelves.acquire("unheard@1")
    assert shelves.names() == ["one@1"]
    assert shelves.status().tiers[1].blobs == 2
    assert not any((tmp_path / "host" / "incoming").iterdir())
    server.start()
    shelves.put(record_of("two@1", b"graph", [B]), files)
    assert read(shelves.acquire("two@1")) == [b"graph", B]


@pytest.mark.parametrize(
    ("address", "endpoint", "what"),
    [
        ("s3://bucket/store", "http://203.0.113.7:9000", "not encrypted"),
        ("http://127.0.0.1/bucket", "http://127.0.0.1:9000", "no remote storage"),
        ("s3://B", "http://127.0.0.1:9000", "no name of a bucket"),
    ],
)
def test_an_address_that_is_none_or_not_safe_is_refused(
    address: str, endpoint: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigError, match=what):
        Remote(address)
