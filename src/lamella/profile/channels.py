"""What a hop takes on a channel more than in shared memory, measured when a plan first asks for the channel.

Functions that do next to nothing, one and four in a chain, with 64 KB and with 4 MB from stage to stage, on the channel
and in shared memory, in turns. The bytes are sent and received while functions run, so the price is one that functions
are billed for: half of it is given to the producer of what crosses, half to its reader. It belongs to the machine and,
for an object store, to its endpoint, not to the model, and is kept as a document of its own beside the profiles.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lamella import documents
from lamella.documents import cache_dir
from lamella.errors import ConfigError
from lamella.machine import on_cores, this_machine
from lamella.objects import Bucket, ObjectStore
from lamella.profile.document import ChannelPrice
from lamella.profile.hops import ROWS, STAGES, WIDTH, in_turns
from lamella.runtime.tensors import CHANNELS, Channel
from lamella.scratch import scratch
from lamella.units import MB

CHANNELS_VERSION = "1"
"""Part of what a price is kept under: raise it when measuring changes."""
WIDE = 64
"""So many times the rows of the narrow chains."""
TURNS = 12


class Seen(NamedTuple):
    """Medians of one width, ms: what the channel takes more than shared memory."""

    size_mb: float
    run: float
    """Of one function, in its run."""
    hop_run: float
    """Of one more hop, in the functions' runs."""
    hop_beyond: float
    """Of one more hop, beyond them."""


def channel_price(channel: str, bucket: Bucket | None) -> ChannelPrice:
    """What is known of the channel on this machine; measured now where nothing is, which takes some ten seconds.

    Args:
        channel: one that runs here, other than shared memory.
        bucket: for channel `s3`.

    Raises:
        ConfigError: no such channel, or `s3` without a bucket.
    """
    known = next((c for c in CHANNELS if c == channel and c != "shared-memory"), None)
    if known is None:
        raise ConfigError(f"no channel {channel!r}; there are {', '.join(CHANNELS)}", try_=f"--channel {CHANNELS[0]}")
    if known == "s3" and bucket is None:
        raise ConfigError("channel s3 needs a bucket", try_="--s3-bucket NAME --s3-endpoint http://HOST:PORT")
    place = f"-{zlib.crc32(str(bucket).encode()):08x}" if known == "s3" else ""
    path = cache_dir() / "channels" / f"{known}{place}-{this_machine().key}-v{CHANNELS_VERSION}.json"
    if path.exists():
        return documents.read(path, ChannelPrice, made_by=f"lamella plan --channel {channel}")
    with scratch("channel") as space, on_cores(1):
        price = _measured(known, bucket, space)
    documents.write(path, price)
    return price


def _measured(channel: Channel, bucket: Bucket | None, space: Path) -> ChannelPrice:
    store = ObjectStore(bucket) if channel == "s3" and bucket else None
    narrow, wide = (_seen(channel, store, rows, space / str(rows)) for rows in (ROWS, WIDE * ROWS))
    more_mb = wide.size_mb - narrow.size_mb
    edge_mb = max(0.0, (wide.run - narrow.run) / (2 * more_mb))
    hop_mb = max(0.0, (wide.hop_run - narrow.hop_run) / more_mb)
    return ChannelPrice(
        channel=channel,
        machine=this_machine(),
        edge_ms=max(0.0, narrow.run - 2 * narrow.size_mb * edge_mb),
        edge_mb_ms=edge_mb,
        hop_ms=max(0.0, narrow.hop_run - narrow.size_mb * hop_mb),
        hop_mb_ms=hop_mb,
        fixed_ms=max(0.0, narrow.hop_beyond),
    )


def _seen(channel: Channel, store: ObjectStore | None, rows: int, directory: Path) -> Seen:
    shapes = [[0], [0] * STAGES]
    channels: list[Channel] = ["shared-memory", "shared-memory", channel, channel]
    turns = in_turns(directory, [*shapes, *shapes], rows, turns=TURNS, channels=channels, store=store)
    one_shared, all_shared, one, all_ = turns
    run = float(np.median(one[:, 1] - one_shared[:, 1]))
    hop = np.median((all_ - one) - (all_shared - one_shared), axis=0) / (STAGES - 1)
    return Seen(rows * WIDTH * 4 / MB, run, float(hop[1]), float(hop[0]))
