"""Weights in one aligned file that every process maps.

Large tensors start on 64 KiB, others on 4 KiB, small ones on 64 bytes, so that a mapping never needs a copy for
alignment. Tiny constants (shapes, axes) stay inside the ONNX skeleton: shape inference must see their values.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from onnx import StringStringEntryProto, TensorProto, helper, numpy_helper

from lamella.errors import ModelError, StorageError
from lamella.graph.model import TINY_BYTES, Weight

INLINE_BYTES = TINY_BYTES
"""Constants up to this size stay in the skeleton."""

EXPORT_AGAIN = "export the model again; `python -m onnx.checker` may show more"


PLAINER = "export the model in float32 or float16"


def needs_plainer(kind: str) -> bool:
    """Whether the runtime cannot hand over tensors of this type (`tensor(bfloat16)`): numpy has no such numbers."""
    return any(name in kind for name in ("bfloat16", "float8", "float4", "int4", "int2)"))


SUB_BYTE = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}
"""Bits of an element where numpy holds one per byte and ONNX packs several."""


def bytes_of(array: np.ndarray) -> np.ndarray:
    """The bytes ONNX stores for an array, flat."""
    if array.dtype.name in SUB_BYTE:
        return np.frombuffer(numpy_helper.from_array(array).raw_data, np.uint8)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


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
                if array.nbytes <= INLINE_BYTES or array.dtype.hasobject:  # strings have no bytes to map
                    protos.append(numpy_helper.from_array(array, name))
                    table[name] = Weight(name, array.dtype.name, array.shape, -1, array.nbytes)
                    continue
                flat = bytes_of(array)
                step = alignment(flat.nbytes)
                at = -(-at // step) * step
                file.seek(at)
                file.write(flat.data)
                table[name] = Weight(name, array.dtype.name, array.shape, at, flat.nbytes)
                protos.append(external(name, array.dtype, array.shape, path.name, at, flat.nbytes))
                at += flat.nbytes
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


def element_type(kind: int, where: str) -> np.dtype[np.generic]:
    """The numpy dtype of an ONNX element type.

    Raises:
        ModelError: ONNX defines no such type.
    """
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    except KeyError as error:
        raise ModelError(f"element type {kind} is none that ONNX knows", where=where, try_=EXPORT_AGAIN) from error


def read_tensor(proto: TensorProto, directory: Path) -> np.ndarray:
    """The array of a constant, wherever its bytes lie; `directory` is the model's.

    Raises:
        ModelError: its type, shape and bytes do not fit each other, or its data file does not.
    """
    if proto.data_location == TensorProto.EXTERNAL:
        return read_external(proto, directory)
    _, shape = _layout(proto)
    try:
        return numpy_helper.to_array(proto)
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"weight {proto.name!r} of shape {list(shape)} cannot be read: {error}",
            where=f"weight {proto.name!r}",
            try_=EXPORT_AGAIN,
        ) from error


def external_file(proto: TensorProto, directory: Path) -> Path:
    """Where the bytes of an external tensor lie.

    Raises:
        ModelError: no file is named, or it is missing, or outside the model's directory.
    """
    location = next((e.value for e in proto.external_data if e.key == "location"), "")
    where = f"weight {proto.name!r}"
    if not location:
        raise ModelError("a weight lies in an external data file, and none is named", where=where, try_=EXPORT_AGAIN)
    parts = PurePosixPath(location)
    if parts.is_absolute() or ".." in parts.parts:
        raise ModelError(
            f"external data file {location!r} is outside the model's directory",
            where=where,
            try_="put the file beside the model, and save the model again",
        )
    try:
        found = (directory / location).is_file()
    except OSError:  # a longer name than any file has
        found = False
    if not found:
        raise ModelError(
            f"external data file {location!r} is missing", where=where, try_=f"put it beside the model, in {directory}"
        )
    return directory / location


def read_external(proto: TensorProto, directory: Path) -> np.ndarray:
    """The array of an external tensor, mapped read-only, not copied unless its elements are packed.

    Raises:
        ModelError: the data file is missing, too short, or outside the model's directory; offset and length make no
            sense.
    """
    path = external_file(proto, directory)
    where = f"weight {proto.name!r}"
    dtype, shape = _layout(proto)
    size = -(-math.prod(shape) * SUB_BYTE.get(dtype.name, 8 * dtype.itemsize) // 8)
    entry = {e.key: e.value for e in proto.external_data}
    for key in ("offset", "length"):
        if not entry.get(key, "0").isdecimal():
            raise ModelError(
                f"external data file {path.name!r}: {key} {entry[key]!r} is no number of bytes",
                where=where,
                try_=EXPORT_AGAIN,
            )
    offset, length = int(entry.get("offset", 0)), int(entry.get("length", size))
    held, end = path.stat().st_size, offset + max(size, length)
    if held < end:
        raise ModelError(
            f"external data file {path.name!r} has {held} bytes, the model needs {end}: truncated, or the weight's "
            f"offset ({offset}) or length ({length}) is wrong",
            where=where,
            try_="copy the file again, or " + EXPORT_AGAIN,
        )
    if length != size:
        raise ModelError(
            f"external data file {path.name!r}: the model says {length} bytes, {dtype.name} {list(shape)} takes {size}",
            where=where,
            try_=EXPORT_AGAIN,
        )
    if size == 0:
        return np.empty(shape, dtype)
    if dtype.name in SUB_BYTE:
        packed = np.fromfile(path, np.uint8, size, offset=offset).tobytes()
        return numpy_helper.to_array(TensorProto(data_type=proto.data_type, dims=shape, raw_data=packed))
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def _layout(proto: TensorProto) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    where = f"weight {proto.name!r}"
    shape = tuple(proto.dims)
    if any(d < 0 for d in shape):
        raise ModelError(f"weight {proto.name!r} has the shape {list(shape)}", where=where, try_=EXPORT_AGAIN)
    return element_type(proto.data_type, where), shape


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
        try_="lamella clean removes what dead runs left behind; or set LAMELLA_CACHE to a directory on a larger disk",
    )
