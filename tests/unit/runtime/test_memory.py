"""Weights are mapped at once, from disk in huge pages where the file system has them."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import pytest

from lamella.runtime.memory import populate, weights_resident_mb

SIZE_MB = 16


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A file of which nothing is in the page cache."""
    path = tmp_path / "weights.bin"
    with path.open("wb") as file:
        file.write(bytes(SIZE_MB << 20))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def test_all_of_a_mapped_file_is_resident_before_it_is_read(cold: Path) -> None:
    weights = np.memmap(cold, np.uint8, "r")
    assert weights_resident_mb(cold) == 0
    populate(cold)
    assert weights_resident_mb(cold) == SIZE_MB
    assert weights[-1] == 0


def test_what_comes_from_disk_comes_in_huge_pages(cold: Path) -> None:
    if not has_large_folios(cold):
        pytest.skip("this file system gives no huge pages")
    weights = np.memmap(cold, np.uint8, "r")
    populate(cold)
    lines = Path("/proc/self/smaps").read_text().splitlines()
    huge_kb = sum(int(line.split()[1]) for line in lines if line.startswith("FilePmdMapped:"))
    assert huge_kb >= 2 << 10, "not one huge page"
    assert weights[0] == 0


def has_large_folios(path: Path) -> bool:
    """Whether the file lies on ext4 of Linux 6.16 or newer."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    inside = [(len(m[1]), m[2]) for m in mounts if path.resolve().is_relative_to(m[1])]
    major, minor = platform.release().split(".")[:2]
    return max(inside, default=(0, ""))[1] == "ext4" and (int(major), int(minor)) >= (6, 16)
