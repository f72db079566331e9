# SPDX-License-Identifier: Apache-2.0
"""Two links on loopback, a wire between them that can be cut, and QEMUs made of byte strings."""

from __future__ import annotations

import collections
import contextlib
import pathlib
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import Self

from lab.ca import make_ca
from nova_enlightened.stream.link import Data
from nova_enlightened.stream.link_state import Role
from nova_enlightened.transfer.link import Link
from nova_enlightened.transfer.link_events import LinkEvent, LinkOptions
from nova_enlightened.transfer.spec import TlsFiles

MIGRATION = "5ca1ab1e-0000-4000-8000-000000000001"
SECRET = b"a secret of this one migration.."
MAIN, PREEMPT = 0, 1
PATIENCE_S = 20.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST


class Wire:
    """A TCP proxy in the same event loop; it can be cut, frozen, and refuse to connect."""

    def __init__(self, selector: selectors.BaseSelector, target: tuple[str, int]) -> None:
        self.frozen = False
        self.carried = 0
        self.connections = 0
        self.change: Callable[[bytes], bytes] = lambda data: data  # what crosses next
        self.seen = bytearray()  # the beginning of what a listener on the wire would see
        self._selector = selector
        self._target = target
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._backlog: dict[socket.socket, bytes] = {}
        self._listener: socket.socket | None = None
        self.address = self.listen(("127.0.0.1", 0))

    def listen(self, where: tuple[str, int]) -> tuple[str, int]:
        """Accept connections (again)."""
        self._listener = socket.create_server(where, backlog=16)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        host, port = self._listener.getsockname()
        return host, port

    def refuse(self) -> None:
        """Nobody answers at the address any more."""
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def cut(self) -> None:
        """Reset all connections, losing whatever is under way."""
        for sock in list(self._pairs):
            self._drop(sock)

    def close(self) -> None:
        """Let everything go."""
        self.refuse()
        self.cut()

    def _accept(self, _events: int) -> None:
        if self._listener is None:
            return
        near, _ = self._listener.accept()
        self.connections += 1
        try:
            far = socket.create_connection(self._target)
        except OSError:
            near.close()
            return
        for sock, other in ((near, far), (far, near)):
            sock.setblocking(False)
            self._pairs[sock] = other
            self._watch(sock, selectors.EVENT_READ)

    def _watch(self, sock: socket.socket, events: int) -> None:
        def act(_events: int) -> None:
            with contextlib.suppress(BlockingIOError):
                try:
                    self._carry(sock)
                except BlockingIOError:
                    raise
                except OSError:
                    self._drop(sock)

        with contextlib.suppress(KeyError):
            self._selector.unregister(sock)
        self._selector.register(sock, events, act)

    def _carry(self, sock: socket.socket) -> None:
        other = self._pairs.get(sock)
        if other is None:
            return
        if self.frozen:
            self._selector.unregister(sock)  # thawing is not needed: it is cut instead
            return
        data = self._backlog.pop(sock, b"") or sock.recv(256 * 1024)
        if not data:
            self._drop(sock)
            return
        data = self.change(data)
        self.seen += data[: 100_000 - len(self.seen)]
        try:
            count = other.send(data)
        except BlockingIOError:
            count = 0
        self.carried += count
        if count < len(data):
            self._backlog[sock] = data[count:]

    def _drop(self, sock: socket.socket) -> None:
        other = self._pairs.pop(sock, None)
        self._backlog.pop(sock, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.close()
        if other is not None and other in self._pairs:
            self._drop(other)


class Host:
    """A link with what its relay would do: send what is to be sent, deliver what arrives."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.events: list[LinkEvent] = []  # all but data
        self.arrived: dict[int, bytearray] = collections.defaultdict(bytearray)
        self.held: collections.deque[Data] = collections.deque()
        self.taking = True  # QEMU reads
        self._sending: dict[int, memoryview] = {}

    def send(self, channel: int, content: bytes) -> None:
        """Send ``content`` as there is room."""
        self._sending[channel] = memoryview(content)

    @property
    def sent(self) -> bool:
        """Whether all has been handed to the link."""
        return not any(self._sending.values())

    def step(self) -> None:
        """What the relay does after each select."""
        self.link.tick()
        while (event := self.link.next_event()) is not None:
            if isinstance(event, Data):
                self.held.append(event)
            else:
                self.events.append(event)
        while self.held and self.taking:
            data = self.held.popleft()
            self.arrived[data.channel] += data.view
            self.link.delivered(data.channel, len(data.view))
        self.link.settle()
        for channel, content in self._sending.items():
            if content:
                buffer = self.link.buffer(channel)[: len(content)]
                buffer[:] = content[: len(buffer)]
                if buffer:
                    self._sending[channel] = content[len(buffer) :]
                    self.link.commit(channel, len(buffer))

    def saw(self, kind: type) -> list[LinkEvent]:
        """Return the events of a kind, oldest first."""
        return [event for event in self.events if isinstance(event, kind)]


class Hosts:
    """A source and a destination; use as a context manager.

    :param tls: a directory with certificates of :func:`certificates`; None for plaintext.
    """

    def __init__(
        self,
        tls: pathlib.Path | None = None,
        options: LinkOptions | None = None,
        source_tls: TlsFiles | None = None,
        destination_tls: TlsFiles | None = None,
        source_secret: bytes = SECRET,
    ) -> None:
        self.selector = selectors.DefaultSelector()
        if tls is not None:
            source_tls = source_tls or files(tls, "host1", "host2")
            destination_tls = destination_tls or files(tls, "host2", "host1")
        self._tls = {Role.SOURCE: source_tls, Role.DESTINATION: destination_tls}
        self.options = options or LinkOptions(backoff=0.01, max_backoff=0.05)
        self.destination = self.make(Role.DESTINATION, ("127.0.0.1", 0))
        self.destination.link.start(self.selector)
        self.wire = Wire(self.selector, self.destination.link.address)
        self.source = self.make(Role.SOURCE, self.wire.address, source_secret)
        self.hosts = [self.source, self.destination]

    def make(
        self,
        role: Role,
        address: tuple[str, int],
        secret: bytes = SECRET,
        options: LinkOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Host:
        """Return a host like one of the two."""
        link = Link(
            role, MIGRATION, secret, address, self._tls[role], options or self.options, clock
        )
        return Host(link)

    def add(self, host: Host) -> Host:
        """Start a further host and make it part of each turn."""
        self.hosts.append(host)
        host.link.start(self.selector)
        return host

    def __enter__(self) -> Self:
        self.source.link.start(self.selector)
        return self

    def __exit__(self, *_exc: object) -> None:
        for host in self.hosts:
            host.link.abort()
        self.wire.close()
        left = len(self.selector.get_map())
        self.selector.close()
        assert left == 0, "descriptors were left behind"

    def turn(self, most: float = 0.05) -> None:
        """One turn of the event loop."""
        times = [host.link.timeout() for host in self.hosts]
        wait = min([most, *(one for one in times if one is not None)])
        if any(not host.sent for host in self.hosts if host.link.ready):
            wait = min(wait, 0.001)
        for key, events in self.selector.select(wait):
            key.data(events)
        for host in self.hosts:
            host.step()

    def until_carried(self, count: int) -> None:
        """Turn until ``count`` more bytes have crossed the wire."""
        goal = self.wire.carried + count
        self.until(lambda: self.wire.carried >= goal)

    def until(self, done: Callable[[], object]) -> None:
        """Turn until ``done()``; a test that waits too long fails."""
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, (
                f"source {self.source.events}, destination {self.destination.events}"
            )
            self.turn()

    def open(self) -> None:
        """Connect, and open both channels."""
        self.until(lambda: self.source.link.ready)
        self.source.link.send_open(MAIN)
        self.source.link.send_open(PREEMPT, urgent=True)
        self.until(lambda: len(self.destination.events) == 3)

    def finish(self) -> None:
        """Half-close everything, both ways, and wait until all is delivered."""
        self.until(lambda: self.source.sent and self.destination.sent)
        for host in (self.source, self.destination):
            for channel in (MAIN, PREEMPT):
                host.link.send_fin(channel)
        self.until(lambda: self.source.link.finished and self.destination.link.finished)


def certificates(directory: pathlib.Path) -> pathlib.Path:
    """Make a CA with three hosts' certificates."""
    make_ca(directory, {"host1": ["192.0.2.1"], "host2": ["192.0.2.2"], "host3": []})
    return directory


def files(directory: pathlib.Path, host: str, peer: str) -> TlsFiles:
    """Return the certificates of ``host``, which expects ``peer``."""
    return TlsFiles(
        str(directory / "ca.pem"),
        str(directory / f"{host}.pem"),
        str(directory / f"{host}.key"),
        peer,
    )
