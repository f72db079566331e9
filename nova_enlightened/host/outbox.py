# SPDX-License-Identifier: Apache-2.0
"""Sends the newest report, and never makes the one who has it wait."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from nova_enlightened import exception
from nova_enlightened.contention.report import HostReport, Level

LOG = logging.getLogger(__name__)

CALM_DOWN_S: Final = 5.0
"""After a report that the bus did not take."""


def is_due(report: HostReport, last: HostReport | None, interval: float) -> bool:
    """Whether a report is worth sending: what changed and what is not calm is, and every
    `interval` seconds what is.
    """
    if last is None or report.level is not Level.CALM or last.level is not Level.CALM:
        return True
    if report.urgent != last.urgent:
        return True
    return report.capable != last.capable or report.at - last.at >= interval or report.at < last.at


class Outbox:
    """A thread that sends. While the bus is down it waits there; only the newest is kept.

    :param cast: sends a report; raises ``AgentUnreachable``.
    """

    def __init__(self, cast: Callable[[HostReport], None], interval: float) -> None:
        self._cast = cast
        self._interval = interval
        self._changed = threading.Condition()
        self._next: HostReport | None = None
        self._last: HostReport | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="report-outbox", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def offer(self, report: HostReport) -> None:
        """Send it, if it is due; returns at once."""
        with self._changed:
            if not is_due(report, self._last, self._interval):
                return
            self._last = self._next = report
            self._changed.notify_all()

    def stop(self) -> None:
        """End; what the bus does not take now is lost, which is harmless."""
        self._ending.set()
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        reached = True
        while not self._ending.is_set():
            with self._changed:
                if self._next is None:
                    self._changed.wait()
                report, self._next = self._next, None
            if report is None:
                continue
            try:
                self._cast(report)
            except exception.AgentUnreachable as error:
                if reached:
                    LOG.warning("Reports are not sent: %s", error)
                reached = False
                self._ending.wait(CALM_DOWN_S)
            except Exception:
                LOG.exception("Sending a report")
                self._ending.wait(CALM_DOWN_S)
            else:
                if not reached:
                    LOG.info("Reports are sent again")
                reached = True
