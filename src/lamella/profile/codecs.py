"""Codecs on the real activations of a cut: how much shorter, how long it takes, how far off."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np

from lamella.codecs import CODECS, Codecs, is_fitted
from lamella.graph.cuts import Cut
from lamella.profile.document import CodecResult, CutProfile

PLAIN = Codecs()
"""Those with a name alone."""
CODEC_BYTES = 2 << 20
"""So much of a cut goes through each codec; the rest is taken to be alike, in its ratio and its time per byte."""


def codec_result(
    name: str, cut: Cut | CutProfile, values: Mapping[str, np.ndarray], batch: int, codecs: Codecs = PLAIN
) -> CodecResult:
    """A codec on the tensors of one cut, best of three.

    Args:
        name: of the codec.
        cut: where.
        values: its tensors.
        batch: their rows.
        codecs: those of a fitted codec by tensor; of tensors it is not fitted to, it sends every byte.
    """
    names = (*cut.tensors, *cut.side)
    fitted = is_fitted(name)
    ways = [CODECS["none"] if fitted and n not in codecs.fitted else codecs.of(name, n) for n in names]
    whole = [np.ascontiguousarray(values[n]) for n in names]
    size = sum(t.nbytes for t in whole)
    sampling = size > CODEC_BYTES and not fitted  # a share of the channels is nothing it could encode
    tensors = [sample(t, CODEC_BYTES / size) if sampling else t for t in whole]
    sampled = sum(t.nbytes for t in tensors)
    more = size / sampled if sampled else 1.0
    encode = decode = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        coded = [one.encode(t) for one, t in zip(ways, tensors, strict=True)]
        middle = time.perf_counter()
        back = [one.decode(c, t.dtype.name, t.shape) for one, c, t in zip(ways, coded, tensors, strict=True)]
        encode = min(encode, (middle - start) * 1000)
        decode = min(decode, (time.perf_counter() - middle) * 1000)
    worst = max((_error(b, t) for b, t in zip(back, tensors, strict=True) if t.dtype.kind == "f"), default=0.0)
    ratio = sampled / (sum(c.nbytes for c in coded) or 1) if sampled else 1.0
    return CodecResult(name, batch, ratio, encode * more, decode * more, worst)


def sample(tensor: np.ndarray, share: float) -> np.ndarray:
    """About a share of a tensor, evenly along its first axis that is longer than one: rows, maps or tokens, whole."""
    axis = next((k for k, length in enumerate(tensor.shape) if length > 1), None)
    if axis is None:
        return tensor
    count = max(1, math.ceil(tensor.shape[axis] * share))
    return tensor.take(np.linspace(0, tensor.shape[axis] - 1, count).astype(np.int64), axis)


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest error of a finite value over the range of the finite values."""
    finite = np.isfinite(exact)
    found, exact = found[finite].astype(np.float64), exact[finite].astype(np.float64)
    return float(np.max(np.abs(found - exact), initial=0.0) / ((np.ptp(exact) if exact.size else 0.0) or 1.0))
