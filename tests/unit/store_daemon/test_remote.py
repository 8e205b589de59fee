"""The daemon over remote storage that is slow: who waits for it waits alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lamella.errors import UnknownModel
from lamella.store.client import session
from tests.faults.gate import Gate, gated
from tests.faults.s3 import BUCKET, Server, bucket, server
from tests.unit.store_daemon.conftest import Running, until

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


def test_who_asks_for_what_only_remote_storage_has_delays_nobody_else(second: Running, gate: Gate) -> None:
    gate.open.clear()
    asked = gate.connections
    with ThreadPoolExecutor(ASKERS) as pool:
        waiting = [pool.submit(session, "far@1", second.path) for _ in range(ASKERS)]
        until(lambda: gate.connections > asked)
        for name in ("here@1", "disk@1"):
            session(name, second.path).close()
        with second.connect() as connection:
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
