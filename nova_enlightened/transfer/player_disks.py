# SPDX-License-Identifier: Apache-2.0
"""The disks of a played VM, as read-only NBD exports on unix sockets.

Zeros are answered at once. A read of what has not come yet is remembered and answered when it
has, however long that takes: an error would be the guest's to suffer.
"""

import collections
import contextlib
import dataclasses
import itertools
import logging
import selectors
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened import exception
from nova_enlightened.appliance.places import UNIT, ApplianceSpace
from nova_enlightened.stream.events import NeedData
from nova_enlightened.stream.nbd import BlockStatus, Disconnect, Extent, NbdServer, Read
from nova_enlightened.stream.nbd_wire import NbdErrno

LOG = logging.getLogger(__name__)

KEPT_UNITS: Final = 8192
"""Units kept in memory after they came: 32 MiB."""
MAX_PENDING: Final = 128
"""Requests of one connection under way; QEMU has 16."""
MAX_BACKLOG: Final = 64 << 20
"""Bytes of answers a connection has not taken, beyond which nothing is read of it."""
MAX_CLIENTS: Final = 32
MAX_EXTENTS: Final = 4096
_READ: Final = 64 * 1024


@dataclasses.dataclass(eq=False)
class _Pending:
    """A read that waits for some of its units."""

    client: "_Client"
    request: Read
    places: range
    missing: set[int]
    units: dict[int, bytes]


class _Client:
    """One connection to one export."""

    def __init__(self, target: str, size: int, sock: socket.socket) -> None:
        self.target = target
        self.socket = sock
        # Whatever name QEMU was told: the socket says which disk it is.
        self.server = NbdServer({"": size, target: size})
        self.out: collections.deque[memoryview] = collections.deque()
        self.backlog = 0
        self.pending = 0
        self.closing = False
        self.send([self.server.data_to_send()])

    def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        for buffer in buffers:
            if len(buffer):
                self.out.append(memoryview(buffer))
                self.backlog += len(buffer)

    def flush(self) -> None:
        """:raises OSError: the client is gone."""
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while self.out:
                count = self.socket.sendmsg(itertools.islice(self.out, 64))
                self.backlog -= count
                while self.out and count >= len(self.out[0]):
                    count -= len(self.out.popleft())
                if count:
                    self.out[0] = self.out[0][count:]

    @property
    def wanted(self) -> int:
        """Events to wait for."""
        reading = self.pending < MAX_PENDING and self.backlog < MAX_BACKLOG and not self.closing
        return (selectors.EVENT_READ if reading else 0) | (selectors.EVENT_WRITE if self.out else 0)


class Disks:
    """All exports of one VM, in the owner's event loop.

    :param space: places of the appliance.
    :param zero: bool[places]: contents are zero.
    :param touched: called with the places of each read, and those of them that are not here.
    """

    def __init__(
        self,
        space: ApplianceSpace,
        zero: npt.NDArray[np.bool_],
        selector: selectors.BaseSelector,
        touched: Callable[[range, list[int]], None],
    ) -> None:
        self._space = space
        self._zero = zero
        self._selector = selector
        self._touched = touched
        self._listeners: list[socket.socket] = []
        self._clients: dict[_Client, int] = {}
        self._kept: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._waiting: dict[int, list[_Pending]] = {}
        self._refusing = False
        self.reads = 0
        self.waited = 0
        """Reads that had to wait for the store or the cache."""
        self.waiting: dict[int, float] = {}
        """Places a read waits for, and since when (monotonic)."""
        self.last_used = time.monotonic()
        """When a client was there last."""

    @property
    def clients(self) -> int:
        """Connections there are."""
        return len(self._clients)

    def open(self, listeners: Mapping[str, socket.socket]) -> None:
        """Serve each target on its listening socket, which is this object's from now on."""
        sizes = dict(self._space.disks)
        for target, listener in listeners.items():
            if target not in sizes:
                raise exception.PlayerError(f"the appliance has no disk {target}")
            listener.setblocking(False)
            self._listeners.append(listener)
            self._selector.register(
                listener,
                selectors.EVENT_READ,
                lambda _, sock=listener, name=target: self._accept(sock, name, sizes[name]),
            )

    def close(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        for listener in self._listeners:
            self._selector.unregister(listener)
            listener.close()
        self._listeners.clear()

    def refuse(self) -> None:
        """The VM cannot be started: from now on answer reads with an error, also those that wait.

        Whoever makes its domain is not to wait for QEMU, which reads a disk's first sector.
        """
        self._refusing = True
        waiting = {id(one): one for reads in self._waiting.values() for one in reads}
        self._waiting.clear()
        self.waiting.clear()
        for pending in waiting.values():
            pending.client.pending -= 1
            self._refuse(pending.client, pending.request)
            if pending.client in self._clients:
                self._serve(pending.client)

    @staticmethod
    def _refuse(client: _Client, request: Read) -> None:
        client.send([client.server.error_reply(request.handle, NbdErrno.IO)])

    def arrived(self, places: npt.NDArray[np.uint32], units: npt.NDArray[np.uint8]) -> None:
        """Contents have come.

        :param places: of disks, distinct.
        :param units: u8[len(places), 4096].
        """
        done: list[_Pending] = []
        for place, unit in zip(places.tolist(), units, strict=True):
            content = unit.tobytes()
            self._kept[place] = content
            self._kept.move_to_end(place)
            self.waiting.pop(place, None)
            for pending in self._waiting.pop(place, ()):
                pending.units[place] = content
                pending.missing.discard(place)
                if not pending.missing:
                    done.append(pending)
        while len(self._kept) > KEPT_UNITS:
            self._kept.popitem(last=False)
        for pending in done:
            if pending.client in self._clients:
                pending.client.pending -= 1
                self._answer(pending.client, pending.request, pending.places, pending.units)
                self._serve(pending.client)

    # -- clients ----------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, target: str, size: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sock, _ = listener.accept()
            if len(self._clients) >= MAX_CLIENTS:
                LOG.warning("More than %d NBD clients: one is turned away", MAX_CLIENTS)
                sock.close()
                return
            sock.setblocking(False)
            client = _Client(target, size, sock)
            self._clients[client] = 0
            self._serve(client)

    def _on_ready(self, client: _Client, ready: int) -> None:
        if ready & selectors.EVENT_READ:
            try:
                data = client.socket.recv(_READ)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                self._drop(client)
                return
            client.server.receive_data(data)
        self._serve(client)

    def _serve(self, client: _Client) -> None:
        """Work off what it asks, send what it takes, and see what to wait for next."""
        try:
            while client.pending < MAX_PENDING:
                event = client.server.next_event()
                if isinstance(event, NeedData):
                    break
                self._on_event(client, event)
        except exception.StreamError as error:
            LOG.warning("NBD client of %s: %s", client.target, error)
            self._drop(client)
            return
        client.send([client.server.data_to_send()])
        try:
            client.flush()
        except OSError:
            self._drop(client)
            return
        if client.closing and not client.out:
            self._drop(client)
        else:
            self._watch(client)

    def _watch(self, client: _Client) -> None:
        wanted, watched = client.wanted, self._clients[client]
        if wanted == watched:
            return
        if not watched:
            self._selector.register(
                client.socket, wanted, lambda ready: self._on_ready(client, ready)
            )
        elif not wanted:
            self._selector.unregister(client.socket)
        else:
            key = self._selector.get_key(client.socket)
            self._selector.modify(client.socket, wanted, key.data)
        self._clients[client] = wanted

    def _drop(self, client: _Client) -> None:
        watched = self._clients.pop(client, None)
        if watched is None:
            return
        if watched:
            self._selector.unregister(client.socket)
        client.socket.close()
        self.last_used = time.monotonic()
        for place, pendings in list(self._waiting.items()):
            left = [pending for pending in pendings if pending.client is not client]
            if left:
                self._waiting[place] = left
            else:
                del self._waiting[place]
                self.waiting.pop(place, None)

    # -- requests ---------------------------------------------------------------------------

    def _on_event(self, client: _Client, event: Read | BlockStatus | Disconnect) -> None:
        match event:
            case Disconnect():
                client.closing = True
            case BlockStatus():
                extents = self._extents(client.target, event.offset, event.length)
                client.send([client.server.status_reply(event, extents)])
            case Read():
                self._on_read(client, event)

    def _on_read(self, client: _Client, request: Read) -> None:
        try:
            places = self._space.disk_places(client.target, request.offset, request.length)
        except exception.ApplianceError:
            client.send([client.server.error_reply(request.handle, NbdErrno.INVAL)])
            return
        if self._refusing:
            self._refuse(client, request)
            return
        self.reads += 1
        units: dict[int, bytes] = {}
        missing: set[int] = set()
        for place in places:
            if self._zero[place]:
                continue
            unit = self._kept.get(place)
            if unit is None:
                missing.add(place)
            else:
                self._kept.move_to_end(place)
                units[place] = unit
        if not missing:
            self._touched(places, [])
            self._answer(client, request, places, units)
            return
        self.waited += 1
        client.pending += 1
        pending = _Pending(client, request, places, missing, units)
        now = time.monotonic()
        for place in missing:
            self._waiting.setdefault(place, []).append(pending)
            self.waiting.setdefault(place, now)
        self._touched(places, sorted(missing))

    def _answer(
        self, client: _Client, request: Read, places: range, units: Mapping[int, bytes]
    ) -> None:
        """Send the range, zeros as zeros and neighbours as one."""
        first = self._space.disk_range(client.target).start * UNIT
        begin, end = request.offset + first, request.offset + first + request.length
        parts: list[bytes | memoryview | int] = []
        run: list[memoryview] = []
        for place in places:
            low, high = max(begin, place * UNIT), min(end, (place + 1) * UNIT)
            unit = units.get(place)
            if unit is not None:
                run.append(memoryview(unit)[low - place * UNIT : high - place * UNIT])
                continue
            if run:
                parts.append(b"".join(run))
                run = []
            if parts and isinstance(parts[-1], int):
                parts[-1] += high - low
            else:
                parts.append(high - low)
        if run:
            parts.append(b"".join(run))
        client.send(client.server.read_reply(request, parts))

    def _extents(self, target: str, offset: int, length: int) -> list[Extent]:
        """What of a range is zero, from its beginning; perhaps not to its end."""
        places = self._space.disk_places(target, offset, length)
        zero = self._zero[places.start : places.stop]
        edges = np.flatnonzero(zero[1:] != zero[:-1])[: MAX_EXTENTS - 1] + 1
        whole = edges.size < MAX_EXTENTS - 1
        ends = [*edges.tolist(), len(places)] if whole else edges.tolist()
        extents, begin = [], offset
        origin = offset - offset % UNIT
        for end in ends:
            stop = min(origin + end * UNIT, offset + length)
            at = (begin - origin) // UNIT
            extents.append(Extent(stop - begin, bool(zero[at])))
            begin = stop
        return extents
