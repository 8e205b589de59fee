"""A quarter of the bytes: each float32 as one of 256 levels between the least and the greatest of its channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lamella.codecs.casts import Plain
from lamella.codecs.codec import misfit, native, plain_bytes

LEVELS = 255
LARGEST = 1e38
"""Beyond it a channel's range may not be a float32."""
LEAST_STEP = 2.0**-126
"""Of the normal numbers the smallest: a smaller step would have lost its own precision."""


@dataclass(frozen=True, slots=True)
class Int8:
    """Affine per channel: for each channel its least value and its step (float32), then a level (uint8) per element.

    A channel is what has the first two indices in common (a map of an image, a token of a sequence), of a matrix a row,
    and a vector is one channel. The error is relative to the range of the channel: half a step, and the rounding of
    float32; steps are at least 2**-126. Which of the two encodings it is, the number of bytes says.
    """

    name: str = "int8"
    bound: float = 0.5 / LEVELS

    def encode(self, tensor: np.ndarray) -> np.ndarray:
        """About a quarter of the bytes.

        All of them where levels could not say it: other dtypes, and float32 with a NaN, an infinity or anything beyond
        1e38; and where it would not be shorter, since channels are too small.
        """
        values = native(tensor)
        channels = _channels(tensor.shape)
        if values.dtype != np.float32 or _size(values.size, channels) >= values.nbytes:
            return Plain().encode(values)
        rows = values.reshape(channels, -1)
        least, greatest = rows.min(axis=1), rows.max(axis=1)
        if not (least.min() >= -LARGEST and greatest.max() <= LARGEST):  # false for NaN, too
            return Plain().encode(values)
        step = np.maximum((greatest - least) / np.float32(LEVELS), np.float32(LEAST_STEP))
        levels = rows - least[:, None]
        levels /= step[:, None]
        np.rint(levels, out=levels)
        np.minimum(levels, LEVELS, out=levels)
        return np.concatenate([least.view(np.uint8), step.view(np.uint8), levels.astype(np.uint8).reshape(-1)])

    def decode(self, data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The float32 values of the levels; a view where the tensor travelled as it was."""
        plain, channels = plain_bytes(dtype, shape), _channels(shape)
        if dtype != "float32" or data.nbytes == plain:
            return Plain().decode(data, dtype, shape)
        if data.nbytes != _size(math.prod(shape), channels):
            raise misfit(data, "int8", shape)
        least = np.frombuffer(data, np.float32, channels)
        step = np.frombuffer(data, np.float32, channels, least.nbytes)
        with np.errstate(over="ignore", invalid="ignore"):  # damaged bytes may be any least value and any step
            values = data[2 * least.nbytes :].reshape(channels, -1) * step[:, None]
            values += least[:, None]
        return values.reshape(shape)


def _channels(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:2]) if len(shape) > 2 else shape[0] if len(shape) == 2 else 1


def _size(elements: int, channels: int) -> int:
    """Bytes of the short encoding."""
    return 8 * channels + elements
