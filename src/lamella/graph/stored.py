"""A graph on disk: the skeleton `graph.onnx`, the mapped `weights.bin`, and `graph.json` with what was found out.

The directory is written under a temporary name and renamed, so what is interrupted leaves nothing behind that could be
mistaken for a graph.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from onnx import ModelProto

from lamella.graph.model import Operator, Tensor, Weight
from lamella.graph.shapes import analyse
from lamella.graph.weights import disk_error, write_weights
from lamella.limits.owner import mark
from lamella.zoo import InputSpec


class Stored(msgspec.Struct):
    """`graph.json`."""

    operators: tuple[Operator, ...]
    tensors: dict[str, Tensor]
    weights: dict[str, Weight]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def kept(directory: Path, make: Callable[[Path], Stored]) -> Stored:
    """What `directory` holds; where that is nothing whole, it is made first, by `make` in a directory of its own.

    Raises:
        StorageError: the disk is full or refuses.
    """
    if found := _read(directory):
        return found
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=mark(".import"), dir=directory.parent))
    except OSError as error:
        raise disk_error(error, directory) from error
    try:
        made = make(scratch)
        if faster := _read(directory):
            return faster  # another process, and it may be working there
        if directory.exists():  # half an import of an older crash, or a damaged one
            shutil.rmtree(directory)
        os.replace(scratch, directory)
        return made
    except OSError as error:
        raise disk_error(error, directory) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write(proto: ModelProto, weights: dict[str, np.ndarray], specs: Sequence[InputSpec], directory: Path) -> Stored:
    """Write a normalised model without initialisers, and its weights (which are let go), after analysing both.

    Raises:
        ModelError: the runtime cannot run the model, or a free batch axis mixes its rows.
        StorageError: the disk is full or refuses.
    """
    table, initialisers = write_weights(directory / "weights.bin", weights)
    weights.clear()
    proto.graph.initializer.extend(initialisers)
    (directory / "graph.onnx").write_bytes(proto.SerializeToString())
    operators, activations = analyse(proto, directory, table, specs)
    (directory / "graph.onnx").write_bytes(proto.SerializeToString())
    stored = Stored(
        operators=operators,
        tensors=activations,
        weights=table,
        inputs=tuple(i.name for i in proto.graph.input),
        outputs=tuple(o.name for o in proto.graph.output),
    )
    (directory / "graph.json").write_bytes(msgspec.json.encode(stored))
    return stored


def _read(directory: Path) -> Stored | None:
    """What was left here earlier; None where that is not whole."""
    try:
        stored = msgspec.json.decode((directory / "graph.json").read_bytes(), type=Stored)
        held = (directory / "weights.bin").stat().st_size
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    needed = max((w.offset + w.bytes for w in stored.weights.values()), default=0)
    return stored if (directory / "graph.onnx").is_file() and held >= needed else None
