# SPDX-License-Identifier: Apache-2.0
"""The relay beside the receiving QEMU: a peer that is not ours never reaches QEMU through it."""

import logging
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

from nova_enlightened import exception, niceness
from nova_enlightened.stream.events import NEED_DATA
from nova_enlightened.stream.link import ACK_DELAY_S
from nova_enlightened.stream.link_state import Role
from nova_enlightened.stream.return_path import RequestPages, ReturnPath
from nova_enlightened.transfer.relay import MAIN, Relay
from nova_enlightened.transfer.spec import RelaySpec

LOG = logging.getLogger(__name__)

QEMU_BUFFER: Final = 32 * 1024
"""Bytes the socket to QEMU is asked to hold; QEMU reads 32 KiB at a time."""
BULK_BUFFER: Final = 512 * 1024
CALM_BUFFER: Final = 256 * 1024
CALM_S: Final = 0.004
"""A peer that lets as much wait has sent all that the guest needs most."""
CONNECT_S: Final = 10.0
"""How long QEMU may take to listen; libvirt has it listen before the source is started."""


class DestinationRelay(Relay):
    """Connects to QEMU once for each channel the peer opens."""

    role = Role.DESTINATION

    def __init__(self, spec: RelaySpec, listener: socket.socket | None) -> None:
        super().__init__(spec, listener)
        self._unconnected: dict[int, float] = {}
        self._early: list[tuple[int, memoryview]] = []
        self._return_path: ReturnPath | None = ReturnPath()
        self._buffer: int | None = None

    def _opened(self, channel: int) -> None:
        self._unconnected[channel] = time.monotonic() + CONNECT_S
        self._connect(channel)

    def _outgoing(self, channel: int, data: memoryview) -> None:
        if channel != MAIN or self._return_path is None:
            return
        self._return_path.receive_data(data)
        try:
            while (event := self._return_path.next_event()) is not NEED_DATA:
                if isinstance(event, RequestPages):
                    self._note_fault()
                    return
        except exception.ReturnPathError:
            self._return_path = None  # the source's relay judges it

    def _note_fault(self) -> None:
        """The guest runs here and waits for pages: from now on delay counts.

        What QEMU has not read yet stands before the next such page. Kept here instead, it is
        seen, and counts as under way.
        """
        self._return_path = None
        self._hold(QEMU_BUFFER)

    def _paced(self, delay: float) -> None:
        self._link.gather(delay if delay > ACK_DELAY_S else None)
        if delay >= CALM_S:
            niceness.ask(niceness.FAIR)
            self._hold(CALM_BUFFER)
        else:
            self._hold(BULK_BUFFER if delay > ACK_DELAY_S else QEMU_BUFFER)

    def _hold(self, size: int) -> None:
        """Let the sockets to QEMU hold so many bytes, also those that come."""
        self._buffer = size
        for channel in self._channels.values():
            channel.limit_buffer(size)

    def _connect(self, channel: int) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(self.spec.socket)
        except OSError as error:  # a full backlog is EAGAIN: asked again on the next turn
            sock.close()
            if time.monotonic() > self._unconnected[channel]:
                del self._unconnected[channel]
                self._fail(f"QEMU does not listen at {self.spec.socket}: {error}")
                self._link.send_reset(channel)
            return
        del self._unconnected[channel]
        self._add_channel(channel, sock)
        if self._buffer is not None:
            self._channels[channel].limit_buffer(self._buffer)
        early, self._early = self._early, []
        for number, view in early:
            self._deliver(number, view)

    def _deliver(self, number: int, view: memoryview) -> None:
        if number in self._unconnected:
            self._early.append((number, view))
        else:
            super()._deliver(number, view)

    def _work(self, now: float) -> None:
        for channel in list(self._unconnected):
            self._connect(channel)

    def _facts(self) -> Mapping[str, Any]:
        if self._link.finished or self._link.closed:
            phase = "completed"
        else:
            phase = "connected" if self._channels else "waiting"
        return {"phase": phase}
