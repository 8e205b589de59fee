"""Clients that lie, flood, stall and die: the daemon and its other clients go on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lamella.errors import StoreAway, StoreQuota, WireError
from lamella.store import protocol
from lamella.store.access import Access
from lamella.store.client import Connection, session
from lamella.store.daemon import GREETING_S, Daemon
from lamella.store.protocol import Hello, Open, encode
from lamella.store.records import Settings
from lamella.store.serving import listening
from lamella.store.shelves import Shelves
from tests.faults.fuse import FLUSH, unanswered
from tests.processes import beside, running
from tests.unit.store_daemon.conftest import SIDE, Running, environment, until


@contextmanager
def raw(daemon: Running, *packets: bytes, fds: tuple[int, ...] = ()) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(10)
        sock.connect(str(daemon.path))
        for packet in packets:
            protocol.send(sock, packet, fds if packet is packets[-1] else ())
        yield sock


HELLO = encode(Hello(protocol.VERSION))
WRONG = {
    "garbage": b"\xff" * 100,
    "empty map": b"\x80",
    "half a message": encode(Open("m@1"))[:-2],
    "a length of 4 GB": b"\xdb\xff\xff\xff\xffabc",
    "an array of 4 G": b"\xdd\xff\xff\xff\xff",
    "nested without end": b"\x91" * 60_000,
    "beyond the limit": b"x" * (protocol.REQUEST_LIMIT + 1),
    "a name beyond the limit": msgspec.msgpack.encode({"type": "Open", "model": "m" * 300}),
    "an answer": encode(protocol.Found("m@1")),
    "an unknown field": msgspec.msgpack.encode({"type": "Stop", "now": True}),
    "a second hello": HELLO,
}


@pytest.mark.parametrize("greeted", [False, True])
def test_what_is_no_request_ends_its_connection_and_no_other(daemon: Running, greeted: bool) -> None:
    daemon.put("m@1")
    opened = session("m@1", daemon.path)
    before = daemon.descriptors()
    for name, packet in WRONG.items():
        if name == "a second hello" and not greeted:
            continue
        with raw(daemon, *([HELLO] if greeted else []), packet) as sock:
            try:
                answer = protocol.answer(sock.recv(protocol.ANSWER_LIMIT))
            except ConnectionResetError:
                continue
            assert isinstance(answer, protocol.Failed), name
            assert answer.code == "wire", name
            assert sock.recv(1) == b"", name
    until(lambda: daemon.descriptors() <= before)
    assert daemon.leases() == 1
    opened.close()


def test_descriptors_that_nobody_asked_for_are_closed(daemon: Running) -> None:
    before = daemon.descriptors()
    with open("/dev/null") as null:
        many = (null.fileno(),) * protocol.DESCRIPTORS
        for packets in ([HELLO, encode(Open("m@1"))], [b"junk"], [HELLO, encode(protocol.Put("m@1", ("0" * 64,)))]):
            with raw(daemon, *packets, fds=many) as sock:
                assert isinstance(protocol.answer(sock.recv(protocol.ANSWER_LIMIT)), protocol.Failed)
    until(lambda: daemon.descriptors() <= before)


def test_a_file_that_cannot_be_closed_stalls_nobody(daemon: Running, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can mount without a helper")
    made = daemon.put("m@1")
    path = tmp_path / "file"
    ids = tuple(f"{k:064x}" for k in range(protocol.DESCRIPTORS - 1))
    put = encode(protocol.Put("m@2", ids))
    with unanswered(path, 1000, daemon.pid) as heard, path.open("rb") as file:
        one, many = (file.fileno(),), (file.fileno(),) * protocol.SCM_MAX_FD
        for packets, fds in (
            ([b"junk"], one),
            ([HELLO], one),
            ([HELLO, encode(Open("m@1"))], one),
            ([HELLO, put], many),  # more than its ids
        ):
            with raw(daemon, *packets, fds=fds), Connection(daemon.path, timeout_s=10) as other:
                assert other.status().store.models[0].name == made.record.name
                assert other.open("m@1").segments
        until(lambda: heard == [FLUSH])  # of the put, in a thread of its own
        session("m@1", daemon.path).close()


def test_a_put_of_something_that_is_no_file_is_refused(daemon: Running) -> None:
    ends = os.pipe()
    try:
        with raw(daemon, HELLO, encode(protocol.Put("m@1", ())), fds=(ends[0],)) as sock:
            answer = protocol.answer(sock.recv(protocol.ANSWER_LIMIT))
        assert isinstance(answer, protocol.Failed)
        assert "regular file" in answer.message
    finally:
        protocol.close_all(ends)


def test_who_asks_again_without_reading_is_left(daemon: Running) -> None:
    daemon.put("m@1")
    with raw(daemon, HELLO) as sock, suppress(BrokenPipeError, ConnectionResetError):
        while True:
            protocol.send(sock, encode(protocol.Ask()))
    with daemon.connect() as connection:
        assert connection.status().refused == 1


def test_who_never_reads_stalls_nobody(daemon: Running) -> None:
    daemon.put("m@1")
    before = daemon.descriptors()
    with ExitStack() as stack:
        for request in (protocol.Ask(), Open("m@1")) * 20:
            stack.enter_context(raw(daemon, HELLO, encode(request)))
        for _ in range(20):
            session("m@1", daemon.path).close()
    until(lambda: daemon.leases() == 0)
    until(lambda: daemon.descriptors() <= before + 2)  # those of the model in memory


def test_a_thousand_connections_are_bounded_and_the_others_go_on(start: Callable[..., Running]) -> None:
    daemon = start("[quota]\nconnections = 40\n")
    daemon.put("m@1")
    with ExitStack() as stack, daemon.connect() as good:
        for _ in range(1000):
            stack.enter_context(raw(daemon))
        with pytest.raises((StoreQuota, StoreAway), match=r"connections|does not answer"):
            session("m@1", daemon.path)
        lease = good.open("m@1")
        assert lease.segments
        assert daemon.descriptors() < 100
    until(lambda: daemon.leases() == 0)


def test_leases_beyond_the_quota_are_refused_with_the_numbers(start: Callable[..., Running]) -> None:
    daemon = start("[quota]\nleased_mb = 0\nleases = 1\n")
    daemon.put("m@1")
    with pytest.raises(StoreQuota, match="quota is 0 MB"):
        session("m@1", daemon.path)


def test_another_version_of_the_protocol_is_told_so(daemon: Running) -> None:
    with raw(daemon, encode(Hello(99))) as sock:
        answer = protocol.answer(sock.recv(protocol.ANSWER_LIMIT))
    assert isinstance(answer, protocol.Failed)
    assert isinstance(protocol.raised(answer), WireError)
    assert f"version {protocol.VERSION}" in answer.message


CLIENT = """
import sys, numpy as np
from pathlib import Path
from lamella.store.access import Access
from lamella.store.client import Connection, session
from lamella.store.daemon import GREETING_S, Daemon
opened = [session("m@1", Path(sys.argv[1])) for _ in range(3)]
print("ready", flush=True)
while True:
    opened[0].run(None, {"x": np.ones((1, 256), np.float32)})
"""


def test_clients_killed_under_load_leave_no_lease_and_no_descriptor(daemon: Running) -> None:
    daemon.put("m@1")
    session("m@1", daemon.path).close()
    until(lambda: daemon.leases() == 0)
    before = daemon.descriptors()
    argv = [sys.executable, "-c", CLIENT, str(daemon.path)]
    with ExitStack() as stack:
        clients = [stack.enter_context(running(argv, stdout=subprocess.PIPE, env=environment())) for _ in range(2)]
        for client in clients:
            assert client.stdout
            assert client.stdout.readline() == b"ready\n"
        assert daemon.leases() == 6
        for client in clients:
            client.send_signal(signal.SIGKILL)
    until(lambda: daemon.leases() == 0)
    until(lambda: daemon.descriptors() <= before)


def test_a_client_that_leaves_while_its_model_is_loaded_takes_no_lease(daemon: Running) -> None:
    daemon.put("m@1")
    before = daemon.descriptors()
    with raw(daemon, HELLO, encode(Open("m@1"))):
        pass
    until(lambda: daemon.descriptors() > before)  # the model is in memory
    until(lambda: daemon.leases() == 0)


def test_a_daemon_killed_under_load_leaves_every_client_with_right_answers(start: Callable[..., Running]) -> None:
    first = start()
    made = first.put("m@1")
    x = np.ones((1, SIDE), np.float32)
    stop = threading.Event()

    answers: list[float] = []

    def load() -> None:
        while not stop.is_set():
            try:
                opened = session("m@1", first.path)
            except StoreAway:
                continue
            (answer,) = opened.run(None, {"x": x})
            answers.append(float(np.abs(answer - x @ made.weights).max()))
            opened.close()

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(load) for _ in range(3)]
        daemon = first
        try:
            for _ in range(2):
                seen = len(answers)
                until(lambda: len(answers) > seen + 20)  # noqa: B023 - called at once
                daemon.end(signal.SIGKILL)
                daemon = start()
        finally:
            stop.set()  # else the pool would wait for ever
        for client in clients:
            client.result(10)
    assert max(answers) < 1e-4
    until(lambda: daemon.leases() == 0)


def test_a_thousand_leases_taken_and_dropped_leave_nothing(daemon: Running) -> None:
    daemon.put("m@1")
    with daemon.connect() as connection:
        connection.pin("m@1")
    until(lambda: daemon.leases() == 0)
    before, own = daemon.descriptors(), len(os.listdir("/proc/self/fd"))
    for _ in range(500):
        with daemon.connect() as connection:
            protocol.close_all(connection.hold("m@1")[1])
        with raw(daemon, HELLO, encode(Open("m@1"))):
            pass  # gone before the answer
    until(lambda: daemon.leases() == 0)
    until(lambda: daemon.descriptors() <= before)
    assert len(os.listdir("/proc/self/fd")) == own


def test_who_says_nothing_is_left_after_a_while(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "store.socket"
    with listening(path, shared=False) as listener:
        daemon = Daemon(
            Shelves(Settings(root=tmp_path / "r")), listener, Access(), tmp_path / "r", clock=lambda: now[0]
        )
        try:
            with (
                beside(daemon.serve, stop=lambda: os.write(daemon.wakeup, b"0")),
                Connection(path) as good,
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent,
            ):
                silent.settimeout(10)
                silent.connect(str(path))
                until(lambda: good.status().users[0].connections == 2)  # connected is not yet accepted
                now[0] += GREETING_S + 1
                assert silent.recv(1) == b""
                report = good.status()
                assert (report.users[0].connections, report.refused) == (1, 1)
        finally:
            daemon.close()
    assert not path.exists()
