"""A small model measured once, and the program called in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lamella.cli.app import run
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.profile.measure import measure

MODEL = "zoo:cnn-tiny"


class Outcome(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)


Lamella = Callable[..., Outcome]


@pytest.fixture(scope="session")
def graph(cache_dir: Path) -> Graph:
    """cnn-tiny, its profile in the cache with a small budget, so that no verb measures at length."""
    graph = import_model(MODEL)
    measure(graph, threads=(1, 2), budget_s=0.2, shards=True)
    return graph


@pytest.fixture
def lamella(capsys: pytest.CaptureFixture[str]) -> Lamella:
    """Call the program with arguments."""

    def call(*argv: object) -> Outcome:
        capsys.readouterr()
        code = run([str(a) for a in argv])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Outcome(code, out, err)

    return call


@pytest.fixture
def plan_file(lamella: Lamella, graph: Graph, tmp_path: Path) -> Path:
    """A plan of three functions on openfaas."""
    path = tmp_path / "plan.json"
    done = lamella("plan", MODEL, "--platform", "openfaas", "--planner", "uniform-3", "-o", path)
    assert done.code == 0
    return path
