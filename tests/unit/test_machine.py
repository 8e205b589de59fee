from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import msgspec
import pytest

from lamella.machine import Machine, on_cores, this_machine

ONE = Machine(cpu="a", isa="x86_64-avx2", cores=2, memory_mb=1024, onnxruntime="1.2.3")


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_this_machine_is_known_by_its_processor_cores_and_memory() -> None:
    machine = this_machine()
    assert machine.cpu
    assert machine.isa.partition("-")[0] == os.uname().machine
    assert machine.cores >= 1
    assert machine.memory_mb > 100
    assert machine.runs(machine)


def test_the_runtimes_version_is_the_same_from_the_module_and_from_its_metadata() -> None:
    ask = "from lamella.machine import this_machine; print(this_machine().onnxruntime)"
    with_metadata = fresh(f"{ask}; import sys; assert 'onnxruntime' not in sys.modules")
    with_module = fresh(f"import onnxruntime; {ask}; import sys; assert 'importlib.metadata' not in sys.modules")
    assert with_metadata == with_module == this_machine().onnxruntime


def test_the_key_is_short_stable_and_differs_with_what_measurements_depend_on() -> None:
    assert ONE.key == msgspec.structs.replace(ONE).key == "3355c62b24ec"
    changes = {"cpu": "b", "isa": "x86_64-avx", "cores": 3, "onnxruntime": "1.2.4"}
    keys = {msgspec.structs.replace(ONE, **{name: value}).key for name, value in changes.items()}
    assert len(keys | {ONE.key}) == 5
    assert msgspec.structs.replace(ONE, memory_mb=2048).key == ONE.key


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({"cpu": "b", "cores": 64, "memory_mb": 1}, True),
        ({"isa": "x86_64-avx512f"}, False),
        ({"isa": "aarch64-asimd"}, False),
        ({"onnxruntime": "1.2.4"}, False),
    ],
)
def test_an_optimised_graph_is_good_for_the_same_instructions_and_runtime(
    change: dict[str, str | int], runs: bool
) -> None:
    assert msgspec.structs.replace(ONE, **change).runs(ONE) is runs


def test_on_cores_keeps_to_the_last_ones_and_gives_all_back_even_after_an_error() -> None:
    before = os.sched_getaffinity(0)
    with on_cores(1) as chosen:
        assert chosen == os.sched_getaffinity(0) == {max(before)}
        assert this_machine().cores == len(before)
    assert os.sched_getaffinity(0) == before
    with contextlib.suppress(KeyboardInterrupt), on_cores(1):
        raise KeyboardInterrupt
    assert os.sched_getaffinity(0) == before


def test_more_cores_than_there_are_are_all_of_them() -> None:
    before = os.sched_getaffinity(0)
    with on_cores(10_000) as chosen:
        assert chosen == before
