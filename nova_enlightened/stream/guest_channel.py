# SPDX-License-Identifier: Apache-2.0
"""Framing of the guest channel, the virtio-serial port between host and in-guest agent.

    0   4  magic 'NEG1'
    4   1  type, see `MessageType`
    5   1  flags: bit 0, the payload is zlib compressed
    6   2  zero
    8   4  request id; an answer carries the request's, 0 is for what nobody asked
    12  4  payload bytes that follow
    16  4  CRC-32 of them, as sent

All numbers are big endian. A port outlives its users: whoever opens it may first see the tail
of a frame meant for somebody else. So a receiver *hunts* for the first whole valid frame, for a
bounded number of bytes, and from then on takes nothing that is not one.

The peer is inside the guest: nothing it claims is believed before it is checked against
`ChannelLimits`, and a compressed payload is inflated no further than the limit.
"""

import enum
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from nova_enlightened.exception import HintError
from nova_enlightened.stream.events import NEED_DATA, NeedData

PORT_NAME: Final = "org.openstack.enlightened.0"
PROTOCOL: Final = 1
MAGIC: Final = b"NEG1"
HEADER: Final = struct.Struct(">4sBBHIII")
COMPRESSED: Final = 1
FALSE_STARTS: Final = 16
"""Frames that may turn out to be none while hunting: each may cost a checksum over all of a
payload, and a guest can put millions of them into one."""


class MessageType(enum.IntEnum):
    """What a frame is. Payloads are JSON objects, but for SNAPSHOT; an empty one is {}."""

    HELLO = 1
    """Host: who is there? Agent: its version, protocol, kernel, frames, sources."""
    ARM = 2
    """Host: sample, at most so long, so often, for so much CPU."""
    ARMED = 3
    """Agent: sampling, with these settings."""
    DISARM = 4
    """Host: stop sampling. Answered by STATUS."""
    ASK = 5
    """Host: send a snapshot now, from what there is."""
    SNAPSHOT = 6
    """Agent: a `knowledge.snapshot`; with request id 0 one that it sends by itself."""
    STATUS = 7
    """Host: how are you? Agent: samples taken, CPU used, and so on."""
    ERROR = 8
    """Agent: the request failed, and why."""
    PING = 9
    PONG = 10
    CLONE = 11
    """Host: you are a copy of another machine; be this one: seed, time, name, interfaces."""
    CLONED = 12
    """Agent: which of it was done, and why the rest was not."""


KNOWN_TYPES: Final = frozenset(MessageType)


@dataclass(frozen=True)
class ChannelLimits:
    """What a frame may claim, in bytes."""

    payload: int = 64 << 20
    """As sent."""
    inflated: int = 256 << 20
    """After decompression."""
    small: int = 64 << 10
    """Either, of any message but SNAPSHOT."""
    hunted: int = 128 << 20
    """Skipped while looking for the first frame."""

    def of(self, message: int) -> tuple[int, int]:
        """(sent, inflated) limits of a message type."""
        if message == MessageType.SNAPSHOT:
            return self.payload, self.inflated
        return self.small, self.small


@dataclass(frozen=True)
class Message:
    """One frame, its payload checked and inflated."""

    type: MessageType
    request: int
    payload: bytes


class _State(enum.Enum):
    HUNTING = "hunting"
    SYNCHRONISED = "synchronised"
    FAILED = "failed"


class _BadFrame(Exception):
    """What is wrong with the bytes at the front of the buffer."""


@dataclass(frozen=True)
class _Header:
    type: MessageType
    compressed: bool
    request: int
    size: int
    checksum: int
    inflated: int


class GuestChannel:
    """Receiving half, without I/O. Feed it bytes, take messages until `NEED_DATA`.

    After an error every further call raises the same error: the stream's framing is lost.
    """

    def __init__(self, limits: ChannelLimits | None = None) -> None:
        self._limits = limits or ChannelLimits()
        self._buffer = bytearray()
        self._state = _State.HUNTING
        self._hunted = 0
        self._false_starts = 0
        self._failure = ""

    @property
    def pending(self) -> int:
        """Bytes received that are not yet part of a message."""
        return len(self._buffer)

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes as they came. :raises HintError: the channel has failed before."""
        self._check()
        self._buffer += data

    def next_event(self) -> Message | NeedData:
        """The next message. :raises HintError: the bytes are not what they should be."""
        self._check()
        try:
            if self._state is _State.HUNTING:
                return self._hunt()
            return self._take()
        except _BadFrame as error:
            self._failure = f"guest channel: {error}"
            self._state = _State.FAILED
            self._buffer.clear()
            raise HintError(self._failure) from error

    def _check(self) -> None:
        if self._state is _State.FAILED:
            raise HintError(self._failure)

    def _hunt(self) -> Message | NeedData:
        """Skip to the first whole valid frame."""
        while True:
            at = self._buffer.find(MAGIC)
            self._skip(at if at >= 0 else max(0, len(self._buffer) - len(MAGIC) + 1))
            if at < 0:
                return NEED_DATA
            try:
                found = self._take()
            except _BadFrame:
                self._false_starts += 1
                if self._false_starts > FALSE_STARTS:
                    raise
                self._skip(1)  # the magic occurred inside something else
                continue
            if found is not NEED_DATA:
                self._state = _State.SYNCHRONISED
            return found

    def _skip(self, count: int) -> None:
        del self._buffer[:count]
        self._hunted += count
        if self._hunted > self._limits.hunted:
            raise _BadFrame(f"no frame within {self._hunted} bytes") from None

    def _take(self) -> Message | NeedData:
        """The frame at the front of the buffer, removed from it if it is whole."""
        if len(self._buffer) < HEADER.size:
            if not MAGIC.startswith(self._buffer[: len(MAGIC)]):
                raise _BadFrame(f"{bytes(self._buffer[: len(MAGIC)])!r} where a frame begins")
            return NEED_DATA
        header = self._header()
        end = HEADER.size + header.size
        if len(self._buffer) < end:
            return NEED_DATA
        with memoryview(self._buffer) as view:
            payload = bytes(view[HEADER.size : end])
        if zlib.crc32(payload) != header.checksum:
            raise _BadFrame(f"wrong checksum of a {header.type.name} of {header.size} bytes")
        if header.compressed:
            payload = _inflate(payload, header.inflated)
        del self._buffer[:end]
        return Message(header.type, header.request, payload)

    def _header(self) -> _Header:
        magic, kind, flags, zero, request, size, checksum = HEADER.unpack_from(self._buffer)
        if magic != MAGIC:
            raise _BadFrame(f"{magic!r} where a frame begins")
        if kind not in KNOWN_TYPES or flags & ~COMPRESSED or zero:
            raise _BadFrame(f"unknown frame: type {kind}, flags {flags:#x}, {zero:#x}")
        most, inflated = self._limits.of(kind)
        if size > most:
            raise _BadFrame(f"{MessageType(kind).name} claims {size} bytes, the limit is {most}")
        return _Header(
            MessageType(kind), bool(flags & COMPRESSED), request, size, checksum, inflated
        )


def encode(
    kind: MessageType, payload: bytes = b"", request: int = 0, compress: bool = False
) -> bytes:
    """One frame. :raises HintError: the payload is over what any receiver takes."""
    if compress:
        payload = zlib.compress(payload, 1)
    most, _ = ChannelLimits().of(kind)
    if len(payload) > most:
        raise HintError(f"{kind.name} of {len(payload)} bytes, the limit is {most}")
    flags = COMPRESSED if compress else 0
    header = HEADER.pack(MAGIC, kind, flags, 0, request, len(payload), zlib.crc32(payload))
    return header + payload


def _inflate(payload: bytes, limit: int) -> bytes:
    """Decompress, never holding more than `limit` bytes and one chunk."""
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(payload, limit)
    except zlib.error as error:
        raise _BadFrame(f"payload does not decompress: {error}") from error
    if not inflater.eof:
        over = inflater.unconsumed_tail or len(inflated) >= limit
        raise _BadFrame(f"payload inflates past {limit} bytes" if over else "payload is cut off")
    if inflater.unused_data:
        raise _BadFrame(f"{len(inflater.unused_data)} bytes follow the compressed payload")
    return inflated
