# SPDX-License-Identifier: Apache-2.0
"""The return path: what the destination QEMU tells the source.

A message is be16 type, be16 length, body (``migration/migration.c``, migrate_send_rp_message).
RECV_BITMAP is followed by a bitmap *outside* the message's length (``migration/ram.c``,
ramblock_recv_bitmap_send). Every event keeps the exact bytes it was read from in ``raw``, so
that what is not rewritten can be forwarded untouched; the concatenation of all ``raw`` is the
stream.
"""

import collections
import dataclasses
import struct
from typing import Final

from nova_enlightened.exception import ReturnPathError
from nova_enlightened.stream import limits
from nova_enlightened.stream.events import NEED_DATA, NeedData
from nova_enlightened.stream.reader import Incomplete, Reader, text
from nova_enlightened.stream.wire import RECV_BITMAP_END_MARK, TARGET_PAGE_SIZE, ReturnPathType

__all__ = [
    "NEED_DATA",
    "Pong",
    "RecvBitmap",
    "RequestPages",
    "ResumeAck",
    "ReturnPath",
    "ReturnPathEvent",
    "Shut",
    "SwitchoverAck",
    "Unknown",
    "encode_request_pages",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Shut:
    """The destination is done; ``status`` other than 0 is its error."""

    status: int
    raw: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a PING command with the same ``value``."""

    value: int
    raw: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class RequestPages:
    """A fault: the destination needs ``length`` bytes from ``start`` in ``block``.

    ``named`` tells the long form (type 3) from the short one (type 4), which means the block
    last named on this return path; ``block`` is that block then, and None if there was none.
    """

    block: str | None
    start: int
    length: int
    named: bool
    raw: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class RecvBitmap:
    """During recovery: which pages of ``block`` the destination has.

    ``bitmap`` is one bit a page, bit 0 of byte 0 first, padded to a multiple of 8 bytes.
    """

    block: str
    bitmap: memoryview
    raw: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class ResumeAck:
    """The destination is ready to go on after a recovery; ``value`` is 1."""

    value: int
    raw: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class SwitchoverAck:
    """The destination agrees to switchover (QEMU 8.1 on)."""

    raw: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Unknown:
    """Bytes of unknown meaning: from here on everything is.

    ``type`` is the message's where one began with a type that is not known, else None.
    """

    type: int | None
    raw: bytes


ReturnPathEvent = Shut | Pong | RequestPages | RecvBitmap | ResumeAck | SwitchoverAck | Unknown

_LENGTHS: Final[dict[ReturnPathType, tuple[int, int]]] = {
    ReturnPathType.SHUT: (4, 4),
    ReturnPathType.PONG: (4, 4),
    ReturnPathType.REQ_PAGES_ID: (13, 13 + 255),
    ReturnPathType.REQ_PAGES: (12, 12),
    ReturnPathType.RECV_BITMAP: (1, 1 + 255),
    ReturnPathType.RESUME_ACK: (4, 4),
    ReturnPathType.SWITCHOVER_ACK: (0, 0),
}
"""Least and most bytes of each message's body (``rp_cmd_args``)."""

_REQUEST: Final = struct.Struct(">HHQIB")


class ReturnPath:
    """Parser of one connection's return path.

    Feed with :meth:`receive_data`, then call :meth:`next_event` until :data:`NEED_DATA`. After a
    message of unknown type nothing is understood any more and every further byte comes back in
    :class:`Unknown` events.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._want = 1
        self._position = 0
        self._block: str | None = None
        self._opaque = False
        self._events: collections.deque[ReturnPathEvent] = collections.deque()
        self._error: ReturnPathError | None = None

    @property
    def position(self) -> int:
        """Bytes reported so far: the sum of all ``raw``."""
        return self._position

    @property
    def opaque(self) -> bool:
        """Whether a message of unknown type was met."""
        return self._opaque

    @property
    def last_block(self) -> str | None:
        """The block last named in a request, which a short request means."""
        return self._block

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Parse the next bytes; ``data`` may be reused afterwards. Ignored after an error."""
        if self._error is not None:
            return
        self._buffer += data
        if len(self._buffer) >= self._want:
            self._parse()

    def next_event(self) -> ReturnPathEvent | NeedData:
        """The next event, or :data:`NEED_DATA`.

        :raises ReturnPathError: a length is impossible; raised again on every call.
        """
        if self._events:
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        return NEED_DATA

    def end_of_data(self) -> None:
        """Say that the connection has ended.

        :raises ReturnPathError: it is cut off inside a message.
        """
        if self._error is not None:
            raise self._error
        if self._buffer:
            raise ReturnPathError(
                "return path cut off",
                offset=self._position + len(self._buffer),
                section=self._section(),
            )

    def unparsed(self) -> bytes:
        """What was received and is in no event: the start of a message, or the impossible one."""
        return bytes(self._buffer)

    def _parse(self) -> None:
        view = memoryview(bytes(self._buffer))
        done = 0
        try:
            while done < len(view):
                if self._opaque:
                    event: ReturnPathEvent = Unknown(None, bytes(view[done:]))
                else:
                    event = self._message(view, done)
                done += len(event.raw)
                self._position += len(event.raw)
                self._events.append(event)
            self._want = 1
        except Incomplete as lack:
            self._want = lack.want
        except ReturnPathError as error:
            del self._buffer[:done]
            self._error = ReturnPathError(
                str(error), offset=self._position, section=self._section()
            )
            return
        del self._buffer[:done]

    def _section(self) -> str:
        number = int.from_bytes(self._buffer[:2], "big")
        known = len(self._buffer) >= 2 and number in ReturnPathType.__members__.values()
        return ReturnPathType(number).name if known else "return path message"

    def _message(self, view: memoryview, begin: int) -> ReturnPathEvent:
        reader = Reader(view, begin, len(view))
        number = reader.number(2)
        length = reader.number(2)
        if number not in ReturnPathType.__members__.values():
            self._opaque = True
            return Unknown(number, bytes(view[begin:]))
        kind = ReturnPathType(number)
        least, most = _LENGTHS[kind]
        if not least <= length <= most:
            raise ReturnPathError(f"{kind.name} of {length} bytes")
        body = bytes(reader.take(length))
        if kind is ReturnPathType.RECV_BITMAP:
            return _recv_bitmap(view, begin, body, reader)
        return self._simple(kind, body, bytes(view[begin : reader.position]))

    def _simple(self, kind: ReturnPathType, body: bytes, raw: bytes) -> ReturnPathEvent:
        if kind is ReturnPathType.SWITCHOVER_ACK:
            return SwitchoverAck(raw)
        if kind in (ReturnPathType.REQ_PAGES, ReturnPathType.REQ_PAGES_ID):
            named = kind is ReturnPathType.REQ_PAGES_ID
            if named:
                self._block = _counted(body[12:], kind)
            start = int.from_bytes(body[:8], "big")
            return RequestPages(self._block, start, int.from_bytes(body[8:12], "big"), named, raw)
        value = int.from_bytes(body, "big")
        if kind is ReturnPathType.SHUT:
            return Shut(value, raw)
        if kind is ReturnPathType.PONG:
            return Pong(value, raw)
        return ResumeAck(value, raw)


def _counted(raw: bytes, kind: ReturnPathType) -> str:
    if raw[0] != len(raw) - 1:
        raise ReturnPathError(f"{kind.name} with a block name of {raw[0]} bytes in {len(raw) - 1}")
    return text(raw[1:])


def _recv_bitmap(view: memoryview, begin: int, body: bytes, reader: Reader) -> RecvBitmap:
    block = _counted(body, ReturnPathType.RECV_BITMAP)
    size = reader.number(8)
    if size > limits.MAX_BITMAP_BYTES or size % 8:
        raise ReturnPathError(f"received-bitmap of {size} bytes for block {block!r}")
    start = reader.position - begin
    reader.take(size)
    if reader.number(8) != RECV_BITMAP_END_MARK:
        raise ReturnPathError(f"received-bitmap of block {block!r} has no end mark")
    raw = bytes(view[begin : reader.position])
    return RecvBitmap(block, memoryview(raw)[start : start + size], raw)


def encode_request_pages(block: str, start: int, length: int) -> bytes:
    """A request for pages in the long form, which names its block.

    :param block: name of the RAM block, 1 to 255 bytes.
    :param start: byte offset into it, a multiple of 4096.
    :param length: bytes, a multiple of 4096, at least one page. For a block of huge pages both
        must be multiples of the huge page; QEMU's source asserts that.
    :raises ReturnPathError: a value QEMU would not take.
    """
    name = block.encode("utf-8", "surrogateescape")
    if not 1 <= len(name) <= 255:
        raise ReturnPathError(f"a RAM block's name of {len(name)} bytes")
    if start % TARGET_PAGE_SIZE or not 0 <= start < 1 << 63:
        raise ReturnPathError(f"request from byte {start} of block {block!r}")
    if length % TARGET_PAGE_SIZE or not 0 < length < 1 << 32:
        raise ReturnPathError(f"request of {length} bytes of block {block!r}")
    header = _REQUEST.pack(ReturnPathType.REQ_PAGES_ID, 13 + len(name), start, length, len(name))
    return header + name
