"""What tests leave behind, threads and processes, is told at the end of the run and fails it.

The net has four layers, each for what the one before it cannot catch:

1. pytest-timeout fails a test that takes too long, by a signal: its fixtures are torn down, the other tests run. The
   alternative, a thread, can only end the whole run.
2. A signal's handler needs the main thread to run Python. Where it sits in C, faulthandler's own thread, written in C,
   prints all stacks and ends the run (`faulthandler_timeout`, a minute later).
3. Here: what is alive after the last fixture. Children are killed, since they hold the pipe that whoever runs CI reads
   to its end. Threads cannot be; the interpreter would wait for those that are no daemons for ever, so faulthandler
   gets a deadline for the exit too.
4. `.ci/run` bounds everything, collection too, and asks for the stacks (SIGABRT) before it kills.

Not told: daemon threads, which hold nothing up, and grandchildren whose parent is gone.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

GRACE_S = 5.0
EXIT_S = 30.0


class Leftovers:
    """A pytest plugin: remembers after which test each thread and child was first seen, and looks at the end."""

    def __init__(self) -> None:
        """Before capturing begins to hide the real standard error."""
        self._stderr = os.dup(2)
        self._mine = os.getpid()
        self._before = frozenset(children())
        self._seen: dict[int, str] = {}
        self._told: list[str] = []

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A fixture of a module or of the session may rightly keep one for a while; who began it is still told."""
        for key in (*(thread.ident or 0 for thread in stray_threads()), *children()):
            self._seen.setdefault(key, nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """All fixtures are torn down by now, those of a run that was cut short too."""
        if os.getpid() != self._mine:  # a child of a test that got lost
            return
        eventually(lambda: not stray_threads() and not self._children())
        self._told = [self._line(t) for t in stray_threads()] + [self._kill(pid) for pid in self._children()]
        if self._told:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._told:
            terminalreporter.section("left behind by tests", red=True)
            for text in self._told:
                terminalreporter.line(text)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """The exit waits for threads, and for what libraries do then."""
        faulthandler.dump_traceback_later(EXIT_S, file=self._stderr, exit=True)

    def _children(self) -> list[int]:
        return [pid for pid in children() if pid not in self._before]

    def _line(self, thread: threading.Thread) -> str:
        frame = sys._current_frames().get(thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame else ""
        return f"thread {thread.name}, first seen after {self._seen.get(thread.ident or 0, 'the last test')}\n{stack}"

    def _kill(self, pid: int) -> str:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        os.kill(pid, signal.SIGKILL)
        return f"process {pid}, killed, first seen after {self._seen.get(pid, 'the last test')}: {command[:200]}"


def stray_threads() -> list[threading.Thread]:
    """Threads that the interpreter would wait for when it exits."""
    return [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]


def children() -> list[int]:
    """Children of this process that run; those that only wait to be reaped hold nothing."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:  # a thread that has ended; or a kernel without this file, where no child is told
            continue
        found += [int(pid) for pid in pids if _runs(int(pid))]
    return found


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def eventually(true: Callable[[], bool]) -> None:
    """Give it the grace."""
    deadline = time.monotonic() + GRACE_S
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
