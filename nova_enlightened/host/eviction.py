# SPDX-License-Identifier: Apache-2.0
"""One urgent migration through libvirt: post-copy, switched at once.

libvirt runs a peer-to-peer migration inside one blocking call; the switch is a second call,
made from another thread and repeated until QEMU takes it.
"""

import dataclasses
import time
from collections.abc import Callable

import libvirt

from nova_enlightened import exception
from nova_enlightened.host.switch import PostCopySwitch


@dataclasses.dataclass(frozen=True)
class Route:
    """Where a domain goes and how.

    :param control_uri: the destination's libvirt, as seen from the source host.
    :param migrate_uri: where QEMU connects; ``unix://PATH`` for a relay, None for libvirt's choice.
    :param postcopy: switch at once; otherwise plain pre-copy.
    :param monitored: XML of the domain at its destination; None: as it is here.
    """

    control_uri: str
    migrate_uri: str | None = None
    postcopy: bool = True
    monitored: str | None = None

    def flags(self) -> int:
        flags: int = (
            libvirt.VIR_MIGRATE_LIVE
            | libvirt.VIR_MIGRATE_PEER2PEER
            | libvirt.VIR_MIGRATE_PERSIST_DEST
            | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        )
        return int(flags) | (libvirt.VIR_MIGRATE_POSTCOPY if self.postcopy else 0)

    def parameters(self) -> dict[str, str | int]:
        parameters: dict[str, str | int] = {}
        if self.migrate_uri:
            parameters[libvirt.VIR_MIGRATE_PARAM_URI] = self.migrate_uri
        if self.monitored:
            parameters[libvirt.VIR_MIGRATE_PARAM_DEST_XML] = self.monitored
        return parameters


@dataclasses.dataclass
class EvictionTimes:
    """Monotonic seconds of what happened; None where it did not."""

    ordered: float
    switch_accepted: float | None = None
    completed: float | None = None


class Eviction:
    """Moves one domain along a route; :meth:`run` blocks until libvirt has ended it."""

    def __init__(
        self,
        domain: libvirt.virDomain,
        route: Route,
        *,
        on_switch: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._domain = domain
        self._route = route
        self._on_switch = on_switch
        self._clock = clock
        self.times = EvictionTimes(ordered=clock())

    def run(self) -> EvictionTimes:
        """Order, switch and wait for the last page.

        :raises LibvirtError: libvirt refused or failed. When ``times.switch_accepted`` is
            set the domain may already run at the destination: that is no failed migration
            and must not be rolled back.
        """
        self.times.ordered = self._clock()
        switch = PostCopySwitch(self._domain, self._accepted, self._clock)
        if self._route.postcopy:
            switch.start()
        try:
            self._domain.migrateToURI3(
                self._route.control_uri, self._route.parameters(), self._route.flags()
            )
            self.times.completed = self._clock()
        except libvirt.libvirtError as error:
            raise exception.LibvirtError(
                f"libvirt ended the migration of {self._domain.name()}: {error}"
            ) from error
        finally:
            switch.end()
        return self.times

    def _accepted(self) -> None:
        self.times.switch_accepted = self._clock()
        self._on_switch()
