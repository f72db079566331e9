# SPDX-License-Identifier: Apache-2.0
"""Who may be our peer: connections from being made until the peer has proved itself.

The destination listens as long as the link lives, since a peer that lost its connection comes
again; the source connects, with growing pauses. A stranger gets little: a few kilobytes, a few
seconds, one of a few places, and no effect on the connection that stands.
"""

from __future__ import annotations

import errno
import functools
import os
import selectors
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from nova_enlightened.exception import ConfigError, LinkError, LinkProtocolError, PeerRefused
from nova_enlightened.stream.link_frames import Chunk, Frame
from nova_enlightened.stream.link_handshake import LinkIdentity, Offer
from nova_enlightened.stream.link_state import ConnectionState, FrameType, Role
from nova_enlightened.transfer.link_connection import Connection, Phase
from nova_enlightened.transfer.link_events import LinkOptions
from nova_enlightened.transfer.spec import TlsFiles
from nova_enlightened.transfer.tls import TlsTransport, tls_context

#: Connections that have proved nothing yet; one more pushes out the oldest.
MAX_UNKNOWN = 8
_BACKLOG = 64


class Owner(Protocol):
    """What the link does for its admission."""

    def offer(self) -> Offer:
        """Return where this side stands."""

    def admit(self, connection: Connection, peer: Offer) -> None:
        """Take over a connection whose peer has proved itself.

        :raises LinkProtocolError: this peer cannot go on where it stands.
        """

    def turned_away(self, connection: Connection, error: Exception) -> None:
        """A connection has ended before its peer proved itself."""


class Admission:
    """All connections of a link that are not yet ready."""

    def __init__(
        self,
        identity: LinkIdentity,
        tls: TlsFiles | None,
        options: LinkOptions,
        clock: Callable[[], float],
        owner: Owner,
    ) -> None:
        self.attempts = 0  # to connect, since the last success
        self._identity = identity
        self._tls = tls
        self._options = options
        self._clock = clock
        self._owner = owner
        self._context: ssl.SSLContext | None = None
        self._selector: selectors.BaseSelector | None = None
        self._listener: socket.socket | None = None
        self._targets: list[tuple[int, tuple[object, ...]]] = []
        self._connect_at: float | None = None
        self._unknown: dict[Connection, None] = {}  # in order of arrival

    def start(
        self,
        selector: selectors.BaseSelector,
        address: tuple[str, int],
        listener: socket.socket | None = None,
    ) -> tuple[str, int]:
        """Listen or begin to connect; return the address, with the port chosen.

        :param listener: destination: a socket that listens already, instead of ``address``.
        :raises ConfigError: certificates or address are unusable.
        """
        self._selector = selector
        if self._tls is not None:
            self._context = tls_context(self._tls, self._identity.role)
        host, port = address
        if listener is not None:
            listener.setblocking(False)
            return host, self._admit(listener)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            if self._identity.role is Role.DESTINATION:
                family, _, _, _, where = found[0]
                return host, self._listen(family, where)
            self._targets = [(family, where) for family, _, _, _, where in found]
        except OSError as error:
            raise ConfigError(f"link address {host}, {port}: {error}") from error
        self._connect_at = self._clock()
        return address

    def stop(self) -> None:
        """Let everything go."""
        self._connect_at = None
        for connection in self._unknown:
            connection.close()
        self._unknown.clear()
        if self._listener is not None:
            assert self._selector is not None
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def connect_again(self) -> None:
        """Plan the source's next attempt, later after each failure."""
        pause = self._options.backoff * 2 ** min(self.attempts, 16)
        self._connect_at = self._clock() + min(pause, self._options.max_backoff)

    @property
    def due(self) -> float | None:
        """When :meth:`tick` has something to do, or None."""
        times = [connection.deadline for connection in self._unknown]
        if self._connect_at is not None:
            times.append(self._connect_at)
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Give up on the slow, and connect when it is time."""
        for connection in [one for one in self._unknown if one.deadline <= now]:
            self._fail(connection, LinkError("no proof in time"))
        if self._connect_at is not None and self._connect_at <= now:
            self._connect_at = None
            self._connect()

    def _listen(self, family: int, where: tuple[object, ...]) -> int:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(where)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        return self._admit(listener)

    def _admit(self, listener: socket.socket) -> int:
        """Take connections from a listening socket; return its port."""
        self._listener = listener
        assert self._selector is not None
        self._selector.register(listener, selectors.EVENT_READ, self._on_listener)
        port = listener.getsockname()[1]
        assert isinstance(port, int)
        return port

    def _on_listener(self, _events: int) -> None:
        if self._listener is None:
            return
        try:
            sock, where = self._listener.accept()
        except OSError:
            return  # it went away again, or descriptors ran out: it will try once more
        if len(self._unknown) >= MAX_UNKNOWN:
            self._fail(next(iter(self._unknown)), LinkError("too many strangers at once"))
        connection = self._add(sock, where)
        self._go_on(connection, 0)

    def _connect(self) -> None:
        family, where = self._targets[self.attempts % len(self._targets)]
        self.attempts += 1
        sock = socket.socket(family, socket.SOCK_STREAM)
        connection = self._add(sock, where)
        error = sock.connect_ex(where)
        if error in (0, errno.EINPROGRESS):
            self._watch(connection, selectors.EVENT_WRITE)
        else:
            self._fail(connection, OSError(error, os.strerror(error)))

    def _add(self, sock: socket.socket, where: tuple[object, ...]) -> Connection:
        deadline = self._clock() + self._options.handshake
        secure = self._secure if self._context is not None else None
        name = f"{where[0]}:{where[1]}"
        connection = Connection(sock, self._identity, secure, name, deadline)
        connection.tune(self._options.dead)
        self._unknown[connection] = None
        return connection

    def _secure(self, sock: socket.socket) -> TlsTransport:
        assert self._tls is not None
        assert self._context is not None
        return TlsTransport(sock, self._context, self._identity.role, self._tls.peer_name or None)

    def _watch(self, connection: Connection, events: int) -> None:
        assert self._selector is not None
        connection.watch(self._selector, events, functools.partial(self._go_on, connection))

    def _go_on(self, connection: Connection, _events: int) -> None:
        """Do as much of the handshake as is possible now."""
        if connection not in self._unknown:
            return  # it ended earlier in this turn of the loop
        try:
            waiting = connection.advance()
            if connection.phase is Phase.GREETING:
                if connection.read() == 0:
                    raise LinkError("the peer closed the connection during the handshake")
                for frame in connection.frames():
                    self._greet(connection, frame)
                    if connection not in self._unknown:
                        return  # admitted: the rest is the link's
                connection.send_greeting()
                if connection.blocked:
                    waiting |= selectors.EVENT_WRITE
            self._watch(connection, waiting)
        except (OSError, LinkError) as error:
            self._fail(connection, error)

    def _greet(self, connection: Connection, frame: Frame | Chunk) -> None:
        if isinstance(frame, Chunk):
            raise LinkProtocolError("data before the handshake")
        shake = connection.handshake
        answer = shake.receive(frame)
        if answer:
            connection.greeting.append(memoryview(answer))
        elif frame.type is FrameType.CHALLENGE:
            connection.greeting.append(memoryview(shake.prove(self._owner.offer())))
        elif shake.state is ConnectionState.READY:
            assert shake.peer is not None
            self._owner.admit(connection, shake.peer)
            del self._unknown[connection]
            self.attempts = 0

    def _fail(self, connection: Connection, error: Exception) -> None:
        if is_refusal(error):
            connection.send_refusal(str(error))
        del self._unknown[connection]
        connection.close()
        self._owner.turned_away(connection, error)


def is_refusal(error: Exception) -> bool:
    """Whether somebody said no, rather than the network failing."""
    if isinstance(error, ssl.SSLCertVerificationError | PeerRefused):
        return True
    if isinstance(error, ssl.SSLError):
        return "ALERT" in (error.reason or "")
    return isinstance(error, LinkError) and not error.retryable
