# SPDX-License-Identifier: Apache-2.0
"""A peer that breaks the link's rules costs its connection, and nothing else."""

from __future__ import annotations

import pytest

from nova_enlightened.exception import LinkProtocolError
from nova_enlightened.stream.link import (
    BLOCK_SIZE,
)
from nova_enlightened.stream.link_frames import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    encode_frame,
)
from nova_enlightened.stream.link_handshake import Offer
from nova_enlightened.stream.link_state import FrameType
from tests.unit.stream.link_pair import MAIN, RETAIN, Pair, Side, fill, opened


def receive(side: Side, *frames: bytes) -> None:
    side.wire += b"".join(frames)
    while side.take(1 << 30):
        pass


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (encode_frame(FrameType.DATA, 7, 0, b"x"), "channel 7 was never opened"),
        (encode_frame(FrameType.DATA, MAIN, 5, b"x"), "number 5 .* where 1"),
        (encode_frame(FrameType.DATA, MAIN, 0, b"x"), "number 0 .* where 1"),
        (encode_frame(FrameType.OPEN, MAIN, 1), "OPEN on channel 0, which is OPEN"),
        (encode_frame(FrameType.FIN, 9, 0), "channel 9 was never opened"),
        (encode_frame(FrameType.ACK, MAIN, 4), "4 acknowledged"),
        (encode_frame(FrameType.ACK, 9, 0), "channel 9 was never opened"),
        (encode_frame(FrameType.DATA, MAIN, 1), "DATA frame of 0 bytes"),
        (encode_frame(FrameType.PING, payload=b"x"), "PING frame of 1 bytes"),
        (b"GET / HTTP/1.1\r\n\r\n\r\n", "not a link frame"),
        (encode_frame(99), "unknown type 99"),  # type: ignore[arg-type]
    ],
)
def test_a_frame_that_cannot_follow_is_an_error(frame: bytes, complaint: str) -> None:
    pair = opened()
    with pytest.raises(LinkProtocolError, match=complaint):
        receive(pair.destination, frame)


def test_a_payload_beyond_the_limit_is_refused_by_its_header_alone() -> None:
    pair = opened()
    header = bytearray(encode_frame(FrameType.DATA, MAIN, 1, b"x"))[:HEADER_SIZE]
    header[8:12] = (MAX_PAYLOAD + 1).to_bytes(4, "big")
    with pytest.raises(LinkProtocolError, match="DATA frame of 262145 bytes"):
        receive(pair.destination, bytes(header))


def test_the_destination_may_not_open_channels() -> None:
    pair = opened()
    with pytest.raises(LinkProtocolError, match="only the source"):
        pair.destination.session.send_open(5)
    with pytest.raises(LinkProtocolError, match="only the source"):
        receive(pair.source, encode_frame(FrameType.OPEN, 5, 0))


def test_more_channels_than_the_limit_are_refused() -> None:
    pair = Pair()
    frames = [encode_frame(FrameType.OPEN, channel) for channel in range(17)]
    with pytest.raises(LinkProtocolError, match="more than 16 channels"):
        receive(pair.destination, *frames)


def test_an_acknowledgement_may_not_be_taken_back() -> None:
    pair = opened()
    fill(pair.source, MAIN, b"abc")
    pair.settle()
    with pytest.raises(LinkProtocolError, match="3 acknowledged"):
        receive(pair.source, encode_frame(FrameType.ACK, MAIN, 3))


def test_data_after_fin_is_refused() -> None:
    pair = opened()
    receive(pair.destination, encode_frame(FrameType.FIN, MAIN, 1))
    with pytest.raises(LinkProtocolError, match="FINISHED"):
        receive(pair.destination, encode_frame(FrameType.DATA, MAIN, 2, b"x"))


def test_refused_data_does_not_use_up_memory() -> None:
    pair = opened()
    for _ in range(100):
        with pytest.raises(LinkProtocolError):
            receive(pair.destination, encode_frame(FrameType.DATA, MAIN, 77, bytes(1000)))
        pair.cut()
        pair.connect()
    assert pair.destination.session.receive_pool.taken <= 1


def test_a_peer_that_sends_more_than_it_was_allowed_is_not_read() -> None:
    """The destination's QEMU takes nothing; memory stays bounded."""
    pair = opened()
    at = 1
    for _ in range(1000):
        pair.destination.wire += encode_frame(FrameType.DATA, MAIN, at, bytes(MAX_PAYLOAD))
        at += MAX_PAYLOAD
        while pair.destination.take(1 << 30):
            pass
        if pair.destination.reader.get_buffer() is None:
            break
    assert pair.destination.session.receive_pool.taken * BLOCK_SIZE < 20 * 1024 * 1024
    assert len(pair.destination.wire) > 0


@pytest.mark.parametrize(
    ("received", "complaint"),
    [
        ({MAIN: 3}, "stands at 3"),  # let go already
        ({MAIN: 12}, "stands at 12"),  # never sent
        ({}, "stands at 0"),
        ({MAIN: 11, 9: 1}, "unknown channel 9"),
    ],
)
def test_a_peer_that_stands_where_we_cannot_go_on_is_refused(
    received: dict[int, int], complaint: str
) -> None:
    pair = Pair()
    pair.source.session.send_open(MAIN)
    fill(pair.source, MAIN, bytes(10))
    pair.settle()
    pair.cut()
    with pytest.raises(LinkProtocolError, match=complaint):
        pair.source.session.attach(Offer("i", RETAIN, received), 0.0)
    assert not pair.source.session.attached


def test_a_peer_with_too_little_memory_is_refused() -> None:
    pair = Pair()
    pair.cut()
    with pytest.raises(LinkProtocolError, match="would hold 5 bytes"):
        pair.source.session.check(Offer("i", 5, {}))
