"""A directory takes another's place: one of both is always there, whole."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lamella.package import place
from lamella.package.place import exchange, take_place
from tests.processes import beside


def directory(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def text(path: Path) -> str:
    return (path / "file").read_text()


@pytest.fixture(params=["in one step", "in two"])
def steps(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in two":
        monkeypatch.setattr(place, "exchange", lambda one, other: False)
    elif not exchange(directory(tmp_path / "a", ""), directory(tmp_path / "b", "")):
        pytest.skip("this file system cannot exchange two names")


@pytest.mark.usefixtures("steps")
def test_the_new_one_is_there_and_the_old_one_gone_or_left_where_the_new_one_was(tmp_path: Path) -> None:
    made, old = directory(tmp_path / "made", "new"), directory(tmp_path / "package", "old")
    take_place(made, old)
    assert text(old) == "new"
    assert not made.exists() or text(made) == "old"
    assert not list(tmp_path.glob("*.old-*"))


@pytest.mark.parametrize("empty", [False, True])
def test_nothing_has_to_be_there_before(empty: bool, tmp_path: Path) -> None:
    if empty:
        (tmp_path / "package").mkdir()
    take_place(directory(tmp_path / "made", "new"), tmp_path / "package")
    assert text(tmp_path / "package") == "new"


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("missing", [True, False])
def test_the_old_one_stays_where_the_new_one_cannot_come(missing: bool, tmp_path: Path) -> None:
    old = directory(tmp_path / "package", "old")
    made = tmp_path / "made" if missing else directory(old / "made", "new")  # a directory cannot replace its parent
    with pytest.raises(OSError, match=r"No such file|Invalid argument|not empty|busy"):
        take_place(made, old)
    assert text(old) == "old"
    assert not list(tmp_path.glob("*.old-*"))


def test_an_interrupt_between_the_two_steps_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, old = directory(tmp_path / "made", "new"), directory(tmp_path / "package", "old")
    monkeypatch.setattr(place, "exchange", lambda one, other: False)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self == made:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take_place(made, old)
    assert text(old) == "old"
    assert not list(tmp_path.glob("*.old-*"))


def test_a_reader_always_finds_one(tmp_path: Path) -> None:
    package = directory(tmp_path / "package", "0")
    if not exchange(package, directory(tmp_path / "other", "0")):
        pytest.skip("this file system cannot exchange two names")
    done = threading.Event()
    missed = []

    def read() -> None:
        while not done.is_set():
            if not os.path.exists(package / "file"):
                missed.append(1)

    with beside(read, stop=done.set):
        for _ in range(500):
            take_place(tmp_path / "other", package)
    assert missed == []
