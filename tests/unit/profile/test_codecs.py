"""Codecs on tensors that cross a cut: large ones, odd ones, none at all."""

from __future__ import annotations

import numpy as np
import pytest

from lamella.graph.cuts import Cut
from lamella.profile.codecs import CODEC_BYTES, codec_result, sample


def test_of_large_tensors_a_codec_is_measured_on_a_part() -> None:
    large = np.arange(3 * CODEC_BYTES // 4, dtype=np.float32).reshape(1, -1, 32)
    cut = Cut(1, ("a", "b"), (), large.nbytes + 8)
    found = codec_result("bf16", cut, {"a": large, "b": np.array([1.0, 2.0], np.float32)}, 1)
    assert found.ratio == pytest.approx(2.0)
    part = sample(large, 1 / 3)
    assert part.nbytes <= CODEC_BYTES + 128
    assert (part[0, 0, 0], part[0, -1, -1]) == (0, large[0, -1, -1])
    assert sample(np.ones((1, 1)), 0.1).shape == (1, 1)


@pytest.mark.parametrize("values", [[], [np.nan], [np.inf, 1.0, -np.inf, 3.0, np.nan]])
def test_what_is_not_finite_is_no_error_of_acodec_result(values: list[float]) -> None:
    cut = Cut(1, ("a",), (), 4 * len(values))
    assert codec_result("bf16", cut, {"a": np.array(values, np.float32)}, 1).max_rel == 0
