# SPDX-License-Identifier: Apache-2.0
"""The loop: reports, decisions, evictions under way. One thread owns all state.

Whatever may take long (the API, agents, the bus) is done by others, and comes back as a finished
job, a report or a peer's record. :meth:`Remediator.tick` does what is due and never waits.
"""

import dataclasses
import functools
import logging
import queue
from collections.abc import Callable
from typing import Any, Final, Protocol

from nova_enlightened import exception
from nova_enlightened.contention.evictions import Action, Decision, EvictionLimits
from nova_enlightened.contention.report import HostReport, Level
from nova_enlightened.contention.victims import VictimPolicy
from nova_enlightened.remediation import announcements as events
from nova_enlightened.remediation import decisions, takeover
from nova_enlightened.remediation.arming import Arming
from nova_enlightened.remediation.eviction import Timing, found_at_start
from nova_enlightened.remediation.fleet_view import FleetView
from nova_enlightened.remediation.jobs import Jobs, Outcome
from nova_enlightened.remediation.ledger import Ledger
from nova_enlightened.remediation.metrics import Metrics
from nova_enlightened.remediation.pursuit import Pursuit
from nova_enlightened.remediation.record import EvictionRecord
from nova_enlightened.remediation.servers import Nova

LOG = logging.getLogger(__name__)

RECONCILE_S: Final = 30.0
RECONCILE_AGAIN_S: Final = 5.0
SHARE_AGAIN_S: Final = 10.0
SAY_AGAIN_S: Final = 60.0


class Reports(Protocol):
    """What hosts said last, see ``rpc.ReportListener``."""

    def current(self) -> list[HostReport]:
        """Every host's, as far as fresh."""


class Agents(Protocol):
    """What is asked of the agents here, see ``rpc.HostAPI``."""

    def arm(self, host: str, instances: list[str]) -> dict[str, Any]:
        """Have guests begin to sample."""

    def disarm(self, host: str, instances: list[str]) -> dict[str, Any]:
        """Have guests stop sampling."""


class Voice(Protocol):
    """See ``announcements.Announcements``."""

    def notify(self, event: str, record: EvictionRecord) -> None:
        """Emit a notification."""

    def share(self, record: EvictionRecord) -> None:
        """Tell the other instances."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the configuration says.

    :param acts: whether `mode` is ``auto``.
    """

    acts: bool
    limits: EvictionLimits
    policy: VictimPolicy
    timing: Timing = dataclasses.field(default_factory=Timing)
    decide_interval: float = 1.0


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the remediator works with.

    :param leads: whether this instance may act now.
    :param clock: seconds since the epoch.
    """

    reports: Reports
    nova: Nova
    agents: Agents
    ledger: Ledger
    pursuit: Pursuit
    fleet: FleetView
    arming: Arming
    jobs: Jobs
    voice: Voice
    metrics: Metrics
    leads: Callable[[], bool]
    clock: Callable[[], float]


class Remediator:
    """See the module. ``hear_peer`` may be called from any thread, the rest from one."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self._settings = settings
        self._parts = parts
        self._heard: queue.SimpleQueue[EvictionRecord] = queue.SimpleQueue()
        self._leading = False
        self._taken_over = False
        self._reconcile_at = 0.0
        self._decide_at = 0.0
        self._share_at = 0.0
        self._detected: dict[str, float] = {}
        self._said: dict[str, tuple[Action, float]] = {}

    def hear_peer(self, record: EvictionRecord) -> None:
        """A record that the leader shares."""
        self._heard.put(record)

    def tick(self) -> None:
        """Do what is due.

        :raises JournalError: this instance is to lead and cannot read the journal: another should.
        """
        now = self._parts.clock()
        reports = self._parts.reports.current()
        self._hear_peers()
        self._follow_lead(now)
        for key, outcome in self._parts.jobs.finished():
            self._take_outcome(key, outcome, now)
        if self._leading:
            self._reconcile(now)
            self._parts.pursuit.go_on(reports, now)
            if self._taken_over and now >= self._decide_at:
                self._decide_at = now + self._settings.decide_interval
                self._decide(reports, now)
            self._share(now)
        self._parts.metrics.state(
            leads=self._leading,
            reports=reports,
            under_way=len(self._parts.ledger.under_way()),
            armed=self._parts.arming.armed,
        )

    def hurry(self) -> None:
        """Decide at the next tick: something has been reported that should not wait."""
        self._decide_at = 0.0

    def _hear_peers(self) -> None:
        while True:
            try:
                record = self._heard.get_nowait()
            except queue.Empty:
                return
            # A leader hears itself; what it does not know is from one that led before it.
            self._parts.ledger.hear(record)

    # --- who leads -----------------------------------------------------------------------------

    def _follow_lead(self, now: float) -> None:
        leads = self._parts.leads()
        if leads and not self._leading:
            self._begin_to_lead(now)
        elif self._leading and not leads:
            LOG.warning("Not leading any more: what is under way is the next leader's")
            self._parts.jobs.forget()
            self._parts.pursuit.forget()
            self._parts.arming.forget()
            self._leading = self._taken_over = False

    def _begin_to_lead(self, now: float) -> None:
        parts = self._parts
        parts.ledger.load(now)
        self._leading = True
        self._reconcile_at = 0.0
        for record in parts.ledger.under_way():
            LOG.info("Going on with the eviction of %s from %s, which is %s", record.instance,
                     record.host, record.state)  # fmt: skip
            parts.pursuit.apply(record, found_at_start(record), now)

    def _reconcile(self, now: float) -> None:
        """Ask for the migrations of others; nothing is decided before they are known once."""
        if now < self._reconcile_at:
            return
        memory = decisions.memory_of(self._settings.limits)
        since = takeover.changes_since(now - (2 * RECONCILE_S if self._taken_over else memory))
        nova = self._parts.nova
        if self._parts.jobs.submit(("reconcile", ""), lambda: nova.migrations_since(since)):
            self._reconcile_at = now + RECONCILE_S

    # --- what comes back -----------------------------------------------------------------------

    def _take_outcome(self, key: tuple[str, str], outcome: Outcome, now: float) -> None:
        kind, about = key
        value, error = outcome
        parts = self._parts
        if error is not None:
            parts.metrics.failed(kind)
            known = isinstance(error, exception.EnlightenedError)
            LOG.warning("%s %s: %s", kind, about, error, exc_info=None if known else error)
        if kind == "servers":
            if error is None:
                parts.fleet.answered(about, value, now)
                self.hurry()
            else:
                parts.fleet.unanswered(about, now)
        elif kind == "reconcile":
            self._reconciled(value if error is None else None, now)
        elif kind == "arm":
            if error is not None:
                parts.arming.failed(about, now)
        elif kind != "disarm":
            parts.pursuit.came_back(kind, about, value if error is None else None, now)

    def _reconciled(self, migrations: Any, now: float) -> None:
        if migrations is None:
            self._reconcile_at = now + RECONCILE_AGAIN_S
            return
        ledger = self._parts.ledger
        for record in takeover.adopted(migrations, ledger.relevant(now, proposed=True), now):
            ledger.keep_anyway(record)
        if not self._taken_over:
            LOG.info("Leading, with %d evictions under way", len(ledger.under_way()))
        self._taken_over = True

    # --- decisions -----------------------------------------------------------------------------

    def _decide(self, reports: list[HostReport], now: float) -> None:
        parts, settings = self._parts, self._settings
        near = {one.host: one for one in reports if one.level > Level.CALM}
        for host in parts.fleet.to_ask(near, now):
            parts.jobs.submit(("servers", host), functools.partial(parts.nova.servers_on, host))
        for host, report in near.items():
            if report.level is Level.ACT:
                self._detected.setdefault(host, now)
        for host in self._detected.keys() - {h for h, r in near.items() if r.level is Level.ACT}:
            del self._detected[host]
        found = decisions.decide(
            reports,
            parts.fleet.facts(now),
            {host: parts.fleet.knows(host, now) for host in near},
            parts.ledger.relevant(now, proposed=not settings.acts),
            now,
            settings.limits,
            settings.policy,
        )
        for decision in found:
            if decision.action is not Action.EVICT:
                self._say(decision, now)
            else:
                self._begin(decision, near[decision.host], now)
        self._arm(found, reports, now)

    def _begin(self, decision: Decision, report: HostReport, now: float) -> None:
        detected = self._detected.get(decision.host, now)
        proposed = not self._settings.acts
        record = decisions.record_of(decision, report, detected, now, proposed=proposed)
        try:
            self._parts.ledger.keep(record)
        except exception.JournalError as error:
            # Unwritten, a restart would forget it and decide it again.
            self._parts.metrics.failed("journal")
            LOG.error("Nothing is evicted without the journal: %s", error)
            return
        self._parts.voice.share(record)
        self._parts.voice.notify(events.PROPOSED if proposed else events.DECIDED, record)
        if proposed:
            self._parts.metrics.ended(record)
            LOG.info("Audit: would evict %s from %s: %s", record.instance, record.host, record.why)
        else:
            LOG.info("Evicting %s from %s: %s", record.instance, record.host, record.why)

    def _arm(self, found: list[Decision], reports: list[HostReport], now: float) -> None:
        if not self._settings.acts:
            return
        parts = self._parts
        for host, guests in parts.arming.to_arm(found, now).items():
            parts.jobs.submit(("arm", host), functools.partial(parts.agents.arm, host, guests))
        leaving: dict[str, set[str]] = {}
        for record in parts.ledger.under_way():
            leaving.setdefault(record.host, set()).add(record.instance)
        for host, guests in parts.arming.to_disarm(reports, leaving).items():
            parts.jobs.submit(
                ("disarm", host), functools.partial(parts.agents.disarm, host, guests)
            )

    def _say(self, decision: Decision, now: float) -> None:
        """Log what is done about a host when that changes, and now and then while it does not."""
        action, at = self._said.get(decision.host, (None, 0.0))
        if action is decision.action and now - at < SAY_AGAIN_S:
            return
        if len(self._said) > 10_000:
            self._said.clear()
        self._said[decision.host] = (decision.action, now)
        LOG.info("%s: %s: %s", decision.host, decision.action, decision.reason)

    def _share(self, now: float) -> None:
        """Tell again what is under way: an instance that has just come has heard of none of it."""
        if now < self._share_at:
            return
        self._share_at = now + SHARE_AGAIN_S
        for record in self._parts.ledger.under_way():
            if not record.adopted:
                self._parts.voice.share(record)
