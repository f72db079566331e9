# SPDX-License-Identifier: Apache-2.0
"""What the link runs over: TLS 1.3 with certificates on both sides, or plain TCP where configured.

Both kinds of transport are non-blocking and look the same to the link. ``OSError`` (of which
``ssl.SSLError`` is one) is left to it to translate.
"""

from __future__ import annotations

import collections
import contextlib
import ipaddress
import itertools
import selectors
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, cast

from nova_enlightened.exception import ConfigError, PeerRefused
from nova_enlightened.stream.link_state import Role
from nova_enlightened.transfer.spec import TlsFiles

Buffers = collections.deque[memoryview]

#: One TLS record at most.
_RECORD = 16 * 1024
#: Buffers in one system call; the kernel's limit is 1024.
_GATHER = 512
#: Bytes received to be decrypted, or encrypted to be sent, in one system call.
_RECEIVED = 512 * 1024
_SENT = 128 * 1024


class Transport(Protocol):
    """A connected socket."""

    def fileno(self) -> int:
        """Return the descriptor to select on."""

    def handshake(self) -> int:
        """Go on with what has to come before data; return the selector events waited for,
        0 when it is done.
        """

    def verify(self) -> None:
        """Find out whether the peer is the host it should be.

        :raises PeerRefused: it is not.
        """

    def read_into(self, buffer: memoryview) -> int | None:
        """Return the bytes read, 0 at the end of the stream, None when there is nothing now."""

    def write(self, buffers: Buffers) -> int:
        """Write from the front of ``buffers``; return the bytes taken, 0 when full."""

    def set_option(self, level: int, option: int, value: int) -> None:
        """Set a socket option."""

    @property
    def unread(self) -> bool:
        """Whether there is something to read that a selector does not see."""

    @property
    def owes(self) -> bool:
        """Whether bytes it took wait for the socket; :meth:`write` goes on with them."""

    def shut(self) -> None:
        """Say that nothing more will be written."""

    def close(self) -> None:
        """Let the socket go."""


class PlainTransport:
    """TCP as it is."""

    unread = False
    owes = False

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return self._socket.fileno()

    def handshake(self) -> int:
        """Nothing has to come before data."""
        return 0

    def verify(self) -> None:
        """Nothing is known of the host: the link's own handshake has to do."""

    def set_option(self, level: int, option: int, value: int) -> None:
        """See :class:`Transport`."""
        self._socket.setsockopt(level, option, value)

    def read_into(self, buffer: memoryview) -> int | None:
        """See :class:`Transport`."""
        try:
            return self._socket.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return None

    def write(self, buffers: Buffers) -> int:
        """See :class:`Transport`."""
        try:
            if len(buffers) <= _GATHER:
                return self._socket.sendmsg(buffers)
            return self._socket.sendmsg(itertools.islice(buffers, _GATHER))
        except (BlockingIOError, InterruptedError):
            return 0

    def shut(self) -> None:
        """See :class:`Transport`."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let the socket go."""
        self._socket.close()


class TlsTransport:
    """TLS on a connected socket.

    Records are made and taken apart in memory, many for one system call: over TCP each record by
    itself costs its sender as much again as to encrypt it.

    :param peer_name: the name or address that the peer's certificate must carry; for a server
        None accepts any certificate of the CA.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, role: Role, peer_name: str | None
    ) -> None:
        self._server = role is Role.DESTINATION
        self._peer_name = peer_name
        self._socket = sock
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._came,
            self._goes,
            server_side=self._server,
            server_hostname=None if self._server else peer_name,
        )
        self._read = cast(Callable[[int, memoryview], int], self._tls.read)
        self._received = memoryview(bytearray(_RECEIVED))
        self._owed = memoryview(b"")  # encrypted, and not taken by the socket yet
        self._starved = True  # nothing can be decrypted before more has come

    @property
    def unread(self) -> bool:
        """Whether bytes that came wait to be decrypted."""
        return not self._starved

    @property
    def owes(self) -> bool:
        """See :class:`Transport`."""
        return bool(self._owed)

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return self._socket.fileno()

    def handshake(self) -> int:
        """See :class:`Transport`."""
        while True:
            done = self._advance()
            if not self._push():
                return selectors.EVENT_WRITE
            if done:
                self._starved = not self._came.pending  # data may have come with it
                return 0
            if not self._pull():
                return selectors.EVENT_READ

    def _advance(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                self._push()  # the peer is told why
            raise
        return True

    def verify(self) -> None:
        """See :class:`Transport`. A client's TLS has done it already."""
        if self._server and self._peer_name is not None:
            check_certificate(self._tls.getpeercert() or {}, self._peer_name)

    def set_option(self, level: int, option: int, value: int) -> None:
        """See :class:`Transport`."""
        self._socket.setsockopt(level, option, value)

    def read_into(self, buffer: memoryview) -> int | None:
        """See :class:`Transport`. The socket is read once, and all records that came."""
        if self._starved and not self._pull():
            return None
        got, size, read = 0, len(buffer), self._read
        try:
            while got < size:  # a record each
                count = read(size, buffer[got:])
                if not count:
                    break
                got += count
        except ssl.SSLWantReadError:
            self._starved = True
        except ssl.SSLEOFError:
            return got  # TCP's end will do; if there was data, 0 comes next time
        if self._goes.pending:
            self._push()  # TLS has answered something by itself
        return got or (None if self._starved else 0)

    def write(self, buffers: Buffers) -> int:
        """See :class:`Transport`. What is encrypted counts as taken."""
        if not self._push():
            return 0
        taken = 0
        for piece in _pieces(buffers, _SENT):
            taken += self._tls.write(piece)
        self._push()
        return taken

    def shut(self) -> None:
        """End the TCP stream; the link has its own last word, so TLS's is not needed."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let the socket go."""
        self._socket.close()

    def _pull(self) -> bool:
        """Take from the socket what has come, or its end; False: nothing has."""
        try:
            count = self._socket.recv_into(self._received)
        except (BlockingIOError, InterruptedError):
            return False
        if count:
            self._came.write(self._received[:count])
        else:
            self._came.write_eof()
        self._starved = False
        return True

    def _push(self) -> bool:
        """Give the socket what is encrypted; False: it does not take all of it."""
        while self._owed or self._goes.pending:
            if not self._owed:
                self._owed = memoryview(self._goes.read())
            try:
                self._owed = self._owed[self._socket.send(self._owed) :]
            except (BlockingIOError, InterruptedError):
                return False
        return True


def _pieces(buffers: Buffers, most: int) -> Iterator[bytes | memoryview]:
    """Yield ``most`` bytes of ``buffers``, small ones joined to a record."""
    small: list[memoryview] = []
    size = 0
    for buffer in buffers:
        piece = buffer[:most]
        if small and size + len(piece) > _RECORD:
            yield b"".join(small)
            small, size = [], 0
        if len(piece) >= _RECORD:
            yield piece
        else:
            small.append(piece)
            size += len(piece)
        most -= len(piece)
        if not most:
            break
    if small:
        yield b"".join(small)


def tls_context(files: TlsFiles, role: Role) -> ssl.SSLContext:
    """Return a context that shows our certificate and demands one of the same CA.

    :raises ConfigError: a file is missing, unreadable or not what it should be.
    """
    server = role is Role.DESTINATION
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = not server
    if server:
        context.num_tickets = 0  # every connection proves itself anew
    try:
        context.load_verify_locations(files.ca)
        context.load_cert_chain(files.cert, files.key)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"link certificates {files.ca}, {files.cert}, {files.key}: {error}"
        ) from error
    return context


def check_certificate(certificate: Mapping[str, object], expected: str) -> None:
    """Find ``expected`` among the names that the certificate is for; no wildcards.

    :param certificate: as of ``SSLSocket.getpeercert()``, already verified.
    :raises PeerRefused: it is not there.
    """
    names = certificate.get("subjectAltName", ())
    assert isinstance(names, tuple)
    for kind, name in names:
        if kind == "DNS" and name.lower() == expected.lower():
            return
        if kind == "IP Address" and _same_address(name, expected):
            return
    raise PeerRefused(f"the peer's certificate is not for {expected}")


def _same_address(one: str, other: str) -> bool:
    try:
        return ipaddress.ip_address(one) == ipaddress.ip_address(other)
    except ValueError:
        return False
