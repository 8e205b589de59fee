from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from lamella.channels import messages as wire
from lamella.deploy.local import Deployment
from lamella.errors import ConfigError, InstanceCrashed, ModelError, OutOfMemory
from lamella.graph.model import Graph
from lamella.limits import Limiter
from lamella.limits.unlimited import UnlimitedGroup
from lamella.runtime import orders
from lamella.runtime.instance import Instance
from lamella.runtime.starts import Descriptors, Forking, Start
from tests.faults import packages
from tests.processes import beside, running

ROW = np.ones((1, 3, 32, 32), np.float32)
REQUEST = wire.Run(
    (wire.TensorRef("x", "float32", ROW.shape, size=ROW.nbytes),),
    (wire.TensorRef("probabilities", "float32", (1, 10), size=40),),
)
NOBODY = 65534
DRIVER = """
import json, os, signal, sys
from pathlib import Path
from lamella.deploy.local import Deployment
from tests.faults import packages
with Deployment(Path(sys.argv[1]), start="zygote", freezable=sys.argv[2] == "frozen") as deployment:
    deployment.start()
    if sys.argv[2] == "frozen":
        deployment.pause()
    zygotes = [starter.pid for starter in deployment._starters.values()]
    print(json.dumps([*packages.pids(deployment).values(), *zygotes]), flush=True)
    signal.pause()
"""


@pytest.fixture
def zygote() -> Iterator[Forking]:
    with closing(Forking()) as forking:
        yield forking


Begin = Callable[..., Instance]


@pytest.fixture
def begin(function: Path, limiter: Limiter) -> Iterator[Begin]:
    made: list[Instance] = []

    def one(start: Forking, directory: Path = function, *, freezable: bool = False) -> Instance:
        made.append(Instance("one", directory, limiter, memory_mb=256, vcpu=1.0, start=start, freezable=freezable))
        return made[-1]

    yield one
    for instance in made:
        instance.kill()


def ask(instance: Instance) -> np.ndarray:
    reply = instance.run(wire.encode(REQUEST), 30.0, [memoryview(ROW.tobytes())])
    return np.frombuffer(reply.streamed[0], "float32").reshape(1, 10)


def links(pid: int) -> set[str]:
    """What the descriptors of a process stand for; sockets and pipes by their inode."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            continue
    return found


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def lines_of(pid: int, *fields: str) -> dict[str, list[str]]:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {key: value.split() for key, _, value in lines if key in fields}


def zombies(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[:2] == ["Z", str(parent)]:
            found.append(int(path.name))
    return found


def test_every_start_gives_the_same_answers_to_the_bit(cnn: Graph, tmp_path: Path) -> None:
    package = packages.package(cnn, tmp_path / "package", [3])
    rng = np.random.default_rng(0)
    requests = [{"x": rng.standard_normal((n, 3, 32, 32)).astype(np.float32)} for n in (1, 3, 1)]
    answers: dict[Start, list[np.ndarray]] = {}
    for start in get_args(Start):
        with Deployment(package, start=start) as deployment:
            answers[start] = [deployment.infer(request).outputs["probabilities"] for request in requests]
            deployment.scale_to_zero()
            answers[start] += [deployment.infer(request).outputs["probabilities"] for request in requests]
            for instance in deployment.instances.values():
                assert instance.cold
                assert min(instance.cold) >= 0
                assert instance.cold.total == pytest.approx(sum(instance.cold))
    for answered in answers.values():
        for found, expected in zip(answered, answers["fresh"], strict=True):
            np.testing.assert_array_equal(found, expected)
    packages.assert_same({"probabilities": answers["fresh"][1]}, packages.whole(cnn, requests[1]))


def test_a_zygote_has_one_thread_and_no_session_and_a_worker_only_descriptors_of_its_own(
    zygote: Forking, begin: Begin, function: Path
) -> None:
    assert threads(zygote.pid) == 1
    assert str(function) not in Path(f"/proc/{zygote.pid}/maps").read_text()
    one, two = begin(zygote), begin(zygote)
    one.ready()
    two.ready()
    assert threads(zygote.pid) == 1
    shared = links(one.pid) & links(two.pid)
    assert not {link for link in shared if "socket" in link or "pidfd" in link}, shared
    assert not {link for link in links(one.pid) & links(zygote.pid) if "socket" in link or "pidfd" in link}
    assert len([link for link in links(one.pid) if "socket" in link]) == 2
    assert os.getsid(one.pid) == one.pid


def test_a_zygote_that_holds_a_session_has_one_thread_too(function: Path, begin: Begin) -> None:
    with closing(Forking(function)) as zygote:
        assert threads(zygote.pid) == 1
        assert str(function / "weights.bin") in Path(f"/proc/{zygote.pid}/maps").read_text()
        expected = ask(ready(begin(zygote)))
        np.testing.assert_array_equal(ask(ready(begin(zygote))), expected)


def ready(instance: Instance) -> Instance:
    instance.ready()
    return instance


def test_a_session_of_several_threads_is_not_forked(function: Path, tmp_path: Path) -> None:
    several = shutil.copytree(function, tmp_path / "several")
    text = (several / "function.json").read_text()
    assert '"threads": 1' in text
    (several / "function.json").write_text(text.replace('"threads": 1', '"threads": 2'))
    with pytest.raises(ConfigError, match=r"the zygote has 2 threads with function stage-1 open"):
        Forking(several)


def test_a_function_that_cannot_be_held_is_refused_with_the_runtimes_words(function: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(function, tmp_path / "damaged")
    (damaged / "graph.onnx").write_text("rubbish")
    with pytest.raises(ModelError, match=r"graph\.onnx"):
        Forking(damaged)


def test_a_worker_killed_at_its_memory_limit_is_out_of_memory_and_the_zygote_lives(
    tmp_path: Path, limiter: Limiter
) -> None:
    if not limiter.enforced:
        pytest.skip(limiter.reason)
    greedy = packages.greedy_graph(tmp_path)
    package = packages.package(greedy, tmp_path / "package", memory_mb=128)
    starts: tuple[Start, ...] = ("zygote", "forked-session")
    for start in starts:
        with Deployment(package, start=start) as deployment:
            deployment.infer(packages.greedy_request(8))
            (starter,) = deployment._starters.values()
            assert isinstance(starter, Forking)
            pid = starter.pid
            with pytest.raises(OutOfMemory, match="memory limit of 128 MB"):
                deployment.infer(packages.greedy_request(512))
            assert packages.is_running(pid)
            deployment.infer(packages.greedy_request(8))
            assert starter.pid == pid
            assert zombies(pid) == []


def test_a_killed_worker_is_a_crash_that_names_the_signal(zygote: Forking, begin: Begin) -> None:
    instance = ready(begin(zygote))
    os.kill(instance.pid, signal.SIGKILL)
    with pytest.raises(InstanceCrashed, match=r"was ended by SIGKILL \(run\)"):
        ask(instance)


def test_what_a_worker_says_before_it_fails_is_told(zygote: Forking, begin: Begin, tmp_path: Path) -> None:
    with pytest.raises(InstanceCrashed, match=r"exit code 1 \(start\): FileNotFoundError"):
        begin(zygote, tmp_path).ready()


def test_workers_of_a_killed_zygote_answer_on_and_the_next_start_has_another(zygote: Forking, begin: Begin) -> None:
    instances = [ready(begin(zygote)) for _ in range(3)]
    expected = ask(instances[0])
    stop, failed = threading.Event(), list[BaseException]()

    def load(instance: Instance) -> None:
        try:
            while not stop.is_set():
                np.testing.assert_array_equal(ask(instance), expected)
        except BaseException as error:  # noqa: BLE001 - told to the test
            failed.append(error)

    with beside(*(partial(load, instance) for instance in instances), stop=stop.set):
        for _ in range(3):
            first = zygote.pid
            os.kill(first, signal.SIGKILL)
            np.testing.assert_array_equal(ask(ready(begin(zygote))), expected)
            assert zygote.pid != first
    assert not failed
    instances[0].stop()
    os.kill(instances[1].pid, signal.SIGKILL)
    with pytest.raises(InstanceCrashed, match="nobody saw how"):
        ask(instances[1])


def test_a_zygote_that_does_not_answer_is_replaced_and_the_order_given_again(
    zygote: Forking, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.runtime.starts.FORKED_S", 0.05)
    first = zygote.pid
    living = ready(begin(zygote))
    os.kill(first, signal.SIGSTOP)
    assert ask(ready(begin(zygote))).shape == (1, 10)
    assert zygote.pid != first
    assert ask(living).shape == (1, 10)


def test_a_worker_does_nothing_before_it_is_told_to_go(zygote: Forking, function: Path) -> None:
    """The order's answer may be lost with the zygote: two workers on the same sockets would share requests."""
    assert zygote._sock
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, control, far:
        order = orders.Order(str(function), "socket", cpus=tuple(os.sched_getaffinity(0)))
        with theirs:
            socket.send_fds(zygote._sock, [orders.encode(order)], [theirs.fileno(), far.fileno(), far.fileno(), 2])
        packet, pidfds, _, _ = socket.recv_fds(ours, 1 << 16, 1)
        news = orders.decode_news(packet)
        assert isinstance(news, orders.Forked)
        os.close(pidfds[0])
        ours.close()
        assert packages.eventually(lambda: not Path(f"/proc/{news.pid}").exists())
        control.setblocking(False)
        with pytest.raises(BlockingIOError):
            control.recv(1)


@pytest.mark.parametrize("packet", [b"rubbish", orders.encode(orders.Order("/nowhere", "socket"))])
def test_what_is_no_order_or_lacks_descriptors_is_dropped(zygote: Forking, begin: Begin, packet: bytes) -> None:
    assert zygote._sock
    before, pid = links(zygote.pid), zygote.pid
    read, write = os.pipe()
    socket.send_fds(zygote._sock, [packet], [read])
    os.close(read)
    os.close(write)
    assert ask(ready(begin(zygote))).shape == (1, 10)
    assert zygote.pid == pid
    assert len(links(zygote.pid) - before) == 2  # of the worker that lives


def test_two_hundred_lives_leave_no_descriptor_no_zombie_and_no_group(
    zygote: Forking, function: Path, limiter: Limiter
) -> None:
    ours, its, pid = packages.open_files(), len(os.listdir(f"/proc/{zygote.pid}/fd")), zygote.pid
    for number in range(200):
        instance = Instance("one", function, limiter, memory_mb=256, vcpu=1.0, start=zygote)
        if number % 10 == 0:
            ask(ready(instance))
            instance.stop()
        instance.kill()
        assert not Path(f"/proc/{instance.pid}").exists()
    assert zygote.pid == pid
    assert packages.open_files() == ours
    assert packages.eventually(lambda: len(os.listdir(f"/proc/{pid}/fd")) == its)  # it tells of an end, then closes
    assert zombies(pid) == []
    assert packages.children(pid) == []
    assert packages.own_groups(limiter) == []


@pytest.mark.parametrize("doing", ["idle", "frozen"])
def test_the_zygote_and_the_workers_of_a_killed_driver_die(cnn: Graph, tmp_path: Path, doing: str) -> None:
    package = packages.package(cnn, tmp_path / "package", [3])
    argv = [sys.executable, "-c", DRIVER, str(package), doing]
    with running(argv, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout
        pids = json.loads(driver.stdout.readline())
        assert len(pids) == 4  # two workers, their zygote twice
        assert all(map(packages.is_running, pids))
        driver.kill()
    assert packages.eventually(lambda: not any(map(packages.is_running, pids)))


def test_closing_ends_the_zygote_and_the_workers_that_are_left(begin: Begin) -> None:
    zygote = Forking()
    instance = ready(begin(zygote))
    pid = zygote.pid
    zygote.close()
    assert not Path(f"/proc/{pid}").exists()
    assert packages.eventually(lambda: not packages.is_running(instance.pid))


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_workers_become_the_user_they_are_meant_to(function: Path, begin: Begin) -> None:
    readable = shutil.copytree(function, Path(f"/tmp/lamella-test-{os.getpid()}"))
    try:
        with closing(Forking(user=(NOBODY, NOBODY))) as zygote:
            instance = ready(begin(zygote, readable))
            status = lines_of(instance.pid, "Uid", "Gid", "Groups")
            assert status == {"Uid": [str(NOBODY)] * 4, "Gid": [str(NOBODY)] * 4, "Groups": []}
            assert ask(instance).shape == (1, 10)
            assert instance.report().resident_mb > 0
            instance.stop()
    finally:
        shutil.rmtree(readable)


def test_workers_do_not_draw_the_same_numbers_and_have_cores_and_an_environment_of_their_own() -> None:
    code = """
import os, random, sys
import numpy.random
from lamella.runtime import zygote
from lamella.runtime.orders import Order
for number in range(2):
    if os.fork() == 0:
        zygote._settle(Order("/", "socket", environment={"NUMBER": str(number)}, cpus=(min(os.sched_getaffinity(0)),)))
        cores = len(os.sched_getaffinity(0))
        print(random.random(), numpy.random.random(), os.environ["NUMBER"], os.getsid(0) == os.getpid(), cores)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    one, two = (line.split() for line in done.stdout.splitlines())
    assert one[0] != two[0]
    assert one[1] != two[1]
    assert (one[2:], two[2:]) == (["0", "True", "1"], ["1", "True", "1"])


def test_a_worker_that_may_be_frozen_is_paused_goes_on_and_dies_with_its_zygote(zygote: Forking, begin: Begin) -> None:
    one = ready(begin(zygote, freezable=True))
    one.pause()
    assert packages.eventually(lambda: lines_of(one.pid, "State")["State"][0] == "T")
    one.resume()
    assert ask(one).shape == (1, 10)
    one.pause()  # now it could not see its driver go
    os.kill(zygote.pid, signal.SIGKILL)
    assert packages.eventually(lambda: not packages.is_running(one.pid))


def test_a_driver_without_descriptors_starts_nothing_and_keeps_its_zygote(
    zygote: Forking, begin: Begin, limiter: Limiter
) -> None:
    before, pid = packages.open_files(), zygote.pid
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    for room in range(8):
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + room, limits[1]))
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                begin(zygote)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert packages.open_files() == before
        assert packages.own_groups(limiter) == []
    assert zygote.pid == pid
    assert packages.eventually(lambda: packages.children(pid) == [])
    assert ask(ready(begin(zygote))).shape == (1, 10)


def test_descriptors_that_are_none_are_refused_and_nothing_is_left(zygote: Forking, function: Path) -> None:
    before = packages.open_files()
    group = UnlimitedGroup("none", 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        zygote.spawn(orders.Order(str(function), "socket"), Descriptors(-1, -1, 2), group)
    assert packages.open_files() == before


def test_a_system_without_pidfds_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("os.pidfd_open", refuse)
    with pytest.raises(ConfigError, match=r"Linux 5\.3 or newer: .*not implemented"):
        Forking()


def test_an_unknown_start_is_refused(cnn: Graph, tmp_path: Path) -> None:
    package = packages.package(cnn, tmp_path / "package")
    with pytest.raises(ConfigError, match="none of fresh, zygote, forked-session"):
        Deployment(package, start="boil")  # type: ignore[arg-type]
