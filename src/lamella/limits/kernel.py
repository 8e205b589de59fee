"""The four things asked of the kernel's control group files. A parameter: tests bring a kernel of their own."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class Kernel:
    """Plain file operations on a mounted cgroup tree; every method raises `OSError` as the system does."""

    def read(self, path: Path) -> str:
        """The whole text of a control file."""
        return path.read_text()

    def write(self, path: Path, value: str) -> None:
        """One write; never creates a file, so that a missing control reads as missing."""
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def mkdir(self, path: Path) -> None:
        """Make a group; the kernel fills it with control files."""
        path.mkdir()

    def rmdir(self, path: Path) -> None:
        """Remove a group together with its control files."""
        path.rmdir()


def refusal(path: Path, error: OSError) -> str:
    """Why the kernel refused to change `path`, in the user's words."""
    match error.errno:
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"no write access to {path.parent}"
        case errno.ENOENT:
            return f"this kernel has no {path}"
        case errno.EEXIST:
            return f"the group {path.name} exists already"
        case _:
            return f"the kernel refused to change {path}: {error.strerror or error}"
