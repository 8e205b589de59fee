"""The small residual CNN, planned by hand as three functions, and its package."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.package import build
from lamella.plan.document import Plan
from tests.unit.package.plans import plan_of


@pytest.fixture(scope="session")
def cnn(cache_dir: Path) -> Graph:
    return import_model("zoo:cnn-tiny")


@pytest.fixture(scope="session")
def plan(cnn: Graph) -> Plan:
    return plan_of(cnn, [4, 8])


@pytest.fixture(scope="session")
def pristine(cnn: Graph, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that tests only read."""
    directory = tmp_path_factory.mktemp("packages") / "cnn"
    build(plan, cnn, directory)
    return directory


@pytest.fixture
def package(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "package"))
