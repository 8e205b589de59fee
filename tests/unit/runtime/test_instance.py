from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lamella.channels import messages as wire
from lamella.errors import CodecError, FunctionTimeout, InputRefused, InstanceCrashed, ModelError
from lamella.graph.model import Graph
from lamella.limits import Limiter
from lamella.runtime.instance import NEXT, Instance, State
from tests.faults import packages
from tests.processes import beside

ROW = np.ones((1, 3, 32, 32), np.float32)
REQUEST = wire.Run(
    (wire.TensorRef("x", "float32", ROW.shape, size=ROW.nbytes),),
    (wire.TensorRef("probabilities", "float32", (1, 10), size=40),),
)
Start = Callable[[], Instance]


@pytest.fixture
def start(function: Path, limiter: Limiter) -> Iterator[Start]:
    made: list[Instance] = []

    def one() -> Instance:
        made.append(Instance("one", function, limiter, memory_mb=256, vcpu=1.0))
        return made[-1]

    yield one
    for instance in made:
        instance.kill()


def ask(instance: Instance, *, timeout_s: float = 30.0) -> np.ndarray:
    reply = instance.run(wire.encode(REQUEST), timeout_s, [memoryview(ROW.tobytes())])
    assert reply.run_ms > 0
    return np.frombuffer(reply.streamed[0], "float32").reshape(reply.outputs[0].shape)


def states(instance: Instance) -> list[State]:
    return [state for _, state in instance.events]


@contextmanager
def stopped(instance: Instance) -> Iterator[None]:
    """The worker is alive and does nothing."""
    os.kill(instance.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if packages.is_running(instance.pid):
            os.kill(instance.pid, signal.SIGCONT)


def test_a_life_goes_through_the_states_in_legal_order_and_time_only_forward(start: Start) -> None:
    instance = start()
    assert instance.state is State.SPAWNING
    instance.ready()
    ask(instance)
    ask(instance)
    instance.stop()
    started = [State.SPAWNING, State.IMPORTING, State.MAPPING, State.READY]
    assert states(instance) == [*started, *[State.BUSY, State.READY] * 2, State.DRAINING, State.GONE]
    assert all(after in NEXT[before] for before, after in pairwise(states(instance)))
    times = [at for at, _ in instance.events]
    assert times == sorted(times)


def test_every_state_can_end_and_none_follows_the_end() -> None:
    assert set(NEXT) == set(State)
    assert all(State.GONE in NEXT[state] for state in State if state is not State.GONE)
    assert not NEXT[State.GONE]


def test_the_parts_of_a_cold_start_are_positive_and_make_up_the_whole(start: Start) -> None:
    instance = start()
    cold = instance.ready()
    assert all(part > 0 for part in cold)
    times = {state: at for at, state in instance.events}
    assert cold.total == pytest.approx((times[State.READY] - times[State.SPAWNING]) * 1000)
    assert cold.spawn == pytest.approx((times[State.IMPORTING] - times[State.SPAWNING]) * 1000)
    assert instance.ready() is cold


def test_the_answer_is_the_models(start: Start, cnn: Graph) -> None:
    instance = start()
    instance.ready()
    packages.assert_same({"probabilities": ask(instance)}, packages.whole(cnn, {"x": ROW}))


@pytest.mark.parametrize("end", [Instance.stop, Instance.kill])
@pytest.mark.parametrize("warm", [True, False], ids=["ready", "still spawning"])
def test_ending_twice_is_ending_once_and_nothing_is_left(
    start: Start, limiter: Limiter, end: Callable[[Instance], None], warm: bool
) -> None:
    before = packages.open_files()
    instance = start()
    if warm:
        instance.ready()
        assert packages.is_running(instance.pid)
        assert len(packages.own_groups(limiter)) == (1 if limiter.enforced else 0)
    end(instance)
    assert instance.state is State.GONE
    assert not Path(f"/proc/{instance.pid}").exists()
    assert packages.own_groups(limiter) == []
    assert packages.open_files() == before
    end(instance)
    instance.kill()
    assert states(instance).count(State.GONE) == 1


def test_ten_lives_leave_no_descriptor_behind(start: Start) -> None:
    before = packages.open_files()
    for _ in range(10):
        start().kill()
    assert packages.open_files() == before


def test_a_worker_that_does_not_leave_when_told_to_is_killed(start: Start) -> None:
    instance = start()
    instance.ready()
    with stopped(instance):
        instance.stop(timeout_s=0.05)
    assert instance.state is State.GONE
    assert not packages.is_running(instance.pid)


def test_a_worker_whose_driver_closes_its_sockets_leaves_by_itself(start: Start) -> None:
    instance = start()
    instance.ready()
    instance._sock.close()
    assert packages.eventually(lambda: not packages.is_running(instance.pid))


def test_bytes_that_do_not_fit_leave_the_instance_ready(start: Start) -> None:
    instance = start()
    instance.ready()
    wrong = wire.Run((wire.TensorRef("x", "float32", (1, 3, 32, 32), size=8),), REQUEST.outputs)
    with pytest.raises(CodecError, match="8 bytes are no float32 tensor"):
        instance.run(wire.encode(wrong), 30.0, [memoryview(bytes(8))])
    assert instance.state is State.READY
    assert ask(instance).shape == (1, 10)


def test_an_unknown_output_is_refused_with_the_runtimes_words(start: Start) -> None:
    instance = start()
    instance.ready()
    wrong = wire.Run(REQUEST.inputs, (wire.TensorRef("nothing", "float32", (1,)),))
    with pytest.raises(InputRefused, match="nothing"):
        instance.run(wire.encode(wrong), 30.0, [memoryview(ROW.tobytes())])
    assert ask(instance).shape == (1, 10)


def test_a_silent_worker_is_a_timeout_and_killed(start: Start) -> None:
    instance = start()
    instance.ready()
    with stopped(instance), pytest.raises(FunctionTimeout, match=r"function one did not answer within 0\.05 s"):
        ask(instance, timeout_s=0.05)
    assert instance.state is State.GONE
    assert not packages.is_running(instance.pid)


def test_the_timeout_holds_for_the_stream_too_even_when_it_equals_that_of_the_start(start: Start) -> None:
    instance = start()
    instance.ready(timeout_s=4.0)
    with stopped(instance), pytest.raises(FunctionTimeout):
        instance.run(wire.encode(REQUEST), 4.0, [memoryview(bytes(8 << 20))])


def test_a_start_that_takes_too_long_is_a_timeout_and_killed(start: Start) -> None:
    instance = start()
    with pytest.raises(FunctionTimeout, match=r"did not start within 0\.001 s"):
        instance.ready(timeout_s=0.001)
    assert instance.state is State.GONE


def test_a_killed_worker_is_a_crash_that_names_the_signal(start: Start) -> None:
    instance = start()
    instance.ready()
    os.kill(instance.pid, signal.SIGKILL)
    with pytest.raises(InstanceCrashed, match=r"function one was ended by SIGKILL \(run\)"):
        ask(instance)
    assert instance.state is State.GONE


def test_a_lost_worker_is_noticed_when_it_is_asked_for_its_memory(start: Start) -> None:
    instance = start()
    instance.ready()
    os.kill(instance.pid, signal.SIGTERM)
    assert packages.eventually(lambda: not packages.is_running(instance.pid))
    with pytest.raises(InstanceCrashed, match=r"ended by SIGTERM \(report\)"):
        instance.report()


def test_memory_is_reported_in_an_order_that_makes_sense(start: Start) -> None:
    instance = start()
    instance.ready()
    ask(instance)
    memory = instance.report()
    assert 20 < memory.floor_mb <= memory.load_peak_mb <= memory.peak_mb < 200
    assert memory.anonymous_mb <= memory.resident_mb <= memory.peak_mb + 1
    assert 0 < memory.weights_mb < 1


def test_the_cpu_share_of_a_running_instance_can_be_changed(start: Start) -> None:
    instance = start()
    instance.ready()
    before = ask(instance)
    instance.limit_cpu(0.5)
    np.testing.assert_array_equal(ask(instance), before)


def test_an_interrupt_from_the_keyboard_is_the_drivers_to_handle(start: Start) -> None:
    instance = start()
    instance.ready()
    os.kill(instance.pid, signal.SIGINT)
    assert ask(instance).shape == (1, 10)


@pytest.mark.parametrize(
    ("file", "text", "error", "says"),
    [
        ("graph.onnx", "rubbish", ModelError, "graph.onnx"),
        ("graph.onnx", None, ModelError, "graph.onnx"),
        ("weights.bin", None, ModelError, "weights.bin"),
        ("function.json", "{}", InstanceCrashed, r"exit code 1 \(start\): msgspec.ValidationError"),
        ("function.json", None, InstanceCrashed, "No such file or directory"),
    ],
)
def test_a_damaged_function_fails_to_start_and_says_which_file(
    function: Path, limiter: Limiter, tmp_path: Path, file: str, text: str | None, error: type[Exception], says: str
) -> None:
    damaged = shutil.copytree(function, tmp_path / "damaged")
    (damaged / file).unlink()
    if text is not None:
        (damaged / file).write_text(text)
    instance = Instance("one", damaged, limiter, memory_mb=256, vcpu=1.0)
    with pytest.raises(error, match=says):
        instance.ready()
    assert instance.state is State.GONE


def test_a_driver_without_descriptors_starts_nothing_and_leaves_nothing(start: Start, limiter: Limiter) -> None:
    before = packages.open_files()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    for room in range(8):
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + room, limits[1]))
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert packages.open_files() == before
        assert packages.own_groups(limiter) == []


def test_a_missing_interpreter_starts_nothing_and_leaves_nothing(
    start: Start, limiter: Limiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = packages.open_files()
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    if limiter.enforced:  # the shell that joins the group is there, what it would become is not
        with pytest.raises(InstanceCrashed, match="exit code 127"):
            start().ready()
    else:
        with pytest.raises(FileNotFoundError):
            start()
    assert packages.own_groups(limiter) == []
    assert packages.open_files() == before


def test_an_instance_outlives_the_thread_that_started_it(start: Start) -> None:
    made: list[Instance] = []
    with beside(lambda: made.append(start())):
        pass
    made[0].ready()
    assert ask(made[0]).shape == (1, 10)


def test_an_instance_that_is_ready_outlives_the_thread_that_started_it(start: Start) -> None:
    made: list[Instance] = []

    def begin() -> None:
        made.append(start())
        made[0].ready()

    with beside(begin):
        pass
    assert ask(made[0]).shape == (1, 10)
