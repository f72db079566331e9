# SPDX-License-Identifier: Apache-2.0
"""One TCP connection of the link, from connecting to its end. It reports to the link, its owner."""

from __future__ import annotations

import collections
import enum
import os
import selectors
import socket
import ssl
from collections.abc import Callable, Iterator

from nova_enlightened.exception import LinkError, PeerRefused
from nova_enlightened.stream.link_buffers import BlockPool
from nova_enlightened.stream.link_frames import Chunk, Frame, FrameReader
from nova_enlightened.stream.link_handshake import NONCE_SIZE, Handshake, LinkIdentity
from nova_enlightened.stream.link_state import ConnectionState, Role, after_frame
from nova_enlightened.transfer.tls import PlainTransport, TlsTransport, Transport

#: Unsent bytes in the kernel above which the socket counts as full: they cannot be passed.
_UNSENT = 256 * 1024
_TCP_NOTSENT_LOWAT = 25


class Phase(enum.Enum):
    """How far a connection has come."""

    CONNECTING = enum.auto()
    SECURING = enum.auto()  # TLS handshake
    GREETING = enum.auto()  # the link's own
    READY = enum.auto()


class Connection:
    """A socket, its framing and its handshake.

    :param secure: makes TLS on a connected socket; None for plain TCP.
    :param deadline: when the peer has to have proved itself.
    """

    def __init__(
        self,
        sock: socket.socket,
        identity: LinkIdentity,
        secure: Callable[[socket.socket], TlsTransport] | None,
        deadline: float,
    ) -> None:
        self.phase = Phase.CONNECTING
        self.deadline = deadline
        self.handshake = Handshake(identity, os.urandom(NONCE_SIZE))
        self.greeting: collections.deque[memoryview] = collections.deque()
        self.blocked = False  # the transport took nothing last time
        self.stalled = False  # nothing is read: too much is undelivered
        self.watched = 0  # events registered with the selector
        self._role = identity.role
        self._socket = sock
        self._secure = secure
        self._transport: Transport | None = None
        self._reader = FrameReader()

    @property
    def transport(self) -> Transport:
        """The transport, once there is one."""
        assert self._transport is not None
        return self._transport

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return (self._transport or self._socket).fileno()

    def tune(self, user_timeout_s: float) -> None:
        """Set the TCP options that keep delay small and find a dead path."""
        sock = self._socket
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout_s * 1000))

    def advance(self) -> int:
        """Go on until the link's handshake can run; return the selector events waited for.

        :raises OSError: the connection failed.
        :raises PeerRefused: the peer's certificate is for another host.
        """
        if self.phase is Phase.CONNECTING:
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            if self._secure is None:
                self._transport = PlainTransport(self._socket)
            else:
                self._transport = self._secure(self._socket)
            self.phase = Phase.SECURING
        if self.phase is Phase.SECURING:
            waiting = self.transport.handshake()
            if waiting:
                return waiting
            self.phase = Phase.GREETING
            if self._role is Role.SOURCE:
                self.greeting.append(memoryview(self.handshake.hello()))
        return selectors.EVENT_READ

    def read(self) -> int | None:
        """Read once; as :meth:`Transport.read_into`, and None while ``stalled``.

        :raises OSError: the connection broke.
        :raises LinkError: an unknown peer has sent too much.
        """
        buffer = self._reader.get_buffer()
        self.stalled = buffer is None
        if buffer is None:
            return None
        count = self.transport.read_into(buffer)
        if count:
            self._reader.filled(count)
        return count

    def frames(self) -> Iterator[Frame | Chunk]:
        """Iterate over what was read and is complete.

        :raises LinkError: it is not what may come here.
        """
        while (frame := self._reader.next_frame()) is not None:
            if self.phase is Phase.READY and isinstance(frame, Frame):
                self.handshake.state = after_frame(self.handshake.state, frame.type)
            yield frame

    def ready(self, pool: BlockPool) -> None:
        """The peer is who it should be."""
        self.phase = Phase.READY
        self._reader.accept(pool)

    def say_goodbye(self, refusal: str) -> None:
        """Tell the peer why it is refused, if that is possible without waiting."""
        if self.phase is not Phase.GREETING:
            return
        self.greeting.append(memoryview(self.handshake.refuse(refusal)))
        try:
            self.transport.write(self.greeting)
            self.transport.shut()
        except OSError:
            pass  # it is gone: it need not be told

    def close(self) -> None:
        """Let the socket go."""
        self._reader.close()
        (self._transport or self._socket).close()


def is_refusal(error: Exception) -> bool:
    """Whether the peer, or what we found of it, says no, rather than the network failing."""
    if isinstance(error, ssl.SSLCertVerificationError | PeerRefused):
        return True
    if isinstance(error, ssl.SSLError):
        return "ALERT" in (error.reason or "")
    return isinstance(error, LinkError) and not error.retryable


def is_ready(connection: Connection) -> bool:
    """Whether the peer has just proved itself and awaits being accepted."""
    return (
        connection.phase is Phase.GREETING and connection.handshake.state is ConnectionState.READY
    )
