"""What a codec is, and what all of them need."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from lamella.errors import CodecError


class Codec(Protocol):
    """Encode and decode one tensor."""

    @property
    def name(self) -> str:
        """What plans and profiles call it."""

    @property
    def bound(self) -> float:
        """Largest error, relative to what the class says; 0 where lossless."""

    def encode(self, tensor: np.ndarray) -> np.ndarray:
        """The bytes to send, a one-dimensional uint8 array."""

    def decode(self, data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor again; CodecError where the bytes do not fit dtype and shape."""


def native(tensor: np.ndarray) -> np.ndarray:
    """Its elements in C order and this machine's byte order, one-dimensional; a view where they lie so."""
    return np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("=")).reshape(-1)


def plain_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """What such a tensor holds.

    Raises:
        CodecError: there is no such dtype or shape.
    """
    if min(shape, default=0) < 0:
        raise CodecError(f"no tensor has the shape {list(shape)}")
    try:
        item = np.dtype(dtype)
    except TypeError as error:
        raise CodecError(f"no tensor has the type {dtype!r}") from error
    if item.hasobject or not item.itemsize:
        raise CodecError(f"tensors of {dtype!r} have no bytes of their own")
    return math.prod(shape) * item.itemsize


def misfit(data: np.ndarray, what: str, shape: tuple[int, ...]) -> CodecError:
    """What to raise about bytes of the wrong number."""
    return CodecError(f"{data.nbytes} bytes are no {what} tensor of shape {list(shape)}")
