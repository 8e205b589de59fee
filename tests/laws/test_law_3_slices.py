"""Laws 1 to 3 on random graphs: slices cover the model, their borders agree, and together they answer as it does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, helper

from lamella.graph.cuts import legal_cuts
from lamella.graph.extract import Extractor
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.runtime.function import open_session
from tests.unit.graph.compose import answer, assert_same_bits
from tests.unit.graph.onnx_models import Shape, filled, model, save

WIDTHS = (4, 12, 32)
KINDS = ("Relu", "Tanh", "Identity", "Softmax", "Add", "Mul", "Sum", "MatMul", "Gemm", "Concat", "Split", "Dropout")


@st.composite
def models(draw: st.DrawFn) -> ModelProto:
    """A random graph of tensors [N, width]: chains, branches, shortcuts, parts nobody reads, shared weights."""
    widths = {"x": draw(st.sampled_from(WIDTHS)), "extra": draw(st.sampled_from(WIDTHS))}
    inputs: dict[str, Shape] = {name: ["batch", width] for name, width in widths.items()}
    weights: dict[str, np.ndarray] = {}
    nodes: list[NodeProto] = []

    def any_tensor(width: int | None = None) -> str:
        return draw(st.sampled_from([n for n, w in widths.items() if width in (None, w)]))

    def weight(rows: int, columns: int) -> str:
        name = f"w{rows}x{columns}.{draw(st.integers(0, 1))}"  # two of each size: some are shared
        weights.setdefault(name, filled(rows, columns, seed=len(weights)) / np.float32(rows**0.5))
        return name

    for i in range(draw(st.integers(2, 12))):
        kind = draw(st.sampled_from(KINDS))
        data = any_tensor()
        width = widths[data]
        made = [f"t{i}"]
        to = draw(st.sampled_from(WIDTHS))
        takes, out = [data], [width]
        attributes: dict[str, Any] = {}
        match kind:
            case "Add" | "Mul":
                takes = [data, any_tensor(width)]
            case "Sum":
                takes = [data, any_tensor(width), any_tensor(width)]
            case "MatMul":
                takes, out = [data, weight(width, to)], [to]
            case "Gemm":
                takes, attributes, out = [data, weight(to, width)], {"transB": 1}, [to]
            case "Concat":
                takes = [data, any_tensor()]
                attributes, out = {"axis": 1}, [width + widths[takes[1]]]
            case "Split" if width > 1:
                made, attributes = [f"t{i}", f"t{i}.rest"], {"axis": 1, "num_outputs": 2}
                out = [-(-width // 2), width - -(-width // 2)]
            case "Softmax":
                attributes = {"axis": 1}
            case _:
                pass
        if kind == "Split" and width == 1:
            kind = "Relu"
        nodes.append(helper.make_node(kind, takes, made, **attributes))
        widths.update(zip(made, out, strict=True))
    outputs = draw(
        st.lists(st.sampled_from([n for node in nodes for n in node.output]), min_size=1, max_size=2, unique=True)
    )
    return model(nodes, inputs, dict.fromkeys(outputs), weights)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A cache of its own for the whole module: Hypothesis calls a test many times within one fixture."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMELLA_CACHE", name)
        yield Path(name)


def imported(proto: ModelProto, place: Path, batch: int | str = "N") -> Graph:
    shapes = {i.name: (batch, i.type.tensor_type.shape.dim[1].dim_value) for i in proto.graph.input}
    return import_model(str(save(proto, place / "model.onnx")), shapes)


def draw_cuts(data: st.DataObject, graph: Graph) -> list[int]:
    legal = [c.position for c in legal_cuts(graph)[0]]
    return sorted(data.draw(st.sets(st.sampled_from(legal)))) if legal else []


@settings(max_examples=40)
@given(proto=models(), data=st.data())
def test_laws_1_and_2_slices_cover_every_operator_and_take_what_was_given(
    place: Path, proto: ModelProto, data: st.DataObject
) -> None:
    graph = imported(proto, place)
    extractor = Extractor(graph)
    marks = [0, *draw_cuts(data, graph), len(graph.operators)]
    nodes: list[str] = []
    given_so_far = {n: graph.tensors[n].shape for n in graph.inputs}
    for first, last in pairwise(marks):
        part = extractor.slice(first, last).graph
        nodes += [n.name for n in part.node]
        for value in part.input:
            dims = tuple(d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim)
            assert dims == given_so_far[value.name]
        given_so_far |= {
            v.name: tuple(d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim) for v in part.output
        }
    assert nodes == [op.name for op in graph.operators]
    assert set(graph.outputs) <= given_so_far.keys()


@settings(max_examples=40)
@given(proto=models(), data=st.data())
def test_law_2_each_cut_lists_what_the_later_slices_take_from_the_earlier(
    place: Path, proto: ModelProto, data: st.DataObject
) -> None:
    graph = imported(proto, place)
    for cut in legal_cuts(graph)[0]:
        takes, _ = graph.border(cut.position, len(graph.operators))
        assert {*cut.tensors, *cut.side} == set(takes)


@settings(max_examples=100)
@given(proto=models(), data=st.data(), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_law_3_any_cuts_give_the_whole_models_answer_bit_for_bit(
    place: Path, proto: ModelProto, data: st.DataObject, batch: int, seed: int
) -> None:
    graph = imported(proto, place)
    extractor = Extractor(graph)
    feeds = request(graph, np.random.default_rng(seed), batch)
    whole = answer(extractor, [], feeds, place / "slices")
    assert_same_bits(answer(extractor, draw_cuts(data, graph), feeds, place / "slices"), whole)


@settings(max_examples=25)
@given(proto=models(), seed=st.integers(0, 99))
def test_law_3_every_single_cut_gives_the_whole_models_answer_bit_for_bit(
    place: Path, proto: ModelProto, seed: int
) -> None:
    graph = imported(proto, place, batch=1)
    extractor = Extractor(graph)
    feeds = request(graph, np.random.default_rng(seed))
    whole = answer(extractor, [], feeds, place / "slices")
    for cut in legal_cuts(graph)[0]:
        assert_same_bits(answer(extractor, [cut.position], feeds, place / "slices"), whole)


@settings(max_examples=25)
@given(proto=models(), seed=st.integers(0, 99))
def test_normalising_a_model_keeps_its_answers_bit_for_bit(place: Path, proto: ModelProto, seed: int) -> None:
    graph = imported(proto, place, batch=1)
    feeds = request(graph, np.random.default_rng(seed))
    given_file = open_session(graph.source, "reference", threads=1, prepack=False)
    taken = {i.name for i in given_file.get_inputs()}
    values = given_file.run(list(graph.outputs), {n: a for n, a in feeds.items() if n in taken})
    expected = dict(zip(graph.outputs, values, strict=True))
    assert_same_bits(answer(Extractor(graph), [], feeds, place / "slices"), expected)
