"""Several puts at a time: one that hangs holds up nobody else, and together they take no more room than there is."""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.errors import LamellaError, StoreFull, StoreQuota
from lamella.store.accepting import COPIES_AT_ONCE
from lamella.store.client import session
from lamella.store.incoming import Room
from lamella.store.turns import Turns
from lamella.store.workers import Workers
from tests.unit.store_daemon.conftest import Made, Running, make, until
from tests.unit.store_daemon.test_users import as_nobody

FAN_CLASS_CONTENT, FAN_CLOEXEC, FAN_MARK_ADD, FAN_ACCESS_PERM = 0x4, 0x1, 0x1, 0x20000
RULES = '[[allow]]\nuser = "nobody"\nopen = ["theirs@*"]\nput = ["theirs@*"]\n'


@contextmanager
def hanging(*paths: Path) -> Iterator[None]:
    """Files that do not answer who reads them, as those of a dead network disk; they do after the block.

    The kernel asks this process, which does not answer, whether a read may go on (fanotify).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, os.O_RDONLY)
    if watch < 0:
        pytest.skip(f"no fanotify here: {os.strerror(ctypes.get_errno())}")
    try:
        for path in paths:
            mask = ctypes.c_uint64(FAN_ACCESS_PERM)
            if libc.fanotify_mark(watch, FAN_MARK_ADD, mask, -100, os.fsencode(path)):
                pytest.skip(f"no fanotify permission events here: {os.strerror(ctypes.get_errno())}")
        yield
    finally:
        os.close(watch)


def put(daemon: Running, made: Made) -> None:
    with daemon.connect() as connection:
        connection.put(made.record, made.blobs)


def arriving(daemon: Running) -> int:
    place = daemon.directory / "root" / "arriving"
    return len(list(place.iterdir())) if place.exists() else 0


def held(daemon: Running) -> set[str]:
    """Every blob on the daemon's disk, whole or not."""
    root = daemon.directory / "root"
    return {p.name for place in ("objects", "incoming", "arriving") for p in (root / place).rglob("*") if p.is_file()}


def test_a_put_that_hangs_holds_up_neither_other_users_nor_the_same_user_s_next(start: Callable[..., Running]) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can have reads wait, and become another user")
    daemon = start(RULES)
    models = [make(daemon.directory / f"made{k}", f"m{k}@1", seed=k) for k in range(COPIES_AT_ONCE + 1)]
    theirs = make(daemon.directory / "theirs", "theirs@1", seed=9)
    for path in (theirs.blobs[theirs.record.graph.id].parent, *theirs.blobs.values()):
        path.chmod(0o755)
    *stuck, late = models
    waiting: list[Future[None]] = []
    with ThreadPoolExecutor(len(models)) as pool:
        with hanging(*(made.blobs[made.record.segments[0].id] for made in stuck)):
            for k, made in enumerate(stuck):
                if k == len(stuck) - 1:
                    daemon.put("quick@1", seed=8)  # beside those that hang so far
                waiting.append(pool.submit(put, daemon, made))
                until(lambda: arriving(daemon) == len(waiting))
            waiting.append(pool.submit(put, daemon, late))  # its user has as many on their way as may be
            as_nobody(lambda: put(daemon, theirs))
            session("quick@1", daemon.path).close()
            assert not any(each.done() for each in waiting)
            with daemon.connect() as connection:
                assert [m.name for m in connection.status().store.models] == ["quick@1", "theirs@1"]
        for each in waiting:
            each.result(20)
    for made in models:
        session(made.record.name, daemon.path).close()
    until(lambda: arriving(daemon) == 0)
    with daemon.connect() as connection:
        assert len(connection.status().store.models) == len(models) + 2


def test_puts_side_by_side_keep_to_the_budget_and_leave_nothing_half(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    models = [make(tmp_path, f"m{k}@1", seed=k) for k in range(8)]
    graph, segment = models[0].record.blobs
    budget = 5 * segment.bytes + len(models) * graph.bytes
    daemon = start(disk_bytes=budget)

    def try_to(made: Made) -> bool:
        try:
            put(daemon, made)
        except StoreFull:
            return False
        return True

    with ThreadPoolExecutor(len(models)) as pool:
        done = list(pool.map(try_to, models))
    kept = [made for made, there in zip(models, done, strict=True) if there]
    assert 1 <= len(kept) <= 5
    for made in models:  # room that was promised to those who failed is there again
        try_to(made)
    with daemon.connect() as connection:
        store = connection.status().store
    assert len(store.models) == 5
    assert store.tiers[1].used_bytes <= budget
    there = {m.name for m in store.models}
    assert held(daemon) == {b.id for made in models if made.record.name in there for b in made.record.blobs}


def test_the_same_put_twice_at_once_is_one_model(daemon: Running) -> None:
    made = make(daemon.directory / "made", "m@1")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: put(daemon, made), range(4)))
    assert held(daemon) == {b.id for b in made.record.blobs}
    session("m@1", daemon.path).close()


def test_free_bytes_are_promised_once(tmp_path: Path) -> None:
    room, most = Room(), int(shutil.disk_usage(tmp_path).free * 0.6)
    room.take("one", most, tmp_path)
    with pytest.raises(StoreFull, match="no other put needs"):
        room.take("two", most, tmp_path)
    room.give(most)
    room.take("two", most, tmp_path)


def test_a_user_has_so_many_turns_and_the_others_theirs() -> None:
    workers = Workers(3, "test")
    turns = Turns(workers, at_once=2, most=3)
    gate = threading.Event()
    ended: list[str] = []

    def wait() -> None:
        assert gate.wait(10)

    def then(name: str) -> Callable[[LamellaError | None], None]:
        return lambda error: ended.append(name if error is None else error.message)

    def come(*names: str) -> bool:
        workers.finish()
        return set(ended) == set(names)

    for name in ("a1", "a2", "a3"):
        turns.check(1)
        turns.start(1, wait, then(name))
    with pytest.raises(StoreQuota, match="3 puts on their way"):
        turns.check(1)
    turns.start(2, lambda: None, then("b"))
    until(lambda: come("b"))
    gate.set()
    until(lambda: come("b", "a1", "a2", "a3"))
    turns.start(1, wait, then("a4"))
    until(lambda: come("b", "a1", "a2", "a3", "a4"))
    os.close(workers.wake)
