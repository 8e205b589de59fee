"""One function instance: a process that opens a function, says it is ready, and answers until told to stop.

Started as `python -m lamella.runtime.worker CONTROL_FD STREAM_FD FUNCTION_DIR CHANNEL [LISTENER_FD]`. One request at a
time, as on platforms we rehearse; a second thread does nothing but end the process with its driver. A process that is
forked by `runtime.zygote` comes in by `work`, everything before it done or inherited. Tensors are bound
in place: inputs are read from, outputs written to, the shared segments. The hot path is short on purpose, since an
instance that waited for its turn runs it with cold caches: a request equal to the last one, byte for byte, reuses its
bindings undecoded. What channels http and s3 need is imported where one of them is asked for, and only there.
"""

import time

STARTED = time.monotonic()

import _thread  # noqa: E402 - the clock must start before the imports it measures
import ctypes  # noqa: E402
import os  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NamedTuple, NoReturn  # noqa: E402

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
import onnxruntime as ort  # noqa: E402

import lamella.codecs  # noqa: E402, F401 - a function's own ask for it, and a zygote's workers shall find it here
from lamella.channels import messages as wire  # noqa: E402
from lamella.channels.segments import Segment  # noqa: E402
from lamella.errors import LamellaError, PackageError  # noqa: E402
from lamella.machine import this_machine  # noqa: E402
from lamella.runtime.function import Function, Kind, open_session  # noqa: E402
from lamella.runtime.memory import Counters, populate, read_counters, trim, weights_resident_mb  # noqa: E402
from lamella.runtime.pages import Pages  # noqa: E402
from lamella.units import DIE_WITH_PARENT, HASTE  # noqa: E402

PR_SET_PDEATHSIG = 1


def import_channel(channel: str) -> None:
    """Import what only this channel needs: part of the imports, not of the first request."""
    if channel == "http":
        import lamella.runtime.posts
    elif channel == "s3":
        import lamella.channels.objects  # noqa: F401


if __name__ == "__main__":
    import_channel(*sys.argv[4:5])

IMPORTED = time.monotonic()


class Opened(NamedTuple):
    """A function's session, and where its weights are."""

    session: ort.InferenceSession
    kind: Kind
    mapped: float
    """When the weights were at hand, CLOCK_MONOTONIC seconds."""
    weights: Path | None = None
    """The file that is mapped; None where the graph holds them, or somebody else."""
    shared: bool = False
    """Whether they are the store's."""
    pages: Pages | None = None
    """Where the weights are mapped; None where that is nobody's to say."""


Opener = Callable[[Path, Function], Opened]
"""Opens the function of a directory."""


def open_files(directory: Path, function: Function) -> Opened:
    """Open the function's own files: the optimised graph where it is good for this machine, else the portable one.

    Reading of the weights begins before the graph is parsed, as far as the device's read-ahead goes; `populate` gets
    the rest.

    Raises:
        PackageError: it was optimised for another machine, where blocks of another size would give wrong answers, and
            ships no portable graph.
        ModelError: the runtime refuses it.
    """
    portable = function.kind == "packaged" and not this_machine().runs(function.machine)
    if portable and not function.portable:
        made, here = function.machine, this_machine()
        raise PackageError(
            f"{function.name} was optimised for {made.isa} and onnxruntime {made.onnxruntime}, this is {here.isa} and "
            f"{here.onnxruntime}, and it ships no graph for any CPU",
            where=str(directory),
            try_="lamella package PLAN here, or without --no-portable",
        )
    kind: Kind = "portable" if portable else function.kind
    weights = directory / function.weights if function.weights else None
    if weights and weights.is_file():
        fd = os.open(weights, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0 if portable else function.read_bytes, os.POSIX_FADV_WILLNEED)
        os.close(fd)
    mapped = time.monotonic()
    graph = directory / (function.portable if portable else function.graph)
    return Opened(open_session(graph, kind, threads=function.threads, prepack=function.prepack), kind, mapped, weights)


class Worker:
    """State of an instance: its session, the segments it has mapped, its counters at load."""

    _sock: socket.socket
    _stream: socket.socket

    def __init__(self, directory: Path, opener: Opener = open_files) -> None:
        """Open the function in `directory`; `connect` comes before the first request."""
        self._last = b""
        self._bound: tuple[ort.IOBinding, tuple[wire.TensorRef, ...]] | None = None
        self._segments: dict[int, Segment] = {}
        self._objects: Any = None
        self._floor = read_counters()
        self._function = msgspec.json.decode((directory / "function.json").read_bytes(), type=Function)
        self._codecs = self._function.codecs(directory)
        found = opener(directory, self._function)
        self._session, self._weights, self._pages = found.session, found.weights, found.pages
        self.mapped, self.shared = found.mapped, found.shared
        self._in_place = found.kind in ("packaged", "portable")
        self._loaded = read_counters()
        if self._weights:
            populate(self._weights)
        self.opened = time.monotonic()

    def connect(self, sock: socket.socket, stream: socket.socket, channel: str) -> None:
        """The driver's sockets, and what the channel needs besides."""
        self._sock, self._stream = sock, stream
        if channel == "s3":
            from lamella.channels.objects import Objects

            self._objects = Objects()

    @property
    def function(self) -> Function:
        """What it runs."""
        return self._function

    def warm_up(self) -> None:
        """One run, so that the first request pays for nothing.

        On zeros, or ones where zeros are refused (they may be a shape); a function that refuses both warms up with its
        first request.
        """
        for fill in (0, 1):
            feeds = {s.name: np.full(s.shape_at(), fill, s.dtype) for s in self._function.inputs}
            try:
                self._session.run(None, feeds)
            except Exception:  # noqa: BLE001 - the binding raises bare exceptions
                continue
            return

    def serve(self) -> None:
        """Answer until Stop or the driver closes."""
        receive, limit, clock, cpu = self._sock.recv, wire.PACKET_LIMIT, time.monotonic, time.process_time
        while True:
            packet = receive(limit)
            if packet == self._last and self._bound:
                started, spent = clock(), cpu()
                try:
                    self._session.run_with_iobinding(self._bound[0])
                except Exception as error:  # noqa: BLE001 - the binding raises bare exceptions
                    self._fail("input", error)
                    continue
                wire.send(self._sock, wire.Done((), clock() - started, cpu() - spent))
                continue
            if not self.told(packet):
                return

    def told(self, packet: bytes) -> bool:
        """Do what a message says; whether to go on."""
        match message := wire.decode(packet):
            case wire.Run():
                self._answer(message, packet)
            case wire.Attach(segment, size):
                self._segments[segment] = Segment(wire.receive_descriptor(self._sock), size)
            case wire.Detach(segment):
                self._segments.pop(segment, None)
                self._bound = None
            case wire.Bring():
                if self._pages:
                    self._pages.bring()
            case wire.LetGo(keep):
                if self._pages:
                    self._pages.let_go(keep)
                trim()
            case wire.Report():
                wire.send(self._sock, self._report())
            case wire.Stop():
                return False
            case _:
                wire.send(self._sock, wire.Failed("wire", f"unexpected {type(message).__name__}"))
        return True

    def _fail(self, code: str, error: Exception) -> None:
        wire.send(self._sock, failed(code, error))

    def _answer(self, request: wire.Run, packet: bytes) -> None:
        started, cpu = time.monotonic(), time.process_time()
        try:
            parts: list[memoryview] = []
            feeds = self.decoded(request.inputs, self._sent(request.inputs))
            if self._bind_in_place(request, feeds, packet):
                assert self._bound
                self._session.run_with_iobinding(self._bound[0])
                refs = self._bound[1]
            else:
                refs, parts = self._give(request.outputs, self.run(request.outputs, feeds))
        except LamellaError as error:
            self._fail(error.code, error)
        except Exception as error:  # noqa: BLE001 - as above, for refused inputs too
            self._fail("input", error)
        else:
            wire.send(self._sock, wire.Done(refs, time.monotonic() - started, time.process_time() - cpu))
            wire.send_bytes(self._stream, parts)

    def _bind_in_place(self, request: wire.Run, feeds: dict[str, np.ndarray], packet: bytes) -> bool:
        """Bind every tensor to its segment where all of them lie in one, uncoded; whether that was possible."""
        refs = (*request.inputs, *request.outputs)
        if not self._in_place or any(r.segment < 0 or r.codec != "none" for r in refs):
            return False
        binding = self._session.io_binding()
        for ref in request.inputs:
            array = feeds[ref.name]
            binding.bind_input(ref.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for ref in request.outputs:
            array = self._segments[ref.segment].view(ref.dtype, ref.shape)
            binding.bind_output(ref.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._bound, self._last = (binding, request.outputs), packet
        return True

    def _sent(self, refs: tuple[wire.TensorRef, ...]) -> list[np.ndarray]:
        """The bytes of each input; the stream first: what is left in it would pass for the next request's."""
        streamed = {r.name: wire.receive_bytes(self._stream, r.size) for r in refs if r.streamed}
        return [
            self._segments[ref.segment].bytes[: ref.size]
            if ref.segment >= 0
            else np.frombuffer(
                streamed[ref.name] if ref.streamed else self._objects.get(ref.url, ref.size, ref.checksum), np.uint8
            )
            for ref in refs
        ]

    def decoded(self, refs: Sequence[wire.TensorRef], sent: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors by name, from their bytes."""
        find = self._codecs.of
        return {
            r.name: find(r.codec, r.name).decode(data, r.dtype, r.shape) for r, data in zip(refs, sent, strict=True)
        }

    def run(
        self, wanted: Sequence[wire.TensorRef], feeds: dict[str, np.ndarray]
    ) -> list[tuple[wire.TensorRef, np.ndarray]]:
        """Run the session; what the outputs are, and their bytes by the codec that each is wanted in."""
        results = self._session.run([ref.name for ref in wanted], feeds)
        found = []
        for ref, array in zip(wanted, results, strict=True):
            data = self._codecs.of(ref.codec, ref.name).encode(array)
            kept = (ref.segment, ref.codec, data.nbytes, ref.url)
            found.append((wire.TensorRef(ref.name, array.dtype.name, array.shape, *kept), data))
        return found

    def _give(
        self, outputs: Sequence[wire.TensorRef], made: list[tuple[wire.TensorRef, np.ndarray]]
    ) -> tuple[tuple[wire.TensorRef, ...], list[memoryview]]:
        """Copy or put outputs to where they belong; those for the stream come back as bytes."""
        refs: list[wire.TensorRef] = []
        parts: list[memoryview] = []
        for ref, data in made:
            if ref.segment >= 0:
                self._segments[ref.segment].bytes[: data.nbytes] = data
            elif ref.url:
                ref = msgspec.structs.replace(ref, checksum=self._objects.put(ref.url, data.data))
            else:
                parts.append(data.data)
            refs.append(ref)
        return tuple(refs), parts

    def _report(self) -> wire.Memory:
        now: Counters = read_counters()
        return wire.Memory(
            peak_mb=now.peak_mb,
            resident_mb=now.resident_mb,
            anonymous_mb=now.anonymous_mb,
            weights_mb=weights_resident_mb(self._weights) if self._weights else 0.0,
            load_peak_mb=self._loaded.peak_mb,
            load_anonymous_mb=self._loaded.anonymous_mb,
            floor_mb=self._floor.resident_mb,
            floor_anonymous_mb=self._floor.anonymous_mb,
            major_faults=now.major_faults,
        )


def failed(code: str, error: Exception) -> wire.Failed:
    """What a driver is told of an error."""
    text = error.message if isinstance(error, LamellaError) else str(error)
    where = f" ({error.where})" if isinstance(error, LamellaError) and error.where else ""
    try_ = error.try_ if isinstance(error, LamellaError) else ""
    return wire.Failed(code, text.splitlines()[0][:500] + where[:500], try_)


def _end_with(sock: socket.socket) -> None:
    """End as soon as the driver's side is closed, in the middle of a run too.

    Rejected: PR_SET_PDEATHSIG, which kills when the driver's *thread* that spawned us ends.
    """
    watch = select.poll()
    watch.register(sock, 0)  # for nothing but its hang-up
    watch.poll()
    os._exit(0)


def work(
    sock: socket.socket,
    stream: socket.socket,
    directory: Path,
    channel: str,
    listener: int,
    *,
    started: float,
    imported: float,
    held: Worker | None = None,
    opener: Opener = open_files,
) -> NoReturn:
    """Open the function, say so, and answer until the driver wants no more: the whole life of an instance.

    Args:
        sock: the driver's, for messages.
        stream: the driver's, for tensors.
        directory: of the function.
        channel: how tensors travel.
        listener: the descriptor to accept on, on channel `http`.
        started: when this process began, CLOCK_MONOTONIC seconds.
        imported: when it had imported all it needs.
        held: a function that was open, and warm, before this process was forked.
        opener: how a function is opened.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    if os.environ.get(DIE_WITH_PARENT):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _thread.start_new_thread(_end_with, (sock,))
    try:
        try:
            worker = held or Worker(directory, opener)
            worker.connect(sock, stream, channel)
            mapped, opened = (imported, time.monotonic()) if held else (worker.mapped, worker.opened)
            if not held and not os.environ.get(HASTE):
                worker.warm_up()
        except LamellaError as error:
            wire.send(sock, wire.Failed(error.code, str(error)))
            sys.exit(1)
        wire.send(sock, wire.Ready(started, imported, mapped, opened, time.monotonic(), worker.shared))
        if channel == "http":
            from lamella.runtime import posts

            posts.serve(worker, sock, socket.socket(fileno=listener))
        else:
            worker.serve()
    except (EOFError, ConnectionError):
        pass
    os._exit(0)  # nothing to flush; tearing a session down costs tens of milliseconds


def main(opener: Opener = open_files, *, started: float = STARTED, imported: float = IMPORTED) -> None:
    """Serve on the descriptors and directory given on the command line."""
    control, stream, directory, channel, listener = [*sys.argv[1:], "-1"][:5]
    sockets = socket.socket(fileno=int(control)), socket.socket(fileno=int(stream))
    work(*sockets, Path(directory), channel, int(listener), started=started, imported=imported, opener=opener)


if __name__ == "__main__":
    main()
