"""A real daemon in a process of its own, and a small model to put into it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lamella.machine import this_machine
from lamella.runtime.function import Function, TensorSpec
from lamella.store.client import Connection
from lamella.store.records import ModelRecord, SegmentRef

ROOT = Path(__file__).resolve().parents[3]
SIDE = 256


class Made(NamedTuple):
    """A model as it is put: y = x @ w."""

    record: ModelRecord
    blobs: dict[str, Path]
    weights: np.ndarray


def make(directory: Path, name: str, seed: int = 0) -> Made:
    weights = np.random.default_rng(seed).standard_normal((SIDE, SIDE)).astype(np.float32)
    directory.mkdir(exist_ok=True, parents=True)
    segment = _kept(directory, weights.tobytes())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[SIDE, SIDE])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", segment.id), ("offset", "0"), ("length", str(weights.nbytes))):
        tensor.external_data.add(key=key, value=value)
    graph = _kept(directory, _graph(tensor))
    specs = [TensorSpec(n, "float32", (1, SIDE)) for n in "xy"]
    function = Function(
        name="f", kind="packaged", graph=graph.id, weights="", portable="", inputs=(specs[0],), outputs=(specs[1],),
        threads=1, prepack=False, machine=this_machine(), sha256={},
    )  # fmt: skip
    record = ModelRecord(name=name, graph=graph, segments=(segment,), function=function)
    return Made(record, {b.id: directory / b.id for b in record.blobs}, weights)


def _graph(*initializers: TensorProto) -> bytes:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, SIDE]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [values[0]], [values[1]], initializers
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def write_whole(path: Path, weights: np.ndarray) -> str:
    """The same model as a self-contained file; its SHA-256."""
    path.write_bytes(_graph(onnx.numpy_helper.from_array(weights, "w")))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _kept(directory: Path, data: bytes) -> SegmentRef:
    id = hashlib.sha256(data).hexdigest()
    (directory / id).write_bytes(data)
    return SegmentRef(id, len(data))


class Running:
    """A daemon that runs."""

    def __init__(self, directory: Path, allow: str = "", **settings: object) -> None:
        self.directory, self.path = directory, directory / "s" / "store.socket"
        directory.mkdir(mode=0o711, exist_ok=True)
        command = [
            sys.executable,
            str(Path(__file__).with_name("serve_slowly.py")),
            json.dumps({"root": str(directory / "root"), **settings}),
            str(self.path),
        ]
        if allow:
            (directory / "allow.toml").write_text(allow)
            (directory / "allow.toml").chmod(0o600)
            command.append(str(directory / "allow.toml"))
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())
        self.pid = self._process.pid
        assert self._process.stdout
        if self._process.stdout.readline() != b"serving\n":
            raise AssertionError(f"the daemon did not start: exit code {self.end(signal.SIGKILL)}")

    def connect(self) -> Connection:
        return Connection(self.path)

    def put(self, name: str, seed: int = 0, source: str | None = None) -> Made:
        made = make(self.directory / "made", name, seed)
        with self.connect() as connection:
            connection.put(made.record, made.blobs, source)
        return made

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def leases(self) -> int:
        with self.connect() as connection:
            return sum(m.leases for m in connection.status().store.models)

    def end(self, number: int = signal.SIGTERM) -> int:
        self._process.send_signal(number)
        code = self._process.wait(10)
        if self._process.stdout:
            self._process.stdout.close()
        return code


def environment() -> dict[str, str]:
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for another process; fails after a while."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Daemons in a directory that other users may pass, unlike pytest's, which it closes whenever it begins."""
    running: list[Running] = []
    with tempfile.TemporaryDirectory(prefix="lamella-test-") as directory:
        Path(directory).chmod(0o711)

        def begin(allow: str = "", host: str = "", **settings: object) -> Running:
            running.append(Running(Path(directory) / host, allow, **settings))
            return running[-1]

        yield begin
        for each in running:
            each.end(signal.SIGKILL)


@pytest.fixture
def daemon(start: Callable[..., Running]) -> Running:
    return start()
