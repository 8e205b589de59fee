"""Models of a gigabyte: built, imported, divided in the middle and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lamella.graph.cuts import plan_cuts
from lamella.graph.extract import Extractor
from lamella.graph.load import import_model
from lamella.graph.requests import request
from tests.unit.graph.compose import answer, assert_same_bits

pytestmark = pytest.mark.slow

GIGABYTE = 10**9
PUBLISHED_FLOPS = {
    "vit-large": 2 * 61.6e9,  # Touvron et al. 2021 and torchvision count multiply-accumulates
    "inception-v3": 2 * 5.7e9,  # torchvision
}


@pytest.mark.parametrize("name", ["vit-large", "dlrm"])
def test_two_halves_of_a_gigabyte_answer_as_the_whole_model_does(name: str, cache_dir: Path, tmp_path: Path) -> None:
    graph = import_model(f"zoo:{name}")
    assert graph.batchable
    assert graph.weight_bytes(0, len(graph.operators)) > GIGABYTE
    middle = min(
        plan_cuts(graph),
        key=lambda cut: abs(2 * graph.weight_bytes(0, cut.position) - graph.weight_bytes(0, len(graph.operators))),
    )
    extractor = Extractor(graph)
    feeds = request(graph, np.random.default_rng(31), batch=2)
    whole = answer(extractor, [], feeds, tmp_path)
    assert all(np.isfinite(array).all() and np.ptp(array) > 0 for array in whole.values())
    assert_same_bits(answer(extractor, [middle.position], feeds, tmp_path), whole)


@pytest.mark.parametrize("name", PUBLISHED_FLOPS)
def test_a_model_costs_the_published_number_of_operations(name: str, cache_dir: Path) -> None:
    graph = import_model(f"zoo:{name}")
    assert sum(op.flops for op in graph.operators) == pytest.approx(PUBLISHED_FLOPS[name], rel=0.03)
