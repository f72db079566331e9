# SPDX-License-Identifier: Apache-2.0
"""Two link sessions with a wire between them that a test moves byte by byte, and cuts."""

from __future__ import annotations

import collections

from nova_enlightened.stream.link import URGENT_RESERVE, Data, LinkSession
from nova_enlightened.stream.link_frames import FrameReader
from nova_enlightened.stream.link_handshake import Offer
from nova_enlightened.stream.link_state import Role

RETAIN = 2 * URGENT_RESERVE
MAIN, PREEMPT = 0, 1


class FixedLimit:
    """Lets everything go that may be retained."""

    def __init__(self, window: int = RETAIN) -> None:
        self.window = window
        self.samples: list[tuple[int, float]] = []
        self.restarts = 0

    def acknowledged(self, count: int, rtt: float, in_flight: int, now: float) -> None:
        assert count <= in_flight
        self.samples.append((count, rtt))

    def restart(self, now: float) -> None:
        self.restarts += 1


class Side:
    """A session, the reader of its present connection, and a QEMU that takes bytes late."""

    def __init__(self, role: Role, window: int = RETAIN, retain: int = RETAIN) -> None:
        self.limit = FixedLimit(window)
        self.session = LinkSession(role, self.limit, retain)
        self.reader = FrameReader()
        self.wire = bytearray()  # bytes on their way to this side
        self.views: dict[int, collections.deque[memoryview]] = collections.defaultdict(
            collections.deque
        )
        self.arrived: dict[int, bytearray] = collections.defaultdict(bytearray)
        self.marks: list[object] = []

    def begin(self, peer: Offer, now: float = 0.0) -> None:
        self.reader = FrameReader()
        self.reader.accept(self.session.receive_pool)
        self.session.attach(peer, now)

    def end(self) -> None:
        self.wire.clear()
        self.session.detach()
        self.reader.close()

    def take(self, most: int, now: float = 0.0) -> int:
        """Receive up to ``most`` bytes from the wire."""
        buffer = self.reader.get_buffer()
        if buffer is None:
            return 0
        count = min(most, len(buffer), len(self.wire))
        buffer[:count] = self.wire[:count]
        del self.wire[:count]
        self.reader.filled(count)
        while (frame := self.reader.next_frame()) is not None:
            event = self.session.receive(frame, now)
            if isinstance(event, Data):
                self.views[event.channel].append(event.view)
            elif event is not None:
                self.marks.append(event)
        return count

    def deliver(self, channel: int, most: int, now: float = 0.0) -> None:
        """Let QEMU take up to ``most`` bytes."""
        waiting = self.views[channel]
        while waiting and most:
            part = waiting[0][:most]
            self.arrived[channel] += part
            most -= len(part)
            if len(part) == len(waiting[0]):
                waiting.popleft()
            else:
                waiting[0] = waiting[0][len(part) :]
            self.session.delivered(channel, len(part), now)


class Pair:
    """A source and a destination with a wire between them that can be cut."""

    def __init__(self, **sizes: int) -> None:
        self.source = Side(Role.SOURCE, **sizes)
        self.destination = Side(Role.DESTINATION, **sizes)
        self.sides = (self.source, self.destination)
        self.connect()

    def connect(self, now: float = 0.0) -> None:
        offers = [side.session.offer("i") for side in self.sides]
        self.source.begin(offers[1], now)
        self.destination.begin(offers[0], now)

    def cut(self) -> None:
        for side in self.sides:
            side.end()

    def put(self, side: Side, most: int) -> int:
        """Write up to ``most`` bytes of a side's output to the wire."""
        other = self.sides[side is self.source]
        put = 0
        while put < most and (pending := side.session.output()):
            part = pending[0][: most - put]
            other.wire += part
            put += len(part)
            side.session.written(len(part))
        return put

    def settle(self) -> None:
        """Let everything arrive."""
        now = 1e9
        moved = True
        while moved:
            moved, now = False, now + 1
            for side in self.sides:
                side.session.flush_acks(now)
                moved |= self.put(side, 1 << 30) > 0
            for side in self.sides:
                while side.take(1 << 30, now):
                    moved = True
                for channel, waiting in side.views.items():
                    moved |= bool(waiting)
                    side.deliver(channel, 1 << 30, now)


def fill(side: Side, channel: int, content: bytes, now: float = 0.0) -> int:
    """Send as a relay does: read QEMU's socket into the link's memory."""
    buffer = side.session.buffer(channel)
    count = min(len(buffer), len(content))
    if count:
        buffer[:count] = content[:count]
        side.session.commit(channel, count, now)
    return count


def opened(**sizes: int) -> Pair:
    pair = Pair(**sizes)
    pair.source.session.send_open(MAIN)
    pair.source.session.send_open(PREEMPT, urgent=True)
    pair.settle()
    return pair
