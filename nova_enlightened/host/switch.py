# SPDX-License-Identifier: Apache-2.0
"""The switch of one migration to post-copy: asked for at once, until the domain has stopped here.

Before the migration job runs libvirt refuses the call, and before QEMU knows the capabilities of
this migration it does. A request that comes between these and the start of QEMU's migration is
accepted and forgotten. Asking again is safe in each case.
"""

import logging
import threading
import time
from collections.abc import Callable

import libvirt

LOG = logging.getLogger(__name__)

RETRY_S = 0.01
CHECK_S = 0.05
SLOW_S = 30.0
"""After this long something is wrong: it is said once, and asked less often from then on."""
SLOW_RETRY_S = 1.0


class PostCopySwitch:
    """Asks from a thread of its own, between :meth:`start` and :meth:`end`.

    :param domain: at the source, about to be migrated by another thread.
    :param on_accepted: called once, in that thread, when QEMU first accepts.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        domain: libvirt.virDomain,
        on_accepted: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._domain = domain
        self._on_accepted = on_accepted
        self._clock = clock
        self._accepted = False
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
            self._domain.migrateStartPostCopy(0)
        except libvirt.libvirtError as error:
            return str(error)
        if not self._accepted:
            self._accepted = True
            self._on_accepted()
        return None

    def _has_stopped(self) -> bool:
        try:
            return bool(self._domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED)
        except libvirt.libvirtError:
            return True  # gone from here: it has moved
