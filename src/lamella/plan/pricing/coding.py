"""Which codec a hop gets: of those allowed that with the least time on its channel, if any beats sending plain.

Time on the channel is that of the encoded bytes, by the platform's figures or as measured (`profile.channels`), and
the work of encoding and decoding. In shared memory bytes take no time, so nothing can beat plain. Encoded bytes are
those of the profile's request: other values may compress less. A codec that loses is only said, unless the user's own
data allow it (`validation.lossy`): what a loss does to answers no profile can know.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from lamella.codecs import lossless
from lamella.platforms import Platform
from lamella.profile.document import CodecResult, CutProfile


class Coding(NamedTuple):
    """A codec on what crosses a cut, and what it takes beyond sending plain; the work at one vCPU."""

    codec: str
    plain_bytes: int
    bytes: int
    """Encoded."""
    encode_ms: float
    decode_ms: float
    parameter_bytes: int = 0
    """Of a fitted codec; both ends hold them."""
    channel: str = ""
    """Of the catalogue, by which it goes; the platform's own by default."""

    @property
    def lossless(self) -> bool:
        """Whether every bit arrives."""
        return lossless(self.codec)

    @property
    def giving_bytes(self) -> int:
        """Buffers the producer holds more: the sorted bytes, and the encoded ones thrice on their way out."""
        return 0 if self.codec == "none" else self.plain_bytes + 3 * self.bytes + self.parameter_bytes

    @property
    def taking_bytes(self) -> int:
        """Buffers the reader holds more: the encoded bytes and the sorted ones."""
        return 0 if self.codec == "none" else self.plain_bytes + self.bytes + self.parameter_bytes


def plain(size: int) -> Coding:
    """The bytes as they are."""
    return Coding("none", size, size, 0.0, 0.0)


def codings(cut: CutProfile, batch: int, fitted: Sequence[Coding] = ()) -> list[Coding]:
    """What was measured at a cut, by plain first; of batch 1 where the batch was not measured, times its rows.

    Args:
        cut: where, with the codecs that need no fitting.
        batch: rows of a request.
        fitted: those that were fitted to it.
    """
    size = cut.bytes * batch
    measured = max((c.batch for c in cut.codecs if c.batch in (1, batch)), default=0)
    found = {c.codec: c for c in cut.codecs if c.batch == measured}
    none = found.pop("none", None)
    more = batch / measured if measured else 1.0
    base_encode, base_decode = (none.encode_ms, none.decode_ms) if none else (0.0, 0.0)
    return [
        plain(size),
        *(
            Coding(
                name,
                size,
                math.ceil(size / one.ratio),
                more * max(0.0, one.encode_ms - base_encode),
                more * max(0.0, one.decode_ms - base_decode),
            )
            for name, one in found.items()
        ),
        *fitted,
    ]


def channel_ms(coding: Coding, platform: Platform, share: float) -> float:
    """Transfer and work, where functions have `share` of a vCPU."""
    return platform.transfer_ms(coding.bytes) + (coding.encode_ms + coding.decode_ms) / share


def coding_of(result: CodecResult, plain_result: CodecResult, size: int, parameter_bytes: int) -> Coding:
    """A codec as measured at a cut whose `size` bytes are those of its batch, beside plain there."""
    return Coding(
        result.codec,
        size,
        math.ceil(size / result.ratio),
        max(0.0, result.encode_ms - plain_result.encode_ms),
        max(0.0, result.decode_ms - plain_result.decode_ms),
        parameter_bytes,
    )


def quickest(found: Sequence[Coding], platform: Platform, share: float, lossy: Collection[str] = ()) -> Coding:
    """The one with the least time, lossless or among the `lossy` that are allowed; plain where none is quicker."""
    allowed = (c for c in found if c.lossless or c.codec in lossy)
    return min(allowed, key=lambda c: channel_ms(c, platform, share))  # the first of equals


def coding_why(
    chosen: Coding, found: Sequence[Coding], platform: Platform, share: float, said_of: Mapping[str, str]
) -> str:
    """The reason, with what the best of the others would have done.

    Args:
        chosen: the hop's.
        found: what was measured at its cut.
        platform: whose channel it is.
        share: of a vCPU that functions have.
        said_of: what judging said of lossy ones, by codec.
    """

    def said(one: Coding, verb: str) -> str:
        saved = platform.transfer_ms(one.plain_bytes) - platform.transfer_ms(one.bytes)
        gain = f"{verb} {saved:.2f} ms of transfer" if platform.moves_bytes else f"{verb} nothing in shared memory"
        loss = "" if one.lossless else f", {said_of.get(one.codec, 'and is lossy')}"
        return f"{gain} for {(one.encode_ms + one.decode_ms) / share:.2f} ms of work{loss}"

    others = sorted(
        (c for c in found if c.codec not in ("none", chosen.codec)), key=lambda c: channel_ms(c, platform, share)
    )
    if platform.moves_bytes:  # the best without a loss, if it is not what was chosen, and the best with one
        kinds = (True, False) if chosen.codec == "none" else (False,)
        others = [next((c for c in others if c.lossless is kind), chosen) for kind in kinds]
        refused = [c for c in found if c.codec in said_of]
        others = list(dict.fromkeys(c for c in (*others, *refused) if c.codec != chosen.codec))
    else:
        others = others[:1]
    reasons = [] if chosen.codec == "none" else [said(chosen, "saves")]
    reasons += [f"{one.codec} would {said(one, 'save')}" for one in others]
    return f"codec {chosen.codec}: {'; '.join(reasons) or 'no other was measured'}"
