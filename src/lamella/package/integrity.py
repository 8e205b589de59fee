"""A package is used only as it was written: every byte of it is checked before anything it says is believed.

`manifest.sha256` holds the hash of `manifest.json`, in the form of `sha256sum`; the manifest those of `plan.json` and
of each `function.json`, and these those of the graphs and weights. Rejected: a hash inside the manifest over its own
content, which sees nothing where a flipped byte leaves the content as it was, and which no other program can check.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TypeVar

from lamella import documents
from lamella.errors import ConfigError, PackageError
from lamella.package.manifest import Manifest
from lamella.plan.document import Plan
from lamella.runtime.function import Function

T = TypeVar("T")

MANIFEST, SEAL, PLAN = "manifest.json", "manifest.sha256", "plan.json"
_SEAL = re.compile(rb"([0-9a-f]{64})  manifest\.json\n")


def sha256(path: Path) -> str:
    """Hash of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(directory: Path) -> None:
    """Write the hash of a package's manifest beside it; the last step of writing one.

    Raises:
        StorageError: the disk is full or refuses.
    """
    with documents.replacing(directory / SEAL) as file:
        file.write(f"{sha256(directory / MANIFEST)}  {MANIFEST}\n".encode())


def is_package(directory: Path) -> bool:
    """Whether a directory holds a package, perhaps a damaged one; those may be replaced."""
    try:
        if _SEAL.fullmatch((directory / SEAL).read_bytes()):
            return True
    except OSError:
        pass
    try:
        documents.read(directory / MANIFEST, Manifest, made_by="")
    except ConfigError:
        return False
    return True


def read_sealed(directory: Path) -> tuple[Manifest, Plan]:
    """The manifest and plan of a package, as they were written; its functions are not looked at.

    Raises:
        PackageError: not a package, one of both is missing, or a byte changed.
    """
    if not any((directory / name).is_file() for name in (MANIFEST, SEAL)):
        raise PackageError(f"{directory} holds no package", try_=_again(directory))
    data = _read(directory, MANIFEST)
    match = _SEAL.fullmatch(_read(directory, SEAL))
    if not match:
        raise _damaged(directory, f"{SEAL} changed since it was packaged: it holds no hash of {MANIFEST}")
    found, expected = hashlib.sha256(data).hexdigest(), match[1].decode()
    if found != expected:
        raise _damaged(
            directory,
            f"{MANIFEST} changed since it was packaged (hash {found[:12]}, {SEAL} says {expected[:12]})",
        )
    manifest = _decode(directory, MANIFEST, data, Manifest)
    return manifest, _decode(directory, PLAN, _unchanged(directory, PLAN, manifest.plan_sha256), Plan)


def verify(directory: Path, *, weights: bool = True) -> tuple[Manifest, Plan]:
    """The manifest and plan of a package whose every byte is as it was written.

    Args:
        directory: of the package.
        weights: whether graphs and weights are read, too; without them only the documents are believed.

    Raises:
        PackageError: not a package, a file is missing, or a byte changed.
    """
    manifest, plan = read_sealed(directory)
    for name in manifest.functions:
        path = f"{name}/function.json"
        data = _unchanged(directory, path, manifest.sha256.get(name, ""))
        function = _decode(directory, path, data, Function)
        for file, expected in function.sha256.items() if weights else ():
            _check(directory, f"{name}/{file}", expected)
    return manifest, plan


def _decode(directory: Path, name: str, data: bytes, kind: type[T]) -> T:
    """A document that is whole: what can still be wrong is its version."""
    try:
        return documents.decode(data, directory / name, kind, made_by=_again(directory))
    except ConfigError as error:
        raise PackageError(error.message, where=str(directory), try_=error.try_) from error


def _read(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise _unreadable(directory, name, error) from error


def _unchanged(directory: Path, name: str, expected: str) -> bytes:
    data = _read(directory, name)
    _compare(directory, name, hashlib.sha256(data).hexdigest(), expected)
    return data


def _check(directory: Path, name: str, expected: str) -> None:
    try:
        found = sha256(directory / name)
    except OSError as error:
        raise _unreadable(directory, name, error) from error
    _compare(directory, name, found, expected)


def _compare(directory: Path, name: str, found: str, expected: str) -> None:
    if found != expected:
        raise _damaged(directory, f"{name} changed since it was packaged (hash {found[:12]}, was {expected[:12]})")


def _unreadable(directory: Path, name: str, error: OSError) -> PackageError:
    missing = isinstance(error, FileNotFoundError)
    return _damaged(
        directory, f"{name} is missing from the package" if missing else f"{name} cannot be read: {error.strerror}"
    )


def _damaged(directory: Path, message: str) -> PackageError:
    return PackageError(message, where=str(directory), try_=_again(directory))


def _again(directory: Path) -> str:
    return f"lamella package plan.json -o {directory}"
