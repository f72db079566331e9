# SPDX-License-Identifier: Apache-2.0
"""The link's memory: what was sent and not delivered, what was received, over all connections.

Nothing is lost or repeated when a connection breaks: what the peer has not acknowledged is kept,
each side says at the next handshake up to where it has received, and sending goes on from that
very byte. An acknowledgement means *written to the local QEMU socket*; so the bytes kept, which
are bounded, are also the back-pressure from one QEMU to the other.

The session is told when a connection is ready (:meth:`LinkSession.attach`) and when it is gone
(:meth:`LinkSession.detach`); frames come in through :meth:`LinkSession.receive` and bytes go out
through :meth:`LinkSession.output`. It has no socket and no clock.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Protocol

from nova_enlightened.exception import LinkProtocolError
from nova_enlightened.stream.link_buffers import BlockPool
from nova_enlightened.stream.link_channels import Inlet, Outlet
from nova_enlightened.stream.link_frames import (
    Chunk,
    Frame,
    decode_reason,
    encode_frame,
    encode_reason,
)
from nova_enlightened.stream.link_handshake import MAX_CHANNELS, Offer
from nova_enlightened.stream.link_state import FrameType, Role

BLOCK_SIZE = 512 * 1024
DEFAULT_RETAIN = 8 * 1024 * 1024
#: Room for an urgent channel when the others have used up theirs.
URGENT_RESERVE = 512 * 1024
#: Bytes handed to the socket before an urgent frame can pass them.
BATCH = 256 * 1024
ACK_BYTES = 64 * 1024
ACK_DELAY_S = 0.001
#: The longest that a peer may have acknowledgements wait, and the bytes that end the wait.
MOST_ACK_DELAY_S = 0.02
MOST_ACK_BYTES = 512 * 1024


@dataclass(frozen=True)
class Data:
    """Bytes of a channel, in order. ``view`` is valid until they are reported delivered."""

    channel: int
    view: memoryview


@dataclass(frozen=True)
class Opened:
    """The peer's QEMU opened this channel."""

    channel: int


@dataclass(frozen=True)
class Finished:
    """The peer's QEMU shut its writing side of this channel; all data came before."""

    channel: int


@dataclass(frozen=True)
class Reset:
    """This channel broke on the peer's side; nothing more will come."""

    channel: int


@dataclass(frozen=True)
class Closed:
    """The peer ended the link for good; an empty reason means that all went well."""

    reason: str


@dataclass(frozen=True)
class Paced:
    """The peer would rather hear of what was delivered in larger steps: nothing waits for it."""

    delay: float


SessionEvent = Data | Opened | Finished | Reset | Closed | Paced


class Limit(Protocol):
    """How many bytes may be under way; see :class:`nova_enlightened.plan.in_flight`."""

    window: int

    def acknowledged(self, count: int, rtt: float, in_flight: int, now: float) -> None:
        """``count`` bytes were delivered; the last took ``rtt`` seconds there and back."""

    def restart(self, now: float) -> None:
        """What was known about the path does not hold any more."""


class LinkSession:
    """One migration's side of the link.

    :param role: the source may open channels.
    :param limit: bytes under way; asked each time.
    :param retain: bytes kept for the peer, and held from it, at most.
    """

    def __init__(self, role: Role, limit: Limit, retain: int = DEFAULT_RETAIN) -> None:
        if retain < 2 * URGENT_RESERVE:
            raise ValueError(f"at least {2 * URGENT_RESERVE} bytes have to be retained")
        self.attached = False
        self.bytes_sent = 0  # payload accepted for sending
        self.bytes_received = 0
        self.bytes_repeated = 0  # sent again after a connection broke
        self._role = role
        self._limit = limit
        self._retain = retain
        self._cap = retain
        blocks = 2 * retain // BLOCK_SIZE + 2 * MAX_CHANNELS
        self._send_pool = BlockPool(BLOCK_SIZE, blocks)
        self.receive_pool = BlockPool(BLOCK_SIZE, blocks)
        self._outlets: dict[int, Outlet] = {}
        self._inlets: dict[int, Inlet] = {}
        self._under_way = 0  # payload bytes retained, all channels
        self._pending: collections.deque[memoryview] = collections.deque()
        self._control = bytearray()
        self._to_ack = 0
        self._ack_since = 0.0
        self._ack_bytes, self._ack_delay = ACK_BYTES, ACK_DELAY_S
        self._pace: float | None = None  # what the peer was asked

    # -- a connection comes and goes --------------------------------------------------------

    def offer(self, instance: str) -> Offer:
        """Return what to tell the peer in the handshake: true until the next frame."""
        received = {channel: inlet.received for channel, inlet in self._inlets.items()}
        return Offer(instance, self._retain, received)

    def check(self, peer: Offer) -> None:
        """Find out whether sending can go on from where the peer stands; change nothing.

        :raises LinkProtocolError: it cannot, ever.
        """
        if peer.window < 2 * URGENT_RESERVE:
            raise LinkProtocolError(f"the peer would hold {peer.window} bytes only")
        for channel, number in peer.received.items():
            if number and channel not in self._outlets:
                raise LinkProtocolError(f"the peer has received an unknown channel {channel}")
        for channel, outlet in self._outlets.items():
            outlet.check_resume(peer.received.get(channel, 0))

    def attach(self, peer: Offer, now: float) -> None:
        """A connection is ready: go on where the peer stands, urgent channels first."""
        self.check(peer)
        self.attached = True
        self._cap = min(self._retain, peer.window)
        for channel, outlet in self._outlets.items():
            self.bytes_repeated += outlet.resume(peer.received.get(channel, 0))
        for inlet in self._inlets.values():
            if inlet.delivered:  # else the peer may not know the channel yet
                inlet.acknowledged = -1  # an ACK may have been lost with the old connection
        self._limit.restart(now)
        self._queue_acks()
        if self._pace is not None:
            self.pace(self._pace)

    def detach(self) -> None:
        """The connection is gone, and whatever was half written to it."""
        self.attached = False
        self._pending.clear()
        self._control.clear()

    # -- outgoing ---------------------------------------------------------------------------

    def room(self, channel: int) -> int:
        """Return how many bytes may be sent on ``channel`` now.

        0 without a connection, before the channel is opened and after it has ended.
        """
        outlet = self._outlets.get(channel)
        if outlet is None or not self.attached or not outlet.open:
            return 0
        window = self._limit.window
        if outlet.urgent:
            most = min(window + URGENT_RESERVE, self._cap)
        else:
            most = min(window, self._cap - URGENT_RESERVE)
        return max(0, most - self._under_way)

    def send_open(self, channel: int, urgent: bool = False) -> None:
        """Open a channel, before anything is sent on it. Only the source does.

        :param urgent: its data passes that of other channels.
        :raises LinkProtocolError: not the source, or opened already, or too many.
        """
        if self._role is not Role.SOURCE:
            raise LinkProtocolError("only the source opens channels")
        outlet = self._new_channel(channel, urgent)
        outlet.send_mark(FrameType.OPEN)
        self._inlets[channel].begin()

    def buffer(self, channel: int) -> memoryview:
        """Return memory to read a QEMU socket into, as large as there is room (maybe empty).

        Say with :meth:`commit` how much was put there, before anything else.
        """
        return self._outlet(channel).buffer(self.room(channel))

    def commit(self, channel: int, count: int, now: float) -> None:
        """Send the first ``count`` bytes of what :meth:`buffer` returned, without copying."""
        self._outlet(channel).commit(count, now)
        self._under_way += count
        self.bytes_sent += count

    def send_data(self, channel: int, data: bytes | memoryview, now: float) -> None:
        """Send ``data``, which must stay as it is until delivered.

        Meant for little, such as the return path: it goes beyond :meth:`room` if it must.

        :raises LinkProtocolError: it would not fit what may be retained at all.
        """
        if self._under_way + len(data) > self._cap:
            raise LinkProtocolError(f"no room for {len(data)} bytes on channel {channel}")
        self._outlet(channel).send(memoryview(data).cast("B"), now)
        self._under_way += len(data)
        self.bytes_sent += len(data)

    def send_fin(self, channel: int) -> None:
        """The local QEMU shut its writing side: carry that, after all data."""
        self._outlet(channel).send_mark(FrameType.FIN)

    def send_reset(self, channel: int) -> None:
        """The local QEMU socket broke: carry that, after all data. Once is enough."""
        outlet = self._outlet(channel)
        if not outlet.broken:
            outlet.send_mark(FrameType.RESET)

    def send_bye(self, reason: str) -> None:
        """End the link for good. An empty reason says that all went well."""
        self._control += encode_reason(FrameType.BYE, reason)

    def pace(self, delay: float) -> None:
        """Let the peer's acknowledgements wait for so long; each costs both hosts CPU.

        :param delay: seconds; the peer goes to `MOST_ACK_DELAY_S` at most.
        """
        self._pace = delay
        self._control += encode_frame(FrameType.PACE, sequence=round(delay * 1e6))

    def ping(self) -> None:
        """Make the peer answer."""
        self._control += encode_frame(FrameType.PING)

    @property
    def under_way(self) -> int:
        """Payload bytes accepted for sending and not yet delivered."""
        return self._under_way

    @property
    def speaks(self) -> bool:
        """Whether there is something to tell the peer besides data."""
        return bool(self._control)

    @property
    def holding(self) -> bool:
        """Whether something received is not delivered yet."""
        return any(inlet.holding for inlet in self._inlets.values())

    @property
    def settled(self) -> bool:
        """Whether all that was sent, marks too, is delivered, and all received is acknowledged."""
        return all(outlet.settled for outlet in self._outlets.values()) and all(
            inlet.acknowledged == inlet.received for inlet in self._inlets.values()
        )

    @property
    def ended(self) -> bool:
        """Whether every channel has ended in both directions, and what came is delivered.

        Acknowledgements of the peer may be missing.
        """
        return (
            bool(self._outlets)
            and all(outlet.ended for outlet in self._outlets.values())
            and all(inlet.ended and not inlet.holding for inlet in self._inlets.values())
        )

    @property
    def finished(self) -> bool:
        """Whether every channel has ended in both directions, and all of it is delivered."""
        return self.ended and self.settled

    def output(self) -> collections.deque[memoryview]:
        """Return what to write to the connection next, in order; empty when nothing waits.

        Control frames pass everything, urgent channels pass the others. What was returned once
        stays at the front until :meth:`written` takes it.
        """
        pending = self._pending
        if not pending and self.attached:
            if self._control:
                pending.append(memoryview(bytes(self._control)))
                self._control.clear()
            room = BATCH
            for outlet in self._outlets.values():  # urgent ones stand first
                if outlet.waiting:
                    room -= outlet.take(pending, room)
                    if room <= 0:
                        break
        return pending

    def written(self, count: int) -> None:
        """``count`` bytes of :meth:`output` were written."""
        pending = self._pending
        while count:
            first = pending[0]
            size = len(first)
            if size > count:
                pending[0] = first[count:]
                return
            count -= size
            pending.popleft()

    # -- incoming ---------------------------------------------------------------------------

    def receive(self, frame: Frame | Chunk, now: float) -> SessionEvent | None:
        """Take what the connection received; return what the relay has to know of it.

        :raises LinkProtocolError: not what has to come next.
        """
        if isinstance(frame, Chunk):
            try:
                self._inlet(frame.channel).receive(frame)
            except LinkProtocolError:
                self.receive_pool.release(frame.block, len(frame.view))
                raise
            self.bytes_received += len(frame.view)
            return Data(frame.channel, frame.view)
        if frame.type is FrameType.ACK:
            self._acknowledge(frame, now)
        elif frame.type is FrameType.PING:
            self._control += encode_frame(FrameType.PONG, sequence=frame.sequence)
        elif frame.type is FrameType.PACE:
            return self._paced(frame)
        elif frame.type is FrameType.BYE:
            return Closed(decode_reason(frame.payload))
        elif frame.type is not FrameType.PONG:
            return self._receive_mark(frame, now)
        return None

    def delivered(self, channel: int, count: int, now: float) -> None:
        """The next ``count`` bytes of ``channel`` were written to its QEMU socket (or, after
        a reset, thrown away). Their views are not valid any more.
        """
        inlet = self._inlets[channel]
        inlet.deliver(count, self.receive_pool)
        self._note_ack(count, now)

    @property
    def ack_due(self) -> float | None:
        """When :meth:`flush_acks` has something to do, or None."""
        if not self._to_ack:
            return None
        enough = self._to_ack >= self._ack_bytes
        return self._ack_since if enough else self._ack_since + self._ack_delay

    def acknowledge(self) -> None:
        """Queue the acknowledgements of all that is delivered, due or not."""
        if self._to_ack:
            self._queue_acks()

    def flush_acks(self, now: float) -> None:
        """Queue the acknowledgements that are due."""
        due = self.ack_due
        if due is not None and due <= now:
            self._queue_acks()

    # -- parts ------------------------------------------------------------------------------

    def _new_channel(self, channel: int, urgent: bool) -> Outlet:
        if channel in self._outlets:
            raise LinkProtocolError(f"channel {channel} is open already")
        if len(self._outlets) == MAX_CHANNELS:
            raise LinkProtocolError(f"more than {MAX_CHANNELS} channels")
        outlet = Outlet(channel, urgent, self._send_pool)
        self._outlets[channel] = outlet
        if urgent:
            self._outlets = dict(sorted(self._outlets.items(), key=lambda item: not item[1].urgent))
        self._inlets[channel] = Inlet(channel)
        return outlet

    def _outlet(self, channel: int) -> Outlet:
        try:
            return self._outlets[channel]
        except KeyError:
            raise LinkProtocolError(f"channel {channel} was never opened") from None

    def _inlet(self, channel: int) -> Inlet:
        try:
            return self._inlets[channel]
        except KeyError:
            raise LinkProtocolError(f"channel {channel} was never opened") from None

    def _receive_mark(self, frame: Frame, now: float) -> SessionEvent:
        channel = frame.channel
        if frame.type is FrameType.OPEN and channel not in self._inlets:
            if self._role is Role.SOURCE:
                raise LinkProtocolError("only the source opens channels")
            self._new_channel(channel, urgent=False).begin()
        self._inlet(channel).receive_mark(frame)
        self._note_ack(1, now)
        if frame.type is FrameType.OPEN:
            return Opened(channel)
        return Finished(channel) if frame.type is FrameType.FIN else Reset(channel)

    def _paced(self, frame: Frame) -> Paced:
        self._ack_delay = min(max(frame.sequence / 1e6, ACK_DELAY_S), MOST_ACK_DELAY_S)
        self._ack_bytes = MOST_ACK_BYTES if self._ack_delay > ACK_DELAY_S else ACK_BYTES
        return Paced(self._ack_delay)

    def _acknowledge(self, frame: Frame, now: float) -> None:
        count, sent_at = self._outlet(frame.channel).acknowledge(frame.sequence)
        if sent_at is not None:
            self._limit.acknowledged(count, now - sent_at, self._under_way, now)
        self._under_way -= count

    def _note_ack(self, count: int, now: float) -> None:
        if not self._to_ack:
            self._ack_since = now
        self._to_ack += count

    def _queue_acks(self) -> None:
        self._to_ack = 0
        if not self.attached:
            return
        for channel, inlet in self._inlets.items():
            if inlet.delivered != inlet.acknowledged:
                inlet.acknowledged = inlet.delivered
                self._control += encode_frame(FrameType.ACK, channel, inlet.delivered)
