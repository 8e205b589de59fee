"""The program itself, ended by a signal: nothing is left of it, or `lamella clean` finds what is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lamella import documents
from lamella.graph.model import Graph
from lamella.limits import Limiter, detect
from lamella.profile.measure import measure
from tests.faults import packages

LAMELLA = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from lamella.cli import main; main()"
)
BOTH = pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)


@contextmanager
def lamella(*argv: object) -> Iterator[subprocess.Popen[str]]:
    """The program in a process of its own."""
    words = [sys.executable, "-c", LAMELLA, *map(str, argv)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def left_of(pid: int, limiter: Limiter, *directories: Path) -> list[str]:
    """Names of groups and of temporary paths at any depth that carry this pid."""
    paths = [
        n for d in directories for _, inner, files in os.walk(d) for n in (*inner, *files)
    ]  # some vanish meanwhile
    return [n for n in (*paths, *limiter.names()) if f"lamella-{pid}-" in n]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def endless(slow: Graph, tmp_path: Path, cache: Path) -> tuple[object, ...]:
    """A `run` that packages, starts two functions, and computes for minutes."""
    documents.write(tmp_path / "plan.json", packages.plan_of(slow, (1,)))
    np.savez(tmp_path / "x.npz", **packages.slow_request(200_000))  # type: ignore[arg-type]
    return "run", tmp_path / "plan.json", "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz"


def busy(pid: int) -> Callable[[], bool]:
    """Whether the program has started its functions, and one has computed for a while."""
    return lambda: any(packages.cpu_ticks(child) > 100 for child in packages.children(pid))


@BOTH
def test_a_run_that_is_ended_leaves_nothing(
    number: signal.Signals,
    code: int,
    said: str,
    endless: tuple[object, ...],
    tmp_path: Path,
    cache: Path,
    limiter: Limiter,
) -> None:
    with lamella(*endless) as process:
        assert packages.eventually(busy(process.pid), 60)
        workers = packages.children(process.pid)
        assert len(workers) == 2
        assert left_of(process.pid, limiter, cache)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert f"lamella: {said}; what was measured is kept" in err
    assert "Traceback" not in out + err
    assert not any(map(packages.is_running, workers))
    assert left_of(process.pid, limiter, tmp_path) == []
    assert list((cache / "work").iterdir()) == []
    assert not (tmp_path / "y.npz").exists()


@pytest.fixture
def measured(cnn: Graph) -> None:
    """The cached profile of cnn-tiny, so that a comparison begins at once."""
    measure(cnn, threads=(1, 2), budget_s=0.2)


@pytest.mark.parametrize("moment", [".import", ".profile", "compare"])
def test_a_comparison_that_is_terminated_leaves_nothing(
    moment: str, request: pytest.FixtureRequest, cache_dir: Path, limiter: Limiter
) -> None:
    place = request.getfixturevalue("cache") if moment != "compare" else cache_dir
    request.getfixturevalue("measured" if moment == "compare" else "cache")
    argv = ["compare", "zoo:cnn-tiny", "--platform", "openfaas", "--planners", "single", "--requests", "100000"]
    with lamella(*argv) as process:
        mark = f"{moment}-lamella-{process.pid}-"
        assert packages.eventually(lambda: any(n.startswith(mark) for n in left_of(process.pid, limiter, place)), 60)
        if moment != ".import":
            assert packages.eventually(lambda: bool(packages.children(process.pid)), 60)
        workers = packages.children(process.pid)
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "Traceback" not in out + err
    assert not any(map(packages.is_running, workers))
    assert left_of(process.pid, limiter, place) == []


def test_a_second_signal_while_clearing_away_changes_nothing(
    endless: tuple[object, ...], tmp_path: Path, limiter: Limiter
) -> None:
    with lamella(*endless) as process:
        assert packages.eventually(busy(process.pid), 60)
        workers = packages.children(process.pid)
        for _ in range(20):
            process.terminate()
            os.sched_yield()
        process.communicate(timeout=30)
    assert process.returncode == 143
    assert packages.eventually(lambda: not any(map(packages.is_running, workers)))
    assert left_of(process.pid, limiter, tmp_path) == []


def test_whoever_ignores_the_signal_for_us_means_it() -> None:
    done = ended("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("converted", ["", "except KeyboardInterrupt: raise ImportError('cannot import')"])
def test_a_signal_that_turns_into_another_error_on_its_way_is_still_a_signal(converted: str) -> None:
    done = ended("", converted)
    assert done.returncode == 143
    assert "terminated" in done.stderr
    assert "ImportError" not in done.stderr


def ended(before: str, after: str) -> subprocess.CompletedProcess[str]:
    """A program that gets SIGTERM in a verb."""
    code = f"""
import os, signal
import lamella.cli.app as program
{before}
def verb(*words, **options):
    try: os.kill(os.getpid(), signal.SIGTERM)
    {after or "finally: pass"}
program.app = verb
program.main([])
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_clean_removes_what_a_killed_run_left_and_not_what_a_living_one_uses(
    endless: tuple[object, ...], cache: Path, limiter: Limiter
) -> None:
    def clean() -> list[str]:
        with lamella("clean", "--json") as process:
            document = json.loads(process.communicate(timeout=60)[0])
        return [*document["groups"], *(Path(p).name for p in document["paths"])]

    with lamella(*endless) as living, lamella(*endless) as killed:
        assert packages.eventually(lambda: busy(living.pid)() and busy(killed.pid)(), 60)
        in_use, workers = left_of(living.pid, limiter, cache), packages.children(living.pid)
        killed.kill()
        killed.wait()
        abandoned = left_of(killed.pid, limiter, cache)
        assert len(abandoned) == (3 if limiter.enforced else 1)
        assert set(clean()) >= set(abandoned)
        assert left_of(killed.pid, detect(), cache) == []
        assert left_of(living.pid, limiter, cache) == in_use
        assert packages.children(living.pid) == workers
        living.terminate()
        living.communicate(timeout=30)
    assert left_of(living.pid, limiter, cache) == []
