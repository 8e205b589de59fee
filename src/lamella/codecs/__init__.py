"""Codecs of a hop: how a tensor's bytes travel. What exactly the bytes are, each class says.

All of them keep four promises. Tensors of a type a codec does not shorten, and values it cannot hold, travel as they
are, never silently wrong. Encoded is at most one byte longer than plain. NaN stays NaN and infinities stay. Bytes that
cannot be an encoding of the type and shape asked for are a `CodecError`.

numpy alone, since a codec runs inside functions; zstd is imported by the first tensor that needs it.
"""

from __future__ import annotations

from lamella.codecs.casts import BFloat16, Float16, Plain
from lamella.codecs.codec import Codec
from lamella.codecs.int8 import Int8
from lamella.codecs.shuffle import Shuffle, has_zstd
from lamella.errors import ConfigError

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


def installed() -> tuple[str, ...]:
    """The codecs that run here: without zstd fewer."""
    return tuple(name for name, one in CODECS.items() if has_zstd() or not isinstance(one, Shuffle))


__all__ = ["CODECS", "Codec", "codec", "installed"]
