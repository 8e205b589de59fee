"""What may go wrong between functions: one dies in its answer; a store dies, cuts short, changes bytes or is silent."""

from __future__ import annotations

import os
import signal
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from lamella.channels.http import Connection
from lamella.channels.objects import Objects
from lamella.deploy.local import Deployment
from lamella.errors import ConfigError, FunctionTimeout, InstanceCrashed, LamellaError, StorageError, WireError
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.objects import Bucket, ObjectStore
from lamella.runtime.lines import HttpLine
from tests.faults import packages
from tests.faults.s3 import KEYS, Server, bucket, server
from tests.faults.test_lost_instances import killer
from tests.faults.tls import behind_tls, certificates
from tests.processes import beside

__all__ = ["bucket", "server"]

DATA = b"0123456789" * 10


# ---------------------------------------------------------------------------------------------------------------- http


def test_a_function_killed_in_the_middle_of_its_http_answer_is_replaced_and_the_request_answered(
    three_slices: Path, cnn: Graph, rng: np.random.Generator
) -> None:
    """The driver has read the head of the answer when the process is killed and what it sent is cut off."""
    x = request(cnn, rng)
    with Deployment(three_slices, channel="http") as deployment:
        deployment.infer(x)
        instance = deployment.instances["stage-2"]
        with cut_off(instance.url) as address:
            instance._line.close()
            instance._line = HttpLine(address)
            os.kill(instance.pid, signal.SIGKILL)
            answer = deployment.infer(x)
        packages.assert_same(answer.outputs, packages.whole(cnn, x))
        assert answer.cold_ms > 0
        assert deployment.instances["stage-2"] is not instance


@contextmanager
def cut_off(url: str) -> Iterator[tuple[str, int]]:
    """Whoever connects gets the beginning of an answer, and a connection that breaks."""
    with replies(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nInference-Header-Content-Length: 900\r\n\r\n{") as port:
        yield "127.0.0.1", port


def test_a_function_killed_at_work_over_http_is_retried_once(slow_package: Path, slow: Graph) -> None:
    with Deployment(slow_package, channel="http") as deployment:
        deployment.start()
        x = packages.slow_request(150)
        with killer(deployment, "stage-2", times=1) as killed:
            packages.assert_same(deployment.infer(x).outputs, packages.whole(slow, x))
        assert len(killed) == 1
        with killer(deployment, "stage-2", times=2), pytest.raises(InstanceCrashed, match="ended by SIGKILL"):
            deployment.infer(packages.slow_request(1000))


def test_a_function_that_is_too_slow_over_http_is_killed(slow_package: Path) -> None:
    with Deployment(slow_package, channel="http", timeout_s=0.3) as deployment:
        deployment.start()
        pid, url = deployment.instances["stage-2"].pid, deployment.instances["stage-2"].url
        with pytest.raises(FunctionTimeout, match=r"did not answer within 0\.3 s"):
            deployment.infer(packages.slow_request(5000))
        assert not packages.is_running(pid)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0])))


# ------------------------------------------------------------------------------------------------------------ s3, real


def test_functions_killed_at_work_leave_no_object(slow_package: Path, slow: Graph, bucket: Bucket) -> None:
    with Deployment(slow_package, channel="s3", objects=bucket) as deployment:
        deployment.start()
        x = packages.slow_request(150)
        with killer(deployment, "stage-2", times=1) as killed:
            packages.assert_same(deployment.infer(x).outputs, packages.whole(slow, x))
        assert len(killed) == 1
        with killer(deployment, "stage-2", times=2), pytest.raises(InstanceCrashed):
            deployment.infer(packages.slow_request(1000))
        assert ObjectStore(bucket).keys() == []


def test_a_store_that_dies_in_the_middle_of_a_request_is_said_and_the_next_request_after_it_is_back_is_answered(
    slow_package: Path, slow: Graph, server: Server
) -> None:
    with Deployment(slow_package, channel="s3", objects=server.bucket) as deployment:
        x = packages.slow_request(1)
        packages.assert_same(deployment.infer(x).outputs, packages.whole(slow, x))
        pids = packages.pids(deployment)
        server.kill()
        with pytest.raises(StorageError, match=r"the object store failed at a PUT") as caught:
            deployment.infer(x)
        assert caught.value.where == "function stage-1"
        assert packages.pids(deployment) == pids  # it is not their fault
        server.start()
        packages.assert_same(deployment.infer(x).outputs, packages.whole(slow, x))
        assert packages.pids(deployment) == pids


def test_without_the_bucket_or_the_right_key_nothing_is_begun(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = request(cnn, rng)
    other = server.bucket._replace(name="another-bucket")
    with Deployment(three_slices, channel="s3", objects=other) as deployment:
        with pytest.raises(ConfigError, match="there is no bucket 'another-bucket'") as caught:
            deployment.infer(x)
        assert caught.value.try_.startswith("aws s3 mb s3://another-bucket")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with Deployment(three_slices, channel="s3", objects=server.bucket) as deployment:
        with pytest.raises(ConfigError, match="was denied") as caught:
            deployment.infer(x)
        assert "AWS_SECRET_ACCESS_KEY" in caught.value.try_
    for name in KEYS:
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match="no credentials"):
        Deployment(three_slices, channel="s3", objects=server.bucket)


def test_a_store_behind_tls_is_used_where_its_authority_is_named_and_else_refused(
    three_slices: Path,
    cnn: Graph,
    rng: np.random.Generator,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the driver and by functions: answers go through it, and a store that anyone may have signed gets none."""
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    made, x = certificates(tmp_path), request(cnn, rng)
    with behind_tls(server.port, made) as port:
        secure = server.bucket._replace(endpoint=f"https://127.0.0.1:{port}")
        with pytest.raises(ConfigError, match=r"the certificate of bucket .* is not trusted: UnknownIssuer") as caught:
            ObjectStore(secure).prefix()
        assert caught.value.try_.startswith("export AWS_CA_BUNDLE=")
        address = ObjectStore(secure).get_url("lamella/any", 60)
        with pytest.raises(ConfigError, match="the certificate of the object store is not trusted") as caught:
            Objects().get(address, 0, 0)
        assert caught.value.try_.startswith("export AWS_CA_BUNDLE=")

        monkeypatch.setenv("AWS_CA_BUNDLE", str(made.authority))
        with Deployment(three_slices, channel="s3", objects=secure) as deployment:
            packages.assert_same(deployment.infer(x).outputs, packages.whole(cnn, x))
        assert ObjectStore(secure).keys() == []


@pytest.mark.parametrize(("content", "said"), [(None, "No such file"), ("no certificate", "it holds no certificates")])
def test_authorities_that_cannot_be_read_are_said_by_their_variable(
    content: str | None, said: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "authority.pem"
    if content is not None:
        named.write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(named))
    with pytest.raises(ConfigError, match=said) as caught:
        ObjectStore(server.bucket)
    assert caught.value.where == "AWS_CA_BUNDLE"


def test_functions_are_not_given_the_credentials(
    three_slices: Path,
    cnn: Graph,
    rng: np.random.Generator,
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor what else of Amazon's is around, on any channel, but for whom to trust."""
    made = certificates(tmp_path).authority
    monkeypatch.setenv("AWS_CA_BUNDLE", str(made))
    for name, value in {**KEYS, "AWS_SESSION_TOKEN": "token", "AWS_PROFILE": "mine"}.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    for channel in ("shared-memory", "s3"):
        with Deployment(three_slices, channel=channel, objects=bucket) as deployment:
            deployment.infer(request(cnn, rng))
            for pid in packages.pids(deployment).values():
                held = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                assert {v for v in held if v.startswith(b"AWS_")} == {b"AWS_CA_BUNDLE=" + str(made).encode()}


def test_objects_of_a_killed_run_are_leftovers_and_those_of_a_living_one_are_not(bucket: Bucket) -> None:
    store, objects = ObjectStore(bucket), Objects()
    ours = f"{store.prefix()}/1/0"
    dead = ours.replace(f"lamella-{os.getpid()}-", "lamella-999999999-")
    try:
        for key in (ours, dead):
            objects.put(store.put_url(key, 60), memoryview(DATA))
        found = store.leftovers()
        assert {key: owner.name for key, owner in found.items()} == {ours: "US", dead: "DEAD"}
    finally:
        objects.close()
        store.delete([ours, dead])
    assert store.keys() == []


# ------------------------------------------------------------------------------------- s3, a store that does odd things


@contextmanager
def replies(*answers: bytes, hold: threading.Event | None = None) -> Iterator[int]:
    """A server that gives each connection the next of some answers, the last one again and again, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = list(answers)

        def serve() -> None:
            while True:
                try:
                    sock = listener.accept()[0]
                except OSError:
                    return
                with sock:
                    asked = Connection(sock)
                    asked.body(asked.head().length)  # all of it, or closing would reset the answer away
                    if hold:
                        hold.wait(10)
                    with suppress(OSError):  # who has waited too long is gone
                        sock.sendall(left.pop(0) if len(left) > 1 else left[0])

        def stop() -> None:
            if hold:
                hold.set()
            listener.shutdown(socket.SHUT_RDWR)

        with beside(serve, stop=stop):
            yield listener.getsockname()[1]


def answer(body: bytes, status: str = "200 OK", length: int | None = None) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


GOOD = answer(DATA)
ODD: dict[str, tuple[bytes, type[LamellaError], str]] = {
    "cut short": (answer(DATA[:50], length=len(DATA)), WireError, "cut short after 50 bytes"),
    "another size": (answer(DATA[:50]), WireError, "has 50 bytes, 100 were put"),
    "other bytes": (answer(DATA[::-1]), WireError, "its checksum differs"),
    "busy": (answer(b"<Error><Code>SlowDown</Code></Error>", "503 Slow Down"), StorageError, "503 Slow Down.*SlowDown"),
    "no answer": (b"", StorageError, "failed at a GET"),
}


@pytest.fixture
def objects() -> Iterator[Objects]:
    made = Objects(timeout_s=0.3)
    yield made
    made.close()


@pytest.mark.parametrize("case", ODD)
def test_what_passes_is_repeated_once_and_what_stays_is_said(case: str, objects: Objects) -> None:
    odd, kind, says = ODD[case]
    get: Callable[[int], bytes] = lambda port: objects.get(f"http://127.0.0.1:{port}/b/k?s=1", 100, zlib.crc32(DATA))  # noqa: E731
    with replies(odd, GOOD) as port:
        assert get(port) == DATA
    with replies(odd, odd, GOOD) as port, pytest.raises(kind, match=says):
        get(port)


def test_a_refusal_is_not_repeated(objects: Objects) -> None:
    denied = answer(b"<Error><Code>AccessDenied</Code></Error>", "403 Forbidden")
    with replies(denied, GOOD) as port, pytest.raises(ConfigError, match="403 Forbidden to a PUT: AccessDenied"):
        objects.put(f"http://127.0.0.1:{port}/b/k?s=1", memoryview(DATA))


def test_a_silent_store_is_given_up(objects: Objects) -> None:
    hold = threading.Event()
    with replies(GOOD, hold=hold) as port:
        with pytest.raises(StorageError, match=r"silent for 0\.3 s at a GET"):
            objects.get(f"http://127.0.0.1:{port}/b/k?s=1", 100, zlib.crc32(DATA))
        hold.set()
