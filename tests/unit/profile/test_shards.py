"""Shards are measured in turns with their units undivided, which say how fast the machine was meanwhile."""

from pathlib import Path

import numpy as np
import pytest

from lamella.graph.divide import Divider
from lamella.graph.load import import_model
from lamella.graph.requests import request
from lamella.profile import shards
from lamella.profile.document import HopCost
from lamella.profile.measure import units_of
from lamella.profile.timing import border_values


@pytest.mark.parametrize(
    ("before_ms", "meanwhile_ms", "scale"),
    [(10.0, 20.0, 0.5), (10.0, 8.0, 1.25), (10.0, 10.0, 1.0), (0.5, 2.0, 1.0), (2.0, 0.5, 1.0)],
)
def test_shards_take_as_long_as_at_the_pace_of_the_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before_ms: float, meanwhile_ms: float, scale: float
) -> None:
    graph = import_model("zoo:cnn-tiny")
    units = units_of(graph)[0]
    divider = Divider(graph)
    tried = next(c for c in shards.candidates(divider, units, [1.0] * len(units)) if c.span.shards == 2)
    values = border_values(graph, units, request(graph, np.random.default_rng(0)))
    seen = shards._Seen([4.0, 6.0], [30.0, 31.0], stage_ms=8.0, deviation_ms=1.0, whole_ms=meanwhile_ms)
    monkeypatch.setattr(shards, "_run", lambda *_: seen)
    hop = HopCost(0.1, 0.1, 0.1, 0.1)
    found = shards.measure_shards(divider, units, tried, values, tmp_path / "work", hop, whole_ms=before_ms)
    assert found
    for one in found:
        assert [part.run_ms for part in one.parts] == pytest.approx([4.0 * scale, 6.0 * scale])
        assert (one.stage_ms, one.deviation_ms) == pytest.approx((8.0 * scale, scale))
