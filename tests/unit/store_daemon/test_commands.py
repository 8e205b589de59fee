"""The verbs of `lamella store`, against a real daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lamella.cli.app import run
from lamella.store.client import Connection, session, status
from tests.processes import running
from tests.unit.store_daemon.conftest import SIDE, environment, make, write_whole


def command(*options: str) -> list[str]:
    return [sys.executable, "-P", "-c", "from lamella.cli import main; main()", "store", "serve", *options]


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "store.socket"
    monkeypatch.setenv("LAMELLA_STORE", str(path))
    words = command("--root", str(tmp_path / "root"), "--memory-mb", "64", "--policy", "lfu")
    with running(words, env={**environment(), "LAMELLA_STORE": str(path)}, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout
        assert daemon.stdout.readline().decode() == f"serving at {path}\n"
        yield path
        daemon.terminate()
        assert daemon.wait(10) == 0


def told(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert run([*map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_file_is_put_pinned_opened_evicted_and_told_of(
    socket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "net.onnx"
    write_whole(model, make(tmp_path / "made", "m@1").weights)
    assert told(capsys, "store", "put", model, "net@1")["models"] == ["net@1", "net.portable@1"]
    assert run(["store", "put", str(model), "net@1"]) == 0  # the same again is nothing new
    assert run(["store", "put", str(model), "net"]) == 2
    assert run(["store", "put", str(model.with_name("none.onnx")), "net@2"]) == 2
    capsys.readouterr()
    x = np.random.default_rng(0).standard_normal((1, SIDE)).astype(np.float32)
    expected = ort.InferenceSession(model).run(None, {"x": x})[0]
    with_store = session("net@1", socket)
    np.testing.assert_allclose(with_store.run(None, {"x": x})[0], expected, atol=1e-4 * np.ptp(expected))
    told(capsys, "store", "pin", "net@1")
    report = told(capsys, "store", "status")
    assert report["store"]["policy"] == "lfu"
    (net,) = [m for m in report["store"]["models"] if m["name"] == "net@1"]
    assert (net["leases"], net["pinned"]) == (1, True)
    assert run(["store", "status"]) == 0
    assert "net.portable@1" in capsys.readouterr().out
    with_store.close()
    told(capsys, "store", "pin", "net@1", "--off")
    told(capsys, "store", "evict", "net@1")
    told(capsys, "store", "remove", "net.portable@1")
    left = [m["name"] for m in told(capsys, "store", "status")["store"]["models"]]
    assert left == ["net@1"]
    assert run(["store", "put", str(model), "net.portable@1"]) == 2
    assert run(["store", "evict", "none@1"]) != 0
    assert "none@1" in capsys.readouterr().err


def test_the_daemon_holds_nothing_of_the_command_line_nor_of_the_runtime(socket: Path, tmp_path: Path) -> None:
    place = Path(f"/proc/{status(socket).pid}")
    assert resident_mb(place) < 36  # 72 where the command line and onnxruntime stay
    libraries = {Path(line.split()[-1]).name for line in (place / "maps").read_text().splitlines() if ".so" in line}
    assert not [name for name in libraries if name.startswith(("onnxruntime", "_multiarray", "libssl", "_obstore"))]
    (tmp_path / "msgspec.py").write_text("raise SystemExit('imported from the working directory')")
    daemon = command("--socket", str(tmp_path / "second.socket"), "--root", str(tmp_path / "second"))
    with running(daemon, env=environment(), cwd=tmp_path, stdout=subprocess.PIPE) as second:
        assert second.stdout
        assert second.stdout.readline().startswith(b"serving at")
        second.terminate()


@pytest.mark.parametrize(
    ("options", "code", "what"),
    [
        (["--memory-mb", "-1"], 2, "--memory-mb is -1"),
        (["--policy", "none"], 2, "no eviction policy"),
        (["--allow", "/none"], 2, "cannot read the allow-list"),
        (["--backing", "none"], 2, "no backing"),
    ],
)
def test_a_daemon_that_cannot_start_says_why(options: list[str], code: int, what: str, tmp_path: Path) -> None:
    words = command("--socket", str(tmp_path / "s"), "--root", str(tmp_path / "root"), *options)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "")
    assert what in done.stderr
    assert "Traceback" not in done.stderr


def resident_mb(place: Path) -> float:
    lines = (place / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


def test_what_was_put_as_one_name_is_taken_out_by_that_name(
    socket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    write_whole(first, make(tmp_path / "made", "m@1").weights)
    write_whole(second, make(tmp_path / "made", "m@1", seed=1).weights)
    told(capsys, "store", "put", first, "net@1")
    assert run(["store", "put", str(second), "net@1"]) != 0
    told(capsys, "store", "remove", "net@1")
    assert told(capsys, "store", "status")["store"]["models"] == []
    for function in ("stage-1", "stage-2"):
        with Connection(socket) as connection:
            made = make(tmp_path / "made", f"plan/{function}@1")
            connection.put(made.record, made.blobs)
    told(capsys, "store", "pin", "plan@1")
    assert [m["pinned"] for m in told(capsys, "store", "status")["store"]["models"]] == [True, True]
    told(capsys, "store", "pin", "plan@1", "--off")
    told(capsys, "store", "remove", "plan@1")
    assert told(capsys, "store", "status")["store"]["models"] == []


def test_a_model_that_meets_another_s_variant_is_not_there_in_part(
    socket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    write_whole(first, make(tmp_path / "made", "m@1").weights)
    write_whole(second, make(tmp_path / "made", "m@1", seed=1).weights)
    told(capsys, "store", "put", first, "net@1")
    with Connection(socket) as connection:
        connection.evict("net@1", disk=True)
    assert run(["store", "put", str(second), "net@1"]) != 0
    assert [m["name"] for m in told(capsys, "store", "status")["store"]["models"]] == ["net.portable@1"]


def test_without_a_daemon_a_command_says_how_to_start_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", "status", "--socket", str(tmp_path / "none")]) == 1
    assert "lamella store serve" in capsys.readouterr().err
    assert run(["store", "exec"]) == 2
    assert run(["store", "exec", "no-such-program"]) == 2
    assert run(["store"]) == 0
