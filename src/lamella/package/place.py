"""A directory that takes the place of another: at every moment one of both is there, whole.

Removing the old one first would leave nothing where the program dies before the rename. Linux exchanges two names in
one step (renameat2(2)); where a file system cannot, the old one steps aside for the length of one rename, under a name
that a reader can tell and that no `lamella clean` removes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

_AT_FDCWD = -100
_EXCHANGE = 2
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


def take_place(made: Path, directory: Path) -> None:
    """Move `made` to `directory`, on the same file system. What was there is gone, or is left at `made`.

    Raises:
        OSError: the old one is still there.
    """
    if not directory.exists() or not any(directory.iterdir()):
        made.replace(directory)
    elif not exchange(made, directory):
        _step_aside(made, directory)


def _step_aside(made: Path, directory: Path) -> None:
    old = directory.with_name(f"{directory.name}.old-{os.urandom(4).hex()}")
    try:
        directory.rename(old)
        made.rename(directory)
    finally:
        if directory.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(directory)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot.

    Raises:
        OSError: one of them is missing, or must not be renamed.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(other))
