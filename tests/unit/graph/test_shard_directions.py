"""Recurrent layers that run in both directions, one per shard; those of one direction are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto

from lamella.errors import ShardRefused
from lamella.graph.divide import Divider, ShardSpan
from lamella.graph.requests import request
from tests.unit.graph.onnx_models import filled, graph_of, model, node
from tests.unit.graph.shards import TOLERANCE, difference

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}
ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Relu"]}


def recurrent(
    kind: str, steps: int, taken: int, width: int, *, states: bool, last: bool, named: bool, direction: str
) -> ModelProto:
    """A layer, its outputs side by side as the next layer would take them, and the last states where asked."""
    ways = 2 if direction == "bidirectional" else 1
    gates = GATES[kind]
    weights = {
        "w": filled(ways, gates * width, taken, seed=1) / np.float32(taken**0.5),
        "r": filled(ways, gates * width, width, seed=2) / np.float32(width**0.5),
        "b": filled(ways, 2 * gates * width, seed=3),
        "shape": np.array([steps, 1, ways * width], np.int64),
    }
    inputs = ["x", "w", "r", "b", ""]
    for k in range(STATES[kind] if states else 0):
        weights[f"s{k}"] = filled(ways, 1, width, seed=4 + k)
        inputs.append(f"s{k}")
    more: dict[str, Any] = {"activations": ACTIVATIONS[kind] * ways} if named else {}
    outputs = ["y", *(f"last{k}" for k in range(STATES[kind] if last else 0))]
    nodes: list[NodeProto] = [
        node(kind, inputs, outputs, hidden_size=width, direction=direction, **more),
        node("Transpose", ["y"], ["turned"], perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "shape"], ["out"]),
    ]
    return model(nodes, {"x": [steps, 1, taken]}, dict.fromkeys(["out", *outputs[1:]]), weights)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hypothesis calls a test many times within one fixture."""
    return tmp_path_factory.mktemp("directions")


@settings(max_examples=40)
@given(
    kind=st.sampled_from(sorted(GATES)),
    steps=st.integers(1, 5),
    taken=st.integers(1, 9),
    width=st.integers(1, 9),
    states=st.booleans(),
    last=st.booleans(),
    named=st.booleans(),
    operators=st.integers(1, 3),
)
def test_each_direction_is_a_shard(
    place: Path, kind: str, steps: int, taken: int, width: int, states: bool, last: bool, named: bool, operators: int
) -> None:
    proto = recurrent(kind, steps, taken, width, states=states, last=last, named=named, direction="bidirectional")
    graph = graph_of(proto, place)
    feeds = request(graph, np.random.default_rng(1))
    assert difference(graph, ShardSpan(0, operators, 2, "channels"), feeds, place / "slices") <= TOLERANCE
    parts = Divider(graph).parts(ShardSpan(0, operators, 2, "channels"))
    assert not parts.repeated
    held = sum(parts.weights[n].nbytes for n in parts.weights if n.startswith(("w", "r", "b")))
    assert held == sum(graph.weights[n].bytes for n in ("w", "r", "b"))


@pytest.mark.parametrize("kind", sorted(GATES))
@pytest.mark.parametrize(("direction", "shards"), [("forward", 2), ("reverse", 2), ("bidirectional", 4)])
def test_one_direction_is_not_divided(tmp_path: Path, kind: str, direction: str, shards: int) -> None:
    proto = recurrent(kind, 3, 4, 4, states=True, last=True, named=False, direction=direction)
    graph = graph_of(proto, tmp_path)
    with pytest.raises(ShardRefused):
        Divider(graph).parts(ShardSpan(0, 3, shards, "channels"))


def test_what_every_shard_would_compute_whole_is_told(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["a", "x"], ["ax"]), node("Relu", ["ax"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    proto = model(nodes, {"x": [6, 8]}, {"y": None}, {"a": filled(6, 6), "w": filled(8, 4)})
    graph = graph_of(proto, tmp_path)
    assert Divider(graph).parts(ShardSpan(0, 3, 2, "channels")).repeated == {"ax", "h"}
    assert not Divider(graph).parts(ShardSpan(2, 3, 2, "channels")).repeated
