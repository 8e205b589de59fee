"""What memory segments lie in: the blob's bytes or nothing, and nobody who holds a descriptor can change them."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamella.errors import ConfigError
from lamella.store.backings import BACKINGS, BLOCK, Backing, Mismatch, probe
from tests.unit.store.blobs import flip, open_files, ref

NOBODY = 65534
DATA = os.urandom(3 * 4096 + 5)
READ, WRITE = mmap.PROT_READ, mmap.PROT_WRITE


@pytest.fixture(params=list(BACKINGS))
def backing(request: pytest.FixtureRequest, tmp_path: Path) -> Backing:
    try:
        return probe(tmp_path, request.param)[0]
    except ConfigError as error:
        pytest.skip(error.message)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    path.chmod(0o400)
    return path


@pytest.fixture
def held(backing: Backing, file: Path) -> Iterator[int]:
    descriptor = backing.hold(ref(DATA), file)
    yield descriptor
    os.close(descriptor)


def mprotect(descriptor: int, shared: bool) -> None:
    """Map it for reading, and then ask for writing as well."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    at = libc.mmap(None, 4096, READ, mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE, descriptor, 0)
    try:
        if libc.mprotect(at, 4096, READ | WRITE):
            raise OSError(ctypes.get_errno(), "mprotect")
        ctypes.memset(at, 0, 1)
    finally:
        libc.munmap(at, 4096)


def punch(descriptor: int) -> None:
    """FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE"""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    if libc.fallocate(descriptor, 3, 0, 4096):
        raise OSError(ctypes.get_errno(), "fallocate")


def again(descriptor: int) -> int:
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)


def made_writable(descriptor: int) -> int:
    os.fchmod(descriptor, 0o666)
    return descriptor


ATTEMPTS: dict[str, Callable[[int], object]] = {
    "write": lambda fd: os.pwrite(fd, b"x", 0),
    "map for writing": lambda fd: mmap.mmap(fd, 4096, mmap.MAP_SHARED, READ | WRITE),
    "mprotect": lambda fd: mprotect(fd, shared=True),
    "truncate": lambda fd: os.ftruncate(fd, 0),
    "truncate by path": lambda fd: os.truncate(f"/proc/self/fd/{fd}", 0),
    "punch a hole": lambda fd: punch(fd),
    "open again and write": lambda fd: os.pwrite(again(fd), b"x", 0),
    "open again and map": lambda fd: mmap.mmap(again(fd), 4096, mmap.MAP_SHARED, READ | WRITE),
    "change its mode, open again and write": lambda fd: os.pwrite(again(made_writable(fd)), b"x", 0),
}


def succeeding(descriptor: int, user: int | None) -> list[str]:
    """The attempts that a child process of this user gets away with."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        done = []
        try:
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            for name, attempt in ATTEMPTS.items():
                try:
                    attempt(descriptor)
                    done.append(name)
                except OSError:
                    pass
        except BaseException as error:  # noqa: BLE001  a child that fails otherwise must not pass
            done.append(repr(error))
        os.write(writer, "\n".join([*done, "end"]).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as said:
        lines = said.read().split("\n")
    os.waitpid(pid, 0)
    assert lines.pop() == "end"
    return lines


def test_holds_what_the_blob_is(held: int) -> None:
    assert os.pread(held, len(DATA) + 1, 0) == DATA


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_cannot_change_what_he_holds(held: int) -> None:
    assert succeeding(held, NOBODY) == []
    assert os.pread(held, len(DATA) + 1, 0) == DATA


def test_the_daemons_own_user_cannot_either_but_for_the_page_cache(backing: Backing, held: int) -> None:
    done = succeeding(held, None)
    if backing.name == "page-cache":  # the file is his: said in the docs, and why the others come first or last
        assert done
    else:
        assert done == []
        assert os.pread(held, len(DATA) + 1, 0) == DATA


def test_a_private_map_changes_only_its_owners_copy(held: int) -> None:
    mprotect(held, shared=False)
    assert os.pread(held, len(DATA) + 1, 0) == DATA


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_any_size_is_held_whole(backing: Backing, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "blob").write_bytes(data)
    descriptor = backing.hold(ref(data), tmp_path / "blob")
    try:
        with mmap.mmap(descriptor, size, mmap.MAP_SHARED, READ) as seen:
            assert seen[:] == data
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("wrong", [DATA[:-1], DATA + b"x", b"", DATA[:-1] + bytes([DATA[-1] ^ 1])])
def test_other_bytes_are_refused_and_nothing_stays_open(backing: Backing, tmp_path: Path, wrong: bytes) -> None:
    (tmp_path / "blob").write_bytes(wrong)
    before = open_files()
    with pytest.raises(Mismatch):
        backing.hold(ref(DATA), tmp_path / "blob")
    assert open_files() == before


def test_the_page_cache_is_hashed_again_when_the_file_changed(tmp_path: Path, file: Path) -> None:
    backing, _ = probe(tmp_path, "page-cache")
    descriptor = backing.hold(ref(DATA), file)
    try:
        assert backing.unchanged(ref(DATA), descriptor)
        flip(file)
        assert not backing.unchanged(ref(DATA), descriptor)
        with pytest.raises(Mismatch):
            backing.hold(ref(DATA), file)
    finally:
        os.close(descriptor)


def test_a_large_segment_lies_in_huge_pages(tmp_path: Path) -> None:
    try:
        backing, _ = probe(tmp_path, "huge-tmpfs")
    except ConfigError as error:
        pytest.skip(error.message)
    data = bytes(4 << 20)
    (tmp_path / "blob").write_bytes(data)
    descriptor = backing.hold(ref(data), tmp_path / "blob")
    try:
        with mmap.mmap(descriptor, 0, mmap.MAP_SHARED, READ) as seen:
            assert sum(seen[::4096]) == 0
            huge = [
                int(x.split()[1]) for x in Path("/proc/self/smaps").read_text().split("\n") if "ShmemPmdMapped" in x
            ]
            assert sum(huge) == 4096  # kB
    finally:
        os.close(descriptor)
    assert "within_size" not in Path("/proc/self/mountinfo").read_text()


def test_the_probe_says_what_failed_and_refuses_what_is_asked_in_vain(tmp_path: Path) -> None:
    backing, why = probe(tmp_path)
    assert backing.name in BACKINGS
    assert why.startswith("the first that works here")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="no backing 'floppy'"):
        probe(tmp_path, "floppy")


@pytest.mark.skipif(os.getuid() != 0, reason="others have no huge tmpfs to begin with")
def test_without_the_right_to_mount_the_probe_takes_the_page_cache() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        said = "nothing"
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with tempfile.TemporaryDirectory() as mine:
                backing, why = probe(Path(mine))
            said = f"{backing.name}: {why}"
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    with open(reader) as told:
        assert told.read().startswith("page-cache: the first that works here; huge-tmpfs does not work here: Operation")
    os.waitpid(pid, 0)
