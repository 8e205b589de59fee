"""Weights in one aligned file that every process maps.

Large tensors start on 64 KiB, others on 4 KiB, small ones on 64 bytes, so that a mapping never needs a copy for
alignment. Tiny constants (shapes, axes) stay inside the ONNX skeleton: shape inference must see their values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import StringStringEntryProto, TensorProto, helper, numpy_helper

from lamella.errors import ModelError, StorageError
from lamella.graph.model import TINY_BYTES, Weight

INLINE_BYTES = TINY_BYTES
"""Constants up to this size stay in the skeleton."""


def alignment(size: int) -> int:
    """Where a tensor of `size` bytes may start, bytes."""
    if size >= 1 << 20:
        return 1 << 16
    return 4096 if size >= 4096 else 64


def write_weights(path: Path, weights: Mapping[str, np.ndarray]) -> tuple[dict[str, Weight], list[TensorProto]]:
    """Where each weight went, and the initialisers that refer to them.

    Raises:
        StorageError: the disk is full or refuses; the partial file is removed.
    """
    table: dict[str, Weight] = {}
    protos: list[TensorProto] = []
    at = 0
    try:
        with path.open("wb") as file:
            for name, array in weights.items():
                if array.nbytes <= INLINE_BYTES:
                    protos.append(numpy_helper.from_array(array, name))
                    table[name] = Weight(name, array.dtype.name, array.shape, -1, array.nbytes)
                    continue
                step = alignment(array.nbytes)
                at = -(-at // step) * step
                file.seek(at)
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                table[name] = Weight(name, array.dtype.name, array.shape, at, array.nbytes)
                protos.append(external(name, array.dtype, array.shape, path.name, at, array.nbytes))
                at += array.nbytes
            file.truncate(-(-max(at, 1) // 4096) * 4096)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise disk_error(error, path, at) from error
    return table, protos


def external(
    name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...], location: str, offset: int, size: int
) -> TensorProto:
    """An initialiser whose bytes are a range of the file `location` in the model's directory."""
    proto = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(dtype), dims=shape)
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(size))):
        proto.external_data.append(StringStringEntryProto(key=key, value=value))
    return proto


def read_external(proto: TensorProto, directory: Path) -> np.ndarray:
    """The array of an external initialiser, mapped read-only, not copied.

    Raises:
        ModelError: the data file is missing, too short, or outside the model's directory.
    """
    entry = {e.key: e.value for e in proto.external_data}
    if Path(entry["location"]).is_absolute() or ".." in Path(entry["location"]).parts:
        raise ModelError(
            f"external data file {entry['location']!r} is outside the model's directory",
            where=f"weight {proto.name!r}",
            try_="put the file beside the model, and save the model again",
        )
    path = directory / entry["location"]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(proto.data_type))
    shape = tuple(proto.dims)
    offset = int(entry.get("offset", 0))
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not path.is_file():
        raise ModelError(
            f"external data file {entry['location']!r} is missing",
            where=f"weight {proto.name!r}",
            try_=f"put the file beside the model, in {directory}",
        )
    if path.stat().st_size < offset + size:
        raise ModelError(
            f"external data file {entry['location']!r} has {path.stat().st_size} bytes, "
            f"the model needs {offset + size}: truncated",
            where=f"weight {proto.name!r}",
            try_="copy the file again",
        )
    if size == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def disk_error(error: OSError, path: Path, bytes_written: int = 0) -> StorageError:
    """A full or refusing disk, in words."""
    free = 0
    parent = next((p for p in path.parents if p.exists()), None)
    if parent:
        stat = os.statvfs(parent)
        free = stat.f_bavail * stat.f_frsize
    return StorageError(
        f"cannot write {path.name}: {error.strerror or error} ({bytes_written >> 20} MB written, {free >> 20} MB free)",
        where=str(path.parent),
        try_="free some space, or set LAMELLA_CACHE to a directory on a larger disk",
    )
