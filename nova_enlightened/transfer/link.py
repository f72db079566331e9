# SPDX-License-Identifier: Apache-2.0
"""The link between two relays over real sockets, inside the relay's own event loop.

The relay gives a selector and calls, in a loop::

    for key, events in selector.select(link.timeout()):
        key.data(events)
    link.tick()
    while (event := link.next_event()) is not None: ...

The source's link connects, and connects again when the connection is lost, until it is closed;
the destination's listens all the time. What that means for the bytes is the session's work
(:mod:`nova_enlightened.stream.link`), who may come in is the admission's; here is the one
connection that stands, and time.
"""

from __future__ import annotations

import collections
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterable

from nova_enlightened.exception import LinkError, LinkProtocolError
from nova_enlightened.plan.in_flight import InFlightLimit
from nova_enlightened.stream.link import Closed, LinkSession
from nova_enlightened.stream.link_frames import Chunk, Frame
from nova_enlightened.stream.link_handshake import LinkIdentity, Offer
from nova_enlightened.stream.link_state import Role
from nova_enlightened.transfer.link_admission import Admission, is_refusal
from nova_enlightened.transfer.link_connection import UNSENT, Connection
from nova_enlightened.transfer.link_events import (
    Broken,
    LinkEvent,
    LinkOptions,
    Lost,
    PeerAbsent,
    PeerReady,
    PeerTurnedAway,
    Refused,
)
from nova_enlightened.transfer.spec import TlsFiles

_LINGER_S = 1.0
#: Bytes that end the wait for more.
_GATHERED = 512 * 1024


class Link:
    """One side of the link of one migration.

    :param role: the source connects, the destination listens.
    :param migration: the migration's id.
    :param secret: its one-time secret, at least 16 bytes.
    :param address: host and port; for the destination, port 0 takes a free one.
    :param tls: the certificates; None for plaintext, which only the operator may choose.
    :param clock: seconds, monotonic.
    :raises LinkProtocolError: the secret is too short.
    """

    def __init__(
        self,
        role: Role,
        migration: str,
        secret: bytes,
        address: tuple[str, int],
        tls: TlsFiles | None,
        options: LinkOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options or LinkOptions()
        self.address = address
        self.closed = False  # nothing will happen any more
        self.trouble = ""  # why the last attempt to connect failed; empty once one succeeded
        self.reconnects = 0
        self.limit = InFlightLimit(
            self.options.floor, self.options.retain, self.options.target_delay
        )
        self.session = LinkSession(role, self.limit, self.options.retain)
        self._role = role
        self._clock = clock
        self._instance = os.urandom(8).hex()
        identity = LinkIdentity(role, migration, secret)
        self._admission = Admission(identity, tls, self.options, clock, self)
        self._selector: selectors.BaseSelector | None = None
        self._active: Connection | None = None
        self._peer_instance: str | None = None
        self._broken = False
        self._events: collections.deque[LinkEvent] = collections.deque()
        self._heard = 0.0
        self._asked: float | None = None  # a PING that is not answered yet
        self._unsent = UNSENT
        self._gather: float | None = None  # seconds that what comes may wait for more
        self._look_at: float | None = None  # when that ends
        self._close_by: float | None = None
        self._lost_at: float | None = None  # while there is no connection any more

    # -- life -------------------------------------------------------------------------------

    def start(
        self, selector: selectors.BaseSelector, listener: socket.socket | None = None
    ) -> None:
        """Listen (then ``address`` has the port), or begin to connect.

        A host name is looked up here, once, and that may take its time.

        :param listener: destination: a socket that listens already, instead of ``address``.
        :raises ConfigError: certificates or address are unusable.
        """
        self._selector = selector
        self.address = self._admission.start(selector, self.address, listener)

    def close(self, reason: str = "") -> None:
        """Tell the peer that the link ends, and end it; ``closed`` when that is done.

        Go on calling the loop until then, a second at most.
        """
        if self._active is None:
            self.abort()
        elif self._close_by is None:
            self._close_by = self._clock() + _LINGER_S
            self.session.send_bye(reason)
            self._flush()

    def abort(self) -> None:
        """End at once, saying nothing."""
        self.closed = True
        self._drop_active()
        self._admission.stop()

    # -- outgoing ---------------------------------------------------------------------------

    def can_send(self, channel: int) -> int:
        """Return how many bytes may be sent on ``channel`` now; 0 without a connection, and
        where the channel is not open.
        """
        return 0 if self._close_by is not None else self.session.room(channel)

    def buffer(self, channel: int) -> memoryview:
        """Return memory to read QEMU's socket into; empty when nothing may be sent.

        Call :meth:`commit` right after with what was read; nothing is copied.
        """
        return self.session.buffer(channel)

    def commit(self, channel: int, count: int) -> None:
        """Send the first ``count`` bytes of the last :meth:`buffer`."""
        self.session.commit(channel, count, self._clock())
        self._flush()

    def send_data(self, channel: int, parts: Iterable[bytes | memoryview]) -> None:
        """Send bytes that must not change until they are delivered; as
        :meth:`LinkSession.send_data` of each part, which is acknowledged by itself.
        """
        now = self._clock()
        for part in parts:
            self.session.send_data(channel, part, now)
        self._flush()

    def send_open(self, channel: int, urgent: bool = False) -> None:
        """Open a channel; the data of an urgent one passes that of others."""
        self.session.send_open(channel, urgent)
        self._flush()

    def send_pace(self, delay: float) -> None:
        """As :meth:`LinkSession.pace`."""
        self.session.pace(delay)
        self._flush()

    def send_fin(self, channel: int) -> None:
        """Carry QEMU's half-close."""
        self.session.send_fin(channel)
        self._flush()

    def send_reset(self, channel: int) -> None:
        """Tell the peer that the channel's QEMU socket broke."""
        self.session.send_reset(channel)
        self._flush()

    # -- incoming ---------------------------------------------------------------------------

    def next_event(self) -> LinkEvent | None:
        """Return what happened next, or None."""
        return self._events.popleft() if self._events else None

    def delivered(self, channel: int, count: int) -> None:
        """The next ``count`` bytes of ``channel`` were written to QEMU (or thrown away)."""
        self.session.delivered(channel, count, self._clock())
        active = self._active
        if active is not None and active.stalled:
            self._on_active(selectors.EVENT_READ)

    def gather(self, delay: float | None) -> None:
        """From now on let what comes wait for more, ``delay`` seconds at most: each look at it
        costs CPU. What is delivered is acknowledged at once then, in as large steps. None ends
        that.
        """
        self._gather = delay
        if delay is None and self._active is not None:
            self._look_later(self._active, None)

    def leave_unsent(self, size: int) -> None:
        """Let the kernel hold so many bytes that it has not sent: what is urgent cannot pass them,
        and with fewer it has to be asked more often.
        """
        self._unsent = size
        if self._active is not None:
            self._active.leave_unsent(size)

    def settle(self) -> None:
        """All events were dealt with: acknowledge without waiting for the next :meth:`tick`."""
        if self._look_at is not None and not self.session.holding:
            self.session.acknowledge()
        else:
            self.session.flush_acks(self._clock())
        if self.session.speaks:
            self._flush()

    @property
    def ready(self) -> bool:
        """Whether a connection stands."""
        return self.session.attached

    @property
    def attempts(self) -> int:
        """How often the source has tried to connect since the last success."""
        return self._admission.attempts

    @property
    def finished(self) -> bool:
        """Whether all channels ended in both directions and everything is delivered."""
        return self.session.finished

    # -- time -------------------------------------------------------------------------------

    def timeout(self) -> float | None:
        """Return seconds until :meth:`tick` has something to do, None for no such time."""
        active = self._active
        if self._events or (active is not None and active.unread):
            return 0.0
        times = [self._admission.due]
        if active is None:
            times.append(self._farewell_due)
        else:
            times += (self._silence_due, self._close_by, self.session.ack_due, self._look_at)
        due = min((one for one in times if one is not None), default=None)
        return None if due is None else max(0.0, due - self._clock())

    def tick(self) -> None:
        """Do what is due: acknowledge, ask a silent peer, give up, connect again."""
        now = self._clock()
        active = self._active
        if active is not None:
            if active.unread or (self._look_at is not None and now >= self._look_at):
                self._on_active(selectors.EVENT_READ)
            self.session.flush_acks(now)
            self._check_silence(active, now)
            if self.session.speaks:
                self._flush()
        elif self._farewell_due is not None and now >= self._farewell_due:
            missing = self.session.under_way
            self._events.append(Closed("the peer did not come back" if missing else ""))
            self.abort()
        self._admission.tick(now)

    @property
    def _farewell_due(self) -> float | None:
        """When to stop waiting for a peer whose last word is all that is missing."""
        if self._lost_at is None or not self.session.ended:
            return None
        return self._lost_at + self.options.farewell

    @property
    def _silence_due(self) -> float:
        # Counted from our question, not from the last word heard: a process that did not run
        # for a while has to listen before it may complain.
        if self._asked is None:
            return self._heard + self.options.ping
        return self._asked + self.options.dead - self.options.ping

    def _check_silence(self, active: Connection, now: float) -> None:
        if self._close_by is not None and now >= self._close_by:
            self.abort()
        elif active.stalled:
            self._hear(now)  # it may well be talking; we do not listen
        elif now >= self._silence_due:
            if self._asked is None:
                self._asked = now
                self.session.ping()
            else:
                self._lose(f"nothing heard for {now - self._heard:.1f} s")

    def _hear(self, now: float) -> None:
        self._heard, self._asked = now, None

    # -- what the admission asks and tells --------------------------------------------------

    def offer(self) -> Offer:
        """Return where this side stands."""
        return self.session.offer(self._instance)

    def admit(self, connection: Connection, peer: Offer) -> None:
        """The peer has proved itself: its connection takes the place of an older one.

        :raises LinkProtocolError: it cannot go on where it stands, ever.
        """
        try:
            if self._peer_instance not in (None, peer.instance):
                raise LinkProtocolError("the peer's process was started anew")
            self.session.check(peer)
        except LinkProtocolError as error:
            self._broken = True
            self._events.append(Broken(str(error)))
            raise
        if self._active is not None:
            self._lose("replaced by a new connection")
        if self._role is Role.DESTINATION:
            connection.greeting.append(memoryview(connection.handshake.welcome(self.offer())))
        resumed = self._peer_instance is not None
        self.reconnects += resumed
        self._peer_instance = peer.instance
        self.trouble = ""
        self._active, self._lost_at = connection, None
        self._hear(self._clock())
        connection.ready(self.session.receive_pool)
        connection.leave_unsent(self._unsent)
        self.session.attach(peer, self._clock())
        self._events.append(PeerReady(resumed))
        self._on_active(0)

    def turned_away(self, connection: Connection, error: Exception) -> None:
        """A connection has ended before its peer proved itself."""
        reason = str(error)
        if self._role is Role.DESTINATION:
            self._events.append(PeerTurnedAway(connection.where, reason))
            return
        self.trouble = reason
        if self._broken:
            return
        if self._peer_instance is None and is_refusal(error):
            self._events.append(Refused(reason))
        else:
            # Whoever answers now is not the peer we had: that one may come back.
            self._admission.connect_again()
            if self._peer_instance is not None and isinstance(error, ConnectionRefusedError):
                self._events.append(PeerAbsent(reason))

    # -- while a connection stands ----------------------------------------------------------

    def _on_active(self, events: int) -> None:
        connection = self._active
        if connection is None:
            return
        try:
            count = None
            if events & selectors.EVENT_READ:
                count = connection.read()
                if self._gather is not None:
                    self._look_later(connection, self._gather if count else None)
            if count == 0:
                self._end_of_stream()
                return
            if count:
                self._hear(self._clock())
            for frame in connection.frames():
                self._take(frame)
        except (OSError, LinkError) as error:
            self._lose(str(error))
            return
        if events & selectors.EVENT_WRITE:
            connection.blocked = False
        self._flush()

    def _look_later(self, connection: Connection, delay: float | None) -> None:
        """While something comes, see it by the time or the amount; None: see the first byte."""
        connection.gather(1 if delay is None else _GATHERED)
        self._look_at = None if delay is None else self._clock() + delay

    def _take(self, frame: Frame | Chunk) -> None:
        event = self.session.receive(frame, self._clock())
        if event is None:
            return
        if self._close_by is None:
            self._events.append(event)  # else we are ending: what it still says is too late
        if isinstance(event, Closed):
            self._close_by = self._clock()

    def _end_of_stream(self) -> None:
        if self._close_by is None:
            self._lose("the peer closed the connection")
        else:
            self.abort()

    def _flush(self) -> None:
        """Write what the connection takes."""
        connection = self._active
        if connection is None:
            return
        try:
            if connection.greeting and not connection.blocked:
                connection.send_greeting()
            while not connection.blocked:
                pending = self.session.output()
                if not pending and not connection.owes:
                    break
                self.session.written(connection.write(pending))
        except OSError as error:
            self._lose(str(error))
            return
        events = selectors.EVENT_WRITE if connection.blocked else 0
        if not connection.stalled:
            events |= selectors.EVENT_READ
        assert self._selector is not None
        connection.watch(self._selector, events, self._on_active)

    def _lose(self, reason: str) -> None:
        if self._close_by is not None:
            self.abort()
            return
        self._drop_active()
        self._lost_at = self._clock()
        self._events.append(Lost(reason))
        if self._role is Role.SOURCE:
            self._admission.connect_again()

    def _drop_active(self) -> None:
        connection, self._active = self._active, None
        self._look_at = None
        if connection is not None:
            self.session.detach()
            connection.close()
