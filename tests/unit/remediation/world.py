# SPDX-License-Identifier: Apache-2.0
"""The remediator with everything around it faked and time passed in."""

import pathlib
from collections.abc import Callable
from typing import Any

from nova_enlightened.contention.evictions import DEFAULT_POLICY, EvictionLimits
from nova_enlightened.contention.report import Level
from nova_enlightened.remediation.arming import Arming
from nova_enlightened.remediation.eviction import Steps, Timing
from nova_enlightened.remediation.fleet_view import FleetView
from nova_enlightened.remediation.journal import Journal
from nova_enlightened.remediation.ledger import Ledger
from nova_enlightened.remediation.metrics import Metrics
from nova_enlightened.remediation.pursuit import Pursuit
from nova_enlightened.remediation.record import EvictionRecord
from nova_enlightened.remediation.remediator import Parts, Remediator, Settings
from nova_enlightened.remediation.servers import Server
from tests.unit.remediation.fakes import (
    FakeAgents,
    FakeNova,
    FakeReports,
    FakeVoice,
    ImmediateJobs,
    report,
)

GUESTS = ("vm1", "vm2")


class World:
    """Two hosts, two servers on the first, and an instance of the remediator."""

    def __init__(self, directory: pathlib.Path, *, acts: bool = True) -> None:
        self.now = 1000.0
        self.leads = True
        self.nova = FakeNova(*(Server(uuid, uuid, "compute1", "active") for uuid in GUESTS))
        self.agents, self.voice, self.reports = FakeAgents(), FakeVoice(), FakeReports()
        self.directory, self.acts = directory, acts
        self.operators: set[int] = set()
        """Migrations that somebody else began."""
        self.begin()

    def begin(self) -> None:
        """A process of its own begins."""
        self.journal = Journal(self.directory, 1000)
        self.journal.open()
        self.jobs: Any = ImmediateJobs()
        self.metrics = Metrics()
        limits, timing = EvictionLimits(report_age=10.0), Timing()
        ledger = Ledger(self.journal, 1800.0)
        steps = Steps(self.nova, self.agents, timing, lambda: self.leads, lambda: self.now)
        self.ledger = ledger
        self.remediator = Remediator(
            Settings(self.acts, limits, DEFAULT_POLICY, timing),
            Parts(
                reports=self.reports,
                nova=self.nova,
                agents=self.agents,
                ledger=ledger,
                pursuit=Pursuit(ledger, steps, self.jobs, self.voice, self.metrics, timing),
                fleet=FleetView(5.0),
                arming=Arming(60.0),
                jobs=self.jobs,
                voice=self.voice,
                metrics=self.metrics,
                leads=lambda: self.leads,
                clock=lambda: self.now,
            ),
        )

    def restart(self) -> None:
        """The process is killed and another begins."""
        self.journal.close()
        self.begin()

    def say(self, level: Level) -> None:
        """What the hosts report from now on."""
        here = tuple(one.uuid for one in self.nova.servers.values() if one.host == "compute1")
        self.reports.held = [
            report("compute1", self.now, level, here),
            report("compute2", self.now),
        ]

    def go(self, level: Level, seconds: int = 1) -> None:
        """Ticks, one each second, with fresh reports."""
        for _ in range(seconds):
            self.now += 1.0
            self.say(level)
            self.remediator.tick()

    def go_until(self, level: Level, done: Callable[[], Any]) -> None:
        for _ in range(100):
            if done():
                return
            self.go(level)
        raise AssertionError("it never came to that")

    @property
    def evictions(self) -> list[EvictionRecord]:
        return [one for one in self.journal.since(0.0) if not one.adopted]
