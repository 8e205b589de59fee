"""Instances that die: out of memory, killed, too slow. Nothing is lost silently, and the next request is answered."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lamella.deploy.local import Channel, Deployment, Size
from lamella.errors import FunctionTimeout, InstanceCrashed, OutOfMemory
from lamella.graph.model import Graph
from lamella.graph.requests import request
from lamella.limits import Limiter
from lamella.runtime.instance import State
from tests.faults import packages
from tests.processes import beside

CHANNELS: list[Channel] = ["shared-memory", "socket"]
STAGES = ["stage-1", "stage-2", "stage-3"]


@contextmanager
def killer(deployment: Deployment, name: str, times: int) -> Iterator[list[int]]:
    """Kills the function's instance each time it is found at work, `times` times at most; the pids."""
    killed: list[int] = []
    over = threading.Event()

    def hunt() -> None:
        while not over.is_set() and len(killed) < times:
            instance = deployment.instances.get(name)
            if instance and instance.state is State.BUSY and instance.pid not in killed:
                os.kill(instance.pid, signal.SIGKILL)
                killed.append(instance.pid)
            over.wait(0.002)

    with beside(hunt, stop=over.set):
        yield killed


def kill(deployment: Deployment, name: str) -> int:
    """Kill an idle instance and see it end."""
    pid = deployment.instances[name].pid
    os.kill(pid, signal.SIGKILL)
    assert packages.eventually(lambda: not packages.is_running(pid))
    return pid


# -------------------------------------------------------------------------------------------------------------- crash


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("name", STAGES)
def test_an_instance_killed_between_requests_is_replaced_and_the_request_answered(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, name: str, channel: Channel
) -> None:
    with Deployment(three_slices, channel=channel) as deployment:
        deployment.infer(request(cnn, rng))
        before = packages.pids(deployment)
        kill(deployment, name)
        x = request(cnn, rng)
        answer = deployment.infer(x)
        packages.assert_same(answer.outputs, packages.whole(cnn, x))
        after = packages.pids(deployment)
        assert [n for n in STAGES if before[n] != after[n]] == [name]
        assert answer.cold_ms > 0  # the replacement was started for this request
        again = deployment.infer(x)
        packages.assert_same(again.outputs, packages.whole(cnn, x))
        assert again.cold_ms == 0


@pytest.mark.parametrize("channel", CHANNELS)
def test_all_instances_killed_between_requests_and_a_larger_batch_next_is_answered(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, channel: Channel
) -> None:
    with Deployment(three_slices, channel=channel) as deployment:
        deployment.infer(request(cnn, rng))
        for name in STAGES:
            kill(deployment, name)
        x = request(cnn, rng, 5)
        packages.assert_same(deployment.infer(x).outputs, packages.whole(cnn, x))


@pytest.mark.parametrize("channel", CHANNELS)
def test_an_instance_killed_in_the_middle_of_a_run_is_retried_once_and_the_request_answered(
    slow_package: Path, slow: Graph, channel: Channel
) -> None:
    with Deployment(slow_package, channel=channel) as deployment:
        deployment.start()
        x = packages.slow_request(150)
        with killer(deployment, "stage-2", times=1) as killed:
            answer = deployment.infer(x)
        assert len(killed) == 1
        packages.assert_same(answer.outputs, packages.whole(slow, x))


def test_an_instance_killed_twice_in_a_row_is_a_crash_that_names_function_and_signal(
    slow_package: Path, slow: Graph
) -> None:
    with Deployment(slow_package) as deployment:
        deployment.start()
        with killer(deployment, "stage-2", times=2) as killed:
            with pytest.raises(InstanceCrashed, match=r"function stage-2 was ended by SIGKILL \(run\)"):
                deployment.infer(packages.slow_request(1000))
            assert len(killed) == 2
        x = packages.slow_request(1, seed=1)
        packages.assert_same(deployment.infer(x).outputs, packages.whole(slow, x))


def test_an_instance_that_comes_to_its_end_by_itself_says_how(three_slices: Path, cnn: Graph, tmp_path: Path) -> None:
    with Deployment(three_slices) as deployment:
        deployment.start()
        with killer(deployment, "stage-1", times=0):
            os.kill(deployment.instances["stage-1"].pid, signal.SIGSEGV)
            answer = deployment.infer(request(cnn, np.random.default_rng(0)))
        assert answer.cold_ms > 0


# -------------------------------------------------------------------------------------------------------------- start


def test_a_function_that_cannot_start_takes_those_started_with_it_down(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, enforced: Limiter
) -> None:
    """Law: a deployment that failed to start holds nothing, and says which function failed."""
    with Deployment(three_slices, limiter=enforced, sizes={"stage-2": Size(12, 1.0)}) as deployment:
        for _ in range(2):  # the second time too: what is left of the first must not be in the way
            with pytest.raises(OutOfMemory, match=r"function stage-2 .* limit of 12 MB \(start\)"):
                deployment.infer(request(cnn, rng))
            assert deployment.instances == {}
            assert packages.own_groups(enforced) == []


def test_instances_that_were_warm_survive_the_failed_start_of_another(
    three_slices: Path, cnn: Graph, rng: np.random.Generator, enforced: Limiter
) -> None:
    with Deployment(three_slices, limiter=enforced) as deployment:
        deployment.infer(request(cnn, rng))
        warm = packages.pids(deployment)
        deployment.instances.pop("stage-2").stop()
        deployment._sizes["stage-2"] = Size(12, 1.0)
        with pytest.raises(OutOfMemory):
            deployment.infer(request(cnn, rng))
        assert packages.pids(deployment) == {n: warm[n] for n in ("stage-1", "stage-3")}
        deployment._sizes["stage-2"] = Size(128, 1.0)
        x = request(cnn, rng)
        packages.assert_same(deployment.infer(x).outputs, packages.whole(cnn, x))


# ------------------------------------------------------------------------------------------------------ out of memory


def test_a_limit_under_what_a_process_needs_is_out_of_memory_with_function_and_limit(
    three_slices: Path, enforced: Limiter
) -> None:
    with (
        Deployment(three_slices, limiter=enforced, sizes={"stage-3": Size(24, 1.0)}) as deployment,
        pytest.raises(OutOfMemory, match=r"function stage-3 was killed by the kernel at its memory limit of 24 MB"),
    ):
        deployment.start()


def test_running_out_of_memory_is_retried_once_and_then_reported(
    greedy_package: Path, greedy: Graph, enforced: Limiter
) -> None:
    with Deployment(greedy_package, limiter=enforced) as deployment:
        x = packages.greedy_request(4)
        packages.assert_same(deployment.infer(x).outputs, packages.whole(greedy, x))
        before = packages.pids(deployment)
        with pytest.raises(OutOfMemory, match=r"function stage-2 .* memory limit of 128 MB \(run\)") as caught:
            deployment.infer(packages.greedy_request(300))
        assert caught.value.where == "function stage-2"
        assert packages.pids(deployment)["stage-1"] == before["stage-1"]
        x = packages.greedy_request(5)
        packages.assert_same(deployment.infer(x).outputs, packages.whole(greedy, x))
        assert packages.pids(deployment)["stage-2"] != before["stage-2"]


def test_a_larger_size_is_enough_for_the_same_request(greedy_package: Path, greedy: Graph, enforced: Limiter) -> None:
    with Deployment(greedy_package, limiter=enforced, sizes={"stage-2": Size(512, 1.0)}) as deployment:
        x = packages.greedy_request(300)
        packages.assert_same(deployment.infer(x).outputs, packages.whole(greedy, x))
        assert deployment.instances["stage-2"].report().peak_mb > 300


# ------------------------------------------------------------------------------------------------------------ timeout


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_function_that_takes_too_long_is_killed_and_a_shorter_request_answered(
    slow_package: Path, slow: Graph, channel: Channel
) -> None:
    with Deployment(slow_package, channel=channel, timeout_s=0.3) as deployment:
        deployment.start()
        pid = deployment.instances["stage-2"].pid
        with pytest.raises(FunctionTimeout, match=r"function stage-2 did not answer within 0\.3 s and was killed"):
            deployment.infer(packages.slow_request(5000))
        assert not packages.is_running(pid)
        x = packages.slow_request(1)
        packages.assert_same(deployment.infer(x).outputs, packages.whole(slow, x))


def test_a_longer_timeout_is_enough_for_the_same_request(slow_package: Path, slow: Graph) -> None:
    x = packages.slow_request(100)
    with Deployment(slow_package, timeout_s=0.01) as deployment, pytest.raises(FunctionTimeout):
        deployment.infer(x)
    with Deployment(slow_package, timeout_s=60.0) as deployment:
        packages.assert_same(deployment.infer(x).outputs, packages.whole(slow, x))


# ---------------------------------------------------------------------------------------------------------- interrupt


def test_an_interrupt_in_the_middle_of_a_request_leaves_a_deployment_that_answers(
    slow_package: Path, slow: Graph
) -> None:
    with Deployment(slow_package) as deployment:
        deployment.start()
        main = threading.main_thread().ident
        assert main is not None

        def interrupt() -> None:
            packages.eventually(lambda: deployment.instances["stage-2"].state is State.BUSY)
            signal.pthread_kill(main, signal.SIGINT)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with beside(interrupt), pytest.raises(KeyboardInterrupt):
                deployment.infer(packages.slow_request(2000))
        finally:
            signal.signal(signal.SIGINT, before)
        x = packages.slow_request(1)
        packages.assert_same(deployment.infer(x).outputs, packages.whole(slow, x))
