# SPDX-License-Identifier: Apache-2.0
"""The link's framing: whole, byte by byte, truncated, and not frames at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova_enlightened.exception import LinkProtocolError
from nova_enlightened.stream.link_frames import (
    HEADER_SIZE,
    MAX_UNKNOWN_PEER,
    Chunk,
    Frame,
    FrameReader,
    encode_frame,
)
from nova_enlightened.stream.link_state import FrameType

VECTOR = b"".join(
    [
        encode_frame(FrameType.OPEN, 3, 0),
        encode_frame(FrameType.DATA, 3, 1, b"pages"),
        encode_frame(FrameType.PING, sequence=77),
        encode_frame(FrameType.FIN, 3, 6),
        encode_frame(FrameType.BYE, payload=b"done"),
    ]
)


def parse(content: bytes, pieces: int) -> list[Frame | tuple[int, int, bytes]]:
    """Read ``content`` in pieces; join the parts of each DATA frame."""
    reader = FrameReader()
    found: list[Frame | tuple[int, int, bytes]] = []
    for at in range(0, len(content), pieces):
        piece = content[at : at + pieces]
        buffer = reader.get_buffer()
        assert buffer is not None
        buffer[: len(piece)] = piece
        reader.filled(len(piece))
        while (frame := reader.next_frame()) is not None:
            if isinstance(frame, Frame):
                found.append(frame)
                continue
            last = found[-1] if found else None
            if isinstance(last, tuple) and not isinstance(last, Frame):
                assert frame.sequence == last[1] + len(last[2])
                found[-1] = (last[0], last[1], last[2] + bytes(frame.view))
            else:
                found.append((frame.channel, frame.sequence, bytes(frame.view)))
    return found


EXPECTED = [
    Frame(FrameType.OPEN, 3, 0, b""),
    (3, 1, b"pages"),
    Frame(FrameType.PING, 0, 77, b""),
    Frame(FrameType.FIN, 3, 6, b""),
    Frame(FrameType.BYE, 0, 0, b"done"),
]


@pytest.mark.parametrize("pieces", [1, 2, 7, HEADER_SIZE, HEADER_SIZE + 1, 1000])
def test_frames_are_the_same_however_they_are_cut(pieces: int) -> None:
    assert parse(VECTOR, pieces) == EXPECTED


@pytest.mark.parametrize("length", range(len(VECTOR)))
def test_a_truncated_stream_gives_whole_frames_only(length: int) -> None:
    found = parse(VECTOR[:length], 1000)
    whole = [frame for frame in found if isinstance(frame, Frame)]
    assert whole == [frame for frame in EXPECTED if isinstance(frame, Frame)][: len(whole)]


def test_an_unknown_peer_may_send_little() -> None:
    reader = FrameReader()
    sent = 0
    while sent < MAX_UNKNOWN_PEER:
        buffer = reader.get_buffer()
        assert buffer is not None
        count = min(HEADER_SIZE, len(buffer))
        buffer[:count] = encode_frame(FrameType.PING)[:count]
        reader.filled(count)
        sent += count
        while reader.next_frame() is not None:
            pass
    with pytest.raises(LinkProtocolError, match="before proving"):
        reader.get_buffer()


@given(st.binary(max_size=200))
def test_garbage_is_an_error_or_waits_for_more(content: bytes) -> None:
    reader = FrameReader()
    buffer = reader.get_buffer()
    assert buffer is not None
    buffer[: len(content)] = content
    reader.filled(len(content))
    try:
        while (frame := reader.next_frame()) is not None:
            assert isinstance(frame, Frame | Chunk)
    except LinkProtocolError:
        pass
