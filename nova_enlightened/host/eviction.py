# SPDX-License-Identifier: Apache-2.0
"""One urgent migration through libvirt: post-copy, switched at once.

libvirt runs a peer-to-peer migration inside one blocking call; the switch is a second call,
made from another thread and repeated until QEMU takes it.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import libvirt

from nova_enlightened import exception

LOG = logging.getLogger(__name__)

SWITCH_RETRY_S = 0.01
SWITCH_TIMEOUT_S = 30.0
GUARD_INTERVAL_S = 0.25

BACKGROUND_MIB_S = 1
"""Rate of QEMU's own background scan while a relay requests the pages, the least libvirt can set.

QEMU serves page requests without regard to ``max-postcopy-bandwidth`` and stops only its own
scan at that rate (``ram_save_iterate`` in migration/ram.c), so the order of the pages is then
the order of the requests. The scan never stops altogether: a relay that stops requesting slows
the migration down but cannot stop it.
"""


@dataclasses.dataclass(frozen=True)
class Route:
    """Where a domain goes and how.

    :param control_uri: the destination's libvirt, as seen from the source host.
    :param migrate_uri: where QEMU connects; ``unix://PATH`` for a relay, None for libvirt's choice.
    :param postcopy: switch at once; otherwise plain pre-copy.
    :param ordered: a relay requests the pages, so QEMU's own scan is held back.
    """

    control_uri: str
    migrate_uri: str | None = None
    postcopy: bool = True
    ordered: bool = False

    def flags(self) -> int:
        flags = (
            libvirt.VIR_MIGRATE_LIVE
            | libvirt.VIR_MIGRATE_PEER2PEER
            | libvirt.VIR_MIGRATE_PERSIST_DEST
            | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        )
        return flags | (libvirt.VIR_MIGRATE_POSTCOPY if self.postcopy else 0)

    def parameters(self) -> dict[str, str | int]:
        parameters: dict[str, str | int] = {}
        if self.migrate_uri:
            parameters[libvirt.VIR_MIGRATE_PARAM_URI] = self.migrate_uri
        if self.ordered:
            parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = BACKGROUND_MIB_S
        return parameters


@dataclasses.dataclass
class EvictionTimes:
    """Monotonic seconds of what happened; None where it did not."""

    ordered: float
    switch_accepted: float | None = None
    completed: float | None = None


class Eviction:
    """Moves one domain along a route; :meth:`run` blocks until libvirt has ended it.

    :param relay_state: answers the source relay's state (``RunningRelay.state``). QEMU's own
        scan is held back until the relay has asked for all it knows of, or cannot ask any more.
    """

    def __init__(
        self,
        domain: libvirt.virDomain,
        route: Route,
        *,
        relay_state: Callable[[], Mapping[str, Any]] = dict,
        on_switch: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._domain = domain
        self._route = route
        self._relay_state = relay_state
        self._on_switch = on_switch
        self._clock = clock
        self._ended = threading.Event()
        self.times = EvictionTimes(ordered=clock())

    def run(self) -> EvictionTimes:
        """Order, switch and wait for the last page.

        :raises LibvirtError: libvirt refused or failed. When ``times.switch_accepted`` is
            set the domain may already run at the destination: that is no failed migration
            and must not be rolled back.
        """
        self.times.ordered = self._clock()
        switcher = threading.Thread(target=self._switch, name="postcopy-switch", daemon=True)
        if self._route.postcopy:
            switcher.start()
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
            self._ended.set()
            if switcher.ident is not None:
                switcher.join()
        return self.times

    def _guard(self) -> None:
        """Give QEMU's own scan full speed as soon as the relay has no pages to request."""
        while not self._ended.wait(GUARD_INTERVAL_S):
            if self._relay_state().get("background") == "free":
                self._release_background()
                return

    def _release_background(self) -> None:
        try:
            self._domain.migrateSetMaxSpeed(0, libvirt.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY)
        except libvirt.libvirtError as error:
            LOG.warning("Background scan of %s stays slow: %s", self._domain.name(), error)

    def _switch(self) -> None:
        """Ask for post-copy until QEMU takes it.

        Before the migration job runs libvirt refuses the call, and before QEMU knows the
        capabilities of this migration it does; neither leaves a trace, so asking again is safe.
        """
        deadline = self._clock() + SWITCH_TIMEOUT_S
        last: libvirt.libvirtError | None = None
        while not self._ended.is_set() and self._clock() < deadline:
            try:
                self._domain.migrateStartPostCopy(0)
            except libvirt.libvirtError as error:
                last = error
                self._ended.wait(SWITCH_RETRY_S)
                continue
            self.times.switch_accepted = self._clock()
            self._on_switch()
            if self._route.ordered:
                self._guard()
            return
        if not self._ended.is_set():
            LOG.warning(
                "Post-copy of %s was not accepted within %d s, pre-copy goes on: %s",
                self._domain.name(),
                SWITCH_TIMEOUT_S,
                last,
            )
