"""Law 3 on real models: composed slices answer as the whole model does.

Not here, for their size: vgg19, bert-base, lstm and dnsmos are composed by the benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lamella.cli.inspect import _reasons
from lamella.errors import ModelError
from lamella.graph.cuts import Cut, legal_cuts, plan_cuts
from lamella.graph.extract import Extractor
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.package import build_function
from lamella.runtime.function import open_session
from tests.unit.graph.compose import Tensors, answer, assert_same_bits, step, worst_share
from tests.unit.package.plans import plan_of

TINY = (
    *("cnn-tiny", "bert-tiny", "lstm-tiny", "vit-tiny", "gpt2-tiny", "bilstm-tiny", "gru-seq2seq-tiny", "gcn-tiny"),
    *("dlrm-tiny", "deepfm-tiny"),
)
REAL = (
    *("rapidocr-rec", "rapidocr-cls", "rapidocr-det", "dnsmos-p808", "minilm-int8", "magika"),
    *("inception-v3-tiny", "inception", "densenet121", "resnet50", "alexnet"),
)
SAMPLED = 4
TOLERANCE = 1e-4
"""Of the output's range: other fusions at the borders."""


def model_or_skip(name: str) -> Graph:
    try:
        return import_model(f"zoo:{name}")
    except ModelError as error:
        pytest.skip(error.message)


def spread(cuts: Sequence[Cut], count: int) -> list[Cut]:
    """`count` of the cuts, evenly spread, never the first or last where there are others."""
    picks = np.linspace(0, len(cuts) - 1, count + 2)[1:-1]
    return [cuts[i] for i in sorted({round(p) for p in picks})] if cuts else []


def packaged(graph: Graph, cuts: Sequence[int], feeds: Tensors, directory: Path) -> Tensors:
    """The answer of optimised functions, one after the other."""
    extractor = Extractor(graph)
    tensors = dict(feeds)
    for f in plan_of(graph, cuts).functions:
        place = directory / f.name
        function = build_function(extractor, f, place, portable=False)
        session = open_session(place / function.graph, function.kind, threads=1, prepack=False)
        step(graph, f.first, f.last, session, tensors)
    return {n: tensors[n] for n in graph.outputs}


LONG = pytest.param("densenet121", marks=pytest.mark.slow)  # a third of the time of all; see its packaged halves


@pytest.mark.parametrize("name", [*TINY, *(LONG if name == "densenet121" else name for name in REAL)])
def test_two_unoptimised_halves_give_the_whole_models_answer_bit_for_bit(
    name: str, cache_dir: Path, tmp_path: Path
) -> None:
    graph = model_or_skip(name)
    extractor = Extractor(graph)
    feeds = request(graph, np.random.default_rng(11))
    whole = answer(extractor, [], feeds, tmp_path)
    cuts = legal_cuts(graph)[0]
    chosen = cuts if name in TINY else spread(cuts, SAMPLED)
    assert chosen
    for cut in chosen:
        assert_same_bits(answer(extractor, [cut.position], feeds, tmp_path), whole)


@pytest.mark.parametrize("name", TINY)
def test_a_function_per_operator_gives_the_whole_models_answer_bit_for_bit(
    name: str, cache_dir: Path, tmp_path: Path
) -> None:
    graph = model_or_skip(name)
    extractor = Extractor(graph)
    feeds = request(graph, np.random.default_rng(12), batch=2 if graph.batchable else 1)
    whole = answer(extractor, [], feeds, tmp_path)
    assert_same_bits(answer(extractor, [c.position for c in legal_cuts(graph)[0]], feeds, tmp_path), whole)


@pytest.mark.parametrize("name", [*TINY, *REAL])
def test_two_packaged_halves_answer_within_the_tolerance(name: str, cache_dir: Path, tmp_path: Path) -> None:
    graph = model_or_skip(name)
    feeds = request(graph, np.random.default_rng(13))
    whole = answer(Extractor(graph), [], feeds, tmp_path / "whole")
    (cut,) = spread(plan_cuts(graph) or legal_cuts(graph)[0], 1)
    assert worst_share(packaged(graph, [cut.position], feeds, tmp_path / "halves"), whole) < TOLERANCE


@pytest.mark.parametrize("name", [*TINY, "rapidocr-cls", "dnsmos-p808", "minilm-int8"])
def test_a_packaged_function_per_unit_answers_within_the_tolerance(name: str, cache_dir: Path, tmp_path: Path) -> None:
    graph = model_or_skip(name)
    feeds = request(graph, np.random.default_rng(14))
    whole = answer(Extractor(graph), [], feeds, tmp_path / "whole")
    cuts = [c.position for c in spread(plan_cuts(graph), 6)]
    assert worst_share(packaged(graph, cuts, feeds, tmp_path / "parts"), whole) < TOLERANCE


@pytest.mark.parametrize("name", [*TINY, *REAL])
def test_the_units_cover_every_operator_and_know_every_shape(name: str, cache_dir: Path) -> None:
    graph = model_or_skip(name)
    marks = [0, *(c.position for c in plan_cuts(graph)), len(graph.operators)]
    assert all(first < last for first, last in pairwise(marks))
    made = {n for op in graph.operators for n in op.outputs}
    assert set(graph.tensors) == made | set(graph.inputs)
    assert not any(t.dynamic for t in graph.tensors.values())


@pytest.mark.parametrize("name", ["cnn-tiny", "bert-tiny", "lstm-tiny"])
def test_a_mask_beside_the_state_does_not_hide_a_models_cuts(name: str, cache_dir: Path) -> None:
    graph = model_or_skip(name)
    single = [c for c in plan_cuts(graph) if len(c.tensors) == 1]
    assert single
    assert any(c.side for c in single) == (name == "bert-tiny")


def test_a_model_inside_one_if_has_no_cut_and_the_reason_is_given(cache_dir: Path) -> None:
    graph = model_or_skip("silero-vad")
    assert plan_cuts(graph) == []
    reasons = _reasons(graph, legal_cuts(graph)[1], 1)
    assert any("it holds subgraphs" in r and "100.0% of the weights" in r for r in reasons)
    assert any("no cut leaves more than" in r for r in reasons)


def test_a_model_without_a_single_tensor_to_cut_at_is_cut_through_several(cache_dir: Path) -> None:
    graph = model_or_skip("magika")
    cuts = legal_cuts(graph)[0]
    first, last = cuts[0].position, cuts[-1].position
    assert all(len(c.tensors) + len(c.side) > 1 for c in cuts if first < c.position < last)
    assert plan_cuts(graph)
