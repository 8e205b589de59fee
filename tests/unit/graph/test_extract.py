"""Slices as ONNX models: their borders, their nodes, their weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from lamella.errors import ModelError
from lamella.graph.extract import Extractor, link_or_copy
from lamella.graph.optimise import optimise
from lamella.runtime.function import open_session
from tests.unit.graph.onnx_models import conditional, dense, filled, graph_of, loop, masked, residual

MODELS: dict[str, Callable[[], ModelProto]] = {
    "dense": dense,
    "residual": residual,
    "masked": masked,
    "conditional": conditional,
    "loop": loop,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_slice_takes_and_gives_its_border_and_holds_its_nodes_and_weights(name: str, tmp_path: Path) -> None:
    graph = graph_of(MODELS[name](), tmp_path)
    extractor = Extractor(graph)
    for first, last in combinations(range(len(graph.operators) + 1), 2):
        made = extractor.slice(first, last).graph
        takes, gives = graph.border(first, last)
        inner = {n for op in graph.operators[first:last] if op.has_subgraph for n in op.inputs}
        assert tuple(i.name for i in made.input) == takes
        assert tuple(o.name for o in made.output) == gives
        assert [n.name for n in made.node] == [op.name for op in graph.operators[first:last]]
        produced = [n for node in made.node for n in node.output]
        assert [v.name for v in made.value_info] == [n for n in produced if n in {v.name for v in made.value_info}]
        assert {t.name for t in made.initializer} == {w for op in graph.operators[first:last] for w in op.weights}
        for value in (*made.input, *made.output):
            told = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            tensor = graph.tensors[value.name]
            captured = value in made.input and value.name in inner
            assert told == (() if tensor.dynamic else (0,) * len(tensor.shape) if captured else tensor.shape)


def test_a_written_slice_runs_beside_a_link_to_the_weights(tmp_path: Path) -> None:
    graph = graph_of(dense(), tmp_path)
    path = Extractor(graph).write(2, 4, tmp_path / "slice")
    assert os.path.samefile(path.parent / "weights.bin", graph.weights_file)
    session = open_session(path, "reference", threads=1, prepack=False)
    x = filled(1, 40)
    (found,) = session.run(None, {"r0": x})
    np.testing.assert_allclose(found, np.maximum(x @ filled(40, 8, seed=1), 0), rtol=1e-5)


def test_a_slice_written_twice_is_the_same_file(tmp_path: Path) -> None:
    extractor = Extractor(graph_of(dense(), tmp_path))
    first = extractor.write(0, 3, tmp_path / "slice").read_bytes()
    assert extractor.write(0, 3, tmp_path / "slice").read_bytes() == first


def test_a_link_replaces_another_file_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    link_or_copy(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new"


def test_an_optimised_slice_gives_the_same_answers_from_weights_it_maps(tmp_path: Path) -> None:
    graph = graph_of(dense(), tmp_path)
    path = Extractor(graph).write(0, len(graph.operators), tmp_path / "slice")
    proto, weights = optimise(path)
    assert weights
    assert all(isinstance(w, np.memmap) for w in weights.values())
    assert not {t.name for t in proto.graph.initializer} & set(weights)
    packaged = open_session(path.parent / "optimised.onnx", "packaged", threads=1, prepack=False)
    plain = open_session(path, "reference", threads=1, prepack=False)
    x = filled(1, 8)
    np.testing.assert_allclose(packaged.run(None, {"x": x})[0], plain.run(None, {"x": x})[0], rtol=1e-4)


def test_a_slice_the_runtime_refuses_is_a_model_error(tmp_path: Path) -> None:
    graph = graph_of(dense(), tmp_path)
    path = Extractor(graph).write(0, 2, tmp_path / "slice")
    proto = onnx.load(path, load_external_data=False)
    proto.graph.node[0].op_type = "Frobnicate"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="the runtime refuses the slice"):
        optimise(path)
