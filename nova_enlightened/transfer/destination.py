# SPDX-License-Identifier: Apache-2.0
"""The relay beside the receiving QEMU: a peer that is not ours never reaches QEMU through it."""

import logging
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

from nova_enlightened.stream.link_state import Role
from nova_enlightened.transfer.relay import Relay
from nova_enlightened.transfer.spec import RelaySpec

LOG = logging.getLogger(__name__)

QEMU_BUFFER: Final = 32 * 1024
"""Bytes the socket to QEMU is asked to hold; QEMU reads 32 KiB at a time."""
CONNECT_S: Final = 10.0
"""How long QEMU may take to listen; libvirt has it listen before the source is started."""


class DestinationRelay(Relay):
    """Connects to QEMU once for each channel the peer opens."""

    role = Role.DESTINATION

    def __init__(self, spec: RelaySpec, listener: socket.socket | None) -> None:
        super().__init__(spec, listener)
        self._unconnected: dict[int, float] = {}
        self._early: list[tuple[int, memoryview]] = []

    def _opened(self, channel: int) -> None:
        self._unconnected[channel] = time.monotonic() + CONNECT_S
        self._connect(channel)

    def _connect(self, channel: int) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        # What QEMU has not read yet stands before the next page the guest waits for; here it
        # can be seen, and counts as under way.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QEMU_BUFFER)
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
