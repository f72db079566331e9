# SPDX-License-Identifier: Apache-2.0
"""Keeps the second monitor of a VM that arrives, while relays come and go.

A relay may be lost at a moment when QEMU's main loop waits for a page, and libvirt's monitor with
it (see :mod:`.spare_monitor`). So the destination's relay leaves a process behind, a fork of itself
that does nothing while all is well: QEMU connects its second monitor there, and whoever resumes the
migration has QEMU listen again through it.
"""

import contextlib
import logging
import os
import pathlib
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from nova_enlightened import exception
from nova_enlightened.host.spare_monitor import SpareMonitor
from nova_enlightened.transfer import control
from nova_enlightened.transfer.control import ControlServer

LOG = logging.getLogger(__name__)

PAUSE_S: Final = 4.0
"""How long QEMU may take to notice that its stream has ended: less than an asker waits."""
LOOK_S: Final = 0.2
STATUS_S: Final = 2.0
"""Between two questions whether the migration has ended, once the relay is gone."""
PATIENCE_S: Final = 86400.0
"""For the answer. QEMU keeps eight questions for its main loop, and with so many it hears nothing
more, out of band either (``monitor/qmp.c``): the next is asked when this one is answered.
"""
ALONE_S: Final = 5.0
"""Without relay and QEMU there is nothing to wait for; QEMU looks for somebody more often."""
WITNESS_S: Final = 300.0
"""But there is something to tell, where QEMU has ended and the VM never executed in it."""
_COMPLETE: Final = b"\1"


def beside(monitor: str, stream: str, migration: str) -> Callable[[], None]:
    """Have such a process beside this one, which is about to be the destination's relay.

    To be called before there are threads.

    :param monitor, stream, migration: of the specification: ``monitor``, ``socket``, ``migration``.
    :returns: to be called when the last page has crossed: it is not needed any more.
    """
    _end_former(monitor)
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        os.close(reader)
        return lambda: _tell(writer)
    status = 1
    try:
        os.closerange(3, reader)
        os.closerange(reader + 1, os.sysconf("SC_OPEN_MAX"))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ArrivalMonitor(monitor, stream, migration, reader).run()
        status = 0
    except BaseException:  # it must not return into what is the relay's
        LOG.exception("The second monitor of %s ends", monitor)
    finally:
        os._exit(status)


def recover(monitor: str, uri: str) -> None:
    """Have the QEMU that is connected there listen for its migration stream again.

    :param monitor: ``RelaySpec.monitor``.
    :raises RelayGone: there is no such process.
    :raises RelayError: QEMU is not connected to it, does not answer, or declines.
    """
    control.ask(control_path(monitor), "recover", uri=uri)


class Told(NamedTuple):
    """See the attributes of the same names of :class:`.SpareMonitor`."""

    executed: bool | None = None
    waits: bool = False


def executed(monitor: str, migration: str) -> Told:
    """Whether the VM has executed that arrived, as far as anybody can tell.

    :param monitor: ``RelaySpec.monitor``.
    :param migration: by which it arrived. Of another arrival of the same VM nothing is said.
    """
    try:
        told = control.ask(control_path(monitor), "executed", migration=migration)
    except exception.RelayError:
        return Told()
    so_far = told.get("executed")
    return Told(so_far if isinstance(so_far, bool) else None, told.get("waits") is True)


def control_path(monitor: str) -> str:
    """Where the process is asked."""
    return str(pathlib.Path(monitor).with_suffix(".control"))


def _end_former(monitor: str) -> None:
    """End that of an earlier arrival of the VM, and wait until its sockets are gone."""
    path = control_path(monitor)
    with contextlib.suppress(exception.RelayError):
        control.ask(path, "end")
        deadline = time.monotonic() + LOOK_S * 10
        while os.path.exists(path) and time.monotonic() < deadline:
            time.sleep(LOOK_S / 20)


def _tell(writer: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(writer, _COMPLETE)


class ArrivalMonitor:
    """The process.

    :param path: where QEMU connects its second monitor.
    :param stream: where it listens for its stream: a file of its own, which tells who it is.
    :param migration: by which the VM arrives.
    :param relay: end of a pipe that the relay holds.
    """

    def __init__(
        self,
        path: str,
        stream: str,
        migration: str,
        relay: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = pathlib.Path(path)
        self._stream = stream
        self._migration = migration
        self._relay = relay
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._monitor = SpareMonitor(self._path)
        self._control = ControlServer(control_path(path), self._calls(), self._selector)
        self._admitted = False
        self._ended = False
        self._alone_since: float | None = None
        self._asked_at = 0.0
        self._asking: threading.Thread | None = None

    def run(self) -> None:
        """Until the migration has ended, or the VM has. Raises OSError."""
        self._monitor.open()
        self._control.open()
        self._selector.register(self._relay, selectors.EVENT_READ, self._hear_relay)
        try:
            while not self._ended:
                for key, events in self._selector.select(LOOK_S if self._looks else None):
                    key.data(events)
                self._admit()
                self._look(self._clock())
        finally:
            self._monitor.close()
            self._control.close()  # the last to go: see _end_former
            self._selector.close()

    @property
    def _looks(self) -> bool:
        return not self._admitted or self._alone_since is not None

    def _hear_relay(self, _events: int) -> None:
        self._selector.unregister(self._relay)
        complete = os.read(self._relay, 1) == _COMPLETE
        # A stream that ended well is not all there is to it: QEMU may fail with what it brought.
        self._ended = complete and self._monitor.executed is True
        self._alone_since = self._asked_at = self._clock()

    def _admit(self) -> None:
        """Let QEMU connect, and nobody else."""
        if self._admitted:
            return
        try:
            qemu = os.stat(self._stream)
        except FileNotFoundError:
            return
        self._admitted = True
        try:
            os.chown(self._path, qemu.st_uid, qemu.st_gid)
        except OSError as error:
            LOG.warning("QEMU cannot connect to %s: %s", self._path, error)

    def _look(self, now: float) -> None:
        if self._alone_since is None:
            return
        if not self._monitor.ready:
            patience = WITNESS_S if self._monitor.executed is False else ALONE_S
            self._ended |= now - self._alone_since > patience
            return
        self._alone_since = now
        waits = self._asking is not None and self._asking.is_alive()
        if now - self._asked_at > STATUS_S and not waits:
            self._asked_at = now
            self._asking = threading.Thread(target=self._ask, name="status", daemon=True)
            self._asking.start()

    def _ask(self) -> None:
        """Whether the migration has ended: QEMU says when it waits for no page."""
        with contextlib.suppress(exception.EnlightenedError):
            told = self._monitor.ask("query-migrate", PATIENCE_S, out_of_band=False)
            self._ended |= isinstance(told, dict) and told.get("status") == "completed"

    def _calls(self) -> dict[str, Any]:
        return {"recover": self._recover, "executed": self._executed, "end": self._end}

    def _end(self) -> dict[str, Any]:
        self._ended = True
        return {}

    def _executed(self, migration: str) -> dict[str, Any]:
        if migration != self._migration:
            return Told()._asdict()
        return Told(self._monitor.executed, self._monitor.waits)._asdict()

    def _recover(self, uri: str) -> dict[str, Any]:
        deadline = self._clock() + PAUSE_S
        while declined := self._monitor.listen_again(uri, max(LOOK_S, deadline - self._clock())):
            if self._clock() > deadline:
                raise exception.StreamingError(declined)
            time.sleep(LOOK_S)
        LOG.info("QEMU listens again, at %s", uri)
        return {}
