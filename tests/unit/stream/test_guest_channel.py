# SPDX-License-Identifier: Apache-2.0
"""Frames of the guest channel, from a guest that means well and from one that does not."""

import struct
import zlib

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nova_enlightened.exception import HintError
from nova_enlightened.guest import wire
from nova_enlightened.stream import guest_channel
from nova_enlightened.stream.events import NEED_DATA
from nova_enlightened.stream.guest_channel import (
    HEADER,
    ChannelLimits,
    GuestChannel,
    Message,
    MessageType,
    encode,
)

messages = st.builds(
    Message, st.sampled_from(MessageType), st.integers(0, 2**32 - 1), st.binary(max_size=200)
)

frames = messages.map(lambda sent: encode(sent.type, sent.payload, sent.request))


def received(channel: GuestChannel, data: bytes) -> list[Message]:
    """Every message that `data` completes."""
    channel.receive_data(data)
    found = []
    while (message := channel.next_event()) is not NEED_DATA:
        found.append(message)
    return found


def header(
    size: int, kind: int = 6, flags: int = 0, zero: int = 0, crc: int = 0, magic: bytes = b"NEG1"
) -> bytes:
    """A frame's header with any claim in it."""
    return HEADER.pack(magic, kind, flags, zero, 1, size, crc)


def synchronised(limits: ChannelLimits | None = None) -> GuestChannel:
    """A channel that has seen a good frame."""
    channel = GuestChannel(limits)
    assert received(channel, encode(MessageType.PONG))
    return channel


def test_both_halves_of_the_format_agree() -> None:
    assert guest_channel.HEADER.format == wire.HEADER.format
    assert guest_channel.MAGIC == wire.MAGIC
    assert guest_channel.PORT_NAME == wire.PORT_NAME
    assert guest_channel.PROTOCOL == wire.PROTOCOL
    assert guest_channel.COMPRESSED == wire.COMPRESSED
    for kind in MessageType:
        assert getattr(wire, kind.name) == kind


@settings(deadline=None)
@given(st.lists(messages, max_size=5), st.booleans())
def test_frames_arrive_whole_and_byte_by_byte(sent: list[Message], compress: bool) -> None:
    stream = b"".join(encode(m.type, m.payload, m.request, compress) for m in sent)

    assert received(GuestChannel(), stream) == sent
    channel = GuestChannel()
    assert [m for byte in stream for m in received(channel, bytes([byte]))] == sent
    assert channel.pending == 0


@settings(deadline=None)
@given(messages)
def test_the_agents_requests_are_the_hosts_frames(sent: Message) -> None:
    requests = wire.Requests()
    frame = encode(sent.type, sent.payload, sent.request)

    assert requests.receive(b"NEG" + frame[:9]) == []
    assert requests.receive(frame[9:]) == [(sent.type, sent.request, sent.payload)]


@settings(deadline=None)
@given(messages, st.booleans())
def test_the_hosts_messages_are_the_agents_frames(sent: Message, compressed: bool) -> None:
    payload = wire.compress([sent.payload]) if compressed else sent.payload
    frame = wire.frame(sent.type, payload, sent.request, compressed)

    assert received(GuestChannel(), frame) == [sent]


@settings(deadline=None)
@given(messages, st.data())
def test_a_frame_cut_off_is_no_message(sent: Message, data: st.DataObject) -> None:
    frame = encode(sent.type, sent.payload, sent.request)
    end = data.draw(st.integers(0, len(frame) - 1))

    assert received(synchronised(), frame[:end]) == []


@settings(deadline=None)
@given(st.binary(max_size=300), messages)
def test_the_rest_of_somebody_elses_frame_is_skipped(rest: bytes, sent: Message) -> None:
    assume(b"NEG1" not in rest)

    found = received(GuestChannel(), rest + encode(sent.type, sent.payload, 3))

    assert found == [Message(sent.type, 3, sent.payload)]


def test_a_magic_inside_the_skipped_rest_is_no_frame() -> None:
    rest = header(4, crc=1) + b"abcd" + header(1 << 31) + b"NEG1"

    assert received(GuestChannel(), rest + encode(MessageType.PONG, b"x")) == [
        Message(MessageType.PONG, 0, b"x")
    ]


def test_garbage_without_end_is_given_up() -> None:
    channel = GuestChannel(ChannelLimits(hunted=1000))

    with pytest.raises(HintError, match="no frame within"):
        received(channel, bytes(2000))


def test_magics_without_end_are_given_up_before_they_cost_time() -> None:
    channel = GuestChannel()
    frames = b"".join(header(1 << 20, crc=k) for k in range(60000))

    with pytest.raises(HintError, match="checksum"):
        received(channel, frames)


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        (header(1 << 31), "claims 2147483648 bytes"),
        (header(1 << 20, kind=7), "STATUS claims 1048576 bytes"),
        (header(0, kind=99), "type 99"),
        (header(0, kind=0), "type 0"),
        (header(0, flags=2), "flags 0x2"),
        (header(0, zero=7), "0x7"),
        (header(0, magic=b"GET "), "b'GET '"),
        (b"\0\0\0", "where a frame begins"),
        (header(4, crc=zlib.crc32(b"wxyz")) + b"abcd", "wrong checksum"),
    ],
)
def test_a_frame_that_is_none_ends_the_conversation(claim: bytes, reason: str) -> None:
    channel = synchronised()

    with pytest.raises(HintError, match=reason):
        received(channel, claim)


def test_a_terabyte_is_refused_at_its_header() -> None:
    channel = synchronised(ChannelLimits(payload=1 << 20))

    with pytest.raises(HintError, match="the limit is 1048576"):
        received(channel, header(0xFFFFFFFF))


def test_a_zip_bomb_is_inflated_to_the_limit_and_no_further() -> None:
    bomb = zlib.compress(bytes(64 << 20), 9)
    channel = synchronised(ChannelLimits(inflated=1 << 20))

    with pytest.raises(HintError, match="inflates past 1048576 bytes"):
        received(channel, wire.frame(wire.SNAPSHOT, bomb, compressed=True))


def test_a_payload_of_exactly_the_limit_is_taken() -> None:
    channel = synchronised(ChannelLimits(inflated=1 << 20))

    [message] = received(channel, encode(MessageType.SNAPSHOT, bytes(1 << 20), compress=True))

    assert len(message.payload) == 1 << 20


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"not zlib at all", "does not decompress"),
        (b"", "cut off"),
        (zlib.compress(bytes(1000))[:-1], "cut off"),
        (zlib.compress(b"x") + b"y", "follow"),
    ],
)
def test_a_payload_that_is_not_one_zlib_stream_is_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(HintError, match=reason):
        received(synchronised(), wire.frame(wire.SNAPSHOT, payload, compressed=True))


def test_after_an_error_every_call_repeats_it() -> None:
    channel = synchronised()
    with pytest.raises(HintError) as first:
        received(channel, b"garbage!")

    with pytest.raises(HintError) as again:
        channel.receive_data(encode(MessageType.PONG))
    with pytest.raises(HintError) as more:
        channel.next_event()

    assert str(first.value) == str(again.value) == str(more.value)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40) | frames, max_size=6))
def test_anything_is_messages_or_a_hint_error(pieces: list[bytes]) -> None:
    channel = GuestChannel()
    try:
        for piece in pieces:
            received(channel, piece)
    except HintError:
        pass


def test_too_large_a_request_is_not_made() -> None:
    with pytest.raises(HintError, match="limit"):
        encode(MessageType.ARM, bytes(1 << 20))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_the_agent_survives_any_bytes_and_hears_the_next_request(pieces: list[bytes]) -> None:
    assume(b"NEG1" not in b"".join(pieces))
    requests = wire.Requests()
    for piece in pieces:
        assert requests.receive(piece) == []

    assert requests.receive(encode(MessageType.ASK, b"", 9)) == [(MessageType.ASK, 9, b"")]


def test_the_agent_skips_requests_that_are_too_large_or_damaged() -> None:
    requests = wire.Requests()
    damaged = bytearray(encode(MessageType.ARM, b"{}", 1))
    damaged[-1] ^= 1
    stream = header(1 << 30) + bytes(damaged) + header(0, flags=1) + encode(MessageType.PING)

    assert requests.receive(stream) == [(MessageType.PING, 0, b"")]


def test_a_header_has_the_size_that_is_documented() -> None:
    assert HEADER.size == struct.calcsize(">4sBBHIII") == 20
