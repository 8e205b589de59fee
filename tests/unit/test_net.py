"""The net under all tests: a run that hangs, in any of the ways it can, ends, fails, and shows the stack that hung."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFTEST = "from tests.conftest import pytest_configure\n"
WAITS = """
import threading
def test_waits():
    threading.Event().wait()
"""
GOES_ON = """
def test_next():
    pass
"""
IN_C = """
import ctypes, signal
def test_waits_in_c():
    # Neither wakes for a signal nor runs Python, as a library that waits for its own threads.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    ctypes.CDLL(None).sleep(600)
"""
THREAD = """
import threading
def serve_for_ever():
    threading.Event().wait()
def test_leaves_a_thread():
    threading.Thread(target=serve_for_ever, name="lost").start()
"""
CHILD = """
import subprocess
def test_leaves_a_child():
    child = subprocess.Popen(["sleep", "600"])
    print("pid", child.pid)
    child.returncode = 0  # nobody waits for it, and Python does not warn
"""
CLEAN = """
import subprocess, threading
def test_leaves_what_ends_and_what_holds_nothing_up():
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    threading.Timer(0.2, lambda: None).start()
    subprocess.run(["true"])
"""
CUT_SHORT = """
import subprocess, pytest
@pytest.fixture(scope="session")
def server():
    with subprocess.Popen(["sleep", "600"]) as process:
        yield
        process.kill()
def test_fails(server):
    assert False
def test_never_runs(server):
    pass
"""


def ran(directory: Path, test: str, *options: str, exit_s: float = 30) -> subprocess.CompletedProcess[str]:
    """A run of this file with the net of ours, and its own, shorter patience."""
    (directory / "conftest.py").write_text(
        f"from tests import leftovers\nleftovers.GRACE_S, leftovers.EXIT_S = 1.0, {exit_s}\n{CONFTEST}"
    )
    (directory / "test_it.py").write_text(test)
    words = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(directory), "-p", "no:cacheprovider", *options]
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(directory)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def test_a_test_that_waits_for_ever_fails_with_its_stack_and_the_next_one_runs(tmp_path: Path) -> None:
    done = ran(tmp_path, WAITS + GOES_ON, "--timeout", "1")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "threading.Event().wait()" in done.stdout
    assert "Failed: Timeout (>1.0s)" in done.stdout
    assert "1 failed, 1 passed" in done.stdout


def test_one_that_hears_no_signal_ends_the_run_with_all_stacks(tmp_path: Path) -> None:
    done = ran(tmp_path, IN_C, "--timeout", "1", "-o", "faulthandler_timeout=2")
    assert done.returncode == 1
    assert "Timeout (0:00:02)!" in done.stderr
    assert "in test_waits_in_c" in done.stderr


def test_a_thread_that_outlives_the_tests_fails_the_run_which_ends_all_the_same(tmp_path: Path) -> None:
    done = ran(tmp_path, THREAD + GOES_ON, exit_s=1)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "thread lost, first seen after test_it.py::test_leaves_a_thread" in done.stdout
    assert "in serve_for_ever" in done.stdout
    assert "Timeout (0:00:01)!" in done.stderr  # of the exit, which waits for the thread


def test_a_child_that_outlives_the_tests_fails_the_run_and_is_killed(tmp_path: Path) -> None:
    done = ran(tmp_path, CHILD, "-s")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    pid = done.stdout.partition("pid ")[2].split()[0]
    assert f"process {pid}, killed, first seen after test_it.py::test_leaves_a_child: sleep 600" in done.stdout
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_ends_by_itself_or_holds_nothing_up_is_not_told(tmp_path: Path) -> None:
    done = ran(tmp_path, CLEAN)
    assert done.returncode == 0, done.stdout
    assert "left behind" not in done.stdout


def test_what_a_fixture_ends_when_a_run_is_cut_short_is_not_told(tmp_path: Path) -> None:
    done = ran(tmp_path, CUT_SHORT, "-x")
    assert "1 failed" in done.stdout
    assert "left behind" not in done.stdout
