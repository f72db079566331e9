# SPDX-License-Identifier: Apache-2.0
"""What the link runs over: TLS 1.3 with certificates on both sides, or plain TCP where configured.

Both kinds of transport are non-blocking and look the same to the link. ``OSError`` (of which
``ssl.SSLError`` is one) is left to it to translate.
"""

from __future__ import annotations

import collections
import ipaddress
import itertools
import selectors
import socket
import ssl
from collections.abc import Mapping
from typing import Protocol

from nova_enlightened.exception import ConfigError, PeerRefused
from nova_enlightened.stream.link_state import Role
from nova_enlightened.transfer.spec import TlsFiles

Buffers = collections.deque[memoryview]

#: One TLS record; a header is sent in the same record as the data behind it.
_RECORD = 16 * 1024
#: What is less is a frame without data.
_LITTLE = 1024
#: Buffers in one system call; the kernel's limit is 1024.
_GATHER = 512
#: Bytes decrypted before others get their turn.
_READ_TURN = 512 * 1024


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

    def shut(self) -> None:
        """Say that nothing more will be written."""

    def close(self) -> None:
        """Let the socket go."""


class PlainTransport:
    """TCP as it is."""

    unread = False

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

    :param peer_name: the name or address that the peer's certificate must carry; for a server
        None accepts any certificate of the CA.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, role: Role, peer_name: str | None
    ) -> None:
        self._server = role is Role.DESTINATION
        self._peer_name = peer_name
        self._socket = context.wrap_socket(
            sock,
            server_side=self._server,
            do_handshake_on_connect=False,
            server_hostname=None if self._server else peer_name,
        )

    @property
    def unread(self) -> bool:
        """Whether decrypted bytes wait inside OpenSSL."""
        return self._socket.pending() > 0

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return self._socket.fileno()

    def handshake(self) -> int:
        """See :class:`Transport`."""
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            return selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            return selectors.EVENT_WRITE
        return 0

    def verify(self) -> None:
        """See :class:`Transport`. A client's TLS has done it already."""
        if self._server and self._peer_name is not None:
            check_certificate(self._socket.getpeercert() or {}, self._peer_name)

    def set_option(self, level: int, option: int, value: int) -> None:
        """See :class:`Transport`."""
        self._socket.setsockopt(level, option, value)

    def read_into(self, buffer: memoryview) -> int | None:
        """See :class:`Transport`. Several records are read in one turn."""
        most = min(len(buffer), _READ_TURN)
        got = 0
        try:
            while got < most:
                count = self._socket.recv_into(buffer[got:])
                if not count:
                    return got  # the end; if there was data, 0 comes next time
                got += count
                if got < _LITTLE and not self._socket.pending():
                    break  # nearly always all there was: asking on costs an exception
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return got or None
        return got

    def write(self, buffers: Buffers) -> int:
        """See :class:`Transport`. What was refused once must be offered again unchanged."""
        try:
            return self._socket.send(_first_record(buffers))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def shut(self) -> None:
        """End the TCP stream; the link has its own last word, so TLS's is not needed."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let the socket go."""
        self._socket.close()


def _first_record(buffers: Buffers) -> bytes | memoryview:
    """Join small buffers up to one record; a large one goes as it is."""
    first = buffers[0]
    if len(first) >= _RECORD or len(buffers) == 1:
        return first
    parts, room = [], _RECORD
    for buffer in buffers:
        parts.append(buffer[:room])
        room -= len(parts[-1])
        if not room:
            break
    return b"".join(parts)


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
