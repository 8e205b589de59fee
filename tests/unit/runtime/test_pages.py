"""Weights that come and go, seen by the kernel's own account of pages in memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lamella.limits.pagecache import evict
from lamella.runtime.pages import HUGE, Pages

SIZE = 8 * HUGE
PAGE = mmap.PAGESIZE
BATCH = 31 * PAGE / HUGE
"""Of a huge page's worth: the kernel keeps pages that another core has not yet put on its lists, at most so many."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(SIZE))
    evict([path])
    return path


def mapped(path: Path) -> mmap.mmap:
    fd = os.open(path, os.O_RDONLY)
    try:
        return mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(fd)


@pytest.fixture
def one(file: Path) -> Iterator[mmap.mmap]:
    with mapped(file) as found:
        yield found


def start(found: mmap.mmap) -> int:
    return int(np.frombuffer(found, np.uint8).ctypes.data)


def pages(found: mmap.mmap) -> Pages:
    """Of a map in two ranges."""
    at = start(found)
    return Pages([(at, at + SIZE // 2), (at + SIZE // 2, at + SIZE)])


def cached(found: mmap.mmap) -> np.ndarray:
    """For each huge page's worth how much of it is in memory, 0 to 1."""
    seen = np.zeros(SIZE // PAGE, np.uint8)
    asked = ctypes.CDLL(None).mincore(ctypes.c_void_p(start(found)), ctypes.c_size_t(SIZE), seen.ctypes)
    assert asked == 0
    share: np.ndarray = (seen & 1).reshape(-1, HUGE // PAGE).mean(axis=1)
    return share


def gone(found: mmap.mmap) -> bool:
    return bool(cached(found).max() <= BATCH)


def test_what_is_brought_is_there_and_what_is_let_go_is_not(one: mmap.mmap, file: Path) -> None:
    held = pages(one)
    for bring in (held.bring, held.populate):
        assert gone(one)
        bring()
        held.bring()  # under way already, or there
        held.wait()
        assert cached(one).mean() == 1
        held.let_go()
    assert gone(one)
    assert one[:] == file.read_bytes(), "it comes back by itself"


@pytest.mark.parametrize(("keep", "stay"), [(0, 0), (1, 1), (HUGE, 1), (3 * HUGE, 3), (5 * HUGE, 5), (9 * HUGE, 8)])
def test_the_first_bytes_stay_by_whole_huge_pages(one: mmap.mmap, keep: int, stay: int) -> None:
    held = pages(one)
    held.populate()
    held.let_go(keep)
    assert cached(one)[:stay].tolist() == [1] * stay
    assert (cached(one)[stay:] <= BATCH).all()


def test_what_somebody_else_maps_stays_until_the_last_one_lets_go(one: mmap.mmap, file: Path) -> None:
    with mapped(file) as other:
        mine, others = pages(one), pages(other)
        mine.populate()
        others.populate()
        mine.let_go()
        assert cached(other).mean() == 1
        others.let_go()
        assert gone(one)
