# SPDX-License-Identifier: Apache-2.0
"""The agent's connection to libvirt: opened when needed, and again after libvirtd was gone."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import libvirt

from nova_enlightened import exception

LOG = logging.getLogger(__name__)

RETRY_S: Final = 2.0
"""Between two attempts to connect."""
KEEPALIVE_S: Final = 5
KEEPALIVE_MISSED: Final = 3
"""A libvirtd that hangs fails the calls that wait for it after about 20 s."""
_POLL_S: Final = 1.0

Opener = Callable[[str], Any]


def run_event_loop() -> None:
    """Serve libvirt's events, keepalive among them, in a thread; before the first connection."""
    libvirt.virEventRegisterDefaultImpl()
    # Errors are raised, which is enough; libvirt would print them besides.
    libvirt.registerErrorHandler(lambda *_: None, None)

    def serve() -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError as error:
                LOG.warning("libvirt's event loop: %s", error)
                time.sleep(_POLL_S)

    threading.Thread(target=serve, name="libvirt-events", daemon=True).start()


@contextmanager
def translated(what: str) -> Iterator[None]:
    """:raises LibvirtError: in place of libvirt's own error, with `what` before it."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise exception.LibvirtError(f"{what}: {error}") from error


class Connection:
    """One connection, shared by the threads of the agent. Made without I/O."""

    def __init__(
        self,
        uri: str,
        opener: Opener = libvirt.open,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uri = uri
        self._opener = opener
        self._clock = clock
        self._lock = threading.Lock()
        self._open: Any = None
        self._next_attempt = -RETRY_S
        self._failure = "not tried yet"

    def get(self) -> Any:
        """The open ``virConnect``.

        :raises LibvirtError: there is none now; at most one attempt is made every `RETRY_S`.
        """
        with self._lock:
            if self._open is not None and self._is_alive(self._open):
                return self._open
            self._drop()
            now = self._clock()
            if now < self._next_attempt:
                raise exception.LibvirtError(f"{self._uri}: {self._failure}")
            self._next_attempt = now + RETRY_S
            try:
                self._open = self._opener(self._uri)
            except libvirt.libvirtError as error:
                self._failure = str(error)
                raise exception.LibvirtError(f"{self._uri}: {error}") from error
            try:
                self._open.setKeepAlive(KEEPALIVE_S, KEEPALIVE_MISSED)
            except libvirt.libvirtError as error:
                LOG.debug("No keepalive: %s", error)  # a driver within this process has none
            LOG.info("Connected to libvirt at %s", self._uri)
            return self._open

    def domain(self, uuid: str) -> Any:
        """A running domain of this host. :raises LibvirtError: there is none of this UUID."""
        connection = self.get()
        with translated(f"domain {uuid}"):
            domain = connection.lookupByUUIDString(uuid)
            if not domain.isActive():
                raise exception.LibvirtError(f"domain {uuid} is not running")
            return domain

    def hostname(self) -> str:
        """The hypervisor's host name, which Nova names the node and its provider by."""
        connection = self.get()
        with translated("host name"):
            return str(connection.getHostname())

    def capabilities(self) -> str:
        """The host's capabilities, as XML."""
        connection = self.get()
        with translated("capabilities"):
            return str(connection.getCapabilities())

    def close(self) -> None:
        """Let go of libvirt."""
        with self._lock:
            self._drop()

    @staticmethod
    def _is_alive(connection: Any) -> bool:
        try:
            return bool(connection.isAlive())
        except libvirt.libvirtError:
            return False

    def _drop(self) -> None:
        old, self._open = self._open, None
        if old is None:
            return
        try:
            old.close()
        except libvirt.libvirtError as error:
            LOG.debug("Closing a connection that was lost: %s", error)
