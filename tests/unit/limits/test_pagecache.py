from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.errors import StorageError
from lamella.limits.pagecache import evict, load
from tests.unit.limits.residence import resident_bytes

SIZE = (3 << 20) + 5  # not a whole number of pages


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(SIZE))
    return path


def on_tmpfs(path: Path) -> bool:
    points = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    kinds = {point: kind for point, kind in points if path.is_relative_to(point)}
    return kinds[max(kinds, key=len)] == "tmpfs"


def test_a_file_just_written_is_resident_to_the_byte(file: Path) -> None:
    assert resident_bytes(file) == SIZE


def test_eviction_empties_the_cache_even_of_dirty_pages_and_reading_fills_it(file: Path) -> None:
    if on_tmpfs(file):
        pytest.skip("temporary files are on a tmpfs, which has no disk to evict to")
    content = file.read_bytes()
    evict([file])
    assert resident_bytes(file) == 0
    assert file.read_bytes() == content
    assert resident_bytes(file) == SIZE


def test_what_is_loaded_is_resident(file: Path) -> None:
    if not on_tmpfs(file):
        evict([file])
    load(file)
    assert resident_bytes(file) == SIZE


def test_an_empty_file_has_nothing_resident(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    evict([path])
    assert resident_bytes(path) == 0


def test_a_missing_file_is_a_storage_error_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    with pytest.raises(StorageError, match=str(path)):
        evict([path])
    with pytest.raises(StorageError, match=str(path)):
        load(path)
