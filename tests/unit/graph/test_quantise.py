"""Products on 8-bit integers: which can, that answers are near, the same wherever a slice is cut, and always equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto

from lamella.graph.extract import Extractor
from lamella.graph.model import Graph
from lamella.graph.optimise import optimise
from lamella.graph.quantise import quantisable, quantise
from lamella.runtime.function import open_session
from tests.unit.graph.onnx_models import filled, graph_of, model, node


def mlp(width: int = 160) -> ModelProto:
    """Two products and a Gemm that reads the second's weight transposed; a fourth whose weight is small."""
    nodes = [
        node("MatMul", ["x", "w0"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("MatMul", ["b", "w1"], ["c"]),
        node("Gemm", ["c", "w1", "bias"], ["d"], transB=1),
        node("Gemm", ["d", "w1"], ["e"], alpha=2.0),
        node("MatMul", ["e", "small"], ["y"]),
    ]
    weights = {
        "w0": filled(width, width) / 12,
        "w1": filled(width, width, seed=1) / 12,
        "bias": filled(width),
        "small": filled(width, 2),
    }
    return model(nodes, {"x": (3, width)}, {"y": None}, weights)


def lstm() -> ModelProto:
    nodes = [node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=64)]
    weights = {"w": filled(1, 256, 64) / 8, "r": filled(1, 256, 64, seed=1) / 8, "b": filled(1, 512) / 8}
    return model(nodes, {"x": (5, 1, 64)}, {"y": None}, weights)


def names_of(graph: Graph) -> tuple[str, ...]:
    return quantisable(graph, Extractor(graph).slice(0, len(graph.operators)))


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session: ort.InferenceSession = open_session(path, "packaged", threads=1, prepack=False)
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found


def test_large_plain_products_can_and_others_cannot(cache_dir: Path, tmp_path: Path) -> None:
    graph = graph_of(mlp(), tmp_path)
    assert names_of(graph) == ("a", "c", "d")  # e is scaled, y small


@pytest.mark.parametrize(("made", "shape"), [(mlp(), (3, 160)), (lstm(), (5, 1, 64))], ids=["products", "lstm"])
def test_a_slice_on_integers_answers_nearly_as_before(
    made: ModelProto, shape: tuple[int, ...], cache_dir: Path, tmp_path: Path
) -> None:
    graph = graph_of(made, tmp_path)
    names = names_of(graph)
    assert names
    path = Extractor(graph).write(0, len(graph.operators), tmp_path / "plain")
    optimise(path)
    want = run(path.parent / "optimised.onnx", x := filled(*shape, seed=7))
    weights = []
    for again in ("once", "again"):
        path = Extractor(graph).write(0, len(graph.operators), tmp_path / again)
        proto, held = optimise(quantise(path, names))
        got = run(path.parent / "optimised.onnx", x)
        assert 0 < np.abs(got - want).max() < 0.05 * np.ptp(want)
        weights.append((proto.SerializeToString(), {name: array.tobytes() for name, array in held.items()}))
    assert weights[0] == weights[1]
    size = sum(len(data) for data in weights[0][1].values())
    assert size < 0.9 * graph.weight_bytes(0, len(graph.operators))


def test_one_product_alone_leaves_the_others_as_they_are(cache_dir: Path, tmp_path: Path) -> None:
    graph = graph_of(mlp(), tmp_path)
    path = Extractor(graph).write(0, len(graph.operators), tmp_path / "one")
    proto, _ = optimise(quantise(path, ["a"]))
    kinds = [n.op_type for n in proto.graph.node]
    assert kinds.count("DynamicQuantizeMatMul") == 1
    assert kinds.count("Gemm") + kinds.count("MatMul") + kinds.count("FusedGemm") == 4


def test_slices_answer_as_the_whole(cache_dir: Path, tmp_path: Path) -> None:
    graph = graph_of(mlp(), tmp_path)
    names, value = names_of(graph), filled(3, 160, seed=7)
    end = len(graph.operators)
    whole = run(quantise(Extractor(graph).write(0, end, tmp_path / "whole"), names), value)
    for at in range(end):
        path = Extractor(graph).write(at, at + 1, tmp_path / str(at))
        own = [n for n in names if n in graph.operators[at].outputs]
        session = open_session(quantise(path, own) if own else path, "packaged", threads=1, prepack=False)
        value = session.run(None, {graph.operators[at].inputs[0]: value})[0]
    assert np.array_equal(whole, value)
