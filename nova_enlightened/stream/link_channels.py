# SPDX-License-Identifier: Apache-2.0
"""The two directions of one channel: numbers, what is retained, what is not yet delivered."""

from __future__ import annotations

import collections

from nova_enlightened.exception import LinkProtocolError
from nova_enlightened.stream.link_buffers import Block, BlockPool
from nova_enlightened.stream.link_frames import (
    FRAMING,
    HEADER,
    HEADER_SIZE,
    MAGIC,
    MAX_PAYLOAD,
    Chunk,
    Frame,
)
from nova_enlightened.stream.link_state import ChannelState, FrameType, after_unit

#: With less room than this left, a block is closed and the next one filled.
_MIN_LEND = 64 * 1024
_NOTHING = memoryview(bytearray())


class _Segment:
    """Numbers ``start`` to ``end`` of an outgoing channel and the bytes that they stand for."""

    __slots__ = ("block", "end", "kind", "sent_at", "start", "view")

    def __init__(
        self,
        kind: FrameType,
        start: int,
        end: int,
        view: memoryview = _NOTHING,
        sent_at: float | None = None,
        block: Block | None = None,
    ) -> None:
        self.kind = kind
        self.start = start
        self.end = end
        self.view = view
        self.sent_at = sent_at
        self.block = block


class Outlet:
    """What this side sends on a channel."""

    def __init__(self, channel: int, urgent: bool, pool: BlockPool) -> None:
        self.urgent = urgent
        self._channel = channel
        self._pool = pool
        self._state = ChannelState.IDLE
        self._end = 0  # first number not yet given out
        self._reached = 0  # first number never yet handed to a connection
        self._acked = 0
        self._retained: collections.deque[_Segment] = collections.deque()
        self._waiting: collections.deque[_Segment] = collections.deque()
        self._block: Block | None = None
        self._lent = 0

    @property
    def open(self) -> bool:
        """Whether data may be sent."""
        return self._state is ChannelState.OPEN

    @property
    def waiting(self) -> bool:
        """Whether something is to be handed to the connection."""
        return bool(self._waiting)

    @property
    def settled(self) -> bool:
        """Whether all of it is acknowledged."""
        return self._acked == self._end

    @property
    def ended(self) -> bool:
        """Whether nothing more may be sent."""
        return self._state in (ChannelState.FINISHED, ChannelState.RESET)

    @property
    def broken(self) -> bool:
        """Whether RESET was sent."""
        return self._state is ChannelState.RESET

    def begin(self) -> None:
        """The peer opened the channel; there is no OPEN in this direction."""
        self._state = after_unit(self._channel, self._state, FrameType.OPEN)

    def send_mark(self, kind: FrameType) -> None:
        """Send OPEN, FIN or RESET."""
        self._state = after_unit(self._channel, self._state, kind)
        self._append(_Segment(kind, self._end, self._end + 1))

    def buffer(self, room: int) -> memoryview:
        """Return at most ``room`` bytes of memory to fill."""
        if self._state is not ChannelState.OPEN or room <= 0:
            return _NOTHING
        block = self._block
        if block is not None and not block.held:
            block.filled = 0
        if block is None or self._pool.block_size - block.filled < _MIN_LEND:
            if block is not None:
                self._pool.close(block)
                self._block = None
            if self._pool.exhausted:
                return _NOTHING
            block = self._block = self._pool.take()
        self._lent = block.filled
        return block.view[block.filled : block.filled + min(room, MAX_PAYLOAD)]

    def commit(self, count: int, now: float) -> None:
        """Send what was put into the first ``count`` bytes of :meth:`buffer`."""
        block = self._block
        assert block is not None
        self._state = after_unit(self._channel, self._state, FrameType.DATA)
        start = self._lent
        block.filled = start + count
        block.held += count
        last = self._waiting[-1] if self._waiting else None
        if (
            last is not None
            and last.block is block
            and len(last.view) + count <= MAX_PAYLOAD
            and last is self._retained[-1]
        ):
            # It lies right behind what has not left yet: one frame carries both.
            last.view = block.view[start - len(last.view) : start + count]
            last.end += count
            self._end += count
            return
        view = block.view[start : start + count]
        self._append(_Segment(FrameType.DATA, self._end, self._end + count, view, now, block))

    def send(self, data: memoryview, now: float) -> None:
        """Send bytes that somebody else keeps."""
        self._state = after_unit(self._channel, self._state, FrameType.DATA)
        for at in range(0, len(data), MAX_PAYLOAD):
            view = data[at : at + MAX_PAYLOAD]
            self._append(_Segment(FrameType.DATA, self._end, self._end + len(view), view, now))

    def take(self, into: collections.deque[memoryview], room: int) -> int:
        """Move frames of about ``room`` bytes to the connection; return how many bytes.

        Data that was sent piece by piece and waited together crosses in one frame.
        """
        taken = 0
        waiting = self._waiting
        while waiting and taken < room:
            first = last = waiting.popleft()
            size = len(first.view)
            views = [first.view] if size else []
            while size and waiting and size < room and waiting[0].kind is FrameType.DATA:
                more = len(waiting[0].view)
                if size + more > MAX_PAYLOAD:
                    break
                last = waiting.popleft()
                views.append(last.view)
                size += more
            header = HEADER.pack(MAGIC, FRAMING, first.kind, self._channel, size, first.start)
            into.append(memoryview(header))
            into.extend(views)
            taken += HEADER_SIZE + size
            self._reached = max(self._reached, last.end)
        return taken

    def acknowledge(self, number: int) -> tuple[int, float | None]:
        """All before ``number`` is delivered.

        :return: payload bytes let go, and when the last of them was sent.
        :raises LinkProtocolError: that was never sent, or the peer takes something back.
        """
        if not self._acked <= number <= self._reached:
            raise LinkProtocolError(
                f"{number} acknowledged on channel {self._channel}, "
                f"between {self._acked} and {self._reached} is possible"
            )
        self._acked = number
        retained = self._retained
        freed, sent_at = 0, None
        while retained and retained[0].end <= number:
            segment = retained.popleft()
            size = len(segment.view)
            freed += size
            if segment.block is not None:
                self._pool.release(segment.block, size)
            if size:
                sent_at = segment.sent_at
        return freed, sent_at

    def check_resume(self, number: int) -> None:
        """Find out whether sending can go on from ``number``.

        :raises LinkProtocolError: it is let go already, or was never sent.
        """
        if not self._acked <= number <= self._reached:
            raise LinkProtocolError(
                f"the peer stands at {number} on channel {self._channel}, "
                f"between {self._acked} and {self._reached} is possible"
            )

    def resume(self, number: int) -> int:
        """Send again what follows ``number``; return how many payload bytes left before."""
        self._waiting.clear()
        repeated = 0
        for segment in self._retained:
            if segment.end <= number:
                continue
            if segment.start < number:
                behind = segment.view[number - segment.start :]
                segment = _Segment(segment.kind, number, segment.end, behind)
            if segment.view and segment.start < self._reached:
                repeated += min(segment.end, self._reached) - segment.start
            segment.sent_at = None  # its time would measure the break
            self._waiting.append(segment)
        return repeated

    def _append(self, segment: _Segment) -> None:
        self._end = segment.end
        self._retained.append(segment)
        self._waiting.append(segment)


class Inlet:
    """What this side receives on a channel."""

    def __init__(self, channel: int) -> None:
        self.received = 0  # first number not yet received
        self.delivered = 0  # first number not yet delivered
        self.acknowledged = 0  # what the peer was told last
        self._channel = channel
        self._state = ChannelState.IDLE
        self._held: collections.deque[tuple[Block, int]] = collections.deque()

    @property
    def ended(self) -> bool:
        """Whether nothing more may come."""
        return self._state in (ChannelState.FINISHED, ChannelState.RESET)

    @property
    def holding(self) -> bool:
        """Whether something received is not delivered yet."""
        return bool(self._held)

    def begin(self) -> None:
        """This side opened the channel; there is no OPEN in this direction."""
        self._state = after_unit(self._channel, self._state, FrameType.OPEN)

    def receive(self, chunk: Chunk) -> None:
        """Take data; its block is held until :meth:`deliver`."""
        self._state = after_unit(self._channel, self._state, FrameType.DATA)
        self._expect(chunk.sequence)
        size = len(chunk.view)
        self.received += size
        held = self._held
        if held and held[-1][0] is chunk.block:
            held[-1] = (chunk.block, held[-1][1] + size)
        else:
            held.append((chunk.block, size))

    def receive_mark(self, frame: Frame) -> None:
        """Take OPEN, FIN or RESET; it is delivered once the data before it is."""
        self._state = after_unit(self._channel, self._state, frame.type)
        self._expect(frame.sequence)
        self.received += 1
        if not self._held:
            self.delivered = self.received

    def deliver(self, count: int, pool: BlockPool) -> None:
        """The next ``count`` bytes are where they belong."""
        self.delivered += count
        held = self._held
        while count:
            block, size = held[0]
            part = min(size, count)
            pool.release(block, part)
            count -= part
            if part == size:
                held.popleft()
            else:
                held[0] = (block, size - part)
        if not held:
            self.delivered = self.received

    def _expect(self, number: int) -> None:
        if number != self.received:
            raise LinkProtocolError(
                f"number {number} on channel {self._channel} where {self.received} has to follow"
            )
