# SPDX-License-Identifier: Apache-2.0
"""The server's side of NBD for read-only exports, sans-IO.

Fixed newstyle negotiation (EXPORT_NAME, ABORT, LIST, INFO, GO, STRUCTURED_REPLY and the two
META_CONTEXT options), then READ, BLOCK_STATUS of ``base:allocation`` and DISC. Feed with
:meth:`NbdServer.receive_data`, take :meth:`NbdServer.next_event` until :data:`NEED_DATA`, and
send what :meth:`NbdServer.data_to_send` has gathered. Source: ``doc/proto.md`` of the NBD project.
"""

import collections
import dataclasses
import enum
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from nova_enlightened.exception import StreamError
from nova_enlightened.stream import nbd_wire as wire
from nova_enlightened.stream.events import NEED_DATA, NeedData

__all__ = ["NEED_DATA", "BlockStatus", "Disconnect", "Extent", "NbdServer", "Read"]


@dataclasses.dataclass(frozen=True, slots=True)
class Read:
    """The client wants ``length`` bytes from ``offset``; both lie within the export."""

    handle: int
    offset: int
    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class BlockStatus:
    """The client asks what of a range is zero; ``one``: it wants a single extent."""

    handle: int
    offset: int
    length: int
    one: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Disconnect:
    """The client is done; nothing may be sent any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """``length`` bytes of an export; ``zero``: they read as zeros."""

    length: int
    zero: bool


NbdEvent = Read | BlockStatus | Disconnect


class Phase(enum.StrEnum):
    """Where a connection is."""

    FLAGS = "client flags"
    OPTIONS = "negotiation"
    TRANSMISSION = "transmission"
    CLOSED = "closed"


class Given(enum.StrEnum):
    """What happened on it."""

    FLAGS = "client flags"
    CHOSEN = "an export was chosen"
    ABORTED = "the client gave up"
    DONE = "the client is done"


TRANSITIONS: Final[dict[tuple[Phase, Given], Phase]] = {
    (Phase.FLAGS, Given.FLAGS): Phase.OPTIONS,
    (Phase.OPTIONS, Given.CHOSEN): Phase.TRANSMISSION,
    (Phase.OPTIONS, Given.ABORTED): Phase.CLOSED,
    (Phase.TRANSMISSION, Given.DONE): Phase.CLOSED,
}

_FLAGS: Final = (
    wire.TransmissionFlag.HAS_FLAGS
    | wire.TransmissionFlag.READ_ONLY
    | wire.TransmissionFlag.CAN_MULTI_CONN
)
_BLOCK_SIZES: Final = (1, 4096, wire.MAX_REQUEST_BYTES)
"""Least, preferred and largest request, as told by INFO and GO."""


class _Malformed(Exception):
    """An option's data is not what its kind says; it is answered, not fatal."""


class NbdServer:
    """One client's connection.

    :param exports: name to size in bytes. The name "" is the default export.
    """

    def __init__(self, exports: Mapping[str, int]) -> None:
        self._exports = dict(exports)
        self._phase = Phase.FLAGS
        self._buffer = bytearray()
        self._skip = 0  # payload of a refused request that is still to come
        self._position = 0
        self._no_zeroes = False
        self._structured = False
        self._context: str | None = None  # export that base:allocation was agreed for
        self._export: str | None = None
        self._options = 0
        self._out: list[bytes] = [
            wire.SERVER_GREETING.pack(
                wire.INIT_MAGIC,
                wire.OPTION_MAGIC,
                wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES,
            )
        ]
        self._events: collections.deque[NbdEvent] = collections.deque()
        self._error: StreamError | None = None

    @property
    def phase(self) -> Phase:
        """Where the connection is."""
        return self._phase

    @property
    def export(self) -> str | None:
        """The export in use, once chosen."""
        return self._export

    @property
    def structured(self) -> bool:
        """Whether structured replies were agreed."""
        return self._structured

    def data_to_send(self) -> bytes:
        """What the negotiation and refusals have to say; each byte is given once."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Parse the next bytes; ``data`` may be reused afterwards. Ignored after an error."""
        if self._error is not None or self._phase is Phase.CLOSED:
            return
        self._buffer += data
        try:
            while self._step():
                pass
        except StreamError as error:
            self._error = StreamError(
                str(error), offset=self._position, section=f"NBD {self._phase.value}"
            )

    def next_event(self) -> NbdEvent | NeedData:
        """The next event, or :data:`NEED_DATA`.

        :raises StreamError: the client broke the protocol; raised again on every call.
        """
        if self._events:
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        return NEED_DATA

    # -- replies ----------------------------------------------------------------------------

    def read_reply(
        self, request: Read, parts: Sequence[bytes | memoryview | int]
    ) -> list[bytes | memoryview]:
        """Buffers that answer a read.

        :param parts: the range in order: bytes, or a number of bytes that are zero. An empty
            part is not allowed; the sum is the request's length.
        """
        if not self._structured:
            head = wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, request.handle)
            return [head, *(bytes(p) if isinstance(p, int) else p for p in parts)]
        buffers: list[bytes | memoryview] = []
        offset = request.offset
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            if isinstance(part, int):
                hole = struct.pack(">QI", offset, part)
                buffers += [self._chunk(request.handle, wire.Chunk.OFFSET_HOLE, len(hole), last)]
                buffers += [hole]
                offset += part
            else:
                size = 8 + len(part)
                buffers += [self._chunk(request.handle, wire.Chunk.OFFSET_DATA, size, last)]
                buffers += [struct.pack(">Q", offset), part]
                offset += len(part)
        if not parts:
            buffers.append(self._chunk(request.handle, wire.Chunk.NONE, 0, True))
        return buffers

    def status_reply(self, request: BlockStatus, extents: Iterable[Extent]) -> bytes:
        """The answer to a block status request.

        :param extents: from the request's offset on, at least one, each longer than 0.
        """
        listed = list(extents)[: 1 if request.one else None]
        state = wire.STATE_HOLE | wire.STATE_ZERO
        body = struct.pack(">I", wire.BASE_ALLOCATION_ID) + b"".join(
            wire.EXTENT.pack(extent.length, state if extent.zero else 0) for extent in listed
        )
        return self._chunk(request.handle, wire.Chunk.BLOCK_STATUS, len(body), True) + body

    def error_reply(self, handle: int, error: wire.NbdErrno) -> bytes:
        """The answer to a request that cannot be served."""
        if not self._structured:
            return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, error, handle)
        body = struct.pack(">IH", error, 0)
        return self._chunk(handle, wire.Chunk.ERROR, len(body), True) + body

    @staticmethod
    def _chunk(handle: int, kind: wire.Chunk, length: int, last: bool) -> bytes:
        flags = wire.CHUNK_DONE if last else 0
        return wire.STRUCTURED_REPLY.pack(wire.STRUCTURED_REPLY_MAGIC, flags, kind, handle, length)

    # -- parsing ----------------------------------------------------------------------------

    def _step(self) -> bool:
        """Use one element of the buffer; False where it is not complete."""
        if self._skip:
            passed = min(self._skip, len(self._buffer))
            self._use(passed)
            self._skip -= passed
            return bool(passed)
        read = _READERS.get(self._phase)
        return bool(self._buffer) and read is not None and read(self)

    def _use(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._position += count
        return data

    def _go(self, given: Given) -> None:
        then = TRANSITIONS.get((self._phase, given))
        if then is None:
            raise StreamError(f"{given.value}, out of place")
        self._phase = then

    def _read_flags(self) -> bool:
        if len(self._buffer) < wire.CLIENT_FLAGS.size:
            return False
        (flags,) = wire.CLIENT_FLAGS.unpack(self._use(wire.CLIENT_FLAGS.size))
        if flags & ~(wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES):
            raise StreamError(f"unknown client flags {flags:#x}")
        self._no_zeroes = bool(flags & wire.FLAG_NO_ZEROES)
        self._go(Given.FLAGS)
        return True

    def _read_option(self) -> bool:
        if len(self._buffer) < wire.OPTION.size:
            return False
        magic, number, length = wire.OPTION.unpack_from(self._buffer)
        if magic != wire.OPTION_MAGIC:
            raise StreamError(f"an option begins with {magic:#018x}")
        if length > wire.MAX_OPTION_BYTES:
            raise StreamError(f"option {number} of {length} bytes")
        if len(self._buffer) < wire.OPTION.size + length:
            return False
        self._options += 1
        if self._options > wire.MAX_OPTIONS:
            raise StreamError(f"more than {wire.MAX_OPTIONS} options")
        data = self._use(wire.OPTION.size + length)[wire.OPTION.size :]
        answer = _OPTIONS.get(number)
        try:
            if answer is None:
                self._reply(number, wire.OptionReply.ERR_UNSUP)
            else:
                answer(self, number, data)
        except _Malformed as why:
            self._reply(number, wire.OptionReply.ERR_INVALID, str(why).encode())
        return True

    def _reply(self, option: int, kind: wire.OptionReply, data: bytes = b"") -> None:
        head = wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(data))
        self._out.append(head + data)

    def _choose(self, name: str) -> None:
        self._export = name
        self._go(Given.CHOSEN)

    def _export_name(self, _number: int, data: bytes) -> None:
        name = data.decode("utf-8", "replace")
        if name not in self._exports:
            # The old way to choose has no way to refuse but to hang up.
            raise StreamError(f"there is no export {name!r}")
        zeroes = b"" if self._no_zeroes else bytes(124)
        self._out.append(struct.pack(">QH", self._exports[name], _FLAGS) + zeroes)
        self._choose(name)

    def _abort(self, number: int, _data: bytes) -> None:
        self._reply(number, wire.OptionReply.ACK)
        self._go(Given.ABORTED)
        self._events.append(Disconnect())

    def _list(self, number: int, data: bytes) -> None:
        if data:
            raise _Malformed("LIST takes no data")
        for name in self._exports:
            raw = name.encode()
            self._reply(number, wire.OptionReply.SERVER, struct.pack(">I", len(raw)) + raw)
        self._reply(number, wire.OptionReply.ACK)

    def _info(self, number: int, data: bytes) -> None:
        name, rest = _counted(data)
        if len(rest) < 2 or len(rest) != 2 + 2 * int.from_bytes(rest[:2], "big"):
            raise _Malformed("information requests do not add up")
        if name not in self._exports:
            self._reply(number, wire.OptionReply.ERR_UNKNOWN)
            return
        export = struct.pack(">HQH", wire.Info.EXPORT, self._exports[name], _FLAGS)
        sizes = struct.pack(">HIII", wire.Info.BLOCK_SIZE, *_BLOCK_SIZES)
        self._reply(number, wire.OptionReply.INFO, export)
        self._reply(number, wire.OptionReply.INFO, sizes)
        self._reply(number, wire.OptionReply.ACK)
        if number == wire.Option.GO:
            self._choose(name)

    def _structured_reply(self, number: int, data: bytes) -> None:
        if data:
            raise _Malformed("STRUCTURED_REPLY takes no data")
        self._structured = True
        self._reply(number, wire.OptionReply.ACK)

    def _meta_context(self, number: int, data: bytes) -> None:
        if not self._structured:
            raise _Malformed("contexts need structured replies")
        name, rest = _counted(data)
        queries = _queries(rest)
        if name not in self._exports:
            self._reply(number, wire.OptionReply.ERR_UNKNOWN)
            return
        known = {wire.BASE_ALLOCATION, "base:"} if number == wire.Option.LIST_META_CONTEXT else {
            wire.BASE_ALLOCATION
        }  # fmt: skip
        everything = number == wire.Option.LIST_META_CONTEXT and not queries
        found = everything or any(query in known for query in queries)
        if number == wire.Option.SET_META_CONTEXT:
            self._context = name if found else None
        if found:
            context = struct.pack(">I", wire.BASE_ALLOCATION_ID) + wire.BASE_ALLOCATION.encode()
            self._reply(number, wire.OptionReply.META_CONTEXT, context)
        self._reply(number, wire.OptionReply.ACK)

    def _read_request(self) -> bool:
        if len(self._buffer) < wire.REQUEST.size:
            return False
        magic, flags, kind, handle, offset, length = wire.REQUEST.unpack_from(self._buffer)
        if magic != wire.REQUEST_MAGIC:
            raise StreamError(f"a request begins with {magic:#010x}")
        if kind in (wire.Command.READ, wire.Command.WRITE) and length > wire.MAX_REQUEST_BYTES:
            raise StreamError(f"a request of {length} bytes")
        self._use(wire.REQUEST.size)
        if kind == wire.Command.WRITE:
            self._skip = length
        if kind == wire.Command.DISC:
            self._go(Given.DONE)
            self._events.append(Disconnect())
            return False
        refusal = self._refusal(kind, offset, length)
        if refusal is not None:
            self._out.append(self.error_reply(handle, refusal))
        elif kind == wire.Command.READ:
            self._events.append(Read(handle, offset, length))
        else:
            one = bool(flags & wire.CommandFlag.REQ_ONE)
            self._events.append(BlockStatus(handle, offset, length, one))
        return True

    def _refusal(self, kind: int, offset: int, length: int) -> wire.NbdErrno | None:
        """Why a request cannot be served, if it cannot."""
        if kind in (wire.Command.WRITE, wire.Command.TRIM, wire.Command.WRITE_ZEROES):
            return wire.NbdErrno.PERM
        if kind not in (wire.Command.READ, wire.Command.BLOCK_STATUS):
            return wire.NbdErrno.INVAL
        assert self._export is not None
        if not length or offset + length > self._exports[self._export]:
            return wire.NbdErrno.INVAL
        if kind == wire.Command.BLOCK_STATUS and self._context != self._export:
            return wire.NbdErrno.INVAL
        return None


def _text(raw: bytes) -> str:
    if len(raw) > wire.MAX_NAME_BYTES:
        raise _Malformed(f"a name of {len(raw)} bytes")
    return raw.decode("utf-8", "replace")


def _counted(data: bytes) -> tuple[str, bytes]:
    """A name behind its be32 length, and what follows it."""
    length = int.from_bytes(data[:4], "big")
    if len(data) < 4 or length > len(data) - 4:
        raise _Malformed("a name is longer than its option")
    return _text(data[4 : 4 + length]), data[4 + length :]


def _queries(data: bytes) -> list[str]:
    count = int.from_bytes(data[:4], "big")
    if len(data) < 4 or count > wire.MAX_QUERIES:
        raise _Malformed(f"{count} queries")
    rest, found = data[4:], []
    for _ in range(count):
        query, rest = _counted(rest)
        found.append(query)
    if rest:
        raise _Malformed("bytes after the queries")
    return found


_OPTIONS: Final[dict[int, Callable[[NbdServer, int, bytes], None]]] = {
    wire.Option.EXPORT_NAME: NbdServer._export_name,
    wire.Option.ABORT: NbdServer._abort,
    wire.Option.LIST: NbdServer._list,
    wire.Option.INFO: NbdServer._info,
    wire.Option.GO: NbdServer._info,
    wire.Option.STRUCTURED_REPLY: NbdServer._structured_reply,
    wire.Option.LIST_META_CONTEXT: NbdServer._meta_context,
    wire.Option.SET_META_CONTEXT: NbdServer._meta_context,
}
_READERS: Final[dict[Phase, Callable[[NbdServer], bool]]] = {
    Phase.FLAGS: NbdServer._read_flags,
    Phase.OPTIONS: NbdServer._read_option,
    Phase.TRANSMISSION: NbdServer._read_request,
}
