"""Codecs of a hop: how a tensor's bytes travel.

`none` sends them as they are. `bf16` keeps the upper half of each float32, rounded to nearest even: half the bytes, a
relative error of at most 2**-8, nearly free. Numpy alone: a codec runs inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lamella.errors import CodecError, ConfigError


class Codec(Protocol):
    """Encode and decode one tensor."""

    @property
    def name(self) -> str:
        """What plans and profiles call it."""

    @property
    def bound(self) -> float:
        """Largest relative error per element; 0 where lossless."""

    def encode(self, tensor: np.ndarray) -> np.ndarray:
        """The bytes to send, a one-dimensional uint8 array."""

    def decode(self, data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor again; CodecError where the bytes do not fit dtype and shape."""


@dataclass(frozen=True, slots=True)
class Plain:
    """The bytes as they are."""

    name: str = "none"
    bound: float = 0.0

    def encode(self, tensor: np.ndarray) -> np.ndarray:
        """A view where the tensor is contiguous."""
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)

    def decode(self, data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """A view."""
        try:
            return data.view(dtype).reshape(shape)
        except ValueError as error:
            raise CodecError(f"{data.nbytes} bytes are no {dtype} tensor of shape {list(shape)}") from error


@dataclass(frozen=True, slots=True)
class BFloat16:
    """The upper half of each float32, rounded to nearest even; other dtypes as they are."""

    name: str = "bf16"
    bound: float = 2.0**-8

    def encode(self, tensor: np.ndarray) -> np.ndarray:
        """Half the bytes. NaN stays NaN, infinities stay, finite stays finite; below 2**-126 the error is absolute."""
        if tensor.dtype != np.float32:
            return Plain().encode(tensor)
        bits = np.ascontiguousarray(tensor).reshape(-1).view(np.uint32)
        half = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
        infinite = (half & 0x7FFF) == 0x7F80
        if infinite.any():  # the largest finite values (a mask's minimum is one) must not round to infinity
            half[infinite & np.isfinite(tensor.reshape(-1))] -= 1
        nan = np.isnan(tensor.reshape(-1))
        if nan.any():  # rounding may carry a NaN's mantissa into infinity
            half[nan] = 0x7FC0
        return half.view(np.uint8)

    def decode(self, data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The float32 values of the halves."""
        if dtype != "float32":
            return Plain().decode(data, dtype, shape)
        if data.nbytes != 2 * int(np.prod(shape, dtype=np.int64)):
            raise CodecError(f"{data.nbytes} bytes are no bf16 tensor of shape {list(shape)}")
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Plain(), BFloat16())}


def codec(name: str) -> Codec:
    """The codec of that name; ConfigError with the known ones otherwise."""
    if name not in CODECS:
        raise ConfigError(f"no codec {name!r}; there are {', '.join(CODECS)}")
    return CODECS[name]
