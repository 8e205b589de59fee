"""Many packages on one host, with a real daemon: who is alive, who leaves, and whose weights the answers come from."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lamella.deploy.host import Host
from lamella.errors import ConfigError, InputRefused, PackageError
from lamella.graph.load import import_model
from lamella.limits.unlimited import Unlimited
from lamella.runtime.starts import environment
from lamella.store.client import SOCKET, Connection
from lamella.store.handing import hand_over
from tests.faults import packages

SIDE = 1024
NAMES = "abcd"
UNLIMITED = Unlimited("a test")
ROOM = 6 << 20
"""Of the store for one model: 4 MiB of weights, a table, and whole huge pages."""


def write(directory: Path, scale: float) -> Path:
    """A package of y = x @ w, w a scaled permutation, so that each of them is told by its answer."""
    weights = np.eye(SIDE, dtype=np.float32)[::-1] * np.float32(scale)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, SIDE]) for n in "xy"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(weights, "w")])
    directory.mkdir()
    path = directory / "model.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )
    return packages.package(import_model(str(path)), directory / "package")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("many")
    return {name: write(place / name, k + 1.0) for k, name in enumerate(NAMES)}


Daemon = Callable[[int], "subprocess.Popen[bytes]"]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: dict[str, Path]) -> Iterator[Daemon]:
    """Starts a daemon with room in memory for so many of the models, -1: as the kernel sees fit; and puts them."""
    socket = tmp_path / "s" / "store.socket"
    monkeypatch.setenv(SOCKET, str(socket))
    running: list[subprocess.Popen[bytes]] = []

    def start(models: int) -> subprocess.Popen[bytes]:
        command = ["store", "serve", "--root", str(tmp_path / "root"), "--socket", str(socket)]
        command += ["--memory-mb", str((models * ROOM >> 20) + 1)] if models >= 0 else ["--backing", "page-cache"]
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", "from lamella.cli import main; main()", *command],
                stdout=subprocess.PIPE,
                env=environment(),
            )
        )
        assert running[-1].stdout
        assert running[-1].stdout.readline().startswith(b"serving")
        for name, package in made.items():
            hand_over(package, f"{name}@1")
        return running[-1]

    yield start
    for each in running:
        each.send_signal(signal.SIGKILL)
        each.wait()
        if each.stdout:
            each.stdout.close()


def ask(host: Host, name: str, rng: np.random.Generator) -> float:
    """Ask and see that this very model answered; ms of its cold start."""
    x = rng.standard_normal((1, SIDE), dtype=np.float32)
    answer = host.infer(name, {"x": x})
    np.testing.assert_allclose(answer.outputs["y"], x[:, ::-1] * (NAMES.index(name) + 1), rtol=1e-6)
    return answer.cold_ms


def leases() -> int:
    with Connection() as connection:
        return sum(model.leases for model in connection.status().store.models)


def test_every_package_answers_as_itself_and_stays_alive_while_all_fit(
    daemon: Daemon, made: dict[str, Path], rng: np.random.Generator
) -> None:
    daemon(4)
    with Host(made, memory_mb=1024, limiter=UNLIMITED) as host:
        for name in "abcdabcd":
            ask(host, name, rng)
        assert host.alive == tuple("abcd")
        assert host.evictions == 0
        assert all(host.is_shared(name) for name in NAMES)
        assert leases() == 4
        assert 4 < host.held_mb < 4 * 100
    assert leases() == 0


def test_where_the_store_has_no_room_the_one_used_longest_ago_leaves_and_weights_are_shared_still(
    daemon: Daemon, made: dict[str, Path], rng: np.random.Generator
) -> None:
    daemon(2)
    with Host(made, memory_mb=1024, limiter=UNLIMITED) as host:
        for name, alive in [("a", "a"), ("b", "ab"), ("a", "ba"), ("c", "ac"), ("d", "cd"), ("a", "da")]:
            ask(host, name, rng)
            assert host.alive == tuple(alive)
            assert host.is_shared(name)
        assert host.evictions == 3


def test_where_instances_have_no_room_they_leave_and_their_weights_stay_in_the_store(
    daemon: Daemon, made: dict[str, Path], rng: np.random.Generator
) -> None:
    daemon(4)
    with Host(made, memory_mb=1, limiter=UNLIMITED, start="fresh") as host:  # an instance holds more: each is alone
        for name in "abca":
            ask(host, name, rng)
            assert host.alive == (name,)
            assert host.is_shared(name)
        assert host.evictions == 3
        with Connection() as connection:
            store = connection.status().store
        there = {m.name[0] for m in store.models if m.memory_bytes == m.bytes and m.name.endswith("stage-1@1")}
        assert (store.evictions, there) == (0, {*"abc"})


def weights_mb(host: Host, name: str) -> float:
    """Of the store's files in the process, once it has done what it was told."""
    (instance,) = host.instances(name)
    instance.report()
    lines = Path(f"/proc/{instance.pid}/smaps").read_text().splitlines()
    at = [k for k, line in enumerate(lines) if "/objects/" in line]
    return sum(int(next(line for line in lines[k:] if line.startswith("Rss:")).split()[1]) for k in at) / 1024


def test_instances_outlive_their_weights_which_stay_by_a_budget_and_a_policy(
    daemon: Daemon, made: dict[str, Path], rng: np.random.Generator
) -> None:
    daemon(-1)
    with Host(made, memory_mb=1024, limiter=UNLIMITED, total_mb=1024) as host:
        for name in NAMES:
            ask(host, name, rng)
        total_mb = host.held_mb + 2.5 * (ROOM >> 20)
    with Host(made, memory_mb=total_mb, limiter=UNLIMITED, total_mb=total_mb, policy="lru") as host:
        for name in "abcdab":
            ask(host, name, rng)
        assert host.alive == tuple("cdab")
        assert host.evictions == 0
        assert [weights_mb(host, name) > 4 for name in NAMES] == [True, True, False, False]
        assert ask(host, "c", rng) == 0.0
        assert [weights_mb(host, name) > 4 for name in NAMES] == [False, True, True, False]
        host.evict("b")
        ask(host, "d", rng)
        assert [weights_mb(host, name) > 4 for name in "acd"] == [False, True, True]
        (pid,) = host.pids("a")
        os.kill(pid, signal.SIGKILL)
        assert ask(host, "a", rng) > 0.0, "whoever was to bring its weights was gone"
        assert weights_mb(host, "a") > 4
        with pytest.raises(InputRefused):
            host.infer("a", {"x": np.zeros((1, 3), np.float32)})
        assert ask(host, "a", rng) == 0.0
    assert leases() == 0


def test_without_a_daemon_packages_open_their_own_files_which_are_verified_first(
    made: dict[str, Path], rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SOCKET, str(tmp_path / "nobody"))
    damaged = write(tmp_path / "e", 9.0)
    weights = damaged / "stage-1" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with Host({**made, "e": damaged}, memory_mb=1024, limiter=UNLIMITED) as host:
        ask(host, "a", rng)
        assert not host.is_shared("a")
        with pytest.raises(PackageError, match=r"weights\.bin changed"):
            host.infer("e", {"x": np.zeros((1, SIDE), np.float32)})
        assert host.alive == ("a",)


def test_a_daemon_that_goes_is_done_without_from_then_on(
    daemon: Daemon, made: dict[str, Path], rng: np.random.Generator
) -> None:
    running = daemon(4)
    with Host(made, memory_mb=1024, limiter=UNLIMITED) as host:
        ask(host, "a", rng)
        running.kill()
        running.wait()
        assert ask(host, "a", rng) == 0.0
        host.evict("a")
        ask(host, "a", rng)
        assert not host.is_shared("a")


def test_a_package_whose_weights_are_damaged_in_the_store_opens_its_own_files(
    daemon: Daemon, made: dict[str, Path], rng: np.random.Generator, tmp_path: Path
) -> None:
    daemon(4)
    with Connection() as connection:
        connection.evict("a/stage-1@1")
    for blob in (tmp_path / "root" / "objects").glob("*/*"):
        blob.chmod(0o600)
        with blob.open("r+b") as file:
            file.write(b"?")
    with Host(made, memory_mb=1024, limiter=UNLIMITED) as host:
        ask(host, "a", rng)
        assert not host.is_shared("a")


def test_a_model_that_no_eviction_makes_room_for_opens_its_own_files(
    daemon: Daemon, made: dict[str, Path], rng: np.random.Generator
) -> None:
    daemon(0)
    with Host(made, memory_mb=1024, limiter=UNLIMITED) as host:
        ask(host, "a", rng)
        assert not host.is_shared("a")


def test_a_refused_request_leaves_the_instance_and_a_lost_one_is_replaced(
    daemon: Daemon, made: dict[str, Path], rng: np.random.Generator
) -> None:
    daemon(4)
    with Host(made, memory_mb=1024, limiter=UNLIMITED) as host:
        ask(host, "a", rng)
        with pytest.raises(InputRefused):
            host.infer("a", {"x": np.zeros((1, 3), np.float32)})
        assert ask(host, "a", rng) == 0.0
        (pid,) = host.pids("a")
        os.kill(pid, signal.SIGKILL)
        assert ask(host, "a", rng) > 0.0


def test_it_refuses_what_makes_no_sense(made: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="needs memory"):
        Host(made, memory_mb=0)
    with pytest.raises(ConfigError, match="may take 2 MB of 1 MB"):
        Host(made, memory_mb=2, total_mb=1)
    with pytest.raises(ConfigError, match="no eviction policy"):
        Host(made, memory_mb=1, total_mb=1, policy="best")
    with Host(made, memory_mb=100, limiter=UNLIMITED) as host, pytest.raises(ConfigError, match="no package 'z'"):
        host.infer("z", {})


def test_the_guides_host_answers(
    made: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(SOCKET, str(tmp_path / "nobody"))
    monkeypatch.chdir(tmp_path)
    Path("package").symlink_to(made["a"])
    np.savez("x.npz", x=np.ones((1, SIDE), np.float32))
    guide = (Path(__file__).resolve().parents[3] / "docs" / "guide.md").read_text()
    (block,) = [b for b in re.findall(r"^```python\n(.*?)^```", guide, re.M | re.S) if "Host(" in b]
    exec(compile(block, "guide", "exec"), {})
    assert capsys.readouterr().out.endswith("('one',) 0\n")
