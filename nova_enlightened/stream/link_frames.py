# SPDX-License-Identifier: Apache-2.0
"""Framing of the link between two relays (this project's own protocol, version 1).

A frame is a header of 20 bytes, big endian, and a payload::

    magic u16 | framing u8 | type u8 | channel u32 | length u32 | sequence u64

Each direction of each channel numbers what must not be lost: OPEN, FIN and RESET take one number,
DATA one a byte. ``sequence`` of these is the number of the first; that of an ACK is the first
number *not* yet delivered; of other frames it is 0 (PING, PONG: any value, given back; PACE:
microseconds). So a frame may be cut anywhere, delivered in part, and sent again from any byte.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from nova_enlightened.exception import LinkProtocolError
from nova_enlightened.stream.link_buffers import Block, BlockPool
from nova_enlightened.stream.link_state import FrameType

MAGIC = 0x4E45  # "NE"
FRAMING = 1
HEADER = struct.Struct(">HBBIIQ")
HEADER_SIZE = HEADER.size

MAX_PAYLOAD = 256 * 1024
MAX_HANDSHAKE = 2048
MAX_REASON = 512
#: All that a peer may send before it is known.
MAX_UNKNOWN_PEER = 4096
#: Less room than this at the end of a block is not worth a system call.
_MIN_ROOM = 64 * 1024

_PAYLOAD_LIMITS: dict[FrameType, tuple[int, int]] = {
    FrameType.HELLO: (1, MAX_HANDSHAKE),
    FrameType.CHALLENGE: (1, MAX_HANDSHAKE),
    FrameType.PROOF: (1, MAX_HANDSHAKE),
    FrameType.WELCOME: (1, MAX_HANDSHAKE),
    FrameType.REFUSE: (0, MAX_REASON),
    FrameType.DATA: (1, MAX_PAYLOAD),
    FrameType.BYE: (0, MAX_REASON),
}
_TYPES = {int(member): member for member in FrameType}


class Frame(NamedTuple):
    """A whole frame other than DATA."""

    type: FrameType
    channel: int
    sequence: int
    payload: bytes


class Chunk(NamedTuple):
    """A part of a DATA frame's payload; ``view`` lies in ``block`` until it is released."""

    channel: int
    sequence: int
    view: memoryview
    block: Block


def encode_frame(
    kind: FrameType, channel: int = 0, sequence: int = 0, payload: bytes = b""
) -> bytes:
    """Return a frame's bytes."""
    return HEADER.pack(MAGIC, FRAMING, kind, channel, len(payload), sequence) + payload


def encode_reason(kind: FrameType, reason: str) -> bytes:
    """Return a REFUSE or BYE frame; a reason that is too long is cut."""
    return encode_frame(kind, payload=reason.encode()[:MAX_REASON])


def decode_reason(payload: bytes) -> str:
    """Return the text of a REFUSE or BYE, fit to be logged: one line, printable."""
    text = payload.decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in text)


def decode_header(memory: bytearray, at: int) -> tuple[FrameType, int, int, int]:
    """Return type, channel, payload length and sequence.

    :raises LinkProtocolError: not a header of this framing, or a length its type may not have.
    """
    magic, framing, number, channel, length, sequence = HEADER.unpack_from(memory, at)
    if magic != MAGIC or framing != FRAMING:
        raise LinkProtocolError(f"not a link frame: it begins with {magic:#06x}, {framing}")
    kind = _TYPES.get(number)
    if kind is None:
        raise LinkProtocolError(f"frame of unknown type {number}")
    least, most = _PAYLOAD_LIMITS.get(kind, (0, 0))
    if not least <= length <= most:
        raise LinkProtocolError(f"{kind.name} frame of {length} bytes, not {least} to {most}")
    return kind, channel, length, sequence


class FrameReader:
    """Cuts what one connection receives into frames, in place.

    Ask :meth:`get_buffer` for memory, put bytes there, say how many to :meth:`filled`, then call
    :meth:`next_frame` until it returns None. Until :meth:`accept` the peer is unknown and gets
    no more than ``MAX_UNKNOWN_PEER`` bytes.
    """

    def __init__(self) -> None:
        self._pool = BlockPool(MAX_UNKNOWN_PEER, 1)
        self._block = self._pool.take()
        self._known = False
        self._at = 0  # first byte not yet handed on
        self._channel = 0  # the DATA frame being received, ...
        self._sequence = 0
        self._missing = 0  # ... and how much of it is still to come

    def accept(self, pool: BlockPool) -> None:
        """The peer has proved who it is: from here on receive into blocks of ``pool``."""
        unknown, self._pool = self._pool, pool
        self._known = True
        self._change_block(unknown)

    def close(self) -> None:
        """The connection is gone; a frame cut short goes with it."""
        self._pool.close(self._block)

    def get_buffer(self) -> memoryview | None:
        """Return memory to receive into, or None while too much is undelivered.

        :raises LinkProtocolError: an unknown peer has used up its bytes.
        """
        block = self._block
        if not self._known:
            if block.filled == MAX_UNKNOWN_PEER:
                raise LinkProtocolError(f"{block.filled} bytes before proving who it is")
        elif self._at == block.filled and not block.held:
            self._at = block.filled = 0
        elif self._pool.block_size - block.filled < _MIN_ROOM:
            if self._pool.exhausted:
                return None
            self._change_block(self._pool)
            block = self._block
        return block.view[block.filled :]

    def filled(self, count: int) -> None:
        """``count`` bytes were put into the memory that :meth:`get_buffer` returned."""
        self._block.filled += count

    def next_frame(self) -> Frame | Chunk | None:
        """Return the next frame or part of a DATA frame; None when more bytes are needed.

        :raises LinkProtocolError: the bytes are not frames.
        """
        block = self._block
        if not self._missing:
            if block.filled - self._at < HEADER_SIZE:
                return None
            kind, channel, length, sequence = decode_header(block.memory, self._at)
            if kind is not FrameType.DATA:
                end = self._at + HEADER_SIZE + length
                if block.filled < end:
                    return None
                payload = bytes(block.view[self._at + HEADER_SIZE : end])
                self._at = end
                return Frame(kind, channel, sequence, payload)
            self._at += HEADER_SIZE
            self._channel, self._sequence, self._missing = channel, sequence, length
        return self._next_chunk(block)

    def _next_chunk(self, block: Block) -> Chunk | None:
        count = min(self._missing, block.filled - self._at)
        if not count:
            return None
        chunk = Chunk(self._channel, self._sequence, block.view[self._at : self._at + count], block)
        block.held += count
        self._at += count
        self._sequence += count
        self._missing -= count
        return chunk

    def _change_block(self, old_pool: BlockPool) -> None:
        """Go on in a new block; the beginning of a frame moves there."""
        old, new = self._block, self._pool.take()
        rest = old.filled - self._at
        new.memory[:rest] = old.view[self._at : old.filled]
        new.filled = rest
        old_pool.close(old)
        self._block, self._at = new, 0
