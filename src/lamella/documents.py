"""Versioned documents on disk: read, checked, written whole or not at all.

Every document is a msgspec struct. Reading maps each way a file can be wrong to one error that names the file;
writing goes to a temporary name first, so that an interrupted command leaves the old document or the new one.
Imports the standard library and msgspec only: the runtime reads its manifest through this module.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

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
    import tempfile  # here, because functions only read: it loads OpenSSL and three compressors

    data = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}", where=str(path.parent)) from error


def cache_dir() -> Path:
    """Where models, profiles and packages are cached: LAMELLA_CACHE, else the user's cache directory."""
    given = os.environ.get("LAMELLA_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lamella"
