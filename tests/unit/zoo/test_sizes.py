"""The large models, by their plans alone: parameters against the published figures, FLOPs against sums by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from lamella import zoo
from lamella.graph.load import import_model
from lamella.graph.requests import request
from lamella.zoo import graphs, inception, prenorm, recurrent, tabular, transformer
from lamella.zoo.draft import Blueprint


class Sizes(Protocol):
    def build(self, name: str) -> Blueprint: ...


EXACT: dict[str, tuple[Sizes, int]] = {
    # transformers' bert-base-uncased without the pooler: 108,891,648, with 512 positions; 128 here.
    "bert-base": (transformer.BASE, 108_891_648 - 384 * 768),
    # torchvision's inception_v3 without the auxiliary head: 23,834,568; it does not count the running mean and variance
    # of its 17,216 normalised channels.
    "inception-v3": (inception.V3, 23_834_568 + 2 * 17_216),
    # timm's vit_large_patch16_224: 304,326,632; the class token is part of the position table here.
    "vit-large": (prenorm.VIT_LARGE, 304_326_632 - 1024),
    # transformers' gpt2-medium: 354,823,168, with 1024 positions; 128 here.
    "gpt2-medium": (prenorm.GPT2_MEDIUM, 354_823_168 - (1024 - 128) * 1024),
    # Four gates, each of input, state and two biases; then the head.
    "lstm-2048": (recurrent.WIDE, 4 * 4 * 2048 * (2 * 2048 + 2) + 2048 * 16 + 16),
    "bilstm": (
        recurrent.BOTH,
        2 * 4 * 1024 * (1024 + 1024 + 2) + 2 * 4 * 1024 * (2048 + 1024 + 2) + 2048 * 16 + 16,
    ),
    "gru-seq2seq": (
        recurrent.TRANSLATOR,
        2 * 30_000 * 620 + 2 * 3 * 1000 * (620 + 1000 + 2) + (2000 + 1) * 1000 + (1000 + 1) * 30_000,
    ),
    "gcn": (graphs.CORA, (1433 + 1) * 512 + (512 + 1) * 512 + (512 + 1) * 7),
    # Interactions: 27 vectors give 351 pairs.
    "dlrm": (
        tabular.DLRM,
        64 * sum(min(rows, 700_000) for rows in tabular.CRITEO)
        + (14 * 512 + 513 * 256 + 257 * 64)
        + ((64 + 351 + 1) * 512 + 513 * 256 + 257),
    ),
    "deepfm": (
        tabular.DEEPFM,
        17 * sum(min(rows, 900_000) for rows in tabular.CRITEO) + (417 * 400 + 2 * 401 * 400 + 401),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_model_has_the_parameters_of_its_paper(name: str) -> None:
    sizes, expected = EXACT[name]
    assert sizes.build(name).parameters == expected


@pytest.mark.parametrize("name", EXACT)
def test_no_file_is_too_large_for_protobuf(name: str) -> None:
    blueprint = EXACT[name][0].build(name)
    assert 4 * blueprint.parameters < blueprint.size_bytes < 2**31


def test_the_tables_of_the_recommenders_are_as_large_as_promised() -> None:
    assert len(tabular.CRITEO) == 26
    assert sum(tabular.CRITEO) == 33_762_577  # what DLRM's authors print for Criteo Kaggle
    assert 0.9e9 < tabular.DLRM.build("dlrm").size_bytes < 1.1e9
    assert 200e6 < tabular.DEEPFM.build("deepfm").size_bytes < 500e6


def test_every_row_number_a_request_may_ask_for_is_in_its_table() -> None:
    for name, tables in (("dlrm", tabular.DLRM.tables), ("deepfm", tabular.DEEPFM.tables)):
        fields = [spec for spec in zoo.get(name).inputs if spec.dtype == "int64"]
        assert [(spec.low, spec.high) for spec in fields] == [(0, rows) for rows in tables]


def test_the_word_table_of_gpt2_is_stored_once_and_read_at_both_ends(cache_dir: Path) -> None:
    graph = import_model("zoo:gpt2-tiny")
    readers = [op.kind for op in graph.operators if "words" in op.weights]
    assert readers == ["Gather", "Gemm"]
    tables = [w for w in graph.weights.values() if sorted(w.shape) == [64, 500]]
    assert len(tables) == 1


def test_no_position_of_gpt2_reads_a_later_one() -> None:
    mask = next(w for w in prenorm.GPT2_MEDIUM.build("gpt2-medium").weights if w.name == "causal").values()
    assert mask.shape == (128, 128)
    assert np.array_equal(mask < 0, ~np.tri(128, dtype=bool))


def test_a_graph_is_symmetric_and_normalised_by_its_degrees() -> None:
    matrix = graphs.TINY.build("gcn-tiny").weights[0].values()
    assert np.array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix.astype(np.float64)).max() == pytest.approx(1, abs=1e-5)  # D^1/2 1 is its vector


FLOPS = {
    # Per layer four projections, two products of attention, and two dense layers; then the head.
    "vit-tiny": 2 * (2 * (17 * (4 * 64 * 64 + 2 * 64 * 128) + 2 * 17 * 17 * 64)) + 2 * 16 * 192 * 64 + 2 * 64 * 10,
    "gpt2-tiny": 2 * (2 * (16 * (4 * 64 * 64 + 2 * 64 * 128) + 2 * 16 * 16 * 64)) + 2 * 64 * 500,
    "bilstm-tiny": 2 * 8 * 2 * 4 * 32 * ((32 + 32) + (64 + 32)) + 2 * 8 * 64 * 4,
    "gru-seq2seq-tiny": 2 * 2 * 16 * 3 * 32 * (24 + 32) + 2 * 16 * (2 * 16 * 32 + 64 * 32 + 32 * 200),
    "gcn-tiny": 2 * 60 * (32 * 16 + 16 * 16 + 16 * 7) + 2 * 60 * 60 * (16 + 16 + 7),
    "dlrm-tiny": 2 * (13 * 16 + 16 * 8 + 5 * 5 * 8 + 18 * 16 + 16 * 8 + 8),
    "deepfm-tiny": 2 * (32 * 16 + 16 * 16 + 16),
}


@pytest.mark.parametrize("name", FLOPS)
def test_the_products_of_a_model_cost_what_they_cost_by_hand(name: str, cache_dir: Path) -> None:
    graph = import_model(f"zoo:{name}")
    heavy = {"MatMul", "Gemm", "Conv", "LSTM", "GRU"}
    assert sum(op.flops for op in graph.operators if op.kind in heavy) == FLOPS[name]
    assert graph.batchable
    assert request(graph, np.random.default_rng(0), batch=2)
