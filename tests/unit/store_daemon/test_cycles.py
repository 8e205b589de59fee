"""A thousand sessions on the store, some of whose processes are killed: what is counted after is what was before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from lamella.store.client import session
from tests.unit.store_daemon.conftest import SIDE, Running, environment, until

CYCLES, WARM = 1000, 100
MODELS = ("m@1", "m@2", "m@3")
KILLED = 20
GROWTH_MB = 8.0
"""Of a process in all cycles; one mapped segment that stays in each would be 250 MB."""
HOLDER = """
import os, signal, sys
from pathlib import Path
from lamella.store import session
held = session(sys.argv[1], Path(sys.argv[2]))
print("held", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


class Counted(NamedTuple):
    """What could leak: of the daemon, of the store, of this process."""

    descriptors: int
    leases: int
    segments: int
    bytes: int
    own_descriptors: int
    own_maps: int


def counted(daemon: Running) -> Counted:
    with daemon.connect() as connection:
        store = connection.status().store
    memory = next(t for t in store.tiers if t.name == "memory")
    leases = sum(m.leases for m in store.models)
    maps = Path("/proc/self/maps").read_text().splitlines()
    segments = sum(line.endswith(("/blob", "/blob (deleted)", "lamella-store (deleted)")) for line in maps)
    own = len(os.listdir("/proc/self/fd"))
    return Counted(daemon.descriptors(), leases, memory.blobs, memory.used_bytes, own, segments)


def anonymous_mb(pid: int | str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Anonymous:")).split()[1]) / 1024


@pytest.mark.slow
def test_a_thousand_sessions_leave_no_segment_no_descriptor_and_no_memory(daemon: Running) -> None:
    made = {name: daemon.put(name, seed) for seed, name in enumerate(MODELS)}
    x = np.random.default_rng(9).standard_normal((1, SIDE)).astype(np.float32)

    def cycle(number: int) -> None:
        name = MODELS[number % len(MODELS)]
        opened = session(name, daemon.path)
        (answer,) = opened.run(None, {"x": x})
        np.testing.assert_allclose(answer, x @ made[name].weights, atol=1e-3)
        opened.close()
        if number % (CYCLES // KILLED) == 0:
            argv = [sys.executable, "-c", HOLDER, name, str(daemon.path)]
            assert subprocess.run(argv, env=environment(), capture_output=True).stdout == b"held\n"
        if number % 10 == 0:  # out of memory, so that the next one loads it again
            until(lambda: daemon.leases() == 0)
            with daemon.connect() as connection:
                connection.evict(name)

    def settled() -> Counted:
        for name in MODELS:
            session(name, daemon.path).close()
        until(lambda: daemon.leases() == 0)
        return counted(daemon)

    for number in range(WARM):
        cycle(number)
    before = settled()
    used = anonymous_mb(daemon.pid), anonymous_mb("self")
    for number in range(CYCLES):
        cycle(number)
    until(lambda: settled() == before)
    assert before.leases == before.own_maps == 0
    assert anonymous_mb(daemon.pid) - used[0] < GROWTH_MB
    assert anonymous_mb("self") - used[1] < GROWTH_MB
