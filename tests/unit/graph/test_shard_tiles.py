"""Spans divided by bands of rows: random stacks of windows, branches with different halos, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto

from lamella.errors import ShardRefused
from lamella.graph.divide import Divider, ShardSpan, shard
from lamella.graph.requests import request
from tests.unit.graph.onnx_models import filled, graph_of, model, node
from tests.unit.graph.shards import TOLERANCE, difference

FAIR = ("rows to divide among", "from padding alone")
"""Reasons to refuse a stack that consists of nothing but operators with rules."""


class Stack:
    """A model over images that grows by one operator or branch at a time."""

    def __init__(self, draw: st.DrawFn, rows: int) -> None:
        self.draw = draw
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.channels, self.height, self.width = draw(st.sampled_from([2, 4])), rows, draw(st.integers(3, 9))
        self.first = (self.channels, self.height, self.width)
        self.data = "x"
        self.sure = True
        """Of the size: how often a window with ceil_mode fits is for the runtime to say."""

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        values = filled(*shape, seed=len(self.weights))
        self.weights[name] = values / np.float32(max(1.0, np.prod(shape[1:]) ** 0.5))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(node(kind, list(inputs), [out], **attributes))
        return out

    def window(self, kind: str) -> dict[str, Any]:
        """Random kernel, stride, dilation and padding that fit, and the size they lead to."""
        draw, pools = self.draw, kind != "Conv"
        kernel, stride, dilation, before, behind, sizes = [], [], [], [], [], []
        auto = draw(st.sampled_from(["NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
        ceil = pools and auto == "NOTSET" and draw(st.booleans())
        for size in (self.height, self.width):
            k = draw(st.integers(1, min(4, size)))
            d = draw(st.integers(1, 2)) if not auto.startswith("SAME") and 2 * (k - 1) + 1 <= size else 1
            s = draw(st.integers(1, k if pools and auto.startswith("SAME") else 3))
            reach = d * (k - 1) + 1
            pads = [draw(st.integers(0, k - 1)) if auto == "NOTSET" else 0 for _ in range(2)]
            left = size + sum(pads) - reach
            steps = left // s + 1
            if ceil and left % s and steps * s < size + pads[0]:
                steps += 1
            sizes.append(-(-size // s) if auto.startswith("SAME") else steps)
            kernel.append(k)
            stride.append(s)
            dilation.append(d)
            before.append(pads[0])
            behind.append(pads[1])
        self.height, self.width = sizes
        self.sure = self.sure and not ceil
        found: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "auto_pad": auto, "dilations": dilation}
        if auto == "NOTSET":
            found["pads"] = [*before, *behind]
        if pools:
            found["ceil_mode"] = int(ceil)
        return found

    def conv(self, data: str, outputs: int, attributes: dict[str, Any], groups: int = 1) -> str:
        kernel = attributes["kernel_shape"]
        bias = [self.weight(outputs)] if self.draw(st.booleans()) else []
        weight = self.weight(outputs, self.channels // groups, *kernel)
        return self.add("Conv", data, weight, *bias, group=groups, **attributes)

    def keeping(self, data: str) -> str:
        """A convolution that keeps the size, odd and padded by as much as it looks to each side."""
        k, d = self.draw(st.sampled_from([1, 3, 5])), self.draw(st.integers(1, 2))
        around = [d * (k // 2)] * 4
        return self.conv(data, self.channels, {"kernel_shape": [k, k], "dilations": [d, d], "pads": around})

    def grow(self) -> None:
        draw, data, c = self.draw, self.data, self.channels
        match draw(st.sampled_from("conv conv pool average relu norm lrn add residual concat full".split())):
            case "conv":
                groups = draw(st.sampled_from([1, 1, 2, c]))
                outputs = draw(st.sampled_from([c, 2 * c])) if c <= 8 else c
                self.data = self.conv(data, outputs, self.window("Conv"), groups)
                self.channels = outputs
            case "pool":
                self.data = self.add("MaxPool", data, **self.window("MaxPool"))
            case "average":
                counts = draw(st.integers(0, 1))
                self.data = self.add("AveragePool", data, **self.window("AveragePool"), count_include_pad=counts)
            case "relu":
                self.data = self.add(draw(st.sampled_from(["Relu", "Sigmoid", "Dropout", "Identity"])), data)
            case "norm":
                names = [self.weight(c), self.weight(c), self.weight(c)]
                self.weights["variance"] = np.full(c, 1.5, np.float32)
                if self.weights["variance"].size == c:
                    self.data = self.add("BatchNormalization", data, *names, f"variance{c}")
                    self.weights[f"variance{c}"] = self.weights.pop("variance")
            case "lrn":
                self.data = self.add("LRN", data, size=3)
            case "add":
                self.data = self.add("Add", data, self.weight(c, 1, 1))
            case "full" if self.sure:
                self.data = self.add("Mul", data, self.weight(1, self.height, 1))
            case "residual":
                inner = self.keeping(self.add("Relu", self.keeping(data)))
                self.data = self.add("Add", inner, data if draw(st.booleans()) else self.keeping(data))
            case "concat" if c <= 8:
                self.data = self.add("Concat", data, self.keeping(data), axis=1)
                self.channels *= 2
            case _:
                pass

    def model(self) -> ModelProto:
        outputs = {self.data: None}
        if len(self.nodes) > 2 and self.draw(st.booleans()):  # a tensor that others see, and the span reads too
            outputs = {self.nodes[len(self.nodes) // 2].output[0]: None} | outputs
        proto = model(self.nodes, {"x": ["batch", *self.first]}, outputs, self.weights)
        proto.opset_import[0].version = 19  # averages with dilations
        return proto


@st.composite
def stacks(draw: st.DrawFn) -> tuple[ModelProto, tuple[int, int, int]]:
    stack = Stack(draw, draw(st.integers(6, 40)))
    for _ in range(draw(st.integers(1, 6))):
        if min(stack.height, stack.width) > 0:
            stack.grow()
    if not stack.nodes:
        stack.data = stack.add("Relu", "x")
    return stack.model(), stack.first


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hypothesis calls a test many times within one fixture."""
    return tmp_path_factory.mktemp("stacks")


@settings(max_examples=150)
@given(stack=stacks(), shards=st.sampled_from([2, 3, 4, 8]), free=st.booleans())
def test_bands_answer_as_the_whole_image_does(
    place: Path, stack: tuple[ModelProto, tuple[int, int, int]], shards: int, free: bool
) -> None:
    proto, sizes = stack
    graph = graph_of(proto, place, {"x": ("N" if free else 1, *sizes)})
    feeds = request(graph, np.random.default_rng(1), batch=2 if free else 1)
    try:
        worst = difference(graph, ShardSpan(0, len(graph.operators), shards, "tiles"), feeds, place / "slices")
    except ShardRefused as error:
        if not any(reason in error.message for reason in FAIR):
            raise
        event("refused")
        return
    event(f"divided among {shards}, {'the same bits' if worst == 0 else 'other last bits'}")
    assert worst <= TOLERANCE


def convolution(*, height: int = 12, kernel: int = 3, **attributes: Any) -> ModelProto:
    weights = {"w": filled(4, 3, kernel, 3)}
    return model([node("Conv", ["x", "w"], ["y"], **attributes)], {"x": ["batch", 3, height, 9]}, {"y": None}, weights)


def bands_of(proto: ModelProto, directory: Path, shards: int) -> list[list[NodeProto]]:
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    graph = graph_of(proto, directory, {"x": ("N", *shape)})
    span = ShardSpan(0, len(graph.operators), shards, "tiles")
    return [list(nodes) for nodes in Divider(graph).parts(span).shards]


def rows(node: NodeProto) -> tuple[int, int]:
    """What a Slice takes, from the name of what it gives: tensor[axis:first:last]/..."""
    _, first, last = node.output[0].split("[")[1].split("]")[0].split(":")
    return int(first), int(last)


def pads(node: NodeProto) -> list[int]:
    return next(list(a.ints) for a in node.attribute if a.name == "pads")


def test_bands_overlap_by_the_halo_and_are_padded_only_where_the_image_ends(tmp_path: Path) -> None:
    shards = bands_of(convolution(pads=[1] * 4), tmp_path, 3)
    assert [rows(cut) for cut, _ in shards] == [(0, 5), (3, 9), (7, 12)]
    assert [pads(conv) for _, conv in shards] == [[1, 1, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1]]


def test_a_stride_skips_rows_that_no_band_needs(tmp_path: Path) -> None:
    shards = bands_of(convolution(height=13, strides=[3, 1], dilations=[2, 1], pads=[0] * 4), tmp_path, 3)
    assert [rows(cut) for cut, _ in shards] == [(0, 5), (3, 8), (6, 11)]


def test_same_padding_is_written_out(tmp_path: Path) -> None:
    shards = bands_of(convolution(kernel=4, auto_pad="SAME_UPPER"), tmp_path, 2)
    assert [pads(conv) for _, conv in shards] == [[1, 1, 0, 1], [0, 1, 2, 1]]
    assert not any(a.name == "auto_pad" for _, conv in shards for a in conv.attribute)


def test_branches_with_different_halos_share_the_rows_they_both_need(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Conv", ["r", "w"], ["c"], pads=[2] * 4),
        node("Add", ["c", "r"], ["y"]),
    ]
    proto = model(nodes, {"x": ["batch", 3, 12, 9]}, {"y": None}, {"w": filled(3, 3, 5, 5)})
    first, last = bands_of(proto, tmp_path, 2)
    assert [n.op_type for n in first] == ["Slice", "Relu", "Conv", "Slice", "Add"]
    assert [rows(n) for n in first if n.op_type == "Slice"] == [(0, 8), (0, 6)]
    assert [rows(n) for n in last if n.op_type == "Slice"] == [(4, 12), (6, 12)]


def test_weights_stay_whole_and_are_written_once(tmp_path: Path) -> None:
    graph = graph_of(convolution(pads=[1] * 4), tmp_path, {"x": ("N", 3, 12, 9)})
    made = shard(graph, [ShardSpan(0, 1, 4, "tiles")]).graph
    assert "w" in made.weights
    assert all(name == "w" or name.startswith("lamella/int64/") for name in made.weights)


@pytest.mark.parametrize("axes", [1, 3])
def test_sound_and_volumes_have_bands_too(axes: int, tmp_path: Path) -> None:
    sizes = (20, 6, 5)[:axes]
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * (2 * axes)),
        node("MaxPool", ["c"], ["y"], kernel_shape=[2] * axes, strides=[2] * axes),
    ]
    proto = model(nodes, {"x": ["batch", 3, *sizes]}, {"y": None}, {"w": filled(4, 3, *([3] * axes))})
    graph = graph_of(proto, tmp_path, {"x": ("N", 3, *sizes)})
    feeds = request(graph, np.random.default_rng(0), batch=2)
    assert difference(graph, ShardSpan(0, 2, 4, "tiles"), feeds, tmp_path) <= TOLERANCE


@pytest.mark.parametrize(
    ("kind", "attributes", "reason"),
    [
        ("GlobalAveragePool", {}, "'y' has 1 rows to divide among 2 shards"),
        ("Softmax", {"axis": 2}, "has no rule that finds the rows it looks at"),
        ("Transpose", {"perm": [0, 1, 3, 2]}, "has no rule that finds the rows it looks at"),
        ("Flatten", {}, "'y' of shape .* has no rows to divide"),
        ("ReduceMax", {"keepdims": 0}, "'y' of shape .* has no rows to divide"),
        ("RandomNormalLike", {}, "draws random numbers"),
    ],
)
def test_an_operator_that_looks_at_more_than_a_window_is_refused(
    kind: str, attributes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    nodes = [node("Relu", ["x"], ["r"]), node(kind, ["r"], ["y"], **attributes)]
    graph = graph_of(model(nodes, {"x": [1, 3, 8, 8]}, {"y": None}), tmp_path)
    with pytest.raises(ShardRefused, match=reason):
        shard(graph, [ShardSpan(0, 2, 2, "tiles")])


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("Concat", ["x", "x"], ["y"], axis=2)], "Concat .* has no rule"),
        ([node("MaxPool", ["x"], ["y", "where"], kernel_shape=[2, 2])], "gives more than one tensor"),
        ([node("Conv", ["x", "one"], ["y"], pads=[3] * 4)], "computes rows 0 to 2 from padding alone"),
        ([node("Relu", ["x"], ["r"]), node("Conv", ["x", "r"], ["y"], pads=[4] * 4)], "takes the whole of 'r'"),
        ([node("MaxPool", ["x"], ["y"], kernel_shape=[5, 5])], "'y' has 4 rows to divide among 5 shards"),
    ],
)
def test_a_stack_that_cannot_be_divided_is_refused(nodes: list[NodeProto], reason: str, tmp_path: Path) -> None:
    outputs = dict.fromkeys(nodes[-1].output)
    proto = model(nodes, {"x": [1, 1, 8, 8]}, outputs, {"one": filled(1, 1, 1, 1)}, {"where": TensorProto.INT64})
    graph = graph_of(proto, tmp_path)
    with pytest.raises(ShardRefused, match=reason):
        shard(graph, [ShardSpan(0, len(graph.operators), 5, "tiles")])


def test_an_operator_of_which_only_a_later_output_is_used_is_refused_too(tmp_path: Path) -> None:
    nodes = [node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2), node("Relu", ["b"], ["y"])]
    graph = graph_of(model(nodes, {"x": [1, 2, 8, 8]}, {"y": None}), tmp_path)
    with pytest.raises(ShardRefused, match="gives more than one tensor"):
        shard(graph, [ShardSpan(0, 2, 2, "tiles")])
