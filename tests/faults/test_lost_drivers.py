"""Drivers that die: their workers follow, and what they could not clear away a sweep does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from lamella.limits import Limiter, detect, sweep
from tests.faults import packages

DRIVER = """
import json, os, signal, sys
import numpy.random  # imported late it swallows an interrupt
from pathlib import Path
from lamella.deploy.local import Deployment
from tests.faults import packages
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit none
with Deployment(Path(sys.argv[1]), freezable=sys.argv[2] == "frozen") as deployment:
    deployment.start()
    if sys.argv[2] == "frozen":
        deployment.pause()
    print(json.dumps([packages.pids(deployment), packages.own_groups(deployment.limiter)]), flush=True)
    if sys.argv[2] in ("idle", "frozen"):
        signal.pause()
    for seed in range(1000):
        deployment.infer(packages.slow_request(int(sys.argv[2]), seed))
"""
FORGETFUL = """
import json, sys
from pathlib import Path
from lamella.deploy.local import Deployment
from tests.faults import packages
deployment = Deployment(Path(sys.argv[1]))
deployment.start()
print(json.dumps([packages.pids(deployment), packages.own_groups(deployment.limiter)]))
"""


class Driver(NamedTuple):
    process: subprocess.Popen[str]
    workers: dict[str, int]
    groups: list[str]


@contextmanager
def driver(package: Path, doing: str) -> Iterator[Driver]:
    """A process of its own that has deployed the package and is idle, or runs requests of so many rounds."""
    argv = [sys.executable, "-c", DRIVER, str(package), doing]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            workers, groups = json.loads(process.stdout.readline())
            yield Driver(process, workers, groups)
        finally:
            process.kill()


def all_gone(workers: dict[str, int]) -> bool:
    return not any(map(packages.is_running, workers.values()))


@pytest.mark.parametrize("doing", ["idle", "frozen", "5000"], ids=["idle", "frozen", "at work"])
def test_the_workers_of_a_killed_driver_die_and_a_sweep_removes_their_groups(
    slow_package: Path, limiter: Limiter, doing: str
) -> None:
    with driver(slow_package, doing) as started:
        assert len(started.groups) == (2 if limiter.enforced else 0)
        assert not all_gone(started.workers)
        sweep(limiter)  # never touches what a live driver owns
        assert set(started.groups) <= set(limiter.names())
        started.process.kill()
        started.process.wait()
        assert packages.eventually(lambda: all_gone(started.workers))
        sweep(detect())
        assert set(started.groups).isdisjoint(limiter.names())


@pytest.mark.parametrize("doing", ["idle", "5000"], ids=["idle", "at work"])
def test_an_interrupted_driver_leaves_nothing(slow_package: Path, limiter: Limiter, doing: str) -> None:
    with driver(slow_package, doing) as started:
        started.process.send_signal(signal.SIGINT)
        said = started.process.communicate(timeout=20)[1]
        assert "KeyboardInterrupt" in said
        assert all_gone(started.workers)
        assert set(started.groups).isdisjoint(limiter.names())


def test_a_driver_that_forgets_to_close_leaves_no_worker(slow_package: Path, limiter: Limiter) -> None:
    argv = [sys.executable, "-c", FORGETFUL, str(slow_package)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    workers, groups = json.loads(done.stdout)
    assert packages.eventually(lambda: all_gone(workers))
    sweep(limiter)
    assert set(groups).isdisjoint(limiter.names())
