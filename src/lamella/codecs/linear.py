"""The learned codec: a linear autoencoder, of which each end does one matrix product.

Channels of activations are correlated: a few directions of their space hold most of what they say. Fitted on the user's
own data (`profile.fitting`), the codec sends of each position its coordinates along the first `k` principal components,
in half precision. Of all linear codes of `k` numbers it loses least on average, in the sense of squares (Eckart and
Young, 1936); what the loss does to answers only running the model says. Rejected: an autoencoder with layers and
training, which costs the functions more time than links take.

A channel is the second axis of a tensor with four axes or more (maps of an image), else the last one (a token's
features): the layouts of convolutions and of attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lamella.codecs.casts import LARGEST_HALF, Plain
from lamella.codecs.codec import misfit, native, plain_bytes
from lamella.errors import CodecError

PREFIX = "pca-"
"""Of its names: `pca-4` keeps a quarter of the components."""


PRODUCT = 1 << 18
"""Multiplications of one product: up to here the library of numpy's wheels keeps to the calling thread. Its other
threads would wait for each other under a function's CPU quota: measured, 20 MB/s where one thread encodes 4 GB/s."""


def is_fitted(name: str) -> bool:
    """Whether a codec of that name has parameters of its own for each tensor."""
    return name.startswith(PREFIX) and name.removeprefix(PREFIX).isdecimal()


def channel_axis(rank: int) -> int:
    """Which axis of a tensor of so many axes holds its channels."""
    return 1 if rank >= 4 else rank - 1


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """Mean and components of one tensor's channels.

    What it loses depends on the values: there is no bound but the one that is measured on the model's output. Which of
    the two encodings it is, the number of bytes says.
    """

    name: str
    mean: np.ndarray
    """float32, one per channel."""
    components: np.ndarray
    """float32 [components, channels]: orthonormal rows, that which explains most first."""
    _offset: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Coordinates of the mean: taking them off the products is cheaper than the mean off every element."""
        object.__setattr__(self, "_offset", self.components @ self.mean)

    @property
    def bound(self) -> float:
        """Infinite: nothing is promised of values it was not fitted on."""
        return math.inf

    def encode(self, tensor: np.ndarray) -> np.ndarray:
        """Two bytes per position and component.

        The tensor as it is where that could not say it: other dtypes or channels, a NaN or an infinity, coordinates
        beyond half precision.
        """
        rows = self._rows(tensor.shape)
        values = native(tensor)
        if values.dtype != np.float32 or rows is None:
            return Plain().encode(values)
        with np.errstate(over="ignore", invalid="ignore"):
            if tensor.ndim >= 4:
                made = _columns(self.components, values.reshape(rows))
                made -= self._offset[:, None]
            else:
                made = _lines(values.reshape(rows), self.components.T)
                made -= self._offset
        # false for NaN, too; a product may hide an infinity times zero, but then as NaN
        if not max(float(made.max(initial=0.0)), -float(made.min(initial=0.0))) <= LARGEST_HALF:
            return Plain().encode(values)
        with np.errstate(under="ignore"):
            return native(made.astype(np.float16)).view(np.uint8)

    def decode(self, data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The nearest values among those that the components span; a view where the tensor travelled as it was."""
        plain, rows = plain_bytes(dtype, shape), self._rows(shape)
        if dtype != "float32" or rows is None or data.nbytes == plain:
            return Plain().decode(data, dtype, shape)
        count, channels = self.components.shape
        if data.nbytes * channels != plain // 2 * count:
            raise misfit(data, self.name, shape)
        made = np.frombuffer(data, np.float16).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # damaged bytes may be any coordinates
            if len(shape) >= 4:
                values = _columns(self.components.T, made.reshape(rows[0], count, rows[2]))
                values += self.mean[:, None]
            else:
                values = _lines(made.reshape(-1, count), self.components)
                values += self.mean
        found: np.ndarray = values.reshape(shape)
        return found

    def _rows(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The tensor as images of channels, or as rows of channels; None where it has other channels, or no element."""
        channels = len(self.mean)
        if not shape or shape[channel_axis(len(shape))] != channels or 0 in shape:
            return None
        return (shape[0], channels, math.prod(shape[2:])) if len(shape) >= 4 else (math.prod(shape[:-1]), channels)

    def parameters(self) -> np.ndarray:
        """What `linear` makes it again from: the mean, then the components."""
        return np.concatenate([self.mean[None], self.components]).astype(np.float32)


def _lines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`left @ right`, some lines of `left` at a time (see `PRODUCT`)."""
    found = np.empty((len(left), right.shape[1]), np.float32)
    step = max(1, PRODUCT // right.size)
    for at in range(0, len(left), step):
        np.matmul(left[at : at + step], right, out=found[at : at + step])
    return found


def _columns(left: np.ndarray, images: np.ndarray) -> np.ndarray:
    """`left @ image` for each image, some columns at a time (see `PRODUCT`)."""
    found = np.empty((len(images), len(left), images.shape[2]), np.float32)
    step = max(1, PRODUCT // left.size)
    for image, made in zip(images, found, strict=True):
        for at in range(0, images.shape[2], step):
            made[:, at : at + step] = left @ image[:, at : at + step]
    return found


def linear(name: str, parameters: np.ndarray) -> Linear:
    """The codec of these parameters.

    Raises:
        CodecError: they are no mean and components.
    """
    if parameters.dtype != np.float32 or parameters.ndim != 2 or not 2 <= len(parameters) <= parameters.shape[1] + 1:
        raise CodecError(f"{parameters.dtype.name} {list(parameters.shape)} are no parameters of the codec {name}")
    return Linear(name, parameters[0], parameters[1:])


def read_linear(name: str, path: Path) -> Linear:
    """The codec in a file that `np.save` wrote.

    Raises:
        CodecError: it cannot be read.
    """
    try:
        return linear(name, np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise CodecError(f"cannot read the parameters of the codec {name} in {path}: {error}") from error
