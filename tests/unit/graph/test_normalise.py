"""What normalisation does to a model: constants become weights, and every node left works for the request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lamella.errors import ModelError
from lamella.graph.normalise import captured, normalise
from tests.unit.graph.onnx_models import conditional, filled, info, model, node, subgraph


def normalised(proto: ModelProto) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    del proto.graph.initializer[:]
    return list(normalise(proto, weights).graph.node), weights


def kinds(nodes: list[NodeProto]) -> list[str]:
    return [n.op_type for n in nodes]


@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ("value", numpy_helper.from_array(filled(1, 3)), filled(1, 3)),
        ("value_float", 2.5, np.array(2.5, np.float32)),
        ("value_floats", [1.0, 2.0, 3.0], np.array([1, 2, 3], np.float32)),
        ("value_int", 7, np.array(7, np.int64)),
        ("value_ints", [1, 2, 3], np.array([1, 2, 3], np.int64)),
    ],
)
def test_a_constant_node_becomes_a_weight(attribute: str, value: Any, expected: np.ndarray) -> None:
    constant = node("Constant", [], ["c"], **{attribute: value})
    kind = helper.np_dtype_to_tensor_dtype(expected.dtype)
    nodes, weights = normalised(
        model([constant, node("Add", ["x", "c"], ["y"])], {"x": [1, 3]}, {"y": None}, kinds={"x": kind, "y": kind})
    )
    assert kinds(nodes) == ["Add"]
    assert weights["c"].dtype == expected.dtype
    np.testing.assert_array_equal(weights["c"], expected)


def test_a_constant_of_strings_stays_a_node() -> None:
    constant = node("Constant", [], ["c"], value_strings=["a", "b"])
    kinds_of = {"x": TensorProto.STRING, "y": TensorProto.STRING}
    nodes, weights = normalised(
        model([constant, node("Concat", ["x", "c"], ["y"], axis=0)], {"x": [1]}, {"y": None}, kinds=kinds_of)
    )
    assert kinds(nodes) == ["Constant", "Concat"]
    assert weights == {}


def test_a_chain_of_identities_is_read_through() -> None:
    nodes, _ = normalised(
        model(
            [node("Identity", ["x"], ["a"]), node("Identity", ["a"], ["b"]), node("Relu", ["b"], ["y"])],
            {"x": [1, 3]},
            {"y": None},
        )
    )
    assert kinds(nodes) == ["Relu"]
    assert list(nodes[0].input) == ["x"]


def test_an_identity_that_makes_an_output_stays() -> None:
    nodes, _ = normalised(
        model([node("Relu", ["x"], ["r"]), node("Identity", ["r"], ["y"])], {"x": [1, 3]}, {"y": None})
    )
    assert kinds(nodes) == ["Relu", "Identity"]


def test_an_identity_is_read_through_inside_subgraphs_too() -> None:
    proto = conditional()
    for old in proto.graph.node:
        if old.op_type == "Relu":
            old.output[0] = "made"
    proto.graph.node.insert(1, node("Identity", ["made"], ["early"]))
    nodes, _ = normalised(proto)
    assert "Identity" not in kinds(nodes)
    chooser = next(n for n in nodes if n.op_type == "If")
    assert set(captured(chooser)) == {"made", "late", "w"}


def test_an_identity_listed_after_its_reader_is_read_through_as_well() -> None:
    nodes, _ = normalised(
        model([node("Relu", ["a"], ["y"]), node("Identity", ["x"], ["a"])], {"x": [1, 3]}, {"y": None})
    )
    assert kinds(nodes) == ["Relu"]
    assert list(nodes[0].input) == ["x"]


def test_what_depends_on_constants_alone_is_computed_once() -> None:
    nodes, weights = normalised(
        model(
            [
                node("Transpose", ["w"], ["t"], perm=[1, 0]),
                node("Mul", ["t", "two"], ["d"]),
                node("MatMul", ["x", "d"], ["y"]),
            ],
            {"x": [1, 3]},
            {"y": None},
            {"w": filled(5, 3), "two": np.float32(2).reshape(1)},
        )
    )
    assert kinds(nodes) == ["MatMul"]
    assert set(weights) == {"d"}
    np.testing.assert_array_equal(weights["d"], filled(5, 3).T * 2)


def test_a_weight_made_by_constant_of_shape_is_folded_however_large() -> None:
    made = node("ConstantOfShape", ["shape"], ["w"], value=numpy_helper.from_array(np.array([0.5], np.float32)))
    nodes, weights = normalised(
        model(
            [made, node("MatMul", ["x", "w"], ["y"])],
            {"x": [1, 8]},
            {"y": None},
            {"shape": np.array([8, 700_000], np.int64)},
        )
    )
    assert kinds(nodes) == ["MatMul"]
    assert weights["w"].shape == (8, 700_000)
    assert np.all(weights["w"] == 0.5)


def test_a_constant_that_expands_beyond_the_limit_is_left_to_the_runtime() -> None:
    nodes, weights = normalised(
        model(
            [node("Expand", ["small", "shape"], ["big"]), node("Add", ["x", "big"], ["y"])],
            {"x": [1, 1]},
            {"y": None},
            {"small": np.float32(1).reshape(1, 1), "shape": np.array([5000, 1000], np.int64)},
        )
    )
    assert kinds(nodes) == ["Expand", "Add"]
    assert set(weights) == {"small", "shape"}


def test_quantised_weights_stay_quantised() -> None:
    nodes, weights = normalised(
        model(
            [node("DequantizeLinear", ["q", "scale"], ["w"]), node("MatMul", ["x", "w"], ["y"])],
            {"x": [1, 4]},
            {"y": None},
            {"q": np.ones((4, 4), np.int8), "scale": np.array(0.1, np.float32)},
        )
    )
    assert kinds(nodes) == ["DequantizeLinear", "MatMul"]
    assert weights["q"].dtype == np.int8


@pytest.mark.parametrize("kind", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_chance_is_not_frozen(kind: str) -> None:
    nodes, _ = normalised(
        model(
            [node(kind, ["w"], ["noise"]), node("Add", ["x", "noise"], ["y"])],
            {"x": [1, 4]},
            {"y": None},
            {"w": np.full((1, 4), 0.5, np.float32)},
        )
    )
    assert kinds(nodes) == [kind, "Add"]


def test_nodes_and_weights_that_no_output_needs_are_dropped() -> None:
    nodes, weights = normalised(
        model(
            [
                node("Relu", ["x"], ["y"]),
                node("MatMul", ["x", "unread"], ["dead"]),
                node("Relu", ["dead"], ["dead_too"]),
            ],
            {"x": [1, 4]},
            {"y": None},
            {"unread": filled(4, 4)},
        )
    )
    assert kinds(nodes) == ["Relu"]
    assert weights == {}


def test_an_optional_output_that_nobody_reads_is_left_out() -> None:
    nodes, _ = normalised(
        model(
            [node("MaxPool", ["x"], ["p", "indices"], kernel_shape=[2, 2]), node("Relu", ["p"], ["y"])],
            {"x": [1, 1, 4, 4]},
            {"y": None},
        )
    )
    assert [list(n.output) for n in nodes] == [["p", ""], ["y"]]


def test_unsorted_nodes_are_sorted_and_sorted_ones_keep_their_order() -> None:
    chain = [
        node("Relu", ["x"], ["a"]),
        node("Tanh", ["x"], ["b"]),
        node("Sigmoid", ["a"], ["c"]),
        node("Sum", ["b", "c"], ["y"]),
    ]
    in_order, _ = normalised(model(chain, {"x": [1, 4]}, {"y": None}))
    assert kinds(in_order) == ["Relu", "Tanh", "Sigmoid", "Sum"]
    reverse, _ = normalised(model(chain[::-1], {"x": [1, 4]}, {"y": None}))
    known = {"x"}
    for one in reverse:
        assert set(one.input) <= known
        known.update(one.output)


def test_a_node_sorts_after_what_its_subgraphs_capture() -> None:
    proto = conditional()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([nodes[5], *nodes[:5], nodes[6]])
    found, _ = normalised(proto)
    assert kinds(found)[-2:] == ["If", "Tanh"]


def test_a_name_that_nothing_makes_is_refused_with_the_node_that_reads_it() -> None:
    proto = model([node("Relu", ["ghost"], ["y"], name="head")], {"x": [1, 4]}, {"y": None})
    with pytest.raises(ModelError, match="node 'head' reads 'ghost', which nothing makes"):
        normalised(proto)


def test_a_circle_of_nodes_is_refused() -> None:
    proto = model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"])], {"x": [1, 4]}, {"b": None})
    with pytest.raises(ModelError, match="which nothing makes"):
        normalised(proto)


@pytest.mark.parametrize(
    "maker",
    [node("Neg", ["w"], ["c"]), node("Constant", [], ["c"], value_floats=[1.0, 2.0])],
    ids=["computed", "constant"],
)
def test_an_output_that_no_input_changes_is_refused(maker: NodeProto) -> None:
    proto = model([maker, node("Relu", ["x"], ["y"])], {"x": [1, 4]}, {"y": None, "c": None}, {"w": filled(4)})
    with pytest.raises(ModelError, match="output 'c' does not depend on any input"):
        normalised(proto)


def test_every_node_gets_a_name_of_its_own() -> None:
    nodes, _ = normalised(
        model(
            [
                node("Relu", ["x"], ["a"], name="same"),
                node("Tanh", ["a"], ["b"], name="same"),
                node("Neg", ["b"], ["y"]),
            ],
            {"x": [1, 4]},
            {"y": None},
        )
    )
    names = [n.name for n in nodes]
    assert names[0] == "same"
    assert len(set(names)) == 3
    assert all(names)


def test_captured_names_are_found_at_any_depth_and_shadowed_ones_are_not() -> None:
    deep = subgraph([node("Add", ["outer", "local"], ["z"])], [], [info("z", [1])])
    middle = subgraph(
        [node("Relu", ["other"], ["local"]), node("If", ["flag"], ["w"], then_branch=deep, else_branch=deep)],
        [],
        [info("w", [1])],
    )
    chooser = node("If", ["condition"], ["y"], then_branch=middle, else_branch=middle)
    assert set(captured(chooser)) == {"other", "flag", "outer"}


def test_an_outer_value_that_a_subgraph_hands_on_is_captured() -> None:
    hands_on = subgraph([], [], [info("outer", [1])])
    assert captured(node("If", ["condition"], ["y"], then_branch=hands_on, else_branch=hands_on)) == ["outer"]
