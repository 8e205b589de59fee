"""Directories to work in, removed afterwards, and what is left of those whose owner was killed.

Everything temporary that lamella writes, beside a user's file too, carries its owner in its name (`limits.owner`), so
that what belongs to a living run is never taken for a leftover. Rejected: going by age, which removes a long
comparison's packages while it measures them, and keeps what died a minute ago.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from lamella.documents import cache_dir
from lamella.errors import StorageError
from lamella.limits.owner import Owner, mark, owner_of_temporary

CACHE_DEPTH = 3
"""How deep temporary paths lie in the cache: `models/NAME/.profile-...`."""


@contextmanager
def scratch(label: str, parent: Path | None = None) -> Iterator[Path]:
    """A directory, removed with all it holds.

    Args:
        label: what it is for; its name begins so.
        parent: where it is made. By default on the file system of the cached models, so that packages can link to them.

    Raises:
        StorageError: the disk is full or refuses.
    """
    root = cache_dir() / "work" if parent is None else parent
    path = root / (mark(label) + os.urandom(4).hex())
    try:
        try:
            root.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
        except OSError as error:
            try_ = "set LAMELLA_CACHE" if parent is None else ""
            raise StorageError(f"cannot work in {root}: {error.strerror}", where=str(root), try_=try_) from error
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Leftover(NamedTuple):
    """A temporary file or directory."""

    path: Path
    owner: Owner


def leftovers(directories: Iterable[Path] = ()) -> list[Leftover]:
    """Every temporary path in the cache and directly in `directories`, whoever owns it."""
    places = [(cache_dir(), CACHE_DEPTH), *((directory, 1) for directory in directories)]
    found = {left.path: left for place, depth in places for left in _marked(place.absolute(), depth)}
    return list(found.values())


def _marked(directory: Path, depth: int) -> Iterator[Leftover]:
    """Marked paths so deep in a directory, and nothing in them; other runs make and remove files meanwhile."""
    entries = []
    with suppress(OSError):
        entries = list(os.scandir(directory))
    for entry in entries:
        owner = owner_of_temporary(entry.name)
        if owner is not None:
            yield Leftover(Path(entry.path), owner)
        elif depth > 1 and entry.is_dir(follow_symlinks=False):
            yield from _marked(Path(entry.path), depth - 1)


def remove(path: Path) -> bool:
    """Remove a file, or a directory with all it holds; whether it is gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return not os.path.lexists(path)
