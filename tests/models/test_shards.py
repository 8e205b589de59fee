"""Real models with divided spans: dense layers by columns and rows, attention by heads, images by bands."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lamella.errors import ModelError
from lamella.graph.divide import ShardSpan
from lamella.graph.extract import link_or_copy
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.graph.shard import Way
from tests.unit.graph.compose import worst_share
from tests.unit.graph.shards import TOLERANCE, answers

pytestmark = pytest.mark.slow

SPANS: dict[str, tuple[str, str, str, Way]] = {
    "vgg19, a dense layer by columns": ("vgg19", "n38", "n40", "channels"),
    "vgg19, two dense layers": ("vgg19", "n38", "n41", "channels"),
    "vgg19, all bands": ("vgg19", "n0", "n18", "tiles"),
    "resnet50, the first blocks by bands": ("resnet50", "n0", "n35", "tiles"),
    "resnet50, over two strides": ("resnet50", "n16", "n49", "tiles"),
    "bert-base, attention": ("bert-base", "layer0.attention.query", "layer0.attention.norm.sum", "channels"),
    "bert-base, the layers after it": ("bert-base", "layer0.ffn.up", "layer0.norm.sum", "channels"),
    "bert-base, words by rows": ("bert-base", "embeddings.word.rows", "embeddings.norm.sum", "rows"),
    "bert-base, words by columns": ("bert-base", "embeddings.word.rows", "embeddings.norm.sum", "channels"),
}
"""Model, first and last operator, way."""


@pytest.fixture
def place(cache_dir: Path) -> Iterator[Path]:
    """Divided graphs hold all weights again, so they go with the test."""
    with tempfile.TemporaryDirectory(dir=cache_dir) as name:
        yield Path(name)


def apart(graph: Graph, place: Path) -> Graph:
    """The graph in a cache of its own."""
    directory = place / "models" / graph.directory.name
    directory.mkdir(parents=True)
    for file in (graph.skeleton, graph.weights_file):
        link_or_copy(file, directory / file.name)
    return dataclasses.replace(graph, directory=directory)


@pytest.mark.parametrize("shards", [2, 3, 8])
@pytest.mark.parametrize("name", SPANS)
def test_a_model_with_a_divided_span_answers_as_the_whole_model(name: str, shards: int, place: Path) -> None:
    model, first, last, way = SPANS[name]
    try:
        graph = apart(import_model(f"zoo:{model}"), place)
    except ModelError as error:
        pytest.skip(error.message)
    index = {op.name: op.index for op in graph.operators}
    span = ShardSpan(index[first], index[last] + 1, shards, way)
    whole, parts = answers(graph, [span], request(graph, np.random.default_rng(21)), place)
    assert worst_share(parts, whole) <= TOLERANCE
