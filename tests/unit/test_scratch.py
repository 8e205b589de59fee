"""Temporary paths: gone with the block that made them, found by their owner when it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lamella.errors import StorageError
from lamella.limits.owner import Owner, mark
from lamella.scratch import leftovers, remove, scratch
from tests.unit.limits.owners import owned_by

HOLD = """
from pathlib import Path
from lamella.scratch import scratch
with scratch("compare") as path:
    (path / "package").mkdir()
    print(path, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("LAMELLA_CACHE", str(path))
    return path


def test_a_scratch_directory_is_private_and_gone_afterwards(cache: Path) -> None:
    with scratch("run") as path:
        (path / "file").touch()
        assert path.parent == cache / "work"
        assert path.stat().st_mode & 0o777 == 0o700
        assert [(left.path, left.owner) for left in leftovers()] == [(path, Owner.US)]
    assert list((cache / "work").iterdir()) == []


def test_an_interrupted_scratch_directory_is_gone_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch(".package", tmp_path):
        raise KeyboardInterrupt
    assert not list(tmp_path.glob(".package*"))


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot work in"), scratch("run", tmp_path / "file"):
        pass


def test_a_directory_in_use_is_alive_and_dead_when_its_process_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().decode().strip())
        os.utime(path, (0, 0))  # however old
        assert [(left.path, left.owner) for left in leftovers()] == [(path, Owner.ALIVE)]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert [(left.path, left.owner) for left in leftovers()] == [(path, Owner.DEAD)]
    assert remove(path)
    assert leftovers() == []


def test_everything_temporary_is_found_and_what_lies_in_it_is_not_told_apart(cache: Path, tmp_path: Path) -> None:
    there = [
        cache / "work" / owned_by(1, 0, "run"),
        cache / "models" / owned_by(1, 0, ".import"),
        cache / "models" / "cnn-tiny-abc" / owned_by(1, 0, ".profile"),
        tmp_path / "out" / owned_by(1, 0, ".package"),
    ]
    for path in there:
        path.mkdir(parents=True)
        (path / owned_by(1, 0, ".plan.json")).touch()
    files = [cache / "models" / "cnn-tiny-abc" / owned_by(1, 0, ".borders"), tmp_path / "out" / mark(".plan.json")]
    files[1] = files[1].with_name(files[1].name + "ab")
    for path in files:
        path.touch()
    kept = [cache / "models" / "cnn-tiny-abc" / "graph.json", tmp_path / "out" / "plan.json"]
    for path in kept:
        path.touch()
    found = leftovers([tmp_path / "out"])
    assert {left.path for left in found} == {*there, *files}
    assert {left.path for left in found if left.owner is Owner.US} == {files[1]}


def test_a_directory_that_is_not_there_has_no_leftovers(tmp_path: Path) -> None:
    assert leftovers([tmp_path / "missing"]) == []


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    assert remove(tmp_path / "link")
    assert (tmp_path / "precious").is_dir()
