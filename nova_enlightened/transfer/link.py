# SPDX-License-Identifier: Apache-2.0
"""The link between two relays over real sockets, inside the relay's own event loop.

The relay gives a selector and calls, in a loop::

    for key, events in selector.select(link.timeout()):
        key.data(events)
    link.tick()
    while (event := link.next_event()) is not None: ...

The source's link connects, and connects again when the connection is lost, until it is closed;
the destination's listens all the time. What that means for the bytes is the session's work
(:mod:`nova_enlightened.stream.link`); here are sockets, time and who may come in.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from nova_enlightened.exception import ConfigError, LinkError, LinkProtocolError
from nova_enlightened.plan.in_flight import CAP, FLOOR, TARGET_S, InFlightLimit
from nova_enlightened.stream.link import (
    DEFAULT_RETAIN,
    Closed,
    Data,
    Finished,
    LinkSession,
    Opened,
    Reset,
)
from nova_enlightened.stream.link_frames import Chunk, Frame
from nova_enlightened.stream.link_handshake import LinkIdentity, Offer
from nova_enlightened.stream.link_state import FrameType, Role
from nova_enlightened.transfer.link_connection import Connection, Phase, is_ready, is_refusal
from nova_enlightened.transfer.spec import TlsFiles
from nova_enlightened.transfer.tls import TlsTransport, tls_context

MAX_UNKNOWN = 8
_LINGER_S = 1.0


@dataclass(frozen=True)
class PeerReady:
    """A connection stands and the peer has proved itself; ``resumed``: not for the first time."""

    resumed: bool


@dataclass(frozen=True)
class Lost:
    """The connection broke; QEMU need not know. It is being made again."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """Source: the very first connection was refused. Nothing is tried any more."""

    reason: str


@dataclass(frozen=True)
class PeerTurnedAway:
    """Destination: somebody who is not our peer was refused; nothing else changed."""

    address: str
    reason: str


@dataclass(frozen=True)
class Broken:
    """The peer is ours but what was under way died with its former process: end the channels."""

    reason: str


LinkEvent = (
    Data | Opened | Finished | Reset | Closed | PeerReady | Lost | Refused | PeerTurnedAway | Broken
)


@dataclass(frozen=True)
class LinkOptions:
    """What may be changed without the peer's consent. Seconds and bytes.

    :param retain: kept for the peer at most, and held from it.
    :param floor: under way at least, however slow the path.
    :param target_delay: queueing aimed at on a full path.
    :param ping: silence after which the peer is asked.
    :param dead: silence after which the connection is given up.
    :param handshake: time to connect and to prove oneself.
    :param backoff: first pause before connecting again; doubled each time up to ``max_backoff``.
    """

    retain: int = DEFAULT_RETAIN
    floor: int = FLOOR
    target_delay: float = TARGET_S
    ping: float = 1.0
    dead: float = 5.0
    handshake: float = 5.0
    backoff: float = 0.05
    max_backoff: float = 2.0


class Link:
    """One side of the link of one migration.

    :param role: the source connects, the destination listens.
    :param migration: the migration's id.
    :param secret: its one-time secret, at least 16 bytes.
    :param address: host and port; for the destination, port 0 takes a free one.
    :param tls: the certificates; None for plaintext, which only the operator may choose.
    :param clock: seconds, monotonic.
    :param listener: destination: a socket that listens already, instead of ``address``.
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
        listener: socket.socket | None = None,
    ) -> None:
        self.options = options or LinkOptions()
        self.address = address
        self.closed = False  # nothing will happen any more
        self.trouble = ""  # why the last attempt to connect failed
        self.attempts = 0  # to connect, since the last connection
        self.reconnects = 0
        opt = self.options
        self.limit = InFlightLimit(opt.floor, max(opt.retain, CAP), opt.target_delay)
        self.session = LinkSession(role, self.limit, opt.retain)
        self._role = role
        self._identity = LinkIdentity(role, migration, secret, os.urandom(8).hex())
        self._tls = tls
        self._clock = clock
        self._context: ssl.SSLContext | None = None
        self._selector: selectors.BaseSelector | None = None
        self._listener: socket.socket | None = None
        self._inherited = listener
        self._targets: list[tuple[int, tuple[object, ...]]] = []
        self._unknown: dict[Connection, str] = {}  # not yet proved -> where from
        self._active: Connection | None = None
        self._peer_instance: str | None = None
        self._events: collections.deque[LinkEvent] = collections.deque()
        self._heard = 0.0
        self._pinged = 0.0
        self._connect_at: float | None = None
        self._close_by: float | None = None

    # -- life -------------------------------------------------------------------------------

    def start(self, selector: selectors.BaseSelector) -> None:
        """Listen, or begin to connect.

        :raises ConfigError: certificates or address are unusable.
        """
        self._selector = selector
        if self._tls is not None:
            self._context = tls_context(self._tls, self._role)
        if self._inherited is not None:
            self._inherited.setblocking(False)
            self._adopt_listener(self._inherited)
            return
        host, port = self.address
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            if self._role is Role.DESTINATION:
                family, _, _, _, where = found[0]
                self._listen(family, where)
            else:
                self._targets = [(family, where) for family, _, _, _, where in found]
                self._connect_at = self._clock()
                self.tick()
        except OSError as error:
            raise ConfigError(f"link address {host}, {port}: {error}") from error

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
        self._connect_at = None
        self._drop_active()
        for connection in list(self._unknown):
            self._drop_unknown(connection)
        if self._listener is not None:
            assert self._selector is not None
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    # -- outgoing ---------------------------------------------------------------------------

    def can_send(self, channel: int) -> int:
        """Return how many bytes may be sent on ``channel`` now; 0 without a connection."""
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

    def send_data(self, channel: int, data: bytes | memoryview) -> None:
        """Send ``data``, which must not change until it is delivered; as
        :meth:`LinkSession.send_data`."""
        self.session.send_data(channel, data, self._clock())
        self._flush()

    def send_open(self, channel: int, urgent: bool = False) -> None:
        """Open a channel; the data of an urgent one passes that of others."""
        self.session.send_open(channel, urgent)
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
            self._on_active(active, selectors.EVENT_READ)

    @property
    def ready(self) -> bool:
        """Whether a connection stands."""
        return self.session.attached

    @property
    def finished(self) -> bool:
        """Whether all channels ended in both directions and everything is delivered."""
        return self.session.finished

    # -- time -------------------------------------------------------------------------------

    def timeout(self) -> float | None:
        """Return seconds until :meth:`tick` has something to do, None for no such time."""
        if self._events or (self._active is not None and self._readable_inside(self._active)):
            return 0.0
        times = [connection.deadline for connection in self._unknown]
        if self._connect_at is not None:
            times.append(self._connect_at)
        if self._active is not None:
            times.append(max(self._heard, self._pinged) + self.options.ping)
            if self._close_by is not None:
                times.append(self._close_by)
            due = self.session.ack_due
            if due is not None:
                times.append(due)
        return max(0.0, min(times) - self._clock()) if times else None

    def tick(self) -> None:
        """Do what is due: acknowledge, ask a silent peer, give up, connect again."""
        now = self._clock()
        active = self._active
        if active is not None:
            if self._readable_inside(active):
                self._on_active(active, selectors.EVENT_READ)
            self.session.flush_acks(now)
            self._check_peer(active, now)
            self._flush()
        for connection in [one for one in self._unknown if one.deadline <= now]:
            self._fail(connection, LinkError("no proof in time"))
        if self._connect_at is not None and self._connect_at <= now:
            self._connect_at = None
            self._connect(now)

    def _readable_inside(self, connection: Connection) -> bool:
        return not connection.stalled and connection.transport.unread

    def _check_peer(self, active: Connection, now: float) -> None:
        if self._close_by is not None and now >= self._close_by:
            self.abort()
        elif active.stalled:
            self._heard = now  # it may well be talking; we do not listen
        elif now - self._heard >= self.options.dead:
            self._lose(f"nothing heard for {self.options.dead:g} s")
        elif now - max(self._heard, self._pinged) >= self.options.ping:
            self._pinged = now
            self.session.ping()

    # -- connections ------------------------------------------------------------------------

    def _listen(self, family: int, where: tuple[object, ...]) -> None:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(where)
            listener.listen(MAX_UNKNOWN)
        except OSError:
            listener.close()
            raise
        self._adopt_listener(listener)

    def _adopt_listener(self, listener: socket.socket) -> None:
        self._listener = listener
        self.address = listener.getsockname()[:2]
        assert self._selector is not None
        self._selector.register(listener, selectors.EVENT_READ, self._on_accept)

    def _on_accept(self, _events: int) -> None:
        assert self._listener is not None
        try:
            sock, where = self._listener.accept()
        except OSError:
            return  # it went away again, or descriptors ran out: the next one counts
        if len(self._unknown) >= MAX_UNKNOWN:
            self._fail(next(iter(self._unknown)), LinkError("too many strangers at once"))
        self._adopt(sock, f"{where[0]}:{where[1]}")

    def _connect(self, now: float) -> None:
        family, where = self._targets[self.attempts % len(self._targets)]
        self.attempts += 1
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            try:
                sock.connect(where)
            except BlockingIOError:
                raise
            except OSError as error:
                sock.close()
                self._retry(str(error), now)
                return
        self._adopt(sock, f"{where[0]}:{where[1]}")

    def _adopt(self, sock: socket.socket, where: str) -> None:
        sock.setblocking(False)
        deadline = self._clock() + self.options.handshake
        secure = self._secure if self._context is not None else None
        connection = Connection(sock, self._identity, secure, deadline)
        self._unknown[connection] = where
        if self._role is Role.SOURCE:
            self._watch(connection, selectors.EVENT_WRITE)
        else:
            self._on_unknown(connection, 0)

    def _secure(self, sock: socket.socket) -> TlsTransport:
        assert self._tls is not None
        assert self._context is not None
        return TlsTransport(sock, self._context, self._role, self._tls.peer_name or None)

    def _watch(self, connection: Connection, events: int) -> None:
        if events == connection.watched:
            return
        assert self._selector is not None
        if connection.watched:
            self._selector.unregister(connection)
        if events:
            self._selector.register(
                connection, events, functools.partial(self._on_events, connection)
            )
        connection.watched = events

    def _on_events(self, connection: Connection, events: int) -> None:
        if connection is self._active:
            self._on_active(connection, events)
        elif connection in self._unknown:
            self._on_unknown(connection, events)

    # -- before the peer is known -----------------------------------------------------------

    def _on_unknown(self, connection: Connection, _events: int) -> None:
        try:
            if connection.phase is Phase.CONNECTING:
                connection.tune(self.options.dead)
            waiting = connection.advance()
            if connection.phase is Phase.GREETING:
                count = connection.read()
                if count == 0:
                    raise LinkError("the peer closed the connection during the handshake")
                for frame in connection.frames():
                    self._greet(connection, frame)
                self._send_greeting(connection)
                waiting = selectors.EVENT_READ
                if connection.greeting:
                    waiting |= selectors.EVENT_WRITE
            if connection in self._unknown or connection is self._active:
                self._watch(connection, waiting)
        except (OSError, LinkError) as error:
            self._fail(connection, error)
            return
        if connection is self._active:
            self._flush()

    def _greet(self, connection: Connection, frame: Frame | Chunk) -> None:
        """Take one frame of a connection whose peer was unknown when it was read."""
        if connection is self._active:
            self._take(frame)
            return
        if isinstance(frame, Chunk):
            raise LinkProtocolError("data before the handshake")
        shake = connection.handshake
        answer = shake.receive(frame)
        if answer:
            connection.greeting.append(memoryview(answer))
        elif frame.type is FrameType.CHALLENGE:
            offer = self.session.offer(self._identity.instance)
            connection.greeting.append(memoryview(shake.prove(offer)))
        elif is_ready(connection):
            assert shake.peer is not None
            self._accept(connection, shake.peer)

    def _accept(self, connection: Connection, peer: Offer) -> None:
        """The peer has proved itself: it takes the place of an older connection."""
        try:
            if self._peer_instance not in (None, peer.instance):
                raise LinkProtocolError("the peer's process was started anew")
            self.session.check(peer)
        except LinkProtocolError as error:
            self._events.append(Broken(str(error)))
            raise
        if self._active is not None:
            self._lose("replaced by a new connection")
        del self._unknown[connection]
        if self._role is Role.DESTINATION:
            offer = self.session.offer(self._identity.instance)
            connection.greeting.append(memoryview(connection.handshake.welcome(offer)))
        resumed = self._peer_instance is not None
        self._peer_instance = peer.instance
        self.attempts, self.trouble = 0, ""
        self.reconnects += resumed
        self._active = connection
        self._heard = self._pinged = self._clock()
        connection.ready(self.session.receive_pool)
        self.session.attach(peer, self._clock())
        self._events.append(PeerReady(resumed))

    def _send_greeting(self, connection: Connection) -> None:
        pending = connection.greeting
        while pending:
            count = connection.transport.write(pending)
            if not count:
                return
            while count:
                taken = min(count, len(pending[0]))
                count -= taken
                if taken == len(pending[0]):
                    pending.popleft()
                else:
                    pending[0] = pending[0][taken:]

    def _fail(self, connection: Connection, error: Exception) -> None:
        """A connection ends before (or while) its peer proved itself."""
        if connection is self._active:
            self._lose(str(error))
            return
        where = self._unknown[connection]
        refusal = is_refusal(error)
        if refusal:
            connection.say_goodbye(str(error))
        self._drop_unknown(connection)
        if self._role is Role.DESTINATION:
            self._events.append(PeerTurnedAway(where, str(error)))
        elif any(isinstance(event, Broken) for event in self._events):
            self.trouble = str(error)
        elif refusal and self._peer_instance is None:
            self.trouble = str(error)
            self._events.append(Refused(str(error)))
        else:
            self._retry(str(error), self._clock())

    def _retry(self, reason: str, now: float) -> None:
        self.trouble = reason
        pause = self.options.backoff * 2 ** min(self.attempts, 16)
        self._connect_at = now + min(pause, self.options.max_backoff)

    def _drop_unknown(self, connection: Connection) -> None:
        del self._unknown[connection]
        self._watch(connection, 0)
        connection.close()

    # -- while a connection stands ----------------------------------------------------------

    def _on_active(self, connection: Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                count = connection.read()
                if count:
                    self._heard = self._clock()
                    for frame in connection.frames():
                        self._take(frame)
                elif count == 0:
                    self._end_of_stream()
                    return
            if events & selectors.EVENT_WRITE:
                connection.blocked = False
        except (OSError, LinkError) as error:
            self._lose(str(error))
            return
        self._flush()

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
            if connection.greeting:
                self._send_greeting(connection)
                connection.blocked = bool(connection.greeting)
            while not connection.blocked and (pending := self.session.output()):
                count = connection.transport.write(pending)
                self.session.written(count)
                connection.blocked = not count
        except OSError as error:
            self._lose(str(error))
            return
        events = 0 if connection.stalled else selectors.EVENT_READ
        self._watch(connection, events | (selectors.EVENT_WRITE if connection.blocked else 0))

    def _lose(self, reason: str) -> None:
        if self._close_by is not None:
            self.abort()
            return
        self._drop_active()
        self._events.append(Lost(reason))
        if self._role is Role.SOURCE:
            self._retry(reason, self._clock())

    def _drop_active(self) -> None:
        connection, self._active = self._active, None
        if connection is not None:
            self.session.detach()
            self._watch(connection, 0)
            connection.close()
