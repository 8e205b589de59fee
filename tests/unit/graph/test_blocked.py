"""Products as blocked convolutions answer as the runtime's own, whatever their shape, form and what stands behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, helper, numpy_helper

from lamella.graph.blocked import DOMAIN, block, packed, rewrite
from lamella.graph.products import products
from lamella.graph.weights import write_weights
from lamella.runtime.function import open_session
from lamella.units import Dim
from tests.unit.graph.onnx_models import model, node

needs_blocks = pytest.mark.skipif(block() == 0, reason="the runtime has no blocked layout on this CPU")
MS = "com.microsoft"


class Case(NamedTuple):
    """A product, written as the optimiser would, and a request for it."""

    nodes: list[NodeProto]
    weights: dict[str, np.ndarray]
    shape: tuple[Dim, ...]
    x: np.ndarray
    outer: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(["MatMul", "Gemm", "FusedMatMul", "FusedGemm"]))
    rank = 2 if "Gemm" in kind else draw(st.integers(2, 4))
    dims: list[Dim] = ["N", 1, 3, 8]
    lead = tuple(draw(st.sampled_from(dims)) for _ in range(rank - 1))
    inner, outer = draw(st.integers(1, 4)) * 16, draw(st.integers(16, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    attributes: dict[str, Any] = {}
    if kind != "MatMul":
        attributes = {"transB": draw(st.integers(0, 1)), "alpha": draw(st.sampled_from([1.0, 0.125, -2.0]))}
    weight = rng.standard_normal((outer, inner) if attributes.get("transB") else (inner, outer), np.float32)
    weights = {"w": weight}
    inputs = ["x", "w"]
    if "Gemm" in kind and (kind == "Gemm" or draw(st.booleans())):
        weights["b"] = rng.standard_normal(draw(st.sampled_from([(outer,), (1, outer), (1,), ()]))).astype(np.float32)
        inputs.append("b")
        attributes["beta"] = draw(st.sampled_from([1.0, 0.5]))
    if kind == "FusedGemm":
        attributes["activation"] = draw(st.sampled_from(["Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid"]))
        attributes |= {"activation_alpha": 0.3, "activation_beta": 0.4}
        if attributes["activation"] == "LeakyRelu":
            del attributes["activation_beta"]
    nodes = [helper.make_node(kind, inputs, ["y0"], domain=MS if "Fused" in kind else "", **attributes)]
    if "b" not in weights and kind != "FusedGemm" and draw(st.booleans()):
        weights["b"] = rng.standard_normal(draw(st.sampled_from([(outer,), (1, outer), (1,)]))).astype(np.float32)
        nodes.append(node("Add", draw(st.permutations([nodes[-1].output[0], "b"])), ["y1"]))
    if kind != "FusedGemm" and draw(st.booleans()):
        nodes.append(node(draw(st.sampled_from(["Relu", "Sigmoid", "Tanh"])), [nodes[-1].output[0]], ["y2"]))
    nodes[-1].output[0] = "y"
    batch = draw(st.integers(1, 4))
    x = rng.standard_normal([batch if d == "N" else int(d) for d in lead] + [inner], np.float32)
    return Case(nodes, weights, (*lead, inner), x, outer)


def skeleton(case: Case) -> ModelProto:
    made = model(case.nodes, {"x": case.shape}, {"y": (*case.shape[:-1], case.outer)})
    made.opset_import.append(helper.make_opsetid(MS, 1))
    return made


def run(proto: ModelProto, weights: dict[str, np.ndarray], x: np.ndarray, directory: Path, name: str) -> np.ndarray:
    path = directory / f"{name}.onnx"
    made = ModelProto()
    made.CopyFrom(proto)
    made.graph.initializer.extend(write_weights(directory / f"{name}.bin", weights)[1])
    path.write_bytes(made.SerializeToString())
    return np.asarray(open_session(path, "packaged", threads=1, prepack=False).run(None, {"x": x})[0])


@needs_blocks
@settings(max_examples=150)
@given(case=cases())
def test_a_blocked_product_answers_as_the_runtimes_own(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lamella.graph.products.SMALL_BYTES", 0)
        proto = skeleton(case)
        found, left = products(proto, case.weights, {"x": case.shape}, block())
        assert len(found) == 1
        assert not left
        directory = tmp_path_factory.mktemp("blocked")
        made, weights = rewrite(proto, case.weights, found, block(), directory / "packed.bin")
    kinds = Counter(n.op_type for n in made.graph.node)
    assert kinds["Conv"] == 1
    assert set(kinds) <= {"Conv", "Reshape", "ReorderInput", "ReorderOutput"}
    assert "w" not in weights
    want = run(proto, case.weights, case.x, directory, "plain")
    got = run(made, weights, case.x, directory, "blocked")
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-5 * max(1.0, float(np.abs(want).max())))


@needs_blocks
@settings(max_examples=20)
@given(outer=st.integers(16, 80), inner=st.sampled_from([16, 48, 64]), seed=st.integers(0, 99))
def test_packing_is_what_the_runtime_does_to_a_convolution(
    outer: int, inner: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = -(-outer // 16) * 16  # a convolution of fewer channels is padded, too: compared with zeros added before
    weight = np.zeros((whole, inner), np.float32)
    weight[:outer] = np.random.default_rng(seed).standard_normal((outer, inner), np.float32)
    made = model(
        [node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])],
        {"x": [1, inner, 2, 2]},
        {"y": [1, whole, 2, 2]},
        {"w": weight.reshape(whole, inner, 1, 1)},
    )
    path = tmp_path_factory.mktemp("conv") / "o.onnx"
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])

    dumped = onnx.load(path).graph
    assert any(n.domain == DOMAIN for n in dumped.node)
    theirs = next(numpy_helper.to_array(t) for t in dumped.initializer if len(t.dims) == 4)
    np.testing.assert_array_equal(packed(weight[:outer], block()), theirs)


def left_of(nodes: list[NodeProto], weights: dict[str, np.ndarray], shape: tuple[Dim, ...], size: int = 16) -> str:
    proto = model(nodes, {"x": shape}, {"y": None})
    found, left = products(proto, weights, {"x": shape} if shape else {}, size)
    assert not found
    (reason,) = left
    return reason


WIDE = np.ones((256, 256), np.float32)


@pytest.mark.parametrize(
    ("nodes", "weights", "shape", "why"),
    [
        ([node("MatMul", ["x", "w"], ["y"])], {"w": WIDE[:250]}, ("N", 250), "no multiple of the block"),
        ([node("MatMul", ["x", "w"], ["y"])], {"w": WIDE[:, :8].repeat(9, 0)}, ("N", 2304), "no multiple of the block"),
        (
            [node("MatMul", ["x", "w"], ["y"])],
            {"w": WIDE.astype(np.float64)},
            ("N", 256),
            "weights are no float32 matrix",
        ),
        (
            [node("MatMul", ["x", "w"], ["y"])],
            {"w": WIDE.astype(np.float16)},
            ("N", 256),
            "weights are no float32 matrix",
        ),
        ([node("MatMul", ["x", "w"], ["y"])], {"w": WIDE[None]}, ("N", 4, 256), "weights are no float32 matrix"),
        ([node("MatMul", ["x", "w"], ["y"])], {"w": WIDE}, (256,), "shape not known"),
        ([node("MatMul", ["x", "w"], ["y"])], {"w": WIDE}, ("N", "M", "K", 2, 256), "shape not known"),
        ([node("MatMul", ["x", "w"], ["y"])], {"w": WIDE}, (0, 256), "shape not known"),
        ([node("MatMul", ["x", "w"], ["y"])], {"w": WIDE[:16, :16]}, ("N", 16), "small"),
        ([node("Gemm", ["x", "w"], ["y"], transA=1)], {"w": WIDE}, (256, 4), "left side transposed"),
        ([node("Gemm", ["x", "w", "x"], ["y"])], {"w": WIDE}, (4, 256), "bias is no constant row"),
        ([node("Gemm", ["x", "w", "b"], ["y"])], {"w": WIDE, "b": WIDE[:4]}, (4, 256), "bias is no constant row"),
        ([node("FusedGemm", ["x", "w"], ["y"], activation="Elu")], {"w": WIDE}, (4, 256), "ends with Elu"),
    ],
)
def test_what_cannot_be_blocked_is_left_with_the_reason(
    nodes: list[NodeProto], weights: dict[str, np.ndarray], shape: tuple[Dim, ...], why: str
) -> None:
    assert left_of(nodes, weights, shape) == why


def test_a_cpu_without_a_blocked_layout_keeps_every_product() -> None:
    reason = left_of([node("MatMul", ["x", "w"], ["y"])], {"w": WIDE}, ("N", 256), size=0)
    assert reason == "no blocked layout on this CPU"


@needs_blocks
def test_products_of_one_input_share_its_blocks_and_a_weight_that_others_read_stays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((256, 256), np.float32) for name in "wv"}
    nodes = [
        node("MatMul", ["x", "w"], ["p"]),
        node("MatMul", ["x", "v"], ["q"]),
        node("Add", ["p", "q"], ["s"]),  # two computed sides: not a bias
        node("Add", ["s", "w"], ["y"]),
    ]
    proto = model(nodes, {"x": (256, 256)}, {"y": (256, 256)})
    found, left = products(proto, weights, {"x": (256, 256)}, block())
    assert [p.gives for p in found] == ["p", "q"]
    assert not left
    made, kept = rewrite(proto, weights, found, block(), tmp_path / "packed.bin")
    assert Counter(n.op_type for n in made.graph.node)["ReorderInput"] == 1
    assert "w" in kept
    assert "v" not in kept
    x = rng.standard_normal((256, 256), np.float32)
    want = run(proto, weights, x, tmp_path, "plain")
    np.testing.assert_allclose(run(made, kept, x, tmp_path, "blocked"), want, atol=1e-5 * np.abs(want).max())


@needs_blocks
def test_a_product_that_is_an_answer_itself_is_not_folded_into_what_follows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((256, 256), np.float32), "b": rng.standard_normal(256, np.float32)}
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["y"])]
    proto = model(nodes, {"x": ("N", 256)}, {"p": ("N", 256), "y": ("N", 256)})
    found, _ = products(proto, weights, {"x": ("N", 256)}, block())
    made, _ = rewrite(proto, weights, found, block(), tmp_path / "packed.bin")
    assert found[0].bias == ""
    assert {"p", "y"} <= {name for n in made.graph.node for name in n.output}
