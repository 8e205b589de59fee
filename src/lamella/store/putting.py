"""Models made ready for the store: every function of a package, or an ONNX file packaged as one function.

Weights are written into segments in the order in which the graph first uses them, at most 64 MiB in each, a larger
tensor alone: so that slices, embeddings and fine-tuned variants share what they have in common and map little else.
A segment ends in a table of its tensors' hashes; the segments of known models are searched by it, and what is found is
hashed before it is relied on. Zeros and small biases are alike in many models: a known segment is shared only if half
of it is used.

A table that the graph only gathers rows from has a segment of its own, which says so: a request touches a few of its
pages, and the store need not hold the others.

Rejected: one segment per tensor, a hundred descriptors for a transformer; one per model, which maps 434 MB for an
embedding of 94. Functions of kind `plain` and `default` are what people deploy without lamella, and stay out.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
from onnx import ModelProto

from lamella import documents
from lamella.errors import ConfigError, StorageError
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.normalise import subgraphs
from lamella.graph.optimise import split_weights
from lamella.graph.weights import alignment, bytes_of, disk_error, external
from lamella.package import verify
from lamella.package.build import build_model
from lamella.runtime.function import Function
from lamella.store.records import PORTABLE, ModelRecord, SegmentRef, check_name

SEGMENT_BYTES = 64 << 20
"""Where the next tensor goes into a new segment."""
HUGE = 2 << 20
"""A larger segment is a whole number of huge pages."""
SHARE = 0.5
"""The part of a known segment's weights that a model has to use to share it."""
SPARSE_BYTES = 4 << 20
"""A table of which rows are gathered is kept apart from this size."""
MAGIC = b"lamella1"
_END = struct.Struct("<Q8s")


class Prepared(NamedTuple):
    """A model for `Shelves.put`."""

    record: ModelRecord
    blobs: dict[str, Path]
    """The files of the blobs that were made for it, by id."""


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """Where a tensor lies in its segment."""

    sha256: str
    offset: int
    length: int


class _Place(NamedTuple):
    segment: SegmentRef
    offset: int


def prepare(
    source: Path | Graph, name: str, version: str, directory: Path, known: Mapping[str, Path] | None = None
) -> list[Prepared]:
    """Records and blobs of a package's functions, as `name/function@version`, or of a model, as `name@version`.

    Beside each comes its variant for any CPU, `name.portable...`.

    Args:
        source: a package; or a model: as it was imported, or an ONNX file whose shapes are fixed.
        name: what the store shall call it.
        version: a name once put never changes its content; this tells successors apart.
        directory: where the blobs are written; the caller removes it.
        known: segments of the store that may be shared, by id; see `Shelves.known`.

    Raises:
        ConfigError: no such name; or a function of the package was not optimised.
        PackageError, ModelError: the source is damaged, or cannot be served.
        StorageError: the disk is full.
    """
    check_name(f"{name}@{version}")
    if isinstance(source, Path) and source.is_dir():
        manifest, _ = verify(source)
        folders = [(f"{name}{{}}/{function}@{version}", source / function) for function in manifest.functions]
    else:
        graph = source if isinstance(source, Graph) else import_model(str(source))
        build_model(graph, directory / "package")
        folders = [(f"{name}{{}}@{version}", directory / "package")]
    segments = Segments(directory, known or {})
    return [made for label, folder in folders for made in _variants(label, folder, segments, directory)]


def _variants(label: str, folder: Path, segments: Segments, directory: Path) -> Iterator[Prepared]:
    function = documents.read(folder / "function.json", Function, made_by="lamella package plan.json")
    if function.kind not in ("packaged", "portable"):
        raise ConfigError(
            f"function {function.name} is of kind {function.kind}: the store holds optimised ones only",
            where=str(folder),
            try_="plan with mopar or single, and package that",
        )
    yield _prepared(label.format(""), function, folder / function.graph, segments, directory)
    if function.portable:
        portable = msgspec.structs.replace(function, kind="portable")
        yield _prepared(label.format(PORTABLE), portable, folder / function.portable, segments, directory)


def _prepared(name: str, function: Function, graph: Path, segments: Segments, directory: Path) -> Prepared:
    proto, weights = split_weights(onnx.load(graph, load_external_data=False), graph.parent)
    used, made = segments.attach(proto, weights)
    data = proto.SerializeToString()
    id = hashlib.sha256(data).hexdigest()
    path = directory / id
    try:
        path.write_bytes(data)
    except OSError as error:
        raise disk_error(error, path) from error
    stored = msgspec.structs.replace(
        function, graph=id, weights="", portable="", sha256={id: id}, fitted=(), read_bytes=0
    )
    record = ModelRecord(name=check_name(name), graph=SegmentRef(id, len(data)), segments=used, function=stored)
    return Prepared(record, {id: path, **made})


class Segments:
    """Tensors by content, in known segments and in those made so far."""

    def __init__(self, directory: Path, known: Mapping[str, Path]) -> None:
        """New segments are written into `directory`.

        Raises:
            StorageError: a known segment cannot be read.
        """
        self._directory = directory
        self._paths = dict(known)
        self._tables: dict[SegmentRef, tuple[Stored, ...]] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for id, path in known.items():
            try:
                self._tables[SegmentRef(id, path.stat().st_size)] = contents(path)
            except OSError as error:
                raise StorageError(f"cannot read segment {id[:12]}: {error.strerror}", where=str(path)) from error

    def attach(
        self, proto: ModelProto, weights: Mapping[str, np.ndarray]
    ) -> tuple[tuple[SegmentRef, ...], dict[str, Path]]:
        """Let `proto` refer to its `weights` in segments; which segments, and the files of those made by this object.

        Raises:
            StorageError: the disk is full.
        """
        arrays = {name: bytes_of(weights[name]) for name in _in_order(proto, weights)}
        hashes = {name: hashlib.sha256(flat.data).hexdigest() for name, flat in arrays.items()}
        places = self._shared({hashes[name]: flat.nbytes for name, flat in arrays.items()})
        new = {hashes[name]: flat for name, flat in arrays.items() if hashes[name] not in places}
        tables = {hashes[name] for name in _gathered(proto) & set(arrays) if arrays[name].nbytes >= SPARSE_BYTES}
        tables -= {hashes[name] for name in set(arrays) - _gathered(proto)}
        for group in _grouped(new, tables):
            places.update(self._write(group))
        for name, flat in arrays.items():
            place, array = places[hashes[name]], weights[name]
            proto.graph.initializer.append(
                external(name, array.dtype, array.shape, place.segment.id, place.offset, flat.nbytes)
            )
        used = dict.fromkeys(places[h].segment for h in hashes.values())
        dense = {places[h].segment for h in hashes.values() if h not in tables}
        made = {s.id: self._paths[s.id] for s in used if self._paths[s.id].parent == self._directory}
        return tuple(SegmentRef(s.id, s.bytes, sparse=s not in dense) for s in used), made

    def _shared(self, wanted: Mapping[str, int]) -> dict[str, _Place]:
        """The tensors that lie in segments worth sharing, by hash; those segments first of which most is used."""
        found = {
            segment: [t for t in table if wanted.get(t.sha256) == t.length] for segment, table in self._tables.items()
        }
        ranked = sorted(found, key=lambda s: (-sum(t.length for t in found[s]), s.id))
        places: dict[str, _Place] = {}
        for segment in ranked:
            useful = [t for t in found[segment] if t.sha256 not in places]
            if sum(t.length for t in useful) < SHARE * sum(t.length for t in self._tables[segment]) or not useful:
                continue
            for tensor in _believed(self._paths[segment.id], useful):
                places[tensor.sha256] = _Place(segment, tensor.offset)
        return places

    def _write(self, group: Mapping[str, np.ndarray]) -> dict[str, _Place]:
        """One new segment."""
        table, end = [], 0
        made = self._directory / f"new-{os.urandom(8).hex()}"
        try:
            with made.open("w+b") as file:
                for sha256, flat in group.items():
                    step = alignment(flat.nbytes)
                    end = -(-end // step) * step
                    file.seek(end)
                    file.write(flat.data)
                    table.append(Stored(sha256, end, flat.nbytes))
                    end += flat.nbytes
                footer = msgspec.json.encode(table)
                footer += _END.pack(len(footer), MAGIC)
                size = end + len(footer)
                unit = HUGE if size > HUGE else 4096
                file.seek(-(-size // unit) * unit - len(footer))
                file.write(footer)
                file.seek(0)
                segment = SegmentRef(hashlib.file_digest(file, "sha256").hexdigest(), -(-size // unit) * unit)
            self._paths[segment.id] = made.replace(self._directory / segment.id)
        except OSError as error:
            raise disk_error(error, made, end) from error
        self._tables[segment] = tuple(table)
        return {t.sha256: _Place(segment, t.offset) for t in table}


def contents(path: Path) -> tuple[Stored, ...]:
    """The tensors of a segment, by the table at its end; none where it has no such table.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < _END.size:
            return ()
        file.seek(size - _END.size)
        length, magic = _END.unpack(file.read(_END.size))
        if magic != MAGIC or length > size - _END.size:
            return ()
        file.seek(size - _END.size - length)
        try:
            table = msgspec.json.decode(file.read(length), type=tuple[Stored, ...])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return ()
    return tuple(t for t in table if t.offset >= 0 and 0 < t.length <= size - t.offset)


def _believed(path: Path, tensors: Sequence[Stored]) -> list[Stored]:
    """Those tensors of a segment whose bytes have the hash that its table says."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data, memoryview(data) as view:
        return [t for t in tensors if _hash(view, t) == t.sha256]


def _hash(view: memoryview, tensor: Stored) -> str:
    with view[tensor.offset : tensor.offset + tensor.length] as part:
        return hashlib.sha256(part).hexdigest()


def _in_order(proto: ModelProto, weights: Mapping[str, np.ndarray]) -> list[str]:
    """The weights as the graph first uses them, those only inner graphs use last."""
    used = [name for node in proto.graph.node for name in node.input]
    inner = [name for node in proto.graph.node for sub in subgraphs(node) for n in sub.node for name in n.input]
    return [name for name in dict.fromkeys([*used, *inner, *weights]) if name in weights]


def _gathered(proto: ModelProto) -> set[str]:
    """Names that the graph reads by rows only."""
    rows: set[str] = set()
    others: set[str] = {o.name for o in proto.graph.output}
    for node in proto.graph.node:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        by_rows = node.op_type == "Gather" and node.domain in ("", "ai.onnx") and axis == 0
        rows.update(node.input[:1] if by_rows else ())
        others.update(node.input[1:] if by_rows else node.input)
        others.update(name for sub in subgraphs(node) for n in sub.node for name in n.input)
    return rows - others


def _grouped(arrays: Mapping[str, np.ndarray], alone: Collection[str]) -> Iterator[dict[str, np.ndarray]]:
    """Tensors by segment: runs of at most `SEGMENT_BYTES`; larger ones, and those that are to be, alone."""
    group: dict[str, np.ndarray] = {}
    size = 0
    for sha256, flat in arrays.items():
        if flat.nbytes > SEGMENT_BYTES or sha256 in alone:
            yield {sha256: flat}
            continue
        if size + flat.nbytes > SEGMENT_BYTES:
            yield group
            group, size = {}, 0
        group[sha256] = flat
        size += flat.nbytes
    if group:
        yield group
