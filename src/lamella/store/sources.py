"""Which model was made of which file, so that an unchanged program's `InferenceSession(path)` finds it.

Whoever puts a model says what it was made of, and nobody can check that. So a user is served by one's own word and by
that of who may do everything, never by a third user's: else anybody who may put could answer for others' models.
And it is said of a graph, not of a name: what a removed model was made of says nothing of the next one of that name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lamella import documents
from lamella.documents import Document
from lamella.errors import ConfigError

MOST = 100_000


class Source(Document, frozen=True, kw_only=True):
    """What one user says that a model was made of."""

    sha256: str
    model: str
    graph: str = ""
    """The id of the model's graph, which names its weights by their content."""
    uid: int
    trusted: bool
    """Whether the user could do everything then."""


class _Sources(Document, frozen=True, kw_only=True):
    sources: tuple[Source, ...] = ()


class Sources:
    """What is known of all models, kept in one file."""

    def __init__(self, path: Path) -> None:
        """Read the file where there is one. One that is damaged is set aside: programs open their own files then."""
        self._path = path
        try:
            found = documents.read(path, _Sources, made_by="lamella store put") if path.exists() else _Sources()
        except ConfigError:
            os.replace(path, path.with_suffix(".damaged"))
            found = _Sources()
        self._sources = {(s.sha256, s.uid): s for s in found.sources}

    def add(self, source: Source) -> None:
        """Remember one; the oldest is forgotten where there are too many.

        Raises:
            StorageError: the disk refuses.
        """
        self._sources.pop((source.sha256, source.uid), None)
        self._sources[source.sha256, source.uid] = source
        while len(self._sources) > MOST:
            del self._sources[next(iter(self._sources))]
        documents.write(self._path, _Sources(sources=tuple(self._sources.values())))
        self._path.chmod(0o600)

    def claims(self, sha256: str, uid: int) -> Iterator[Source]:
        """What was said of the file by this user, then by those who may do everything."""
        own = self._sources.get((sha256, uid))
        if own:
            yield own
        yield from (s for s in self._sources.values() if s.sha256 == sha256 and s.trusted and s.uid != uid)
