"""What a function is asked and answers over HTTP: the Open Inference Protocol, version 2, with its binary tensors.

The protocol that KServe, Triton and Knative's model servers speak, so that any client can call a function. A body is a
JSON header, and behind it the bytes of the tensors that say `binary_data_size`; without the field
`Inference-Header-Content-Length` it is all JSON. Ours beyond it: the parameter `codec` of a tensor that travels encoded
(its datatype and shape are those of the decoded one), and of an answer the seconds it took.

https://github.com/kserve/open-inference-protocol, inference_rest.md and the binary tensor data extension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from lamella.channels import messages as wire
from lamella.channels.http import Connection, Head, HttpError, answer_head, request_head

T = TypeVar("T")

JSON_LIMIT = 1 << 26
HEADER_LENGTH = "inference-header-content-length"
DATATYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
"""The protocol's BYTES is not among them: models take numbers."""


class Parameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of a tensor."""

    binary_data_size: int | None = None
    binary_data: bool = False
    """Of an output that is asked for: as bytes, not as JSON."""
    codec: str = "none"


class Tensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor of a request or an answer."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: Parameters = Parameters()
    data: Any = msgspec.UNSET
    """In row-major order, flat or nested, where it is not binary."""


class Wanted(msgspec.Struct, frozen=True, omit_defaults=True):
    """An output that is asked for."""

    name: str
    parameters: Parameters = Parameters()


class Asked(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON of a request."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Wanted, ...] = ()
    id: str = ""


class Spent(msgspec.Struct, frozen=True):
    """Wall and CPU seconds between request read and answer sent."""

    compute_s: float = 0.0
    cpu_s: float = 0.0


class Answered(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON of an answer."""

    model_name: str
    outputs: tuple[Tensor, ...]
    parameters: Spent = Spent()
    id: str = ""


class Refused(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON of a refusal; `code` is that of the error."""

    error: str
    code: str = "input"
    try_: str = msgspec.field(default="", name="try")


_encoder = msgspec.json.Encoder()
_asked = msgspec.json.Decoder(Asked)
_answered = msgspec.json.Decoder(Answered)
_refused = msgspec.json.Decoder(Refused)


def path_of(function: str) -> str:
    """Where a function is asked."""
    return f"/v2/models/{function}/infer"


# ------------------------------------------------------------------------------------------------- the driver's side


def request(function: str, run: wire.Run) -> bytes:
    """The head and the JSON of a request; the bytes of its inputs follow, in order."""
    inputs = tuple(
        Tensor(ref.name, ref.shape, DATATYPES[ref.dtype], Parameters(ref.size, codec=ref.codec)) for ref in run.inputs
    )
    outputs = tuple(Wanted(ref.name, Parameters(binary_data=True, codec=ref.codec)) for ref in run.outputs)
    text = _encoder.encode(Asked(inputs, outputs))
    fields = f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(text)}\r\n"
    return request_head(path_of(function), fields, len(text) + sum(ref.size for ref in run.inputs)) + text


def read_answer(connection: Connection) -> tuple[wire.Message, list[bytearray], bool]:
    """The answer, the bytes of its outputs in order, and whether the connection can be used further.

    Raises:
        EOFError: the function closed before.
        HttpError: it is none.
    """
    head = connection.head()
    size = head.length
    if head.first[1] != "200":
        refused = _decoded(_refused, connection.body(size))
        return wire.Failed(refused.code, refused.error, refused.try_), [], head.lasting
    length = _header_length(head, size)
    answer = _decoded(_answered, connection.body(length))
    refs, data = [], []
    for tensor in answer.outputs:
        known = tensor.parameters.binary_data_size or 0
        size -= known
        if size < length or tensor.datatype not in DTYPES:
            raise HttpError(400, f"an answer whose output {tensor.name!r} is not in it")
        codec = tensor.parameters.codec
        refs.append(wire.TensorRef(tensor.name, DTYPES[tensor.datatype], tensor.shape, codec=codec, size=known))
        data.append(connection.body(known))
    return wire.Done(tuple(refs), answer.parameters.compute_s, answer.parameters.cpu_s), data, head.lasting


# ----------------------------------------------------------------------------------------------- the function's side


class Post:
    """A request that was read: what it holds, and how its answer goes back."""

    def __init__(self, connection: Connection, head: Head) -> None:
        """Read the body behind a head.

        Raises:
            EOFError: the client closed before.
            HttpError: it is not a request of this protocol.
        """
        self._connection, self.lasting = connection, head.lasting
        size = head.length
        length = _header_length(head, size)
        if head.fields.get("expect", "").lower() == "100-continue":
            connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        asked = _decoded(_asked, connection.body(length))
        self._id, self.wanted = asked.id, {w.name: w.parameters for w in asked.outputs}
        self.inputs: list[wire.TensorRef] = []
        self.sent: list[np.ndarray] = []
        left, faults = size - length, list[str]()
        for tensor in asked.inputs:
            known = tensor.parameters.binary_data_size
            if known is not None and not 0 <= known <= left:
                raise HttpError(400, f"input {tensor.name!r} has {known} bytes, the body {left} more")
            left -= known or 0
            data = np.frombuffer(connection.body(known), np.uint8) if known is not None else _of_json(tensor, faults)
            codec = tensor.parameters.codec
            dtype = DTYPES.get(tensor.datatype, tensor.datatype)
            self.inputs.append(wire.TensorRef(tensor.name, dtype, tensor.shape, codec=codec, size=data.nbytes))
            self.sent.append(data)
        if left:
            raise HttpError(400, f"{left} bytes behind the last tensor")
        if faults:  # only now: the body is read, so the connection stays good
            raise ValueError(faults[0])

    def answer(
        self, name: str, refs: Sequence[wire.TensorRef], parts: Sequence[memoryview], compute_s: float, cpu_s: float
    ) -> None:
        """Send the outputs, each as the request asked for it."""
        outputs, binary = [], list[memoryview]()
        for ref, data in zip(refs, parts, strict=True):
            asked = self.wanted.get(ref.name, Parameters())
            datatype = DATATYPES[ref.dtype]
            if asked.binary_data or ref.codec != "none":
                outputs.append(Tensor(ref.name, ref.shape, datatype, Parameters(len(data), codec=ref.codec)))
                binary.append(data)
            else:
                values = np.frombuffer(data, ref.dtype).tolist()
                outputs.append(Tensor(ref.name, ref.shape, datatype, data=values))
        text = _encoder.encode(Answered(name, tuple(outputs), Spent(compute_s, cpu_s), self._id))
        size = len(text) + sum(len(data) for data in binary)
        fields = "Content-Type: application/json\r\n"
        if binary:
            fields = f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(text)}\r\n"
        self._connection.send(answer_head(200, fields, size, lasting=self.lasting), text, *binary)


def refuse(
    connection: Connection, status: int, message: str, *, code: str = "wire", try_: str = "", lasting: bool = False
) -> None:
    """Send a refusal."""
    text = _encoder.encode(Refused(message, code, try_))
    connection.send(answer_head(status, "Content-Type: application/json\r\n", len(text), lasting=lasting), text)


def say(connection: Connection, document: dict[str, Any], *, lasting: bool) -> None:
    """Send a JSON document."""
    text = _encoder.encode(document)
    connection.send(answer_head(200, "Content-Type: application/json\r\n", len(text), lasting=lasting), text)


def _header_length(head: Head, size: int) -> int:
    """How much of a body is JSON."""
    said = head.fields.get(HEADER_LENGTH, str(size))
    if not (said.isascii() and said.isdecimal()) or len(said) > 12 or int(said) > size:
        raise HttpError(400, f"Inference-Header-Content-Length {said[:40]!r} of a body of {size} bytes")
    if int(said) > JSON_LIMIT:
        raise HttpError(413, f"{said} bytes of JSON; the limit is {JSON_LIMIT}: send tensors as binary data")
    return int(said)


def _decoded(decoder: msgspec.json.Decoder[T], data: bytearray) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HttpError(400, f"not of the Open Inference Protocol: {error}") from error


def _of_json(tensor: Tensor, faults: list[str]) -> np.ndarray:
    """The bytes of a tensor that came as JSON; what is wrong with it joins `faults`."""
    try:
        if tensor.data is msgspec.UNSET or tensor.datatype not in DTYPES:
            raise ValueError(f"no data of one of the datatypes {', '.join(DTYPES)}")
        array = np.array(tensor.data, DTYPES[tensor.datatype]).reshape(-1)
        if array.size != math.prod(tensor.shape):
            raise ValueError(f"{array.size} values are no tensor of shape {list(tensor.shape)}")
    except (ValueError, TypeError, OverflowError) as error:
        faults.append(f"input {tensor.name!r}: {error}")
        return np.empty(0, np.uint8)
    return array.view(np.uint8)
