"""Versioned documents on disk: read, checked, written whole or not at all.

Every document is a msgspec struct. Reading maps each way a file can be wrong to one error that names the file;
writing goes to a temporary name first, so that an interrupted command leaves the old document or the new one.
Imports the standard library and msgspec only: the runtime reads its manifest through this module.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from lamella.errors import ConfigError, StorageError

T = TypeVar("T")


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """What every document starts with."""

    lamella: int = 1
    """Version of the document's schema; a reader refuses a version it does not know."""


def read(path: Path, kind: type[T], *, made_by: str) -> T:
    """The document in `path`.

    Args:
        path: a JSON file.
        kind: the struct it must hold.
        made_by: the command that writes such a document, for the error.

    Raises:
        ConfigError: missing, not JSON, or not such a document.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", try_=made_by) from error
    return decode(data, path, kind, made_by=made_by)


def decode(data: bytes, path: Path, kind: type[T], *, made_by: str) -> T:
    """The document in the bytes of `path`, as `read` gives it.

    Raises:
        ConfigError: not JSON, or not such a document.
    """
    try:
        version = msgspec.json.decode(data, type=Document).lamella  # first: another version may have other fields
        document = msgspec.json.decode(data, type=kind) if version == 1 else None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a {kind.__name__.lower()} document: {error}", try_=made_by) from error
    if document is None:
        raise ConfigError(f"{path} has schema version {version}, this lamella reads version 1", try_=made_by)
    return document


def write(path: Path, document: msgspec.Struct) -> None:
    """Write `document` as indented JSON, atomically.

    Raises:
        StorageError: the disk is full or refuses; an older file at `path` is kept.
    """
    data = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
    with replacing(path) as file:
        file.write(data)


def check_writable(path: Path) -> None:
    """Raise what `replacing` would raise for a place that cannot be written: before minutes of work, not after.

    It makes no folder and leaves nothing. A disk that fills up meanwhile is still met at the end.

    Raises:
        StorageError: `path` is a folder, or nothing can be made where it or its first missing folder would be.
    """
    from lamella.limits.owner import mark  # as below

    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        folder = next(p for p in path.absolute().parents if p.exists())
        trial = folder / (mark(f".{path.name}") + os.urandom(4).hex())
        try:
            trial.open("xb").close()
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", where=str(path.parent)) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends well, and else is removed.

    A device or a pipe (`-o /dev/null`) has no older content to keep, nor may it be replaced: it is written as it is.

    Raises:
        StorageError: the disk is full or refuses; an older file at `path` is kept.
    """
    from lamella.limits.owner import mark  # here, because functions only read

    special = path.exists() and not path.is_file() and not path.is_dir()
    temporary = path.parent / (mark(f".{path.name}") + os.urandom(4).hex())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") if special else open(temporary, "xb") as file:
            yield file
        if not special:
            temporary.chmod(0o644)
            os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", where=str(path.parent)) from error
    finally:  # for whatever ended it, an interrupt too
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def cache_dir() -> Path:
    """Where models, profiles and packages are cached: LAMELLA_CACHE, else the user's cache directory."""
    given = os.environ.get("LAMELLA_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lamella"
