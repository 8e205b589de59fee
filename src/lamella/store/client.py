"""The store as a process sees it: sessions on weights that all processes of a host share.

`session("bert@1")` is an `onnxruntime.InferenceSession` whose weights are read-only maps of the store's segments:
nothing is copied, optimised or prepacked (unless the record says so), so it is there in the time that the graph takes
to be read. A lease is a connection of its own. It ends when the session and its maps are gone, however that comes, and
what is mapped stays good if the daemon ends first. Imports the standard library, numpy, onnxruntime and msgspec only.
"""

from __future__ import annotations

import mmap
import os
import socket
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec
import onnxruntime as ort

from lamella.errors import LamellaError, StoreAway, StoreDamaged, StoreError, UnknownModel, WireError
from lamella.machine import this_machine
from lamella.runtime.function import Function, session_options
from lamella.store import protocol
from lamella.store.peer import peer_of
from lamella.store.records import ModelRecord, SegmentRef, portable_name
from lamella.store.report import Report

SOCKET = "LAMELLA_STORE"
"""The environment variable that names the socket."""
HOST_SOCKET = Path("/run/lamella/store.socket")
TIMEOUT_S = 300.0
"""How long a model may take to come from remote storage."""
DIRECT = "session.use_external_initializer_file_buffers_directly"

A = TypeVar("A", bound=protocol.Answer)


def own_socket() -> Path:
    """Where this user's own daemon listens unless told otherwise; root's is the host's."""
    if os.getuid() == 0:
        return HOST_SOCKET
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}") / "lamella" / "store.socket"


def find_socket() -> Path:
    """The socket to use: that of LAMELLA_STORE, else this user's own, else the host's."""
    given = os.environ.get(SOCKET)
    if given:
        return Path(given)
    own = own_socket()
    return own if os.path.exists(own) else HOST_SOCKET


def has_daemon() -> bool:
    """Whether a socket is there to be asked; not one in a directory that is closed to this user."""
    return os.path.exists(find_socket())  # Path.exists raises where it may not look


class Lease:
    """A model that is held: its record, its graph, and maps of its segments. Closed when it is collected."""

    def __init__(self, record: ModelRecord, descriptors: Sequence[int], sock: socket.socket) -> None:
        """Map the descriptors, which are closed; the socket is the lease.

        Raises:
            StoreDamaged: a descriptor holds less than the record says.
            StoreError: this process may not map as much.
        """
        self.record = record
        weakref.finalize(self, sock.close)
        with ExitStack() as stack:
            stack.callback(protocol.close_all, descriptors)
            maps = [_mapped(fd, blob) for fd, blob in zip(descriptors, record.blobs, strict=True)]
        self.graph = maps[0][:]
        maps[0].close()
        self.segments = {blob.id: map_ for blob, map_ in zip(record.segments, maps[1:], strict=True)}
        """Maps by id, for reading only."""

    def apply(self, options: ort.SessionOptions) -> None:
        """Let a session of these options take its weights from the segments; the lease has to outlive it."""
        if self.segments:
            options.add_session_config_entry(DIRECT, "1")
            names, maps = list(self.segments), list(self.segments.values())
            options.add_external_initializers_from_files_in_memory(names, maps, [len(m) for m in maps])

    def keep_for(self, session: ort.InferenceSession) -> None:
        """Live until the runtime's session is gone, also where something else than the Python object keeps that."""
        weakref.finalize(session._sess, _last_word, self).atexit = False


def _last_word(lease: Lease) -> None:
    """Called when the runtime's session is gone; its argument lived until now."""


def _mapped(fd: int, blob: SegmentRef) -> mmap.mmap:
    size = blob.bytes
    if os.fstat(fd).st_size < size:  # reading beyond the end would kill this process
        raise StoreDamaged(f"a segment of {os.fstat(fd).st_size} bytes instead of {size}", try_="lamella store status")
    try:
        mapped = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError as error:  # a limit of address space or of maps
        raise StoreError(f"cannot map a segment of {size} bytes: {error.strerror}") from error
    with suppress(OSError):  # kernels without huge pages; of a file, the pages that are not in the cache come in them
        mapped.madvise(mmap.MADV_RANDOM if blob.sparse else mmap.MADV_HUGEPAGE)
    return mapped


class Connection:
    """One connection to a daemon; `with` closes it, and so ends the lease that it became."""

    def __init__(self, path: Path | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        """Connect to the socket at `path`, by default to the one of `find_socket`.

        Raises:
            StoreAway: nobody listens there, or, at a place that was not named, a user whom this one need not trust.
        """
        self.path = path or find_socket()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(timeout_s)
        named = path is not None or SOCKET in os.environ
        try:
            self._sock.connect(os.fspath(self.path))
            server = peer_of(self._sock).uid
            if not named and server not in (0, os.getuid()):
                raise StoreAway(
                    f"the store at {self.path} is run by user {server}", try_=f"{SOCKET}={self.path}, if you trust it"
                )
            with suppress(BrokenPipeError, ConnectionResetError):  # refused at the door: the first answer says why
                protocol.send(self._sock, protocol.encode(protocol.Hello(protocol.VERSION)))
        except OSError as error:
            self._sock.close()
            raise self._away(error) from error
        except StoreAway:
            self._sock.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def open(self, model: str) -> Lease:
        """Lease a model; the connection is the lease from now on.

        Raises:
            StoreError: unknown, denied, beyond a quota, no room for it, or damaged.
        """
        return Lease(*self.hold(model), self._sock)

    def hold(self, model: str) -> tuple[ModelRecord, tuple[int, ...]]:
        """Lease a model for as long as the connection is open: its record, and descriptors, which are the caller's.

        Raises:
            StoreError: as `open`.
        """
        opened, fds = self._ask(protocol.Open(model), protocol.Opened)
        try:
            while len(fds) < opened.descriptors:
                fds += self._receive(protocol.More)[1]
            record = msgspec.msgpack.decode(opened.record, type=ModelRecord)
            if len(fds) != len(record.blobs):
                raise WireError(f"{len(fds)} descriptors for {len(record.blobs)} blobs of {model}")
        except (LamellaError, msgspec.MsgspecError) as error:
            protocol.close_all(fds)
            if isinstance(error, msgspec.MsgspecError):
                raise WireError(f"the store's record of {model} is not understood: {error}") from error
            raise
        return record, fds

    def find(self, source: str) -> str:
        """The model that was made of the file with this SHA-256, or nothing."""
        return self._ask(protocol.Find(source), protocol.Found)[0].model

    def put(self, record: ModelRecord, blobs: Mapping[str, Path], source: str | None = None) -> None:
        """Have a model kept. `blobs` are the files of those blobs that the store may not have.

        Raises:
            StoreError: denied, damaged, no room, or another model of that name is there.
        """
        ids = tuple(blobs)
        with ExitStack() as stack:
            document = os.memfd_create("lamella-record", os.MFD_CLOEXEC)
            stack.callback(os.close, document)
            os.write(document, msgspec.json.encode(record))
            files = [stack.enter_context(blobs[id].open("rb")).fileno() for id in ids]
            self._ask(protocol.Put(record.name, ids, source), protocol.Done, (document, *files))

    def pin(self, model: str, on: bool = True) -> None:
        """Keep a model in memory, or no longer."""
        self._ask(protocol.Pin(model, on), protocol.Done)

    def evict(self, model: str, *, disk: bool = False) -> None:
        """Drop a model from memory, or from the disk too.

        Raises:
            ModelLeased: somebody holds it.
        """
        self._ask(protocol.Evict(model, disk), protocol.Done)

    def status(self) -> Report:
        """The status, as far as it is this user's to see."""
        fds = self._ask(protocol.Ask(), protocol.Told)[1]
        try:
            data = os.pread(fds[0], os.fstat(fds[0]).st_size, 0) if fds else b""
            return msgspec.json.decode(data, type=Report)
        except msgspec.MsgspecError as error:
            raise WireError(f"the store's status is not understood: {error}") from error
        finally:
            protocol.close_all(fds)

    def stop(self) -> None:
        """End the daemon; what processes have mapped stays good."""
        self._ask(protocol.Stop(), protocol.Done)

    def _ask(
        self, request: protocol.Request, kind: type[A], descriptors: Sequence[int] = ()
    ) -> tuple[A, tuple[int, ...]]:
        packet = protocol.encode(request)
        if len(packet) > protocol.REQUEST_LIMIT:
            raise WireError(f"a request of {len(packet)} bytes; the store takes {protocol.REQUEST_LIMIT}")
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have said why
            try:
                protocol.send(self._sock, packet, descriptors)
            except TimeoutError as error:
                raise self._away(error) from error
        return self._receive(kind)

    def _receive(self, kind: type[A]) -> tuple[A, tuple[int, ...]]:
        try:
            try:
                packet = protocol.receive(self._sock, protocol.ANSWER_LIMIT)
            except ConnectionResetError:  # tells once that it was closed; what it said before is read after that
                packet = protocol.receive(self._sock, protocol.ANSWER_LIMIT)
        except (EOFError, OSError) as error:
            raise self._away(error) from error
        answer = protocol.answer(packet.data)
        if isinstance(answer, kind):
            return answer, packet.descriptors
        packet.close()
        if isinstance(answer, protocol.Failed):
            raise protocol.raised(answer)
        raise WireError(f"the store answers {type(answer).__name__}, not {kind.__name__}")

    def _away(self, error: BaseException) -> StoreAway:
        reason = getattr(error, "strerror", None) or ("it ended" if isinstance(error, EOFError) else str(error))
        return StoreAway(
            f"the store does not answer: {reason}",
            where=os.fspath(self.path),
            try_="lamella store serve, in a terminal of its own",
        )


connect = Connection


class StoreSession(ort.InferenceSession):  # type: ignore[misc]
    """A session on a lease. It is an `InferenceSession` in every way, and can be closed before it is collected."""

    def __init__(self, lease: Lease) -> None:
        """Open it as the lease's record says.

        Raises:
            StoreError: the runtime refuses the model.
        """
        function = lease.record.function
        spin = function.threads > 1  # nobody throttles it, as functions may be
        options = session_options(function.kind, threads=function.threads, prepack=function.prepack, spin=spin)
        lease.apply(options)
        self._lease: Lease | None = lease
        try:
            super().__init__(lease.graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        except Exception as error:  # the binding's exceptions share no base
            text = str(error).splitlines()[0][:400]
            raise StoreError(f"the runtime refuses {lease.record.name}: {text}", where=lease.record.name) from error
        lease.keep_for(self)

    @property
    def record(self) -> ModelRecord | None:
        """The model's record; None after `close`."""
        return self._lease.record if self._lease else None

    def close(self) -> None:
        """Give the model back. The session answers nothing after this."""
        self.__dict__.clear()  # what describes inputs keeps the runtime's session, too
        self._sess = self._lease = None


def session(model: str, socket: Path | None = None) -> StoreSession:
    """A session of a model of the store.

    Args:
        model: `name@version`, or `name/function@version`. On a CPU or runtime version that the model was not optimised
            for its portable variant is opened.
        socket: the daemon's; by default LAMELLA_STORE, else this user's own, else the host's.

    Raises:
        StoreAway: no daemon answers.
        StoreError: the model is unknown or denied, there is no room for it, it is damaged, or the runtime refuses it.
    """
    lease = lease_of(model, socket)
    return StoreSession(lease)


def lease_of(model: str, socket: Path | None = None) -> Lease:
    """A lease of the variant of a model that runs on this machine; see `session`."""
    lease = _opened(model, socket)
    if _fits(lease.record.function):
        return lease
    try:
        return _opened(portable_name(model), socket)
    except UnknownModel as error:
        made = lease.record.function.machine
        raise UnknownModel(
            f"{model} was optimised for {made.isa} and onnxruntime {made.onnxruntime}, and its variant for any CPU is "
            "not in the store",
            try_="lamella package PLAN without --no-portable, and put that",
        ) from error


def _opened(model: str, socket: Path | None) -> Lease:
    connection = Connection(socket)
    try:
        return connection.open(model)
    except BaseException:
        connection.close()
        raise


def _fits(function: Function) -> bool:
    return function.kind != "packaged" or this_machine().runs(function.machine)


def status(socket: Path | None = None) -> Report:
    """What the store holds, as far as it is this user's to see.

    Raises:
        StoreAway: no daemon answers.
    """
    with Connection(socket) as connection:
        return connection.status()
