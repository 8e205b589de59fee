"""A file in a file system that does not answer one process: what any user can make, and send to a daemon."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

GETATTR, OPEN, READ, RELEASE, FLUSH, INIT = 3, 14, 15, 18, 25, 26
ENOSYS = 38
HEAD, REPLY = struct.Struct("=IIQQIIII"), struct.Struct("=IiQ")
FORCE, DETACH = 1, 2


@contextmanager
def unanswered(path: Path, size: int, pid: int) -> Iterator[list[int]]:
    """Make `path` such a file of `size` bytes; the operations of `pid` that are not answered, as they come.

    Needs root, for the mount. After the block they fail.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    path.touch()
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error.strerror}")
    options = f"fd={device},rootmode=100000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"test", os.fsencode(path), b"fuse", 0, options):
        os.close(device)
        pytest.skip(f"no FUSE here: {os.strerror(ctypes.get_errno())}")
    heard: list[int] = []
    thread = threading.Thread(target=_serve, args=(device, size, pid, heard), daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        for flag in (FORCE, DETACH):  # the first ends what is unanswered, though the file is open
            libc.umount2(os.fsencode(path), flag)
        thread.join(10)
        os.close(device)


def _serve(device: int, size: int, pid: int, heard: list[int]) -> None:
    attributes = struct.pack("=6Q10I", 1, size, 1, 0, 0, 0, 0, 0, 0, 0o100444, 1, 0, 0, 0, 4096, 0)
    answers = {
        INIT: struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 8, 8, 4096, 1, 1, 0, 0),
        GETATTR: struct.pack("=QII", 0, 0, 0) + attributes,
        OPEN: struct.pack("=QII", 1, 0, 0),
        READ: b"",
        RELEASE: b"",
        FLUSH: b"",
    }
    with suppress(OSError):  # until it is aborted
        while True:
            _, operation, unique, _, _, _, asker, _ = HEAD.unpack_from(os.read(device, 1 << 17))
            if operation in (READ, FLUSH) and Path(f"/proc/{pid}/task/{asker}").exists():
                heard.append(operation)
                continue
            answer = answers.get(operation)
            if answer is None:
                os.write(device, REPLY.pack(REPLY.size, -ENOSYS, unique))
            else:
                os.write(device, REPLY.pack(REPLY.size + len(answer), 0, unique) + answer)
