from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.channels.segments import Segment, create

LIMITED = """
import os, resource, sys
from lamella.channels.segments import create
from lamella.errors import StorageError
kind, soft = getattr(resource, sys.argv[1]), int(sys.argv[2])
if kind == resource.RLIMIT_AS:  # so much more than now
    soft += int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before, old = os.listdir("/proc/self/fd"), resource.getrlimit(kind)
resource.setrlimit(kind, (soft, old[1]))
try:
    create(1 << 30)
except StorageError as error:
    resource.setrlimit(kind, old)
    print(error.message)
    print(len(os.listdir("/proc/self/fd")) - len(before))
"""


def refused(limit: str, value: int) -> list[str]:
    """What a process under a resource limit says about a segment of 1 GB, and how many descriptors it leaked."""
    argv = [sys.executable, "-c", LIMITED, limit, str(value)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_two_mappings_see_the_same_bytes() -> None:
    segment, fd = create(4096)
    other = Segment(fd, 4096)
    segment.bytes[:4] = [1, 2, 3, 4]
    assert other.bytes[:5].tolist() == [1, 2, 3, 4, 0]
    other.view("float32", (2,))[:] = [1.5, -2.0]
    assert segment.view("float32", (2,)).tolist() == [1.5, -2.0]


def test_a_mapping_outlives_its_descriptor() -> None:
    segment, fd = create(16)
    os.close(fd)
    segment.bytes[:] = 7
    assert segment.bytes.tolist() == [7] * 16


def test_attaching_closes_the_descriptor_even_where_mapping_fails() -> None:
    fd = os.memfd_create("empty")
    with pytest.raises(ValueError, match="greater than file size"):
        Segment(fd, 4096)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)


@pytest.mark.parametrize("size", [0, -3, 1])
def test_an_empty_segment_has_one_byte(size: int) -> None:
    segment, fd = create(size)
    os.close(fd)
    assert segment.size == segment.bytes.nbytes == 1
    assert segment.view("float32", (0, 4)).shape == (0, 4)


@given(
    st.sampled_from(["float32", "float16", "int64", "bool", "uint8", "complex128"]),
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
)
def test_a_view_is_aligned_writable_and_not_a_copy(dtype: str, shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    segment, fd = create(size)
    os.close(fd)
    view = segment.view(dtype, shape)
    assert (view.dtype, view.shape) == (np.dtype(dtype), shape)
    assert view.ctypes.data % 4096 == 0
    assert view.flags.writeable
    assert view.flags.c_contiguous
    if size:
        assert np.shares_memory(view, segment.bytes)


def test_a_segment_that_cannot_grow_is_a_storage_error_with_its_size() -> None:
    said = refused("RLIMIT_FSIZE", 1 << 20)
    assert said == ["no shared memory for a hop of 1024 MB: File too large", "0"]


def test_a_segment_that_cannot_be_mapped_is_a_storage_error_and_leaks_no_descriptor() -> None:
    said = refused("RLIMIT_AS", 256 << 20)
    assert said == ["no shared memory for a hop of 1024 MB: Cannot allocate memory", "0"]


def test_no_descriptor_left_is_a_storage_error() -> None:
    said = refused("RLIMIT_NOFILE", 3)
    assert said == ["no shared memory for a hop of 1024 MB: Too many open files", "0"]


def test_a_segment_is_freed_when_nobody_maps_it() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("/memfd:lamella")

    before = mapped()
    segment, fd = create(1 << 20)
    view = segment.view("float32", (4,))
    os.close(fd)
    assert mapped() == before + 1
    del segment
    assert mapped() == before + 1
    del view
    assert mapped() == before
