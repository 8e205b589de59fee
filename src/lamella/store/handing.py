"""Makes models ready and hands them to the daemon: what `lamella store put` does, with the planner's libraries.

What other models of that name have in the store already (slices, fine-tuned versions) is leased while the new ones are
made, so that equal tensors are found and shared. A self-contained ONNX file is remembered by its hash, so that
unchanged programs that open it are served; one whose weights lie beside it is not, since its hash says nothing of them.

Variants for any CPU go first: a name that another model has, whole or in part, is refused before its model is there, so
that a model and its variant are never of different weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from lamella.errors import ConfigError, StoreError
from lamella.runtime.function import Function
from lamella.scratch import scratch
from lamella.store import protocol
from lamella.store.client import Connection
from lamella.store.opening import function_of
from lamella.store.putting import prepare
from lamella.store.records import PORTABLE, ModelRecord


def hand_over(source: Path, name: str, socket: Path | None = None) -> list[str]:
    """Put a package, or an ONNX file, as NAME@VERSION; the names of what was put.

    Raises:
        ConfigError: no such name or source.
        StoreError: the daemon refuses it, or does not answer.
    """
    plain, at, version = name.partition("@")
    if not at:
        raise ConfigError(f"{name!r} has no version", try_=f"lamella store put {source} {name}@1")
    if plain.endswith(PORTABLE):
        raise ConfigError(f"{name!r} is the name of a variant, which is put with its model", try_="another name")
    if not source.exists():
        raise ConfigError(f"there is no {source}", try_="lamella store put PACKAGE NAME@VERSION")
    with scratch("store-put") as space, _known(plain, socket) as known:
        made = prepare(source, plain, version, space, known)
        for each in sorted(made, key=lambda m: m.record.function.kind == "packaged"):  # see above
            digest = _source(source, each.record, name)
            with Connection(socket) as connection:
                connection.put(each.record, each.blobs, digest)
    return [each.record.name for each in made]


@contextmanager
def _known(name: str, socket: Path | None) -> Iterator[dict[str, Path]]:
    """The segments of the store's other models of this name, leased and as files, by id."""
    found: dict[str, Path] = {}
    with ExitStack() as stack:
        with Connection(socket) as asked:
            models = [m.name for m in asked.status().store.models]
        for model in models:
            if model.partition("@")[0].partition("/")[0].partition(".portable")[0] != name:
                continue
            connection = stack.enter_context(Connection(socket))
            try:
                record, fds = connection.hold(model)
            except StoreError:  # no room for it now: then nothing of it is shared
                continue
            stack.callback(protocol.close_all, fds)
            found |= {s.id: Path(f"/proc/self/fd/{fd}") for s, fd in zip(record.segments, fds[1:], strict=True)}
        yield found


def _source(path: Path, record: ModelRecord, name: str) -> str | None:
    """The hash of what the model may stand in for: a packaged function's manifest, or a file that is all of a model."""
    if path.is_dir():
        return function_of(path / record.function.name) if record.function.kind == "packaged" else None
    return stand_in(path, record.function) if record.name == name else None


def stand_in(path: Path, function: Function) -> str | None:
    """The hash of a file with nothing outside it, whose inputs and outputs are the model's and nothing else besides."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (DecodeError, OSError):
        return None
    weights = {w.name for w in graph.initializer}
    outside = any(w.data_location == onnx.TensorProto.EXTERNAL for w in graph.initializer)
    names = {v.name for v in graph.input}
    odd = names & (weights | {v.name for v in graph.output})  # a caller's to replace; given back as it came
    takes, gives = [v for v in graph.input if v.name not in weights], list(graph.output)
    same = [s.name for s in (*function.inputs, *function.outputs)] == [v.name for v in (*takes, *gives)]
    fixed = all(d.HasField("dim_value") for v in takes for d in v.type.tensor_type.shape.dim)
    if outside or odd or not same or not fixed:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
