# SPDX-License-Identifier: Apache-2.0
"""One TCP connection of the link: its socket, its TLS, its framing and its handshake."""

from __future__ import annotations

import collections
import contextlib
import enum
import os
import selectors
import socket
from collections.abc import Callable, Iterator

from nova_enlightened.stream.link_buffers import BlockPool
from nova_enlightened.stream.link_frames import Chunk, Frame, FrameReader
from nova_enlightened.stream.link_handshake import NONCE_SIZE, Handshake, LinkIdentity
from nova_enlightened.stream.link_state import Role, after_frame
from nova_enlightened.transfer.tls import Buffers, PlainTransport, TlsTransport, Transport

#: Unsent bytes in the kernel above which the socket counts as full: nothing can pass them.
UNSENT = 256 * 1024
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h; Python 3.11 has no name for it


class Phase(enum.Enum):
    """How far a connection has come."""

    CONNECTING = enum.auto()
    SECURING = enum.auto()  # TLS's handshake
    GREETING = enum.auto()  # the link's own
    READY = enum.auto()


class Connection:
    """One connection; errors of it are ``OSError``, those of the peer ``LinkError``.

    :param secure: makes TLS on a connected socket; None for plain TCP.
    :param where: the peer's address, for people.
    :param deadline: when the peer has to have proved itself.
    """

    def __init__(
        self,
        sock: socket.socket,
        identity: LinkIdentity,
        secure: Callable[[socket.socket], TlsTransport] | None,
        where: str,
        deadline: float,
    ) -> None:
        self.phase = Phase.CONNECTING
        self.where = where
        self.deadline = deadline
        self.handshake = Handshake(identity, os.urandom(NONCE_SIZE))
        self.greeting: Buffers = collections.deque()  # goes before anything of the session
        self.blocked = False  # the transport took nothing last time
        self.stalled = False  # nothing is read: too much is undelivered
        self._role = identity.role
        self._socket = sock
        self._secure = secure
        self._transport: Transport | None = None
        self._reader = FrameReader()
        self._least = 1
        self._watched: tuple[selectors.BaseSelector, int, Callable[[int], None]] | None = None

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return (self._transport or self._socket).fileno()

    def tune(self, user_timeout_s: float) -> None:
        """Set the TCP options that keep delay small and find a dead path."""
        sock = self._socket
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout_s * 1000))

    def watch(
        self, selector: selectors.BaseSelector, events: int, on_events: Callable[[int], None]
    ) -> None:
        """Have ``on_events`` called for ``events``."""
        wanted = (selector, events, on_events)
        if self._watched is None:
            selector.register(self, events, on_events)
        elif self._watched != wanted:
            selector.modify(self, events, on_events)
        self._watched = wanted

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
            assert self._transport is not None
            waiting = self._transport.handshake()
            if waiting:
                return waiting
            self.phase = Phase.GREETING
            self._transport.verify()
            if self._role is Role.SOURCE:
                self.greeting.append(memoryview(self.handshake.hello()))
        return selectors.EVENT_READ

    def read(self) -> int | None:
        """Read once; return as :meth:`Transport.read_into`, and None while ``stalled``.

        :raises LinkProtocolError: an unknown peer has sent too much.
        """
        assert self._transport is not None
        buffer = self._reader.get_buffer()
        self.stalled = buffer is None
        if buffer is None:
            return None
        count = self._transport.read_into(buffer)
        if count:
            self._reader.filled(count)
        return count

    def leave_unsent(self, size: int) -> None:
        """Let the kernel hold so many bytes that it has not sent."""
        if self._transport is not None:
            self._transport.set_option(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, size)

    def gather(self, least: int) -> None:
        """Have a selector see something to read only once there are so many bytes."""
        if least != self._least and self._transport is not None:
            self._transport.set_option(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
            self._least = least

    @property
    def unread(self) -> bool:
        """Whether :meth:`read` has something that a selector does not see."""
        return not self.stalled and self._transport is not None and self._transport.unread

    def frames(self) -> Iterator[Frame | Chunk]:
        """Iterate over what was read and is complete.

        :raises LinkProtocolError: it is not what may come here.
        """
        while (frame := self._reader.next_frame()) is not None:
            if self.phase is Phase.READY and isinstance(frame, Frame):
                self.handshake.state = after_frame(self.handshake.state, frame.type)
            yield frame

    @property
    def owes(self) -> bool:
        """Whether :meth:`write` has to go on with what it took."""
        return self._transport is not None and self._transport.owes

    def ready(self, pool: BlockPool) -> None:
        """The peer is who it should be: receive into blocks of ``pool`` from here on."""
        self.phase = Phase.READY
        self._reader.accept(pool)

    def write(self, buffers: Buffers) -> int:
        """Write what the transport takes from the front of ``buffers``; return how much."""
        assert self._transport is not None
        count = self._transport.write(buffers)
        self.blocked = self._transport.owes or (bool(buffers) and not count)
        return count

    def send_greeting(self) -> None:
        """Write what the handshake has to say; ``blocked`` tells whether some is left."""
        pending = self.greeting
        self.blocked = False
        while (pending or self.owes) and not self.blocked:
            count = self.write(pending)
            while count:
                first = pending.popleft()
                if len(first) > count:
                    pending.appendleft(first[count:])
                count -= min(count, len(first))

    def send_refusal(self, reason: str) -> None:
        """Tell the peer why it is refused, if that is possible without waiting."""
        if self.phase is Phase.GREETING:
            self.greeting.append(memoryview(self.handshake.refuse(reason)))
            with contextlib.suppress(OSError):
                self.send_greeting()
                assert self._transport is not None
                self._transport.shut()

    def close(self) -> None:
        """Let the socket go."""
        if self._watched is not None:
            self._watched[0].unregister(self)
            self._watched = None
        self._reader.close()
        (self._transport or self._socket).close()
