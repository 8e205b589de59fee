from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.limits import Limiter, detect
from tests.faults import packages


@pytest.fixture(scope="session")
def limiter() -> Limiter:
    return detect()


@pytest.fixture(autouse=True)
def nothing_left(limiter: Limiter) -> Iterator[None]:
    before = packages.open_files()
    yield
    assert packages.own_groups(limiter) == []
    assert packages.open_files() == before


@pytest.fixture(scope="session")
def cnn(cache_dir: Path) -> Graph:
    return import_model("zoo:cnn-tiny")


@pytest.fixture(scope="session")
def function(cnn: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one function: all of cnn-tiny."""
    return packages.package(cnn, tmp_path_factory.mktemp("cnn") / "package") / "stage-1"
