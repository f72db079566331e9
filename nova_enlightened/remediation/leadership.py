# SPDX-License-Identifier: Apache-2.0
"""Which of several instances acts: the one that holds a lock in the coordination backend.

The backend may hang for as long as it likes: it is asked in a thread of its own, and who has not
been confirmed for :data:`CONFIRMED_FOR_S` does not lead any more, well before a backend gives the
lock of a silent member to another (tooz: 30 s unless the URL says otherwise).
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import tooz
from tooz import coordination

from nova_enlightened import exception
from nova_enlightened.conf import remediation as options

LOG = logging.getLogger(__name__)

LOCK: Final = b"nova-enlightened-remediator"
LOOK_S: Final = 1.0
CONFIRMED_FOR_S: Final = 8.0


def check(url: str) -> None:
    """:raises ConfigError: there is no driver for such a URL, or it gives away the lock of a silent
    leader before that stops to lead; says no password that is in it.
    """
    try:
        made = coordination.get_coordinator(url, b"check")
    except (tooz.ToozError, RuntimeError, ImportError, ValueError) as error:  # stevedore's too
        scheme = url.partition(":")[0]
        raise exception.ConfigError(
            f"[{options.GROUP}] backend_url = {scheme}:... has no driver that is installed"
        ) from error
    kept = getattr(made, "lock_timeout", None)
    if kept is not None and kept <= CONFIRMED_FOR_S:
        raise exception.ConfigError(
            f"[{options.GROUP}] backend_url: a silent leader's lock is kept for {kept:g} s; with a "
            f"timeout of {CONFIRMED_FOR_S:g} s or less two instances would lead for a moment"
        )


class Leadership:
    """One instance's part in it.

    :param url: of the backend, as tooz takes it.
    :param member: names this instance, different for each.
    """

    def __init__(self, url: str, member: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._member = member
        self._clock = clock
        self._coordinator: Any = None
        self._lock: Any = None
        self._answered = True
        self._confirmed: float | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leadership", daemon=True)

    @property
    def leads(self) -> bool:
        """Whether this instance may act now."""
        confirmed = self._confirmed
        return confirmed is not None and self._clock() - confirmed < CONFIRMED_FOR_S

    def start(self) -> None:
        """Begin to ask for the lead."""
        self._thread.start()

    def stop(self) -> None:
        """Give the lead away; does not wait for a backend that hangs."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=2 * LOOK_S)
        self._confirmed = None

    def look(self) -> None:
        """Ask the backend once; called by the thread."""
        asked = self._clock()
        try:
            holds = self._holds()
        except Exception as error:  # drivers let errors of their client libraries through
            if self._answered:
                LOG.warning("The coordination backend does not answer: %s", error)
            self._answered = False
            self._leave()
            return
        if not self._answered:
            LOG.info("The coordination backend answers again")
        self._answered = True
        if holds != (self._confirmed is not None):
            LOG.info("%s %s", "Leading as" if holds else "Not leading any more:", self._member)
        # From before the question: the answer may have been long on its way.
        self._confirmed = asked if holds else None

    def _holds(self) -> bool:
        if self._coordinator is None:
            coordinator = coordination.get_coordinator(self._url, self._member.encode())
            coordinator.start()
            self._coordinator, self._lock = coordinator, coordinator.get_lock(LOCK)
        self._coordinator.heartbeat()
        if self._confirmed is None:
            return bool(self._lock.acquire(blocking=False))
        try:
            return bool(self._lock.is_still_owner())
        except tooz.NotImplemented:
            return bool(self._lock.acquired)

    def _leave(self) -> None:
        """Forget the connection; the next look makes another."""
        coordinator, lock = self._coordinator, self._lock
        self._coordinator = self._lock = self._confirmed = None
        for end in (getattr(lock, "release", None), getattr(coordinator, "stop", None)):
            try:
                if end is not None:
                    end()
            except Exception as error:  # as above; the connection is forgotten anyway
                LOG.debug("Leaving the coordination backend: %s", error)

    def _run(self) -> None:
        while not self._stopping.wait(0 if self._coordinator is None else LOOK_S):
            self.look()
            if self._coordinator is None and self._stopping.wait(LOOK_S):
                break
        self._leave()
