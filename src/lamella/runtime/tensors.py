"""How the tensors of requests travel between the functions of a chain: the driver's side, one class per channel.

A carrier says where each function finds what it takes and leaves what it gives, and keeps what it gave for those that
read it later, as many as they are. A tensor that travels encoded stays so until somebody decodes it.

- `shared-memory`: each tensor that crosses a cut has one segment, which its producer writes in place and every reader
  binds to: a hop costs two small messages, whatever its size.
- `socket`: the bytes go over a Unix socket, through the driver.
- `http`: the same as a POST and its answer over TCP, as an orchestrator calls functions.
- `s3`: producers put objects into a store and readers get them; request and answer go with the messages, and of what
  lies between the driver passes on only addresses. A request's objects are deleted after it, also where it failed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol, get_args

import msgspec
import numpy as np

from lamella.channels import messages as wire
from lamella.channels.segments import Segment, create
from lamella.codecs import Codecs, is_fitted
from lamella.errors import ConfigError, StorageError
from lamella.runtime.function import Function, TensorSpec
from lamella.runtime.instance import Instance, Reply, State

Channel = Literal["shared-memory", "socket", "http", "s3"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)


class Store(Protocol):
    """An object store, as far as a driver needs it (`lamella.objects`)."""

    def put_url(self, key: str, lasting_s: float) -> str:
        """Where to put an object, without credentials, for so long."""

    def get_url(self, key: str, lasting_s: float) -> str:
        """Where to get one."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there too."""

    def prefix(self) -> str:
        """A new one, for a chain's objects; it names this process."""


class Call(NamedTuple):
    """A function's request, ready to send: its packet, inputs that follow it, where outputs appear."""

    packet: bytes
    streamed: tuple[str, ...]
    views: dict[str, np.ndarray]


@dataclass(slots=True)
class Tensors:
    """What one request has made so far, by name."""

    batch: int
    values: dict[str, np.ndarray]
    """Encoded bytes of those that travel encoded."""
    coded: dict[str, wire.TensorRef] = field(default_factory=dict)
    """What those are."""
    stored: dict[str, wire.TensorRef] = field(default_factory=dict)
    """What lies in the object store, and not here."""
    keys: dict[str, str] = field(default_factory=dict)
    """Its objects."""
    codecs: Codecs = Codecs()  # noqa: RUF009 - a value

    def decoded(self, name: str) -> np.ndarray:
        """A tensor in memory of its own."""
        ref = self.coded.get(name)
        value = self.values[name]
        return np.array(self.codecs.of(ref.codec, name).decode(value, ref.dtype, ref.shape) if ref else value)


class Carrier:
    """What the channels have in common; by itself the `socket` channel."""

    channel: ClassVar[Channel] = "socket"

    def __init__(self, codecs: Mapping[str, str], known: Codecs, timeout_s: float) -> None:
        """The codecs of tensors that travel by one, by name; those fitted to one; how long a function may take."""
        self._codecs, self._known, self._timeout_s = codecs, known, timeout_s
        self._calls: dict[tuple[str, int, int], Call] = {}

    def request(self, batch: int, inputs: Mapping[str, np.ndarray]) -> Tensors:
        """A request's tensors, before its first function."""
        return Tensors(batch, dict(inputs), codecs=self._known)

    def call(self, function: Function, instance: Instance, tensors: Tensors) -> Call:
        """The request of a function, packed; the same bytes again while shapes and instances stay."""
        key = (function.name, tensors.batch, instance.number)
        if key in self._calls:
            return self._calls[key]
        views: dict[str, np.ndarray] = {}
        takes = tuple(self._taken(instance, self._ref(spec.name, tensors), tensors) for spec in function.inputs)
        gives = tuple(self._given(instance, spec, tensors, views) for spec in function.outputs)
        packet = self._packed(function, wire.Run(takes, gives))
        call = Call(packet, tuple(ref.name for ref in takes if ref.streamed), views)
        if self._lasting(function, takes):
            self._calls[key] = call
        return call

    def parts(self, call: Call, tensors: Tensors) -> list[memoryview]:
        """The bytes that follow the packet."""
        return [_native(tensors.values[n]).reshape(-1).view(np.uint8).data for n in call.streamed]

    def took(self, call: Call, reply: Reply, tensors: Tensors) -> None:
        """Keep what a function gave."""
        tensors.values.update(call.views)
        streams = iter(reply.streamed)
        for ref in reply.outputs:
            if ref.url:
                tensors.stored[ref.name] = ref
                continue
            coded = ref.codec != "none"
            if ref.segment < 0:
                data = np.frombuffer(next(streams), np.uint8 if coded else ref.dtype)
                tensors.values[ref.name] = data if coded else data.reshape(ref.shape)
            elif coded:
                tensors.values[ref.name] = self._segment_bytes(ref)
            if coded:
                tensors.coded[ref.name] = ref

    def answer(self, tensors: Tensors, names: Iterable[str]) -> dict[str, np.ndarray]:
        """What the request is answered with, in memory of its own."""
        return {name: tensors.decoded(name) for name in names}

    def release(self, tensors: Tensors) -> None:
        """Remove what the request left behind, however it ended."""

    def close(self) -> None:
        """Free what is held from request to request."""
        self._calls.clear()

    def _ref(self, name: str, tensors: Tensors) -> wire.TensorRef:
        """A tensor as it is now."""
        stored = tensors.stored.get(name)
        if stored:
            return stored
        array = tensors.values[name]
        ref = tensors.coded.get(name) or wire.TensorRef(name, array.dtype.name, array.shape)
        return msgspec.structs.replace(ref, segment=-1, size=array.nbytes)

    def _lasting(self, function: Function, takes: Sequence[wire.TensorRef]) -> bool:
        """Whether the packet of a next request of this batch will be the same: encoded sizes differ, and shapes may."""
        return all(ref.codec == "none" for ref in takes) and not any(s.dynamic for s in function.inputs)

    def _taken(self, instance: Instance, ref: wire.TensorRef, tensors: Tensors) -> wire.TensorRef:
        """Where a function finds an input."""
        return ref

    def _given(
        self, instance: Instance, spec: TensorSpec, tensors: Tensors, views: dict[str, np.ndarray]
    ) -> wire.TensorRef:
        """Where a function leaves an output; what appears in place joins `views`."""
        shape = spec.shape_at(tensors.batch)
        name = self._codecs.get(spec.name, "none")
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize + (name != "none")
        return wire.TensorRef(spec.name, spec.dtype, shape, -1, name, size)

    def _packed(self, function: Function, run: wire.Run) -> bytes:
        return wire.encode(run)

    def _segment_bytes(self, ref: wire.TensorRef) -> np.ndarray:
        raise AssertionError(f"{self.channel} has no segments, {ref.name} lies in one")


class SharedMemory(Carrier):
    """Segments, one per tensor."""

    channel = "shared-memory"

    def __init__(
        self, codecs: Mapping[str, str], known: Codecs, timeout_s: float, instances: Mapping[str, Instance]
    ) -> None:
        """`instances`: those that may have attached a segment."""
        super().__init__(codecs, known, timeout_s)
        self._instances = instances
        self._segments: dict[str, tuple[int, Segment, int]] = {}
        self._next_segment = 0

    def request(self, batch: int, inputs: Mapping[str, np.ndarray]) -> Tensors:
        """With the inputs copied into their segments."""
        for name, array in inputs.items():
            np.copyto(self._segment(name, array.nbytes)[1].view(array.dtype.name, array.shape), array)
        return Tensors(batch, dict(inputs), codecs=self._known)

    def close(self) -> None:
        """Free the segments."""
        for _, _, fd in self._segments.values():
            os.close(fd)
        self._segments.clear()
        super().close()  # the calls' views hold the mappings

    def _taken(self, instance: Instance, ref: wire.TensorRef, tensors: Tensors) -> wire.TensorRef:
        return msgspec.structs.replace(ref, segment=self._share(instance, ref.name, ref.size))

    def _given(
        self, instance: Instance, spec: TensorSpec, tensors: Tensors, views: dict[str, np.ndarray]
    ) -> wire.TensorRef:
        ref = super()._given(instance, spec, tensors, views)
        if spec.dynamic:
            return ref
        ref = msgspec.structs.replace(ref, segment=self._share(instance, ref.name, ref.size))
        if ref.codec == "none":
            views[ref.name] = self._segments[ref.name][1].view(ref.dtype, ref.shape)
        return ref

    def _segment_bytes(self, ref: wire.TensorRef) -> np.ndarray:
        return self._segments[ref.name][1].bytes[: ref.size]

    def _share(self, instance: Instance, name: str, size: int) -> int:
        number, segment, fd = self._segment(name, size)
        instance.attach(number, segment.size, fd)
        return number

    def _segment(self, name: str, size: int) -> tuple[int, Segment, int]:
        """The tensor's segment, a larger one where the present one is too small."""
        held = self._segments.get(name)
        if held and held[1].size >= size:
            return held
        if held:
            self._calls.clear()
            os.close(held[2])
            for instance in self._instances.values():
                if instance.state is State.READY:
                    instance.detach(held[0])
        segment, fd = create(size)
        self._segments[name] = (self._next_segment, segment, fd)
        self._next_segment += 1
        return self._segments[name]


class Posted(Carrier):
    """POSTs."""

    channel = "http"

    def _packed(self, function: Function, run: wire.Run) -> bytes:
        from lamella.channels.inference import request  # here, for the chains that do without

        return request(function.name, run)


class Stored(Carrier):
    """Objects."""

    channel = "s3"

    def __init__(
        self, codecs: Mapping[str, str], known: Codecs, timeout_s: float, store: Store, between: Iterable[str]
    ) -> None:
        """`between`: tensors that one function gives and another takes."""
        super().__init__(codecs, known, timeout_s)
        self._store, self._between = store, frozenset(between)
        self._prefix = ""
        self._requests = 0
        self._owed: list[str] = []

    def request(self, batch: int, inputs: Mapping[str, np.ndarray]) -> Tensors:
        """With a name of its own for each object it may make."""
        self._prefix = self._prefix or self._store.prefix()
        self._requests += 1
        return Tensors(batch, dict(inputs), codecs=self._known)

    def answer(self, tensors: Tensors, names: Iterable[str]) -> dict[str, np.ndarray]:
        """What other functions took as well has to be got."""
        from lamella.channels.objects import Objects

        names = tuple(names)
        objects = Objects()
        try:
            for ref in (tensors.stored[n] for n in names if n in tensors.stored):
                data = np.frombuffer(objects.get(self._signed(ref, tensors).url, ref.size, ref.checksum), np.uint8)
                tensors.values[ref.name], tensors.coded[ref.name] = data, ref
        finally:
            objects.close()
        return super().answer(tensors, names)

    def release(self, tensors: Tensors) -> None:
        """Delete every object that a function was given an address for.

        A store that fails now does not take the answer back, nor hides why there is none: what it keeps is deleted with
        the next request's or at the end, and else by `lamella clean`.
        """
        self._owed += tensors.keys.values()
        if self._owed:
            with suppress(StorageError, ConfigError):
                self._store.delete(self._owed)
                self._owed.clear()

    def close(self) -> None:
        """Delete what could not be deleted before."""
        self.release(Tensors(0, {}))
        super().close()

    def _lasting(self, function: Function, takes: Sequence[wire.TensorRef]) -> bool:
        return False  # addresses are those of one request

    def _taken(self, instance: Instance, ref: wire.TensorRef, tensors: Tensors) -> wire.TensorRef:
        return self._signed(ref, tensors) if ref.url else ref

    def _signed(self, ref: wire.TensorRef, tensors: Tensors) -> wire.TensorRef:
        return msgspec.structs.replace(ref, url=self._store.get_url(tensors.keys[ref.name], self._lasting_s))

    def _given(
        self, instance: Instance, spec: TensorSpec, tensors: Tensors, views: dict[str, np.ndarray]
    ) -> wire.TensorRef:
        ref = super()._given(instance, spec, tensors, views)
        if spec.name not in self._between:
            return ref
        key = tensors.keys.setdefault(spec.name, f"{self._prefix}/{self._requests}/{len(tensors.keys)}")
        return msgspec.structs.replace(ref, url=self._store.put_url(key, self._lasting_s))

    @property
    def _lasting_s(self) -> float:
        """How long an address has to hold: the function may be started first, and waits for its turn."""
        return 2 * self._timeout_s + 60


def carrier(
    channel: Channel,
    codecs: Mapping[str, str],
    known: Codecs,
    *,
    timeout_s: float,
    functions: Sequence[Function],
    instances: Mapping[str, Instance],
    store: Store | None,
) -> Carrier:
    """The channel's carrier.

    Raises:
        ConfigError: there is no such channel, or `s3` without a store.
    """
    match channel:
        case "shared-memory":
            return SharedMemory(codecs, known, timeout_s, instances)
        case "socket":
            return Carrier(codecs, known, timeout_s)
        case "http":
            return Posted(codecs, known, timeout_s)
        case "s3":
            if store is None:
                raise ConfigError("channel s3 needs a bucket", try_="--s3-bucket NAME --s3-endpoint http://HOST:PORT")
            made = {s.name for f in functions for s in f.outputs}
            return Stored(codecs, known, timeout_s, store, made & {s.name for f in functions for s in f.inputs})


def coded_tensors(stages: Sequence[Sequence[Function]], codecs: Sequence[str]) -> dict[str, str]:
    """The codec of each tensor that travels by one: that of the hop behind the stage that gives it, to every reader.

    Beside a tensor that a codec is fitted to, others of the hop (a mask) travel as they are.

    Args:
        stages: the functions of each.
        codecs: for each stage but the last that of the hop behind it.
    """
    read = {s.name for stage in stages for f in stage for s in f.inputs}
    fitted = {(one.tensor, one.codec) for stage in stages for f in stage for one in f.fitted}
    return {
        s.name: name
        for stage, name in zip(stages, codecs, strict=False)
        for f in stage
        for s in f.outputs
        if name != "none" and s.name in read and (not is_fitted(name) or (s.name, name) in fitted)
    }


def _native(array: np.ndarray) -> np.ndarray:
    """The array in C order and this machine's byte order; itself where it is."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))
