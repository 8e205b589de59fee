"""Functions of a deployment on the store's weights: the same answers, however they start, and without a daemon too."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from lamella.deploy.local import Deployment
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.runtime.starts import STARTS, Start
from lamella.store.client import SOCKET
from lamella.store.handing import hand_over
from tests.faults import packages
from tests.unit.store_daemon.conftest import Running

Feeds = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def cnn() -> Graph:
    return import_model("zoo:cnn-tiny")


@pytest.fixture(scope="module")
def package(cnn: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.package(cnn, tmp_path_factory.mktemp("cnn") / "package", (2, 6))


@pytest.fixture(scope="module")
def feeds(cnn: Graph) -> Feeds:
    return request(cnn, np.random.default_rng(5))


@pytest.fixture(scope="module")
def expected(package: Path, feeds: Feeds) -> Feeds:
    with Deployment(package, shared=False) as deployment:
        return deployment.infer(feeds).outputs


def served(package: Path, feeds: Feeds, shared: bool | None = None) -> tuple[Feeds, list[bool]]:
    with Deployment(package, shared=shared) as deployment:
        outputs = deployment.infer(feeds).outputs
        return outputs, [i.shared for i in deployment.instances.values()]


def same(found: Feeds, expected: Feeds) -> None:
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.fixture
def put(daemon: Running, package: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv(SOCKET, str(daemon.path))
    names = hand_over(package, "cnn@1")
    assert [n for n in names if ".portable" not in n] == [f"cnn/stage-{k}@1" for k in (1, 2, 3)]
    return daemon


@pytest.mark.parametrize("way", STARTS)
def test_functions_take_their_weights_from_the_store(
    put: Running, package: Path, feeds: Feeds, expected: Feeds, way: Start
) -> None:
    with Deployment(package, start=way) as deployment:
        same(deployment.infer(feeds).outputs, expected)
        assert [i.shared for i in deployment.instances.values()] == [True] * 3
        assert put.leases() >= 3
    assert put.leases() == 0


def test_functions_that_the_store_does_not_know_open_their_files(
    daemon: Running, package: Path, feeds: Feeds, expected: Feeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SOCKET, str(daemon.path))
    outputs, shared = served(package, feeds)
    same(outputs, expected)
    assert shared == [False] * 3


def test_who_asks_for_none_gets_none(put: Running, package: Path, feeds: Feeds, expected: Feeds) -> None:
    outputs, shared = served(package, feeds, shared=False)
    same(outputs, expected)
    assert shared == [False] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_goes_harms_no_function_and_is_done_without_from_then_on(
    put: Running, package: Path, feeds: Feeds, expected: Feeds, number: signal.Signals
) -> None:
    with Deployment(package) as deployment:
        same(deployment.infer(feeds).outputs, expected)
        put.end(number)
        same(deployment.infer(feeds).outputs, expected)
        deployment.scale_to_zero()
        same(deployment.infer(feeds).outputs, expected)
        assert [i.shared for i in deployment.instances.values()] == [False] * 3


def test_a_function_changed_since_it_was_put_is_another_one(
    put: Running, cnn: Graph, feeds: Feeds, tmp_path: Path
) -> None:
    other = packages.package(cnn, tmp_path / "other", (4,))
    _, shared = served(other, feeds)
    assert shared == [False] * 2
