"""Two users of one machine: each gets what the allow-list opens to it, and nothing else."""

from __future__ import annotations

import os
import pwd
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.errors import ConfigError, StoreDenied, StoreError, StoreQuota, UnknownModel
from lamella.store import protocol
from lamella.store.access import Access, AllowList, Quota, Rule, read_allow_list
from lamella.store.client import HOST_SOCKET, SOCKET, Connection, find_socket, has_daemon, session
from lamella.store.daemon import CONNECTIONS
from lamella.store.ledger import FEW, KEPT, Ledger
from lamella.store.peer import Peer
from lamella.store.records import ModelRecord
from tests.unit.store_daemon.conftest import Running, make, until

NOBODY = "nobody"
RULES = """
[[allow]]
user = "nobody"
open = ["open@*"]
put = ["theirs@*"]
"""


@pytest.fixture
def shared(start: Callable[..., Running]) -> Running:
    """A daemon that another user may reach."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    return start(RULES)


def as_nobody(act: Callable[[], None]) -> None:
    """Do something in a child that is another user; what it asserts is asserted here."""
    account = pwd.getpwnam(NOBODY)
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            act()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it was, the parent is told
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_user_opens_what_the_list_opens_and_learns_nothing_of_the_rest(shared: Running) -> None:
    shared.put("open@1", seed=1)
    secret = shared.put("secret@1", seed=2)

    def act() -> None:
        lease = Connection(shared.path).open("open@1")
        for name in ("secret@1", "nothing@1"):
            with pytest.raises(StoreDenied, match="may not open"):
                session(name, shared.path)
        with Connection(shared.path) as connection:
            report = connection.status()
            assert [m.name for m in report.store.models] == ["open@1"]
            assert [u.uid for u in report.users] == [os.getuid()]
        for denied in (Connection.stop, lambda c: c.evict("open@1"), lambda c: c.pin("open@1")):
            with Connection(shared.path) as connection, pytest.raises(StoreDenied):
                denied(connection)
        for path in (shared.directory / "root", shared.path.parent):
            with pytest.raises(PermissionError):
                os.listdir(path)
        assert lease.segments

    as_nobody(act)
    assert shared.path.stat().st_mode & 0o777 == 0o666
    assert shared.path.parent.stat().st_mode & 0o777 == 0o711
    assert secret.record.name == "secret@1"


def test_a_name_that_may_be_opened_and_is_not_there_tells_nothing_of_others(shared: Running) -> None:
    shared.put("secret@1")

    def act() -> None:
        with pytest.raises(UnknownModel) as caught:
            session("open@7", shared.path)
        assert "secret" not in str(caught.value)

    as_nobody(act)


def test_a_daemon_whose_directory_is_closed_to_a_user_is_none_for_it(
    shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = shared.directory / "closed"
    closed.mkdir(mode=0o700)
    (closed / "store.socket").touch()
    monkeypatch.setenv(SOCKET, str(closed / "store.socket"))
    assert has_daemon()

    def act() -> None:
        assert not has_daemon()
        monkeypatch.delenv(SOCKET)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(closed))
        assert find_socket() == HOST_SOCKET

    as_nobody(act)


def test_naming_a_blob_is_not_having_it(shared: Running, tmp_path: Path) -> None:
    secret = shared.put("secret@1", seed=2)
    theft = msgspec.structs.replace(secret.record, name="theirs@1")

    def act() -> None:
        with Connection(shared.path) as connection, pytest.raises(StoreError, match="neither given nor"):
            connection.put(theft, {})
        with Connection(shared.path) as connection, pytest.raises(StoreDenied):
            connection.put(msgspec.structs.replace(theft, name="secret@2"), {})
        made = make(Path("/tmp") / f"theirs-{os.getpid()}", "theirs@1", seed=3)
        try:
            wrong = dict.fromkeys(secret.blobs, made.blobs[made.record.graph.id])
            with Connection(shared.path) as connection, pytest.raises(StoreError):
                connection.put(theft, wrong)
            with Connection(shared.path) as connection:
                connection.put(made.record, made.blobs, "0" * 64)
                assert connection.find("0" * 64) == ""  # put, yet not to be opened: the list says so
        finally:
            for path in made.blobs.values():
                path.unlink()
            path.parent.rmdir()

    as_nobody(act)
    with shared.connect() as connection:
        assert connection.find("0" * 64) == ""  # another user's word


def test_what_a_user_got_cannot_be_written_by_any_way(shared: Running) -> None:
    shared.put("open@1", seed=1)

    def act() -> None:
        with Connection(shared.path) as connection:
            record, fds = connection.hold("open@1")
            for fd in fds:
                with pytest.raises(OSError):  # noqa: PT011 - EBADF here, EPERM or EACCES below
                    os.write(fd, b"x")
                with pytest.raises(OSError):  # noqa: PT011
                    os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
                with pytest.raises(OSError):  # noqa: PT011
                    os.ftruncate(fd, 0)
            assert isinstance(record, ModelRecord)
            protocol.close_all(fds)

    as_nobody(act)


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """The kernel tells the daemon of this user, who connects meanwhile."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def greedy(path: Path) -> list[Connection]:
    """All the connections that the user who acts can have."""
    found: list[Connection] = []
    while True:
        try:
            found.append(Connection(path))
            found[-1].find("0" * 64)
        except StoreQuota:
            found.pop().close()
            return found


def test_users_who_take_all_they_get_leave_every_other_user_some(start: Callable[..., Running]) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    uids = range(60_001, 60_021)
    daemon = start("".join(f'[[allow]]\nuser = {uid}\nopen = ["open@*"]\n' for uid in uids))
    daemon.put("open@1", seed=1)
    held: dict[int, list[Connection]] = {}
    for uid in uids:
        with acting_as(uid):
            held[uid] = greedy(daemon.path)
            held[uid][0].open("open@1")
    counts = [len(each) for each in held.values()]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 256
    assert counts[-1] == FEW
    assert sum(counts) < CONNECTIONS
    with acting_as(60_999), Connection(daemon.path) as stranger, pytest.raises(StoreDenied, match="does not name"):
        stranger.status()
    for connection in held.pop(60_001):  # what one gives back the others may have
        connection.close()
    until(lambda: len(users(daemon)) == len(uids))
    with acting_as(60_020):
        more = greedy(daemon.path)
    assert len(more) > FEW
    for connection in [c for each in (*held.values(), more) for c in each]:
        connection.close()


def users(daemon: Running) -> list[int]:
    with daemon.connect() as connection:
        return [u.uid for u in connection.status().users]


@given(
    taken=st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=400),
    most=st.integers(10 * FEW * KEPT, 1024),
)
def test_whatever_nine_users_do_a_tenth_gets_a_few_connections(taken: list[tuple[int, bool]], most: int) -> None:
    ledger = Ledger(Quota())
    for uid, more in taken:
        if more:
            try:
                ledger.connect(uid, most)
            except StoreQuota:
                assert ledger.connections[uid] >= FEW
        elif ledger.connections[uid]:
            ledger.disconnect(uid)
    for uid in range(1, 10):  # and then take all they get
        with suppress(StoreQuota):
            while True:
                ledger.connect(uid, most)
    for _ in range(FEW):
        ledger.connect(10, most)
    assert ledger.connections.total() <= most


def test_a_list_names_users_and_groups_that_exist(tmp_path: Path) -> None:
    access = Access(AllowList((Rule(group=77, open=("a@*",)), Rule(user=5, administer=True))), own_uid=1000)
    member, chief, stranger = Peer(1, 9, frozenset({77})), Peer(1, 5, frozenset()), Peer(1, 9, frozenset())
    assert access.shared
    assert [access.knows(p) for p in (member, chief, stranger)] == [True, True, False]
    assert [access.may_open(p, "a@1") for p in (member, chief, stranger)] == [True, True, False]
    assert [access.may_put(p, "a@1") for p in (member, chief, stranger)] == [False, True, False]
    assert [access.may_administer(Peer(1, uid, frozenset())) for uid in (0, 1000, 9)] == [True, True, False]
    for rule in (Rule(), Rule(user="no such user"), Rule(user=1, group=1)):
        with pytest.raises(ConfigError):
            Access(AllowList((rule,)))
    path = tmp_path / "allow.toml"
    path.write_text("[[allow]]\nuser = 5\nopens = ['*']\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="opens"):
        read_allow_list(path)
    path.chmod(0o622)
    with pytest.raises(ConfigError, match="written by others"):
        read_allow_list(path)
