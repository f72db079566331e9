# SPDX-License-Identifier: Apache-2.0
"""The switch of one migration to post-copy: asked for at once, until the domain has stopped here.

Before the migration job runs libvirt refuses the call, and before QEMU knows the capabilities of
this migration it does. A request that comes between these and the start of QEMU's migration is
accepted and forgotten. Asking again is safe in each case.

QEMU from 8.2 on starts the domain at its source again, while it executes at its destination, where
the stream breaks after the last page and before the destination's word (``migration_completion``).
A domain that stood still before the switch is left as it was. So there it is suspended first, as
``virsh migrate --timeout`` does: libvirt has it execute at its destination all the same, and at its
source where the migration fails before the switch.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import libvirt

from nova_enlightened import exception
from nova_enlightened.host import qemu_monitor, standing

LOG = logging.getLogger(__name__)

RETRY_S = 0.005
CHECK_S = 0.05
SLOW_S = 30.0
"""After this long something is wrong: it is said once, and asked less often from then on."""
SLOW_RETRY_S = 1.0
_BY_ITSELF = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER]
"""How libvirt calls one that was suspended and does not migrate."""
STARTS_AGAIN = 8_002_000
"""The first QEMU that does, as libvirt tells versions."""


class PostCopySwitch:
    """Asks from a thread of its own, between :meth:`start` and :meth:`end`.

    :param domain: ``libvirt.virDomain`` at the source, about to be migrated by another thread.
    :param on_accepted: called once, in that thread, when QEMU first accepts.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        domain: Any,
        on_accepted: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._domain = domain
        self._on_accepted = on_accepted
        self._clock = clock
        self._accepted = False
        self._guarded = False
        self._suspended = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="postcopy-switch", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def end(self) -> None:
        """The migration has ended, or will not begin: ask no more. Waits for the thread."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        self._domain = _apart(self._domain)
        with contextlib.suppress(libvirt.libvirtError):  # guarded where that is not known
            self._guarded = self._domain.connect().getVersion() < STARTS_AGAIN
        try:
            self._ask_until_it_stops()
        finally:
            self._let_go()

    def _ask_until_it_stops(self) -> None:
        slow = self._clock() + SLOW_S
        warned = False
        while not self._ended.is_set():
            refusal = self._ask()
            pause = CHECK_S if self._accepted else RETRY_S
            if self._clock() > slow:
                pause = SLOW_RETRY_S
                if not warned:
                    warned = True
                    LOG.warning(
                        "%s has not switched to post-copy after %d s, pre-copy goes on: %s",
                        self._domain.name(),
                        SLOW_S,
                        refusal or "accepted, but it still runs here",
                    )
            self._ended.wait(pause)
            if self._accepted and self._has_stopped():
                return

    def _ask(self) -> str | None:
        """Ask once; the refusal, or None where QEMU accepts."""
        try:
            if not (self._guarded or self._guard()):
                return "libvirt prepares QEMU's migration"
            self._domain.migrateStartPostCopy(0)
        except (libvirt.libvirtError, exception.LibvirtError) as error:
            return str(error)
        if not self._accepted:
            self._accepted = True
            self._on_accepted()
        return None

    def _guard(self) -> bool:
        """Whether QEMU will not start the domain here again. It stands still hardly longer than it
        has to: libvirt has all ready by then. Raises libvirtError, LibvirtError.
        """
        # As soon as QEMU would accept. Once its migration has begun it may be late to tell.
        if not qemu_monitor.has_capability(self._domain, "postcopy-ram"):
            return False
        if self._domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            self._domain.suspend()
            self._suspended = True
        self._guarded = True
        return True

    def _let_go(self) -> None:
        """A domain whose migration had ended before this suspended it executes again."""
        with contextlib.suppress(libvirt.libvirtError):
            if self._suspended and self._domain.state() == _BY_ITSELF:
                self._domain.resume()

    def _has_stopped(self) -> bool:
        """For the switch, which a suspended domain has not done yet."""
        try:
            state, reason = self._domain.state()
        except libvirt.libvirtError:
            return True  # gone from here: it has moved
        return standing.of_state(state, reason) in standing.SWITCHED


def _apart(domain: Any) -> Any:
    """The same domain on a connection of its own, where one can be had.

    libvirt's client may be five seconds late with an answer (until its next keepalive) on a
    connection on which another thread waits for the end of a migration.
    """
    try:
        own = libvirt.open(domain.connect().getURI())
        return own.lookupByUUIDString(domain.UUIDString())
    except libvirt.libvirtError as error:
        LOG.debug("No connection of its own for the switch: %s", error)
        return domain
