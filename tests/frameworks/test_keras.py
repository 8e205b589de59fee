"""Keras models in, with a bound and with a free batch axis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import lamella
from lamella.errors import ConfigError, ModelError, UnboundShape
from lamella.graph.model import Graph
from tests.frameworks.test_torch import TOLERANCE, divided
from tests.unit.graph.compose import worst_share


def sequential() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Input((12, 12, 3)), keras.layers.Conv2D(8, 3, activation="relu")]
    layers += [keras.layers.BatchNormalization(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(0.5)]
    return keras.Sequential([*layers, keras.layers.Dense(4, name="scores")])


def two_inputs() -> keras.Model:
    keras.utils.set_random_seed(0)
    ids, figures = keras.Input((6,), dtype="int64", name="ids"), keras.Input((5,), name="figures")
    both = keras.layers.Concatenate()([keras.layers.Flatten()(keras.layers.Embedding(20, 4)(ids)), figures])
    hidden = keras.layers.Dense(16, activation="relu")(both)
    return keras.Model({"ids": ids, "figures": figures}, [keras.layers.Dense(1, name="click")(hidden), hidden])


def agrees(model: Any, graph: Graph, feeds: Mapping[str, np.ndarray], given: Any, directory: Path) -> None:
    found = model(given, training=False)
    tensors = found if isinstance(found, (list, tuple)) else [found]
    want = dict(zip(graph.outputs, map(keras.ops.convert_to_numpy, tensors), strict=True))
    assert worst_share(divided(graph, feeds, directory), want) < TOLERANCE


@pytest.mark.parametrize("batch", [1, 3])
def test_slices_of_a_sequential_model_answer_as_the_model(batch: int, tmp_path: Path) -> None:
    model = sequential()
    graph = lamella.load(model)
    assert graph.batchable
    assert (graph.inputs, graph.outputs) == (("input",), ("output",))
    x = np.random.default_rng(0).standard_normal((batch, 12, 12, 3)).astype(np.float32)
    agrees(model, graph, {"input": x}, x, tmp_path)


def test_a_bound_batch_goes_by_keras_own_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sequential()
    export, called = model.export, list[str]()

    def noted(path: str, format: str, **options: Any) -> None:
        called.append(format)
        export(path, format=format, **options)

    monkeypatch.setattr(model, "export", noted)
    graph = lamella.load(model, shapes={"input": (1, 12, 12, 3)})
    assert (called, graph.batchable) == (["onnx"], False)
    x = np.random.default_rng(0).standard_normal((1, 12, 12, 3)).astype(np.float32)
    agrees(model, graph, {"input": x}, x, tmp_path)


@pytest.mark.parametrize("free", [True, False])
def test_two_inputs_of_different_types_in_a_dict(free: bool, tmp_path: Path) -> None:
    model, rng = two_inputs(), np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {
        "ids": rng.integers(0, 20, (2, 6)),
        "figures": rng.standard_normal((2, 5)).astype(np.float32),
    }
    shapes = {"ids": ("N", 6), "figures": ("N", 5)} if free else {}
    graph = lamella.load(model, feeds, shapes=shapes)
    assert (graph.batchable, set(graph.inputs)) == (free, {"ids", "figures"})
    assert [(s.name, s.low, s.high) for s in graph.input_specs] == [("ids", feeds["ids"].min(), feeds["ids"].max() + 1)]
    agrees(model, graph, feeds, feeds, tmp_path)


def test_a_model_of_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sequential()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ConfigError, match="Keras runs on jax here") as caught:
        lamella.load(model)
    assert "KERAS_BACKEND=torch" in caught.value.try_


def test_a_subclassed_model_has_to_declare_its_inputs() -> None:
    class Own(keras.Model):  # type: ignore[misc,unused-ignore]
        def call(self, x: Any) -> Any:
            return x * 2

    with pytest.raises(ModelError, match="Own does not declare its inputs") as caught:
        lamella.load(Own())
    assert "keras.Model(x, model(x))" in caught.value.try_


def test_an_open_axis_other_than_the_batch_has_to_be_bound() -> None:
    x = keras.Input((None, 4), name="x")
    model = keras.Model(x, keras.layers.Dense(2)(x))
    with pytest.raises(UnboundShape, match=r"input 'x': '\?' in \['N', '\?', 4\]"):
        lamella.load(model)
    assert lamella.load(model, shapes={"x": ("N", 7, 4)}).tensors["x"].shape == ("N", 7, 4)
