"""Directories to work in, on the file system of the cached models, so that packages can link to them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamella.documents import cache_dir
from lamella.errors import StorageError


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A directory, removed with all it holds.

    Raises:
        StorageError: the disk is full or refuses.
    """
    root = cache_dir() / "work"
    try:
        root.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=root))
    except OSError as error:
        raise StorageError(f"cannot work in {root}: {error.strerror}", try_="set LAMELLA_CACHE") from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
