"""Codecs of a hop: how a tensor's bytes travel. What exactly the bytes are, each class says.

All of them keep four promises. Tensors of a type a codec does not shorten, and values it cannot hold, travel as they
are, never silently wrong. Encoded is at most one byte longer than plain. NaN stays NaN and infinities stay. Bytes that
cannot be an encoding of the type and shape asked for are a `CodecError`.

Most are found by their name. A fitted one (`codecs.linear`) has parameters for each tensor: a function's manifest names
the files that hold them, and whoever encodes or decodes has a `Codecs` of what it was given.

numpy alone, since a codec runs inside functions; zstd is imported by the first tensor that needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lamella.codecs.casts import BFloat16, Float16, Plain
from lamella.codecs.codec import Codec
from lamella.codecs.int8 import Int8
from lamella.codecs.linear import is_fitted
from lamella.codecs.shuffle import Shuffle, has_zstd
from lamella.errors import CodecError, ConfigError

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Plain(),
        BFloat16(),
        Float16(),
        Int8(),
        Shuffle("shuffle-zstd", Plain()),
        Shuffle("bf16-shuffle-zstd", BFloat16()),
    )
}


def codec(name: str) -> Codec:
    """The codec of that name; ConfigError with the known ones otherwise."""
    if name not in CODECS:
        raise ConfigError(f"no codec {name!r}; there are {', '.join(CODECS)}")
    return CODECS[name]


def lossless(name: str) -> bool:
    """Whether every bit arrives by the codec of that name."""
    return not is_fitted(name) and codec(name).bound == 0


def installed() -> tuple[str, ...]:
    """The codecs that run here: without zstd fewer."""
    return tuple(name for name, one in CODECS.items() if has_zstd() or not isinstance(one, Shuffle))


@dataclass(frozen=True, slots=True)
class Codecs:
    """Every codec that one function or driver knows: those with a name alone, and those fitted to a tensor."""

    fitted: Mapping[str, Codec] = field(default_factory=dict)
    """By tensor: each travels by one codec at most."""

    def of(self, name: str, tensor: str) -> Codec:
        """The codec of that name for that tensor.

        Raises:
            CodecError: it would have to be fitted to the tensor, and is not.
            ConfigError: there is no such codec.
        """
        if not is_fitted(name):
            return codec(name)
        found = self.fitted.get(tensor)
        if found is None or found.name != name:
            raise CodecError(f"the codec {name} is not fitted to the tensor {tensor!r} here")
        return found


__all__ = ["CODECS", "Codec", "Codecs", "codec", "installed", "is_fitted", "lossless"]
