from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.channels import messages as wire
from lamella.channels.segments import Segment, create
from lamella.errors import WireError
from tests.processes import beside

Pair = tuple[socket.socket, socket.socket]

seconds = st.floats(allow_nan=False, allow_infinity=False, width=32)
counts = st.integers(0, 2**62)
refs = st.builds(
    wire.TensorRef,
    name=st.text(max_size=20),
    dtype=st.sampled_from(["float32", "float16", "int64", "bool"]),
    shape=st.lists(counts, max_size=5).map(tuple),
    segment=st.integers(-1, 2**31),
    codec=st.sampled_from(["none", "bf16"]),
    size=counts,
)
tensors = st.lists(refs, max_size=4).map(tuple)
memories = st.builds(
    wire.Memory, seconds, seconds, seconds, seconds, seconds, seconds, seconds, seconds, major_faults=counts
)
messages = st.one_of(
    st.builds(wire.Attach, counts, counts),
    st.builds(wire.Detach, counts),
    st.builds(wire.Run, tensors, tensors),
    st.just(wire.Report()),
    st.just(wire.Stop()),
    st.builds(wire.Ready, seconds, seconds, seconds, seconds, seconds),
    st.builds(wire.Done, tensors, seconds, seconds),
    memories,
    st.builds(wire.Failed, st.text(), st.text()),
)


@pytest.fixture
def packets() -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield left, right


@pytest.fixture
def stream() -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with left, right:
        yield left, right


@given(messages)
def test_every_message_survives_its_packet(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message)) == message


@given(st.binary(min_size=1, max_size=200))
def test_bytes_are_a_message_or_a_wire_error(packet: bytes) -> None:
    try:
        message = wire.decode(packet)
    except WireError:
        return
    assert isinstance(message, wire.Message)


@given(messages, st.integers(1, 40))
def test_a_message_cut_short_is_a_wire_error(message: wire.Message, lost: int) -> None:
    packet = wire.encode(message)
    short = packet[:-lost]
    with pytest.raises(WireError if short else EOFError):
        wire.decode(short)


def test_a_message_of_another_protocol_is_a_wire_error_that_says_so() -> None:
    with pytest.raises(WireError, match="not of this protocol"):
        wire.decode(b"GET / HTTP/1.1\r\n")


def test_messages_arrive_one_by_one_and_in_order(packets: Pair) -> None:
    sent: list[wire.Message] = [wire.Report(), wire.Detach(3), wire.Stop()]
    for message in sent:
        wire.send(packets[0], message)
    assert [wire.receive(packets[1]) for _ in sent] == sent


def test_a_closed_socket_reads_as_the_end(packets: Pair) -> None:
    packets[0].close()
    with pytest.raises(EOFError):
        wire.receive(packets[1])


def test_a_message_that_is_waiting_is_read_before_the_end(packets: Pair) -> None:
    wire.send(packets[0], wire.Failed("model", "why"))
    packets[0].close()
    assert wire.receive(packets[1]) == wire.Failed("model", "why")
    with pytest.raises(EOFError):
        wire.receive(packets[1])


def test_a_silent_peer_is_a_timeout(packets: Pair) -> None:
    packets[1].settimeout(0.01)
    with pytest.raises(TimeoutError):
        wire.receive(packets[1])


def test_a_message_that_fits_no_packet_is_refused_by_its_sender(packets: Pair) -> None:
    many = tuple(wire.TensorRef(f"tensor-{i}" * 10, "float32", (1,)) for i in range(1000))
    with pytest.raises(WireError, match=rf"\d+ bytes; the limit is {wire.PACKET_LIMIT}"):
        wire.send(packets[0], wire.Run(many, ()))
    wire.send(packets[0], wire.Stop())
    assert wire.receive(packets[1]) == wire.Stop()


def test_the_largest_message_fits_one_packet(packets: Pair) -> None:
    room = wire.PACKET_LIMIT - len(wire.encode(wire.Failed("", "x" * 60000))) + 60000
    message = wire.Failed("", "x" * room)
    assert len(wire.encode(message)) == wire.PACKET_LIMIT
    wire.send(packets[0], message)
    assert wire.receive(packets[1]) == message


def test_a_descriptor_is_handed_over_with_the_memory_behind_it(packets: Pair) -> None:
    segment, fd = create(64)
    wire.send(packets[0], wire.Attach(0, 64))
    wire.send_descriptor(packets[0], fd)
    os.close(fd)
    assert wire.receive(packets[1]) == wire.Attach(0, 64)
    other = Segment(wire.receive_descriptor(packets[1]), 64)
    segment.bytes[:] = 9
    assert other.bytes.tolist() == [9] * 64


@pytest.mark.parametrize("closed", [True, False])
def test_an_attach_without_its_descriptor_is_the_end(packets: Pair, closed: bool) -> None:
    if closed:
        packets[0].close()
    else:
        packets[0].send(b"\0")
    with pytest.raises(EOFError):
        wire.receive_descriptor(packets[1])


def test_megabytes_go_over_the_stream_in_pieces_and_arrive_whole(stream: Pair) -> None:
    parts = [os.urandom(5 << 20), b"", os.urandom(3), os.urandom(2 << 20)]
    with beside(lambda: wire.send_bytes(stream[0], [memoryview(p) for p in parts])):
        received = [wire.receive_bytes(stream[1], len(p)) for p in parts]
    assert received == parts


def test_a_stream_that_ends_early_is_the_end(stream: Pair) -> None:
    wire.send_bytes(stream[0], [memoryview(b"half")])
    stream[0].close()
    with pytest.raises(EOFError):
        wire.receive_bytes(stream[1], 8)
