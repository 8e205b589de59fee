"""What tests that deploy share: packages, built once; after each test nothing may be left of its instances."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.limits import Limiter, detect
from tests.faults import packages


@pytest.fixture(scope="session")
def limiter() -> Limiter:
    return detect()


@pytest.fixture
def enforced(limiter: Limiter) -> Limiter:
    if not limiter.enforced:
        pytest.skip(f"limits are not enforced here: {limiter.reason}")
    return limiter


@pytest.fixture(autouse=True)
def nothing_left(limiter: Limiter) -> Iterator[None]:
    """Every process, group, descriptor and segment is gone after each test."""
    gc.collect()  # what earlier tests left to it
    before = packages.open_files(), packages.mapped_segments()
    yield
    gc.collect()  # a caught error holds the frames it went through, and they their tensors
    assert packages.own_groups(limiter) == []
    assert (packages.open_files(), packages.mapped_segments()) == before


@pytest.fixture(scope="session")
def cnn(cache_dir: Path) -> Graph:
    return import_model("zoo:cnn-tiny")


@pytest.fixture(scope="session")
def three_slices(cnn: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cut after the stem, and inside the residual block, where two tensors cross."""
    return packages.package(cnn, tmp_path_factory.mktemp("cnn") / "package", (2, 6))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return packages.slow_graph(tmp_path_factory.mktemp("slow"))


@pytest.fixture(scope="session")
def slow_package(slow: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.package(slow, tmp_path_factory.mktemp("slow") / "package", (1,))


@pytest.fixture(scope="session")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return packages.greedy_graph(tmp_path_factory.mktemp("greedy"))


@pytest.fixture(scope="session")
def greedy_package(greedy: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.package(greedy, tmp_path_factory.mktemp("greedy") / "package", (1,))
