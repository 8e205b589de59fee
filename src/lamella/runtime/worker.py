"""One function instance: a process that opens a function, says it is ready, and answers until told to stop.

Started as `python -m lamella.runtime.worker CONTROL_FD FUNCTION_DIR`. One thread: a request at a time, as on the
platforms we rehearse. Tensors are bound in place: inputs are read from, outputs written to, the shared segments.
"""

import time

STARTED = time.monotonic()

import ctypes  # noqa: E402 - the clock must start before the imports it measures
import os  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import msgspec  # noqa: E402
import numpy as np  # noqa: E402

from lamella.channels import messages as wire  # noqa: E402
from lamella.channels.segments import Segment  # noqa: E402
from lamella.codecs import codec  # noqa: E402
from lamella.errors import LamellaError  # noqa: E402
from lamella.machine import this_machine  # noqa: E402
from lamella.runtime.function import Function, open_session  # noqa: E402
from lamella.runtime.memory import Counters, read_counters, weights_resident_mb  # noqa: E402

IMPORTED = time.monotonic()
PR_SET_PDEATHSIG = 1


class Worker:
    """State of an instance: its session, the segments it has mapped, its counters at load."""

    def __init__(self, directory: Path, sock: socket.socket) -> None:
        """Open the function in `directory`; the socket is the driver's."""
        self._sock = sock
        self._segments: dict[int, Segment] = {}
        self._floor = read_counters()
        self._function = msgspec.json.decode((directory / "function.json").read_bytes(), type=Function)
        self._graph, kind = self._choose(directory)
        self._weights = directory / self._function.weights if self._function.weights else None
        self._map_weights()
        self.mapped = time.monotonic()
        self._session = open_session(
            self._graph, kind, threads=self._function.threads, prepack=self._function.prepack
        )
        self._in_place = kind in ("packaged", "portable")
        self._loaded = read_counters()
        self.opened = time.monotonic()

    def _choose(self, directory: Path) -> tuple[Path, Any]:
        """The optimised graph where it is good for this machine, else the portable one."""
        function = self._function
        if function.portable and not this_machine().runs(function.machine):
            return directory / function.portable, "portable"
        return directory / function.graph, function.kind

    def _map_weights(self) -> None:
        """Start reading the weights from disk: one sequential request instead of a fault per page."""
        if self._weights and self._weights.is_file():
            fd = os.open(self._weights, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
            os.close(fd)

    def warm_up(self) -> None:
        """One run on zeros, so that the first request pays for nothing."""
        feeds = {
            s.name: np.zeros([d if isinstance(d, int) else int(d.rpartition("*")[0] or 1) for d in s.shape], s.dtype)
            for s in self._function.inputs
        }
        self._session.run(None, feeds)

    def serve(self) -> None:
        """Answer until Stop or the driver closes."""
        while True:
            message, payload = wire.receive(self._sock)
            match message:
                case wire.Run():
                    self._answer(message, payload)
                case wire.Attach(segment, size):
                    self._segments[segment] = Segment(wire.receive_descriptor(self._sock), size)
                case wire.Detach(segment):
                    self._segments.pop(segment, None)
                case wire.Report():
                    wire.send(self._sock, self._report())
                case wire.Stop():
                    return
                case _:
                    wire.send(self._sock, wire.Failed("wire", f"unexpected {type(message).__name__}"))

    def _answer(self, request: wire.Run, payload: bytearray) -> None:
        started, cpu = time.monotonic(), time.process_time()
        try:
            outputs, parts = self._run(request, payload)
        except LamellaError as error:
            wire.send(self._sock, wire.Failed(error.code, error.message))
        except Exception as error:  # the binding raises bare exceptions for refused inputs
            wire.send(self._sock, wire.Failed("input", str(error).splitlines()[0][:500]))
        else:
            done = wire.Done(outputs, time.monotonic() - started, time.process_time() - cpu)
            wire.send(self._sock, done, parts)

    def _run(
        self, request: wire.Run, payload: bytearray
    ) -> tuple[tuple[wire.TensorRef, ...], tuple[memoryview, ...]]:
        feeds = self._take(request.inputs, payload)
        direct = {
            ref.name: self._segments[ref.segment].view(ref.dtype, ref.shape)
            for ref in request.outputs
            if self._in_place and ref.segment >= 0 and ref.codec == "none"
        }
        results = self._infer(feeds, request.outputs, direct)
        refs: list[wire.TensorRef] = []
        parts: list[memoryview] = []
        for ref, array in zip(request.outputs, results, strict=True):
            refs.append(wire.TensorRef(ref.name, array.dtype.name, array.shape, ref.segment, ref.codec))
            if ref.name in direct:
                continue
            data = codec(ref.codec).encode(array)
            if ref.segment < 0:
                parts.append(memoryview(data))
            else:
                self._segments[ref.segment].bytes[: data.nbytes] = data
        return tuple(refs), tuple(parts)

    def _take(self, refs: tuple[wire.TensorRef, ...], payload: bytearray) -> dict[str, np.ndarray]:
        feeds, at = {}, 0
        rest = np.frombuffer(payload, np.uint8)
        for ref in refs:
            kind = codec(ref.codec)
            size = int(np.prod(ref.shape, dtype=np.int64)) * np.dtype(ref.dtype).itemsize
            if ref.codec == "bf16" and ref.dtype == "float32":
                size //= 2
            if ref.segment >= 0:
                data = self._segments[ref.segment].bytes[:size]
            else:
                data, at = rest[at : at + size], at + size
            feeds[ref.name] = kind.decode(data, ref.dtype, ref.shape)
        return feeds

    def _infer(
        self, feeds: dict[str, np.ndarray], outputs: tuple[wire.TensorRef, ...], direct: dict[str, np.ndarray]
    ) -> list[np.ndarray]:
        """Outputs in order; those in `direct` were written in place."""
        names = [ref.name for ref in outputs]
        if not self._in_place:
            return list(self._session.run(names, feeds))
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name in names:
            if name in direct:
                array = direct[name]
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            else:
                binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        if len(direct) == len(names):
            return [direct[name] for name in names]
        values = binding.get_outputs()
        return [direct[n] if n in direct else v.numpy() for n, v in zip(names, values, strict=True)]

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


def main() -> None:
    """Serve on the descriptor and directory given on the command line."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        try:
            worker = Worker(Path(sys.argv[2]), sock)
            worker.warm_up()
        except LamellaError as error:
            wire.send(sock, wire.Failed(error.code, str(error)))
            sys.exit(1)
        wire.send(sock, wire.Ready(STARTED, IMPORTED, worker.mapped, worker.opened, time.monotonic()))
        worker.serve()
    except (EOFError, ConnectionError):
        pass
    os._exit(0)  # nothing to flush; tearing a session down costs tens of milliseconds


if __name__ == "__main__":
    main()
