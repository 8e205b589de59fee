"""Codecs that keep the bytes, or the upper half of each float."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lamella.codecs.codec import misfit, native, plain_bytes

LARGEST_HALF = 65504.0


@dataclass(frozen=True, slots=True)
class Plain:
    """The bytes as they are: C order, the byte order of the machine (x86 and ARM: little-endian)."""

    name: str = "none"
    bound: float = 0.0

    def encode(self, tensor: np.ndarray) -> np.ndarray:
        """A view where the tensor is contiguous."""
        return native(tensor).view(np.uint8)

    def decode(self, data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """A view."""
        if data.nbytes != plain_bytes(dtype, shape):
            raise misfit(data, dtype, shape)
        return data.view(dtype).reshape(shape)


@dataclass(frozen=True, slots=True)
class BFloat16:
    """The upper half of each float32, rounded to nearest even; other dtypes as they are.

    The error is relative to the element; below 2**-126 it is absolute, 2**-134.
    """

    name: str = "bf16"
    bound: float = 2.0**-8

    def encode(self, tensor: np.ndarray) -> np.ndarray:
        """Half the bytes. NaN stays NaN, infinities stay, finite stays finite."""
        values = native(tensor)
        if values.dtype != np.float32:
            return Plain().encode(values)
        bits = values.view(np.uint32)
        half = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
        infinite = (half & 0x7FFF) == 0x7F80
        if infinite.any():  # the largest finite values (a mask's minimum is one) must not round to infinity
            half[infinite & np.isfinite(values)] -= 1
        nan = np.isnan(values)
        if nan.any():  # rounding may carry a NaN's mantissa into infinity
            half[nan] = 0x7FC0
        return half.view(np.uint8)

    def decode(self, data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The float32 values of the halves."""
        if dtype != "float32":
            return Plain().decode(data, dtype, shape)
        if data.nbytes * 2 != plain_bytes(dtype, shape):
            raise misfit(data, "bf16", shape)
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)


@dataclass(frozen=True, slots=True)
class Float16:
    """Each float32 as IEEE half precision, rounded to nearest even; other dtypes as they are.

    The error is relative to the element; below 2**-14 it is absolute, 2**-25. Which of the two encodings it is, the
    number of bytes says.
    """

    name: str = "fp16"
    bound: float = 2.0**-11

    def encode(self, tensor: np.ndarray) -> np.ndarray:
        """Half the bytes; all of them where a finite value is beyond 65504, which half precision cannot hold."""
        values = native(tensor)
        if values.dtype != np.float32:
            return Plain().encode(values)
        with np.errstate(over="ignore", under="ignore"):
            half = values.astype(np.float16)
        largest = max(abs(float(values.max(initial=0.0))), abs(float(values.min(initial=0.0))))
        # the comparison is false for NaN and infinity, too: then the finite ones are looked at alone
        if not largest <= LARGEST_HALF and (np.abs(values[np.isfinite(values)]) > LARGEST_HALF).any():
            return values.view(np.uint8)
        return half.view(np.uint8)

    def decode(self, data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The float32 values of the halves; a view where the tensor travelled as it was."""
        plain = plain_bytes(dtype, shape)
        if dtype != "float32" or data.nbytes == plain:
            return Plain().decode(data, dtype, shape)
        if data.nbytes * 2 != plain:
            raise misfit(data, "fp16", shape)
        return data.view(np.float16).astype(np.float32).reshape(shape)
