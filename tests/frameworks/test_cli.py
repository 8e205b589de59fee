"""`package.module:attribute` on the command line, from import to answer, AMPS-Inf's three models among them."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import torch

import lamella
from lamella.cli.app import run
from lamella.graph.model import Graph
from lamella.profile.measure import measure
from tests.frameworks import nets
from tests.unit.graph.compose import worst_share

HERE = Path(__file__).parent
IMAGE = "x=N,3,16,16"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory is the one with nets.py."""
    monkeypatch.chdir(HERE)
    return HERE


def call(*words: object) -> None:
    assert run([str(w) for w in words]) == 0


def quickly(name: str, shapes: dict[str, tuple[int | str, ...]] | None = None) -> Graph:
    """The graph, its profile in the cache with a small budget, so that no verb measures at length."""
    graph = lamella.load(name, shapes=shapes)
    measure(graph, threads=(1, 2), budget_s=0.2)
    return graph


@pytest.mark.parametrize("name", ["nets:small", "nets:SMALL", "nets:holder.small", "nets:Small"])
def test_an_instance_a_class_and_a_function_are_models(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("inspect", name, "--shape", IMAGE, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == name.rpartition(":")[2]
    assert found["inputs"] == {"x": ["N", 3, 16, 16]}


def test_a_pair_of_model_and_example_needs_no_shape(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("inspect", "nets:block", "--json")
    assert json.loads(capsys.readouterr().out)["inputs"] == {"ids": [2, 12], "attention_mask": [2, 12]}


def test_a_plan_is_run_from_elsewhere_without_the_module(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly("nets:small", {"x": ("N", 3, 16, 16)})
    planning = ("--shape", IMAGE, "--no-shards", "--platform", "openfaas", "--planner", "uniform-2")
    call("plan", "nets:small", *planning, "-o", tmp_path / "plan.json")
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    np.savez("x.npz", x=x)
    call("check", "plan.json")
    call("run", "plan.json", "--input", "x.npz", "--output", "y.npz")
    with torch.no_grad(), np.load("y.npz") as answer:
        want = nets.small().eval()(torch.from_numpy(x))
        assert worst_share(dict(answer), {n: t.numpy() for n, t in want.items()}) < 1e-4


@pytest.mark.slow  # minutes: each is exported twice and measured
@pytest.mark.parametrize("name", ["resnet50", "inception_v3", "xception"])
def test_amps_infs_models_are_planned_divided_and_answer_as_in_keras(name: str, here: Path, tmp_path: Path) -> None:
    graph = quickly(f"nets:{name}")
    planning = ("--no-shards", "--platform", "openfaas", "--planner", "uniform-3")
    call("plan", f"nets:{name}", *planning, "-o", tmp_path / "plan.json")
    x = np.random.default_rng(0).standard_normal(graph.tensors["input"].shape_at(1)).astype(np.float32)
    np.savez(tmp_path / "x.npz", input=x)
    call("check", tmp_path / "plan.json")
    call("run", tmp_path / "plan.json", "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    want = keras.ops.convert_to_numpy(getattr(nets, name)()(x, training=False))
    with np.load(tmp_path / "y.npz") as answer:
        assert worst_share(dict(answer), {"predictions": want}) < 1e-4
    assert len(json.loads((tmp_path / "plan.json").read_text())["functions"]) == 3
