# SPDX-License-Identifier: Apache-2.0
"""When a guest stopped at its source and started at its destination, from QEMU's own events."""

from __future__ import annotations

import functools
import threading
import time
from types import TracebackType
from typing import Any, Self

import libvirt
import libvirt_qemu

from lab.hosts import Host


@functools.cache
def event_loop() -> None:
    """Run libvirt's event loop in a thread of this process, once.

    Connections opened before this deliver no events; those opened later need it.
    """
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_turn, name="libvirt-events", daemon=True).start()


def _turn() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


class Watch:
    """Collects what happens to one domain on two hosts while the block lasts.

    ``seen`` maps (host name, event) to monotonic seconds, the first time each happened. Events
    are QEMU's (``STOP``, ``RESUME``), stamped by QEMU, and libvirt's lifecycle events in
    capitals (``STARTED``, ``STOPPED``, ...), stamped as they arrive here.
    """

    def __init__(self, name: str, hosts: tuple[Host, ...]) -> None:
        self._name = name
        self._hosts = hosts
        self._open: list[tuple[libvirt.virConnect, int, int]] = []
        self._changed = threading.Condition()
        self.seen: dict[tuple[str, str], float] = {}

    def __enter__(self) -> Self:
        event_loop()
        for host in self._hosts:
            connection = host.connect()
            lifecycle = connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, host.name
            )
            monitor = libvirt_qemu.qemuMonitorEventRegister(
                connection, None, None, self._monitor, host.name
            )
            self._open.append((connection, lifecycle, monitor))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection, lifecycle, monitor in self._open:
            try:
                libvirt_qemu.qemuMonitorEventDeregister(connection, monitor)
                connection.domainEventDeregisterAny(lifecycle)
                connection.close()
            except libvirt.libvirtError:
                pass  # the host is gone, and what was registered with it
        self._open.clear()

    def at(self, host: Host, event: str) -> float | None:
        """When that event first happened there; None if it did not."""
        with self._changed:
            return self.seen.get((host.name, event))

    def wait(self, host: Host, event: str, seconds: float) -> float | None:
        """``at``, but the event may still be on its way."""
        with self._changed:
            self._changed.wait_for(lambda: (host.name, event) in self.seen, seconds)
            return self.seen.get((host.name, event))

    def _note(self, host: str, event: str, at: float) -> None:
        with self._changed:
            self.seen.setdefault((host, event), at)
            self._changed.notify_all()

    def _lifecycle(
        self, _: libvirt.virConnect, domain: libvirt.virDomain, event: int, detail: int, host: str
    ) -> None:
        if domain.name() == self._name:
            self._note(host, _LIFECYCLE.get(event, str(event)), time.monotonic())

    def _monitor(
        self,
        _: libvirt.virConnect,
        domain: libvirt.virDomain,
        event: str,
        seconds: int,
        micros: int,
        details: Any,
        host: str,
    ) -> None:
        if domain.name() == self._name:
            ahead = time.clock_gettime(time.CLOCK_REALTIME) - time.monotonic()
            self._note(host, event, seconds + micros * 1e-6 - ahead)


_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: "STARTED",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: "SUSPENDED",
    libvirt.VIR_DOMAIN_EVENT_RESUMED: "RESUMED",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "STOPPED",
}
