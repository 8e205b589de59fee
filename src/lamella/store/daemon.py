"""The daemon of the store: one thread that decides, a few that wait for disks, and sockets that it never waits for.

Every client is a connection that the loop serves one packet at a time, in turn. What may block is done by `Workers`;
what a client does not take, and what it does not send, costs the others nothing (`connection`). Who it is the kernel
says, what it may do the allow-list (`access`), how much it may hold the `ledger`. A lease ends with its connection.

Rejected: asyncio, whose transports hide the packets and descriptors of SEQPACKET; a thread per client, which makes
every decision a race; a named lease that outlives its socket, which a crash would leak.
"""

from __future__ import annotations

import errno
import math
import os
import selectors
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from lamella.errors import LamellaError, StoreDenied, StoreQuota, WireError
from lamella.store import protocol
from lamella.store.accepting import Accepting
from lamella.store.access import Access
from lamella.store.bringing import Bringing
from lamella.store.connection import Connection
from lamella.store.following import following
from lamella.store.ledger import Ledger
from lamella.store.peer import peer_of
from lamella.store.records import Held
from lamella.store.report import Report
from lamella.store.shelves import Shelves
from lamella.store.sources import Sources
from lamella.store.surveys import Survey
from lamella.store.workers import Workers

LOAD_THREADS = 4
REMOTE_THREADS = 4
GREETING_S = 5.0
"""How long a connection may take to say what it speaks."""
TAKING_S = 10.0
"""How long an answer may lie untaken."""
TICK_S = 1.0
SURVEY_S = 60.0
"""Between two surveys, where remote storage did not answer the first."""
ACCEPTS = 64
"""Connections taken in one turn of the loop."""
CONNECTIONS = 1024
"""Of all users together; fewer where the process may not have so many descriptors."""
A_RULE = "a rule for this user in the store's allow-list (--allow)"


class Daemon:
    """The store behind a listening socket."""

    def __init__(
        self,
        shelves: Shelves,
        listener: socket.socket,
        access: Access,
        root: Path,
        *,
        most: int = CONNECTIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve `shelves`, which only this thread uses from now on; `root` is theirs."""
        self._shelves, self._listener, self._access, self._clock = shelves, listener, access, clock
        self._most = most
        self._begun = clock()
        self._refused = 0
        self._surveying = math.inf
        """When to ask again."""
        self._absent: dict[str, str] = {}
        """Why what was pinned could not be brought when this daemon began."""
        self._stopping = False
        near, far = Workers(LOAD_THREADS, "load"), Workers(REMOTE_THREADS, "remote")
        self._far = far
        self._bringing = Bringing(shelves, near, far)
        self._sources = Sources(root / "sources.json")
        self._accepting = Accepting(shelves, access, self._sources, root)
        self._ledger = Ledger(access.quota)
        self._connections: set[Connection] = set()
        self._poll = selectors.DefaultSelector()
        self._signalled, self._signal = socket.socketpair()
        self._signal.setblocking(False)
        self._poll.register(self._listener, selectors.EVENT_READ, self._accept)
        for workers in (near, far, *self._accepting.workers):
            self._poll.register(workers.wake, selectors.EVENT_READ, workers.finish)
        self._poll.register(self._signalled, selectors.EVENT_READ, self.stop)

    @property
    def wakeup(self) -> int:
        """A descriptor to write a byte to that stops the daemon, for `signal.set_wakeup_fd`."""
        return self._signal.fileno()

    def stop(self) -> None:
        """End `serve` after this turn."""
        self._stopping = True

    def serve(self) -> None:
        """Serve until stopped, then close every connection and the shelves; what is pinned is brought meanwhile."""
        tick = self._clock()
        try:
            for name in self._shelves.pinned():
                self._bringing.bring(name, partial(self._returned, name))
            self._survey()
            while not self._stopping:
                for key, _ in self._poll.select(TICK_S):
                    self._handle(key.data)
                if self._clock() - tick >= TICK_S:
                    tick = self._clock()
                    self._overdue(tick)
                    if tick >= self._surveying:
                        self._survey()
        finally:
            self._end()

    def _returned(self, name: str, error: LamellaError | None) -> None:
        """A model that was pinned before a restart is in memory again, or why not; it stays pinned."""
        if error:
            self._absent[name] = f"{name} is pinned and not in memory: {error.message}"

    def _survey(self) -> None:
        """Have it asked what may leave the disk; again after a while, where remote storage did not answer."""
        self._surveying = math.inf
        survey = self._shelves.plan_survey()
        if survey:
            self._far.start(survey.run, partial(self._surveyed, survey))

    def _surveyed(self, survey: Survey, error: LamellaError | None) -> None:
        self._shelves.commit_survey(survey)
        if error or not survey.done:
            self._surveying = self._clock() + SURVEY_S

    def _handle(self, ready: Connection | Callable[[], None]) -> None:
        """One event. A bug that it meets is printed and costs its client the connection, not everybody the store."""
        try:
            if isinstance(ready, Connection):
                self._turn(ready)
            else:
                ready()
        except Exception:  # noqa: BLE001 - see above
            traceback.print_exc()
            if isinstance(ready, Connection):
                self._drop(ready)

    def _end(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError):
                connection.flush()  # the answer to Stop
            self._drop(connection)
        self._poll.close()
        self._shelves.close()

    def close(self) -> None:
        """Close what signals are heard by; after they are no longer sent there."""
        self._signalled.close()
        self._signal.close()

    # ------------------------------------------------------------------------------------------------- connections

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self._poll.unregister(self._listener)  # until the next tick: it would be ready all the time
                return
            self._welcome(sock)

    def _welcome(self, sock: socket.socket) -> None:
        """Take a connection in, or tell it why not."""
        sock.setblocking(False)
        try:
            peer = peer_of(sock)
            if not self._access.knows(peer):
                raise StoreDenied(f"the store's allow-list does not name user {peer.uid}", try_=A_RULE)
            self._ledger.connect(peer.uid, self._most)
        except (OSError, StoreQuota, StoreDenied) as error:
            self._refused += 1
            with suppress(OSError):
                if isinstance(error, LamellaError):
                    protocol.send(sock, protocol.encode(protocol.failed(error)))
            sock.close()
            return
        connection = Connection(sock, peer, self._clock())
        self._connections.add(connection)
        self._poll.register(sock, selectors.EVENT_READ, connection)

    def _overdue(self, now: float) -> None:
        """Drop whoever did not greet or does not take its answer; listen again."""
        for connection in list(self._connections):
            if (not connection.greeted and now - connection.since > GREETING_S) or (
                connection.pending and now - connection.since > TAKING_S
            ):
                self._refuse(connection)
        with suppress(KeyError):  # it is registered
            self._poll.register(self._listener, selectors.EVENT_READ, self._accept)

    def _refuse(self, connection: Connection) -> None:
        self._refused += 1
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        """Close a connection; its leases end."""
        if connection.closed:
            return
        with suppress(KeyError):
            self._poll.unregister(connection.sock)
        connection.close()
        self._connections.discard(connection)
        self._ledger.disconnect(connection.peer.uid)
        for held in connection.held:
            self._ledger.release(connection.peer.uid, held.record)
            self._shelves.release(held)
        connection.held.clear()

    def _turn(self, connection: Connection) -> None:
        """One packet from a client that is read, or as much as a client takes that is written to."""
        if connection.closed:  # by something earlier in this turn
            return
        if connection.pending:
            self._flush(connection)
            return
        try:
            self._hear(connection, protocol.peek(connection.sock, protocol.REQUEST_LIMIT))
        except BlockingIOError:
            return
        except WireError as error:
            self._reject(connection, error)
        except (EOFError, OSError):
            self._drop(connection)

    def _hear(self, connection: Connection, data: bytes) -> None:
        """What is said in a packet that was not received yet.

        This thread takes no descriptors but of files to copy, and others close those: to close a file in a file system
        of its sender's own may take for ever. What is not taken the kernel drops without asking anybody.
        """
        request = protocol.request(data)
        if protocol.untaken(connection.sock):  # else a client could have hundreds of answers lie in the kernel
            raise WireError("a request before the last answer was taken")
        if isinstance(request, protocol.Put) and connection.greeted:
            self._answering(connection, lambda: self._put(connection, request))
            return
        protocol.receive(connection.sock, protocol.REQUEST_LIMIT, descriptors=0)
        if not connection.greeted:
            if request != protocol.Hello(protocol.VERSION):
                raise WireError(f"the store speaks version {protocol.VERSION} of its protocol", try_="the same lamella")
            connection.greeted = True
            return
        self._answering(connection, lambda: self._do(connection, request))

    def _answering(self, connection: Connection, act: Callable[[], None]) -> None:
        """Do something that answers now or later, and tell of an error."""
        connection.busy = True
        try:
            act()
        except WireError:
            raise
        except LamellaError as error:
            self._refused += isinstance(error, StoreDenied | StoreQuota)
            self._fail(connection, error)
        else:
            self._watch(connection)

    def _reject(self, connection: Connection, error: WireError) -> None:
        """Tell a client that does not speak the protocol why it is left, if it takes it, and leave it."""
        _pass_over(connection.sock)  # else the client would be told of a reset, and not why
        connection.fail(error)
        with suppress(OSError):
            connection.flush()
        self._refuse(connection)

    def _answer(
        self, connection: Connection, answer: protocol.Answer, fds: tuple[int, ...] = (), *, own: bool = False
    ) -> None:
        """Answer a request, as far as the client takes it now."""
        connection.busy = False
        if connection.closed:
            if own:
                protocol.close_all(fds)
            return
        connection.answer(answer, fds, own=own)
        connection.since = self._clock()
        self._flush(connection)

    def _fail(self, connection: Connection, error: LamellaError) -> None:
        self._answer(connection, protocol.failed(error))

    def _flush(self, connection: Connection) -> None:
        try:
            connection.flush()
        except OSError:
            self._drop(connection)
            return
        self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        """Watch for what the connection can do next: take an answer, send a request, or nothing while it is served."""
        if connection.closed:
            return
        events = selectors.EVENT_WRITE if connection.pending else 0 if connection.busy else selectors.EVENT_READ
        key = self._poll.get_map().get(connection.sock)
        if key is None:
            if events:
                self._poll.register(connection.sock, events, connection)
        elif not events:
            self._poll.unregister(connection.sock)
        elif key.events != events:
            self._poll.modify(connection.sock, events, connection)

    # --------------------------------------------------------------------------------------------------- requests

    def _do(self, connection: Connection, request: protocol.Request) -> None:
        peer = connection.peer
        match request:
            case protocol.Open(model):
                self._allow(self._access.may_open(peer, model), peer.uid, "open", model)
                self._bringing.bring(model, partial(self._brought, connection, model))
            case protocol.Find(source):
                true = (s.model for s in self._sources.claims(source, peer.uid) if self._shelves.has(s.model, s.graph))
                self._answer(connection, protocol.Found(next((m for m in true if self._access.may_open(peer, m)), "")))
            case protocol.Pin(model, on):
                self._allow(self._access.may_put(peer, model), peer.uid, "pin", model)
                self._pin(connection, model, on)
            case protocol.Evict(model, disk):
                self._allow(self._access.may_put(peer, model), peer.uid, "evict", model)
                (self._shelves.remove if disk else self._shelves.evict)(model)
                self._answer(connection, protocol.Done())
            case protocol.Ask():
                self._tell(connection)
            case protocol.Stop():
                self._allow(self._access.may_administer(peer), peer.uid, "stop", "the store")
                self._answer(connection, protocol.Done())
                self.stop()
            case _:
                raise WireError(f"{type(request).__name__} is not to be said now")

    def _allow(self, allowed: bool, uid: int, verb: str, model: str) -> None:
        if not allowed:
            raise StoreDenied(f"user {uid} may not {verb} {model}", try_=A_RULE)

    def _brought(self, connection: Connection, model: str, error: LamellaError | None) -> None:
        """Lease a model that is in memory."""
        if connection.closed:
            return
        try:
            if error:
                raise error
            held = self._lease(connection, model)
        except LamellaError as failed:
            self._refused += isinstance(failed, StoreQuota)
            self._fail(connection, failed)
            return
        record = msgspec.Raw(msgspec.msgpack.encode(held.record))
        self._answer(connection, protocol.Opened(record, len(held.descriptors)), held.descriptors)
        self._prefetch(connection, model)

    def _lease(self, connection: Connection, model: str) -> Held:
        uid = connection.peer.uid
        self._ledger.check(uid, self._shelves.record(model), len(connection.held))
        held = self._shelves.acquire(model)
        self._ledger.lease(uid, held.record)
        connection.held.append(held)
        return held

    def _prefetch(self, connection: Connection, model: str) -> None:
        """Bring the other stages of a plan whose first one was opened."""
        for name in following(model, self._shelves.names()):
            if self._access.may_open(connection.peer, name):
                self._bringing.bring(name, lambda error: None)  # whoever opens it meets the error

    def _pin(self, connection: Connection, model: str, on: bool) -> None:
        if not on:
            self._shelves.unpin(model)
            self._answer(connection, protocol.Done())
            return

        def pin(error: LamellaError | None) -> None:
            try:
                if error:
                    raise error
                self._shelves.pin(model)
            except LamellaError as failed:
                self._fail(connection, failed)
            else:
                self._answer(connection, protocol.Done())

        self._bringing.bring(model, pin)

    def _tell(self, connection: Connection) -> None:
        """The status, less what is not the peer's to see, as a file."""
        peer, all_ = connection.peer, self._access.may_administer(connection.peer)
        store = self._shelves.status()
        models = tuple(m for m in store.models if all_ or self._access.may_open(peer, m.name))
        absent = [m.name for m in models if m.pinned and m.memory_bytes < m.bytes and m.name in self._absent]
        notes = (*store.notes, *(self._absent[name] for name in absent)) if all_ else ()
        report = Report(
            pid=os.getpid(),
            uptime_s=self._clock() - self._begun,
            refused=self._refused,
            users=tuple(u for u in self._ledger.users() if all_ or u.uid == peer.uid),
            store=msgspec.structs.replace(store, models=models, notes=notes),
        )
        fd = os.memfd_create("lamella-status", os.MFD_CLOEXEC)
        os.write(fd, msgspec.json.encode(report))
        self._answer(connection, protocol.Told(), (fd,), own=True)

    # --------------------------------------------------------------------------------------------------------- put

    def _put(self, connection: Connection, request: protocol.Put) -> None:
        peer = connection.peer
        try:
            self._allow(self._access.may_put(peer, request.model), peer.uid, "put", request.model)
            self._accepting.check(peer.uid)
        except LamellaError:
            _pass_over(connection.sock)
            raise
        packet = protocol.receive(
            connection.sock, protocol.REQUEST_LIMIT, protocol.SCM_MAX_FD, partial(self._accepting.close, peer)
        )
        self._accepting.accept(peer, request, packet.descriptors, partial(self._done, connection))

    def _done(self, connection: Connection, error: LamellaError | None) -> None:
        """Something that was asked for was done, or was not."""
        if error:
            self._fail(connection, error)
        else:
            self._answer(connection, protocol.Done())


def _pass_over(sock: socket.socket) -> None:
    """Take a packet that was peeked at, without its descriptors."""
    with suppress(WireError, EOFError, OSError):
        protocol.receive(sock, protocol.REQUEST_LIMIT, descriptors=0)
