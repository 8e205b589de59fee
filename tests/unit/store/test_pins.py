"""Pins outlive the store that was told of them, and a file of them that is wrong is ignored and told of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.errors import StorageError
from lamella.store.disk import Disk
from lamella.store.pins import FILE, LIMIT, Pins
from tests.unit.store.blobs import record_of

NAMES = ("one@1", "two/part@1")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "root", None)
    for name in NAMES:
        disk.keep(record_of(name, b"graph", []))
    yield disk
    disk.close()


def test_what_is_pinned_is_pinned_after_a_restart_and_for_its_owner_to_read_only(disk: Disk) -> None:
    pins = Pins(disk)
    assert (list(pins), pins.notes) == ([], ())
    for name in NAMES:
        pins.add(name)
    assert list(Pins(disk)) == list(NAMES)
    assert (disk.root / FILE).stat().st_mode & 0o777 == 0o400
    pins.discard("one@1")
    assert list(Pins(disk)) == ["two/part@1"]
    assert not any(disk.incoming.iterdir())


def test_a_model_that_is_gone_is_told_of_and_forgotten_with_the_next_pin(disk: Disk) -> None:
    Pins(disk).add("one@1")
    disk.forget("one@1")
    pins = Pins(disk)
    assert list(pins) == []
    assert "'one@1'" in pins.notes[0]
    pins.add("two/part@1")
    assert Pins(disk).notes == ()


WRONG: dict[str, bytes] = {
    "nothing": b"",
    "garbage": b"\xff\xfe{",
    "cut short": b'{"lamella":1,"models":["one@1"',
    "another type": b'{"models":[1,2]}',
    "no list": b'{"models":"one@1"}',
    "another version": b'{"lamella":2,"models":["one@1"]}',
    "nested without end": b'{"x":' + b"[" * 100_000,
    "too long": b'{"models":["one@1"]}' + b" " * LIMIT,
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_a_file_that_is_no_list_of_pins_is_ignored_and_told_of(disk: Disk, data: bytes) -> None:
    (disk.root / FILE).write_bytes(data)
    pins = Pins(disk)
    assert list(pins) == []
    assert "ignored" in pins.notes[0]
    pins.add("one@1")
    assert list(Pins(disk)) == ["one@1"]


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a pipe that nobody writes": os.mkfifo,
    "a directory": Path.mkdir,
}


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL)
def test_what_is_no_file_is_neither_followed_nor_waited_for(disk: Disk, make: Callable[[Path], None]) -> None:
    make(disk.root / FILE)
    assert "ignored" in Pins(disk).notes[0]


@settings(max_examples=30)
@given(data=st.binary(max_size=200), names=st.lists(st.text(max_size=90), max_size=4))
def test_no_file_makes_a_pin_of_what_is_not_there(
    data: bytes, names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = Disk(tmp_path_factory.mktemp("pins"), None)
    try:
        for content in (data, repr({"models": names}).replace("'", '"').encode(errors="replace")):
            (disk.root / FILE).write_bytes(content)
            assert list(Pins(disk)) == []
    finally:
        disk.close()


def test_a_disk_that_refuses_leaves_things_as_they_are(disk: Disk) -> None:
    pins = Pins(disk)
    pins.add("one@1")
    disk.incoming.rmdir()
    with pytest.raises(StorageError):
        pins.add("two/part@1")
    with pytest.raises(StorageError):
        pins.discard("one@1")
    assert list(pins) == ["one@1"]
