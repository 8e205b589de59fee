"""Real enforcement by the kernel; skipped, saying why, where cgroup v1 cannot be used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from lamella.errors import ConfigError, LamellaError
from lamella.limits import Mode, sweep
from lamella.limits.owner import start_ticks

if TYPE_CHECKING:
    from lamella.limits import Group
    from lamella.limits.v1 import V1Limiter

ALLOCATE = "import sys; data = b'x' * (int(sys.argv[1]) << 20); print(len(data) >> 20)"
BURN = """
import time
start, used = time.perf_counter(), time.process_time()
while time.perf_counter() - start < 1.5: pass
print((time.process_time() - used) / (time.perf_counter() - start))
"""
ABANDON = """
import json, subprocess, sys
from pathlib import Path
from lamella.limits.v1 import V1Limiter
limiter = V1Limiter({key: Path(place) for key, place in json.loads(sys.argv[1]).items()})
group = limiter.create("orphan", memory_mb=64, vcpu=None)
argv = group.command(["/bin/sh", "-c", "echo joined; exec sleep 60"])
worker = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
worker.stdout.readline()
print(group.name, worker.pid, flush=True)
"""


def run(group: Group, code: str, *args: str) -> subprocess.CompletedProcess[str]:
    argv = group.command([sys.executable, "-c", code, *args])
    return subprocess.run(argv, capture_output=True, text=True, timeout=30)


def sleeper(group: Group) -> subprocess.Popen[str]:
    """A member that has certainly joined."""
    argv = group.command(["/bin/sh", "-c", "echo joined; exec sleep 60"])
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "joined\n"
    return process


def limit(v1: V1Limiter, group: Group, file: str) -> int:
    return int((v1.places[file.partition(".")[0]] / group.name / file).read_text())


def test_an_allocation_over_the_limit_is_killed_and_counted_once(v1: V1Limiter) -> None:
    with v1.create("small", memory_mb=64, vcpu=None) as group:
        assert run(group, ALLOCATE, "200").returncode == -signal.SIGKILL
        assert group.oom_kills() == 1
        assert 60 < group.peak_mb() <= 64


def test_an_allocation_under_the_limit_lives_and_shows_in_the_peak(v1: V1Limiter) -> None:
    with v1.create("roomy", memory_mb=256, vcpu=None) as group:
        assert run(group, ALLOCATE, "100").stdout == "100\n"
        assert group.oom_kills() == 0
        assert 100 < group.peak_mb() < 140


def test_a_fifth_of_a_cpu_is_a_fifth_of_a_cpu(v1: V1Limiter) -> None:
    with v1.create("slow", memory_mb=None, vcpu=0.2) as group:
        share = float(run(group, BURN).stdout)
        assert share == pytest.approx(0.2, rel=0.15)


def test_the_worker_is_a_member_under_its_own_pid(v1: V1Limiter) -> None:
    with v1.create("member", memory_mb=64, vcpu=None) as group:
        worker = sleeper(group)
        assert group.pids() == [worker.pid]
        group.kill()
        assert group.pids() == []
        assert worker.wait() == -signal.SIGKILL


def test_arguments_reach_the_worker_unchanged(v1: V1Limiter) -> None:
    words = ["--", "a b", "$HOME", "'", "*", ""]
    with v1.create("words", memory_mb=64, vcpu=None) as group:
        assert run(group, "import sys; print(sys.argv[1:])", *words).stdout == f"{words}\n"


def test_a_worker_that_cannot_join_exits_97_and_says_so(v1: V1Limiter) -> None:
    group = v1.create("gone", memory_mb=64, vcpu=None)
    group.remove()
    late = run(group, "print('ran without limits')")
    assert (late.returncode, late.stdout) == (97, "")
    assert "lamella: cannot join the group at" in late.stderr


def test_resize_grows_and_shrinks_memory_and_swap_together(v1: V1Limiter) -> None:
    with v1.create("elastic", memory_mb=64, vcpu=None) as group:
        for memory_mb in (256, 32, 128):
            group.resize(memory_mb=memory_mb, vcpu=None)
            assert limit(v1, group, "memory.limit_in_bytes") == memory_mb << 20
            if (v1.places["memory"] / group.name / "memory.memsw.limit_in_bytes").exists():
                assert limit(v1, group, "memory.memsw.limit_in_bytes") == memory_mb << 20
        group.resize(memory_mb=None, vcpu=None)
        assert limit(v1, group, "memory.limit_in_bytes") > 1 << 60


def test_resize_sets_and_lifts_the_cpu_quota(v1: V1Limiter) -> None:
    with v1.create("quota", memory_mb=None, vcpu=1.5, period_ms=100) as group:
        assert limit(v1, group, "cpu.cfs_quota_us") == 150_000
        assert limit(v1, group, "cpu.cfs_period_us") == 100_000
        group.resize(memory_mb=None, vcpu=0.005)
        assert limit(v1, group, "cpu.cfs_quota_us") == 1_000
        assert limit(v1, group, "cpu.cfs_period_us") == 200_000
        group.resize(memory_mb=None, vcpu=None)
        assert limit(v1, group, "cpu.cfs_quota_us") == -1


def test_shrinking_below_what_is_held_is_refused(v1: V1Limiter) -> None:
    hold = "import sys; data = b'x' * (100 << 20); print('held', flush=True); sys.stdin.read()"
    with v1.create("full", memory_mb=256, vcpu=None) as group:
        argv = group.command([sys.executable, "-c", hold])
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "held\n"
            with pytest.raises(ConfigError, match="the kernel refused to change"):
                group.resize(memory_mb=32, vcpu=None)
            assert limit(v1, group, "memory.limit_in_bytes") == 256 << 20
            group.kill()


def test_a_name_is_taken_once_and_the_first_group_stays(v1: V1Limiter) -> None:
    with v1.create("twice", memory_mb=64, vcpu=None) as group:
        with pytest.raises(ConfigError, match="exists already"):
            v1.create("twice", memory_mb=128, vcpu=None)
        assert limit(v1, group, "memory.limit_in_bytes") == 64 << 20


def test_a_refused_limit_leaves_no_group_behind(v1: V1Limiter) -> None:
    with pytest.raises(ConfigError, match=r"at least 0\.001 vCPU"):
        v1.create("tiny", memory_mb=64, vcpu=0.0001)
    assert v1.names() == []


def test_removing_twice_is_once_and_figures_are_gone_afterwards(v1: V1Limiter) -> None:
    group = v1.create("brief", memory_mb=64, vcpu=None)
    group.remove()
    group.remove()
    group.kill()
    assert group.pids() == []
    with pytest.raises(LamellaError, match="has been removed"):
        group.oom_kills()


def test_sweep_removes_the_group_of_a_dead_owner_and_leaves_that_of_a_live_one(v1: V1Limiter) -> None:
    places = json.dumps({controller: str(place) for controller, place in v1.places.items()})
    with v1.create("alive", memory_mb=64, vcpu=None) as mine:
        worker = sleeper(mine)
        owner = subprocess.run([sys.executable, "-c", ABANDON, places], capture_output=True, text=True, timeout=30)
        name, orphan = owner.stdout.split()
        assert v1.open(name).pids() == [int(orphan)]
        assert sweep(v1) == [name]
        assert v1.open(name).pids() == []
        assert v1.names() == [mine.name]
        assert mine.pids() == [worker.pid]
        mine.kill()
        worker.wait()


def test_sweep_does_not_take_a_recycled_pid_for_the_owner(v1: V1Limiter) -> None:
    stale = f"lamella-{os.getpid()}-{start_ticks(os.getpid()) - 1}-stale"
    for place in dict.fromkeys(v1.places.values()):
        (place / stale).mkdir()
    assert sweep(v1) == [stale]


def test_the_limiter_says_that_limits_hold_and_names_groups_by_owner(v1: V1Limiter) -> None:
    assert (v1.mode, v1.reason, v1.enforced) == (Mode.V1, "", True)
    with v1.create("named", memory_mb=64, vcpu=None) as group:
        assert group.name == f"lamella-{os.getpid()}-{start_ticks(os.getpid())}-named"
        assert group.affinity is None


def test_a_process_that_writes_to_the_gates_is_a_member_and_held_to_the_limit(v1: V1Limiter) -> None:
    with v1.create("gates", memory_mb=64, vcpu=0.5) as group:
        enter = f"[open(gate, 'w').write('0') for gate in {list(map(str, group.gates))}]"
        member = subprocess.Popen(
            [sys.executable, "-c", f"{enter}; print('in', flush=True); input(); {ALLOCATE}", "200"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with member:
            assert member.stdin is not None
            assert member.stdout is not None
            assert member.stdout.readline() == "in\n"
            assert group.pids() == [member.pid]
            for place in v1.places.values():
                assert (place / group.name / "cgroup.procs").read_text() == f"{member.pid}\n"
            member.stdin.write("go\n")
            member.stdin.close()
            assert member.wait(30) == -signal.SIGKILL
        assert group.oom_kills() == 1
