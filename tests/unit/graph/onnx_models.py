"""Small ONNX models for tests, written with `onnx.helper`: plain functions, float32 unless said otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from lamella.graph.load import Shapes, import_model
from lamella.graph.model import Graph

Shape = Sequence[int | str] | None

node = helper.make_node


def info(name: str, shape: Shape, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    weights: Mapping[str, np.ndarray] | None = None,
    kinds: Mapping[str, int] | None = None,
) -> ModelProto:
    """A model of opset 18; `kinds` are the element types of inputs and outputs that are not float32."""
    kinds = kinds or {}
    graph = helper.make_graph(
        nodes,
        "test",
        [info(n, s, kinds.get(n, TensorProto.FLOAT)) for n, s in inputs.items()],
        [info(n, s, kinds.get(n, TensorProto.FLOAT)) for n, s in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def subgraph(
    nodes: Sequence[NodeProto], inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
) -> GraphProto:
    return helper.make_graph(nodes, "inner", inputs, outputs)


def save(proto: ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return path


def graph_of(proto: ModelProto, directory: Path, shapes: Shapes | None = None) -> Graph:
    """The imported graph; the cache is wherever LAMELLA_CACHE points."""
    return import_model(str(save(proto, directory / "model.onnx")), shapes)


def filled(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dense(rows: Shape = (1, 8), layers: int = 3) -> ModelProto:
    """A chain of MatMul and Relu, width 8, weights of 1152 bytes or more so that they live in `weights.bin`."""
    nodes: list[NodeProto] = []
    weights: dict[str, np.ndarray] = {}
    data, width = "x", 8
    for i in range(layers):
        wide = 40 if i % 2 == 0 else 8
        weights[f"w{i}"] = filled(width, wide, seed=i)
        nodes += [node("MatMul", [data, f"w{i}"], [f"m{i}"]), node("Relu", [f"m{i}"], [f"r{i}"])]
        data, width = f"r{i}", wide
    assert rows is not None
    return model(nodes, {"x": rows}, {data: None}, weights)


def residual(blocks: int = 2, width: int = 24) -> ModelProto:
    """Blocks of two MatMuls with a shortcut around them: inside a block two tensors cross, between blocks one."""
    nodes: list[NodeProto] = []
    weights: dict[str, np.ndarray] = {}
    data = "x"
    for i in range(blocks):
        weights[f"a{i}"], weights[f"b{i}"] = filled(width, width, seed=i), filled(width, width, seed=i + 99)
        nodes += [
            node("MatMul", [data, f"a{i}"], [f"left{i}"]),
            node("MatMul", [f"left{i}", f"b{i}"], [f"right{i}"]),
            node("Add", [f"right{i}", data], [f"sum{i}"]),
        ]
        data = f"sum{i}"
    return model(nodes, {"x": [1, width]}, {data: None}, weights)


def masked(layers: int = 4) -> ModelProto:
    """A mask, made from the request without weights, that every layer reads."""
    nodes = [node("Sub", ["one", "mask"], ["inverted"]), node("Mul", ["inverted", "large"], ["bias"])]
    weights: dict[str, np.ndarray] = {"one": np.float32(1).reshape(1), "large": np.float32(-100).reshape(1)}
    data = "x"
    for i in range(layers):
        weights[f"w{i}"] = filled(24, 24, seed=i)
        nodes += [node("MatMul", [data, f"w{i}"], [f"m{i}"]), node("Add", [f"m{i}", "bias"], [f"h{i}"])]
        data = f"h{i}"
    return model(nodes, {"x": [1, 24], "mask": [1, 24]}, {data: None}, weights)


def conditional() -> ModelProto:
    """An If whose branches capture `early`, `late` and the weight `w`, made long before it."""
    branches = [
        subgraph([node("MatMul", ["early", "w"], ["then"])], [], [info("then", [1, 24])]),
        subgraph([node("Add", ["early", "late"], ["otherwise"])], [], [info("otherwise", [1, 24])]),
    ]
    nodes = [
        node("Relu", ["x"], ["early"]),
        node("MatMul", ["early", "w"], ["middle"]),
        node("Sigmoid", ["middle"], ["late"]),
        node("ReduceSum", ["late"], ["sum"], keepdims=0),
        node("Greater", ["sum", "zero"], ["positive"]),
        node("If", ["positive"], ["chosen"], then_branch=branches[0], else_branch=branches[1]),
        node("Tanh", ["chosen"], ["y"]),
    ]
    weights = {"w": filled(24, 24), "zero": np.array(0, np.float32)}
    return model(nodes, {"x": [1, 24]}, {"y": None}, weights)


def loop() -> ModelProto:
    """A Loop of three steps whose body captures `early`."""
    body = subgraph(
        [
            node("Identity", ["go"], ["go_on"]),
            node("Add", ["state", "early"], ["next"]),
        ],
        [info("step", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("state", [1, 24])],
        [info("go_on", [], TensorProto.BOOL), info("next", [1, 24])],
    )
    nodes = [
        node("Relu", ["x"], ["early"]),
        node("Sigmoid", ["early"], ["start"]),
        node("Loop", ["steps", "true", "start"], ["end"], body=body),
        node("Tanh", ["end"], ["y"]),
    ]
    weights: dict[str, np.ndarray] = {"steps": np.array(3, np.int64), "true": np.array(True)}
    return model(nodes, {"x": [1, 24]}, {"y": None}, weights)


def counted() -> ModelProto:
    """NonZero: how many entries there are depends on the data; a sum over them is a plain tensor again."""
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("NonZero", ["r"], ["where"]),
        node("Cast", ["where"], ["floats"], to=TensorProto.FLOAT),
        node("ReduceSum", ["floats"], ["total"], keepdims=0),
        node("Add", ["r", "total"], ["y"]),
    ]
    return model(nodes, {"x": [1, 24]}, {"y": None})


def with_external_data(proto: ModelProto, path: Path, data: str = "weights.data") -> Path:
    """Write `proto` with all its weights in the file `data` beside it."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    onnx.save_model(
        copy, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data, size_threshold=0
    )
    return path
