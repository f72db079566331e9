# SPDX-License-Identifier: Apache-2.0
"""What this scheduler process has heard of hosts, shared by its filter and its weigher.

nova-scheduler makes its filters first and forks its workers then. So nothing is started until a
worker asks for the first time; until the reports of the next second have come, every host is
unknown to it.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import oslo_messaging
from oslo_config import cfg

from nova_enlightened import rpc
from nova_enlightened.conf import scheduler as options
from nova_enlightened.contention.report import HostReport
from nova_enlightened.contention.report_cache import ReportCache

LOG = logging.getLogger(__name__)


class Listener(Protocol):
    """What is used of :class:`nova_enlightened.rpc.ReportListener`."""

    def start(self) -> None:
        """Begin to listen, without waiting for the bus."""

    def stop(self) -> None:
        """Stop listening."""

    def current(self) -> list[HostReport]:
        """What every host last said, if that is fresh."""


class Listeners:
    """One for each bus that hosts report on."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = listeners

    def start(self) -> None:
        """See :class:`Listener`."""
        for listener in self._listeners:
            listener.start()

    def stop(self) -> None:
        """See :class:`Listener`."""
        for listener in self._listeners:
            listener.stop()

    def current(self) -> list[HostReport]:
        """See :class:`Listener`. Of a host that is heard on two, what it said last."""
        if len(self._listeners) == 1:
            return self._listeners[0].current()
        newest: dict[str, HostReport] = {}
        for listener in self._listeners:
            for report in listener.current():
                held = newest.setdefault(report.host, report)
                if report.at > held.at:
                    newest[report.host] = report
        return list(newest.values())


def listen(conf: cfg.ConfigOpts) -> Listener:
    """A listener on every bus that is configured, not started yet.

    All workers of a host go by one name: each has a fanout queue of its own anyway, and a queue
    for each name would be left behind with every restart.
    """
    ours = conf[options.GROUP]
    return Listeners(
        [
            rpc.ReportListener(
                rpc.get_transport(conf, url),
                f"scheduler-{conf.host}",
                ReportCache(ours.report_max_age),
            )
            for url in ours.transport_url or [None]
        ]
    )


class Reports:
    """Reports of hosts in a process that may fork. Asking never waits for the bus.

    :param conf: Nova's, with the group ``[enlightened_scheduler]``.
    """

    def __init__(
        self, conf: cfg.ConfigOpts, listen: Callable[[cfg.ConfigOpts], Listener] = listen
    ) -> None:
        self._conf = conf
        self._listen = listen
        self._lock = threading.Lock()
        self._process: int | None = None
        self._listener: Listener | None = None

    def current(self) -> list[HostReport]:
        """What every known host last said of itself."""
        listener = self._listening()
        return listener.current() if listener is not None else []

    def stop(self) -> None:
        """Listen no more, until somebody asks again. For tests: a scheduler listens to its end."""
        with self._lock:
            listener, self._listener = self._listener, None
            mine = self._process == os.getpid()
            self._process = None
        if listener is not None and mine:
            listener.stop()

    def _listening(self) -> Listener | None:
        """The listener of this very process, started at its first use; None if it cannot be."""
        if self._process != os.getpid():
            with self._lock:
                if self._process != os.getpid():
                    self._listener = self._begin()
                    self._process = os.getpid()
        return self._listener

    def _begin(self) -> Listener | None:
        try:
            listener = self._listen(self._conf)
            listener.start()
        except (oslo_messaging.MessagingException, cfg.Error, RuntimeError) as error:
            LOG.warning("Contention is ignored, hosts cannot be heard: %s", error)
            return None
        return listener


_SHARED: dict[int, Reports] = {}
_SHARED_LOCK = threading.Lock()


def shared(conf: cfg.ConfigOpts) -> Reports:
    """The one of this process for `conf`; registers the options it needs."""
    options.register_opts(conf)
    with _SHARED_LOCK:
        return _SHARED.setdefault(id(conf), Reports(conf))
