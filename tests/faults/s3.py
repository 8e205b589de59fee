"""A real S3-compatible server for tests: the one that is named, or nanio, started on a directory of its own.

LAMELLA_TEST_S3 names an endpoint with a bucket `lamella-test` and the standard AWS variables hold its credentials. The
figures of decision 15 were taken so with the Ceph gateway of Debian.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from lamella.objects import Bucket, ObjectStore
from tests.faults.packages import eventually

BUCKET = "lamella-test"
KEYS = {"AWS_ACCESS_KEY_ID": "lamella", "AWS_SECRET_ACCESS_KEY": "lamella-secret"}
OPTIONS = '[[users]]\naccess_key = "lamella"\nsecret_key = "lamella-secret"\n'


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether somebody speaks HTTP there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    except OSError:
        return False
    finally:
        connection.close()
    return True


class Server:
    """A store that can be killed and started again on the same port and data."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        (directory / "data" / BUCKET).mkdir(parents=True)
        (directory / "options.toml").write_text(OPTIONS)
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--data-dir", str(self._directory / "data")]
        options = ["--options", str(self._directory / "options.toml"), "--log-level", "error", "--no-access-log"]
        with (self._directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nanio", "serve", *where, *options], stdout=log, stderr=log
            )
        assert eventually(lambda: answers(self.port), 30), (self._directory / "log").read_text()

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()

    @property
    def bucket(self) -> Bucket:
        """Its bucket."""
        return Bucket(BUCKET, f"http://127.0.0.1:{self.port}")


@contextmanager
def credentials() -> Iterator[None]:
    """Those of the server we start, in the environment."""
    held = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(KEYS)
    try:
        yield
    finally:
        for name, value in held.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def missing(*, ours: bool = False) -> str:
    """Why tests with a store cannot run here; `ours`: with one that we start."""
    if find_spec("obstore") is None:
        return "no obstore here: pip install 'lamella[s3]'"
    if find_spec("nanio") is None and (ours or not os.environ.get("LAMELLA_TEST_S3")):
        return "no S3 server here: pip install nanio" + ("" if ours else ", or set LAMELLA_TEST_S3 to an endpoint")
    return ""


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A bucket that is empty before and after."""
    if why := missing():
        pytest.skip(why)
    given = os.environ.get("LAMELLA_TEST_S3")
    if given:
        ObjectStore(Bucket(BUCKET, given)).prefix()  # what the library opens once stays open
        yield Bucket(BUCKET, given)
        return
    with credentials():
        server = Server(tmp_path_factory.mktemp("s3"))
        try:
            ObjectStore(server.bucket).prefix()  # as above
            yield server.bucket
        finally:
            server.kill()


@pytest.fixture
def server(bucket: Bucket, tmp_path: Path) -> Iterator[Server]:
    """One to kill; what the library keeps open is there already."""
    if why := missing(ours=True):
        pytest.skip(why)
    with credentials():
        server = Server(tmp_path / "s3")
        try:
            yield server
        finally:
            server.kill()
