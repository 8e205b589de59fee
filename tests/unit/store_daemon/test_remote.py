"""The daemon over remote storage that is slow: who waits for it waits alone; and a large model from there."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from lamella.errors import RemoteAway, StoreFull, UnknownModel
from lamella.store.client import session
from lamella.store.handing import hand_over
from lamella.zoo import transformer
from tests.faults.gate import Gate, gated
from tests.faults.s3 import BUCKET, Server, bucket, server
from tests.faults.tls import behind_tls, certificates
from tests.unit.store_daemon.conftest import Running, make, until

__all__ = ["bucket", "server"]

ASKERS = 5


@pytest.fixture
def gate(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    with gated(server.port) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.endpoint)
        yield gate


@pytest.fixture
def second(gate: Gate, start: Callable[..., Running]) -> Running:
    """A host beside one that put `far@1`; it has `here@1` in memory and `disk@1` on disk."""
    start(host="first", remote=f"s3://{BUCKET}/store").put("far@1", seed=1)
    daemon = start(host="second", remote=f"s3://{BUCKET}/store")
    daemon.put("here@1", seed=2)
    daemon.put("disk@1", seed=3)
    session("here@1", daemon.path).close()
    return daemon


def seconds(act: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.monotonic()
    act()
    return time.monotonic() - began


def test_who_asks_for_what_only_remote_storage_has_delays_nobody_else(second: Running, gate: Gate) -> None:
    gate.open.clear()
    asked = gate.connections
    with ThreadPoolExecutor(ASKERS) as pool:
        waiting = [pool.submit(session, "far@1", second.path) for _ in range(ASKERS)]
        until(lambda: gate.connections > asked)
        session("disk@1", second.path).close()
        assert min(seconds(lambda: session("here@1", second.path).close()) for _ in range(5)) < 0.1
        with second.connect() as connection:
            assert min(seconds(connection.status) for _ in range(5)) < 0.1
            assert "far@1" not in {m.name for m in connection.status().store.models}
            with pytest.raises(UnknownModel):  # what is not here cannot leave, and nobody is asked
                connection.evict("far@1")
        assert not any(each.done() for each in waiting)
        gate.open.set()
        for each in waiting:
            each.result(30).close()
    assert gate.connections == asked + 2 + 2 * 2  # the record's size and bytes, and those of two blobs


def test_a_name_that_nobody_knows_is_asked_of_remote_storage_each_time(second: Running, gate: Gate) -> None:
    for _ in range(2):
        with pytest.raises(UnknownModel, match="none@1"):
            session("none@1", second.path)


def test_who_makes_room_on_a_full_disk_waits_for_remote_storage_alone(
    gate: Gate, start: Callable[..., Running], tmp_path: Path
) -> None:
    size = make(tmp_path, "m0@1").record.bytes
    settings = {"remote": f"s3://{BUCKET}/store", "disk_bytes": 2 * size}
    daemon = start(**settings)
    for k in (1, 2):
        daemon.put(f"m{k}@1", seed=k)
    daemon.end()
    gate.open.clear()
    asked = gate.connections
    daemon = start(**settings)
    until(lambda: gate.connections > asked)  # what may leave is asked of remote storage
    session("m2@1", daemon.path).close()
    with pytest.raises(StoreFull):
        daemon.put("m3@1", seed=3)
    gate.open.set()
    until(lambda: taken(daemon, "m3@1"))
    held = session("m3@1", daemon.path)
    gate.open.clear()
    with ThreadPoolExecutor(1) as pool:
        asked = gate.connections
        waiting = pool.submit(daemon.put, "m4@1", 4)
        until(lambda: gate.connections > asked)
        session("m3@1", daemon.path).close()
        held.close()
        assert not waiting.done()
        gate.open.set()
        waiting.result(30)


def taken(daemon: Running, name: str) -> bool:
    """Whether there is room for a model by now."""
    try:
        daemon.put(name, seed=3)
    except StoreFull:
        return False
    return True


TOKENS = 32
BERT_BYTES = 430 << 20


def write_bert(path: Path) -> Path:
    """The zoo's, for one sequence at a time."""
    blueprint = dataclasses.replace(transformer.BASE, sequence=TOKENS).build("bert")
    proto = onnx.ModelProto.FromString(b"".join(blueprint.stream()))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(proto, path)
    return path


def random_ids(path: Path) -> dict[str, np.ndarray]:
    """A request of a model of words."""
    rng = np.random.default_rng(7)
    dtypes = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}
    plain = ort.InferenceSession(path)
    return {i.name: rng.integers(0, 2, [d if isinstance(d, int) else 1 for d in i.shape]).astype(dtypes[i.type])
            for i in plain.get_inputs()}  # fmt: skip


def arrived(daemon: Running) -> int:
    """Bytes that lie where downloads are written."""
    total = 0
    for path in (daemon.directory / "root" / "incoming").iterdir():
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@pytest.mark.slow
def test_a_model_of_434_mb_comes_whole_from_remote_storage_or_not_at_all(
    server: Server,
    start: Callable[..., Running],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
    cache_dir: Path,
) -> None:
    made = certificates(tmp_path)
    model = write_bert(tmp_path / "bert.onnx")
    x = random_ids(model)
    expected = ort.InferenceSession(model).run(None, x)
    with behind_tls(server.port, made) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(made.authority))
        daemon = start(remote=f"s3://{BUCKET}/store")
        names = hand_over(model, "bert@1", daemon.path)

        def leave() -> None:
            """Take it out of memory and off the disk."""
            with daemon.connect() as connection:
                for name in {m.name for m in connection.status().store.models}:
                    connection.evict(name, disk=True)
                assert [t.used_bytes for t in connection.status().store.tiers] == [0, 0, 0]
            assert not any(p.is_file() for p in (daemon.directory / "root" / "objects").rglob("*"))

        leave()
        assert names == ["bert@1", "bert.portable@1"]
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(session, "bert@1", daemon.path)
            until(lambda: arrived(daemon) > BERT_BYTES // 4, 60)
            server.kill()
            with pytest.raises(RemoteAway):
                opening.result(120)
        until(lambda: arrived(daemon) == 0, 60)
        with daemon.connect() as connection:
            assert all(m.leases == 0 and m.memory_bytes < m.bytes for m in connection.status().store.models)
        whole(daemon)

        server.start()
        began = time.monotonic()
        opened = session("bert@1", daemon.path)
        record_property("the rest after a kill, s", round(time.monotonic() - began, 1))
        for answer, right in zip(opened.run(None, x), expected, strict=True):
            np.testing.assert_allclose(answer, right, atol=1e-4 * np.ptp(right))
        opened.close()
        until(lambda: daemon.leases() == 0)
        assert whole(daemon) > BERT_BYTES // 2

        leave()
        began = time.monotonic()
        opened = session("bert@1", daemon.path)
        record_property("all of it, s", round(time.monotonic() - began, 1))
        with daemon.connect() as connection:
            store = connection.status().store
        assert store.damaged == 0
        assert store.tiers[0].used_bytes > 400 << 20
        assert whole(daemon) == store.tiers[1].used_bytes


def whole(daemon: Running) -> int:
    """Bytes of the disk tier, of which every file is what its name says."""
    files = [p for p in (daemon.directory / "root" / "objects").rglob("*") if p.is_file()]
    for path in files:
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == path.name
    return sum(path.stat().st_size for path in files)
