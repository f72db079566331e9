# SPDX-License-Identifier: Apache-2.0
"""``nova-enlightened-remediator``: the remediator put together from a configuration, and run."""

import logging
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import oslo_messaging
from oslo_config import cfg

from nova_enlightened import exception, rpc
from nova_enlightened.conf import remediation as options
from nova_enlightened.contention.report import HostReport, Level
from nova_enlightened.contention.report_cache import MAX_HOSTS, ReportCache
from nova_enlightened.remediation import decisions, leadership
from nova_enlightened.remediation.announcements import Announcements, Outbox, PeerListener
from nova_enlightened.remediation.arming import Arming
from nova_enlightened.remediation.eviction import Steps, Timing
from nova_enlightened.remediation.fleet_view import FleetView
from nova_enlightened.remediation.jobs import Jobs
from nova_enlightened.remediation.journal import Journal
from nova_enlightened.remediation.ledger import Ledger
from nova_enlightened.remediation.metrics import Metrics
from nova_enlightened.remediation.pursuit import Pursuit
from nova_enlightened.remediation.remediator import Parts, Remediator, Settings
from nova_enlightened.remediation.servers import NovaApi

LOG = logging.getLogger(__name__)

TICK_S: Final = 1.0
BREATH_S: Final = 0.05
"""Between two rounds at least, however much happens."""
WORKERS: Final = 16


class Service:
    """One instance.

    :param name: of this instance, different for each on the bus and in the election.
    :param connect: makes the connection to the cloud, for tests.
    :raises ConfigError: a policy or a backend is not installed.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        transport: oslo_messaging.Transport,
        name: str | None = None,
        connect: Callable[[cfg.ConfigOpts], Any] | None = None,
    ) -> None:
        ours = conf[options.GROUP]
        name = name or socket.gethostname()
        self._conf = ours
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._levels: dict[str, Level] = {}
        self._metrics_server: Any = None
        self.metrics = Metrics()
        self._journal = Journal(ours.state_path, ours.history_limit)
        self._outbox = Outbox()
        self._jobs = Jobs(WORKERS, self._wake)
        url = ours.backend_url or f"file://{pathlib.Path(ours.state_path, 'coordination')}"
        leadership.check(url)
        self.leadership = leadership.Leadership(url, f"{name}:{os.getpid()}")
        self._reports = rpc.ReportListener(
            transport, f"remediator-{name}", ReportCache(ours.report_max_age), heard=self._heard
        )
        self._remediator = self._assemble(conf, transport, name, connect)
        self._peers = PeerListener(transport, f"remediator-{name}", self._remediator.hear_peer)

    def start(self) -> None:
        """Begin to listen and to ask for the lead.

        :raises JournalError: the journal cannot be opened.
        :raises ConfigError: metrics cannot be served where the configuration says.
        """
        self._journal.open()
        self._metrics_server = self.metrics.serve(
            self._conf.metrics_address, self._conf.metrics_port
        )
        self._outbox.start()
        self._reports.start()
        self._peers.start()
        self.leadership.start()
        LOG.info("Remediating in mode %s", self._conf.mode)

    def run(self) -> None:
        """Go on until :meth:`ask_to_stop`; in the thread that called :meth:`start`.

        :raises JournalError: the journal cannot be read; whoever starts this again gives another
            instance time to lead.
        """
        tick = min(TICK_S, self._conf.follow_interval)
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self._remediator.tick()
            except exception.JournalError:
                raise
            except Exception:  # whatever it was, hosts still need to be watched
                LOG.exception("A round was cut short")
            if not self._stopping.wait(BREATH_S):
                self._wake.wait(tick)

    def ask_to_stop(self) -> None:
        """Have :meth:`run` return soon; safe in a signal handler."""
        self._stopping.set()
        self._wake.set()

    def stop(self) -> None:
        """Give the lead away and end what was begun. Evictions under way are the next leader's."""
        self.leadership.stop()
        self._jobs.stop()
        self._reports.stop()
        self._peers.stop()
        self._outbox.stop()
        if self._metrics_server is not None:
            self._metrics_server.shutdown()
            self._metrics_server.server_close()
        self._journal.close()

    def _heard(self, report: HostReport) -> None:
        """A host has become contended: that should not wait for the next round."""
        before = self._levels.pop(report.host, Level.CALM)
        if len(self._levels) >= MAX_HOSTS:
            self._levels.clear()
        self._levels[report.host] = report.level
        if report.level > before:
            self._remediator.hurry()
            self._wake.set()

    def _assemble(
        self,
        conf: cfg.ConfigOpts,
        transport: oslo_messaging.Transport,
        name: str,
        connect: Callable[[cfg.ConfigOpts], Any] | None,
    ) -> Remediator:
        ours = self._conf
        timing = Timing(
            order_ttl=ours.order_ttl,
            follow_interval=ours.follow_interval,
            appear_timeout=ours.appear_timeout,
            eviction_timeout=ours.eviction_timeout,
            relief_timeout=ours.relief_timeout,
            vm_cooldown=ours.vm_cooldown,
        )
        limits = decisions.limits_of(conf)
        nova, agents = NovaApi(conf, connect), rpc.HostAPI(transport)
        ledger = Ledger(self._journal, decisions.memory_of(limits))
        voice = Announcements(conf, transport, f"nova-enlightened-remediator:{name}", self._outbox)
        steps = Steps(nova, agents, timing, lambda: self.leadership.leads)
        parts = Parts(
            reports=self._reports,
            nova=nova,
            agents=agents,
            ledger=ledger,
            pursuit=Pursuit(ledger, steps, self._jobs, voice, self.metrics, timing),
            fleet=FleetView(ours.servers_max_age),
            arming=Arming(ours.arm_renew),
            jobs=self._jobs,
            voice=voice,
            metrics=self.metrics,
            leads=lambda: self.leadership.leads,
            clock=time.time,
        )
        settings = Settings(
            acts=ours.mode == "auto",
            limits=limits,
            policy=decisions.load_policy(ours.victim_policy),
            timing=timing,
        )
        return Remediator(settings, parts)
