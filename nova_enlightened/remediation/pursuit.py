# SPDX-License-Identifier: Apache-2.0
"""Carries evictions through: takes each its next step, writes down and says what happened."""

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any, Final, Protocol

from nova_enlightened import exception
from nova_enlightened.contention.report import HostReport
from nova_enlightened.remediation import announcements as events
from nova_enlightened.remediation import decisions
from nova_enlightened.remediation.eviction import (
    NOTHING,
    STATES_OF,
    Happened,
    Step,
    Steps,
    Timing,
    next_step,
    overdue,
    to_withdraw,
)
from nova_enlightened.remediation.eviction_states import ASKED, Input, State
from nova_enlightened.remediation.jobs import Jobs
from nova_enlightened.remediation.ledger import Ledger
from nova_enlightened.remediation.metrics import Metrics
from nova_enlightened.remediation.record import EvictionRecord

LOG = logging.getLogger(__name__)

LONGEST_WAIT_S: Final = 10.0
SETTLE_S: Final = 2.0
"""After a server has left, before its host's reports show a whole second without it."""

_EVENTS: Final = {
    State.MIGRATING: events.STARTED,
    State.POST_COPY: events.STARTED,
    State.DONE: events.COMPLETED,
    State.FAILED: events.FAILED,
    State.GAVE_UP: events.FAILED,
}


class Voice(Protocol):
    """See ``announcements.Announcements``."""

    def notify(self, event: str, record: EvictionRecord) -> None:
        """Emit a notification."""

    def share(self, record: EvictionRecord) -> None:
        """Tell the other instances."""


@dataclasses.dataclass
class _Turn:
    """When an eviction's next step is due, how often that step came to nothing, looks taken."""

    due: float = 0.0
    vain: int = 0
    looks: int = 0
    started: bool = False


class Pursuit:
    """Evictions under way; used by one thread."""

    def __init__(
        self,
        ledger: Ledger,
        steps: Steps,
        jobs: Jobs,
        voice: Voice,
        metrics: Metrics,
        timing: Timing,
    ) -> None:
        self._ledger = ledger
        self._steps = steps
        self._jobs = jobs
        self._voice = voice
        self._metrics = metrics
        self._timing = timing
        self._turns: dict[str, _Turn] = {}

    def go_on(self, reports: Iterable[HostReport], now: float) -> None:
        """Take every eviction as far as it goes now."""
        by_host = {report.host: report for report in reports}
        under_way = self._ledger.under_way()
        # What another server's leaving does to a host is not the merit of the one before.
        leaving = {one.host for one in under_way if one.state in ASKED}
        for record in under_way:
            if record.state is State.VERIFYING:
                over = record.host in leaving
                found = self._relief(record, by_host.get(record.host), now, over=over)
                self.apply(record, found, now)
                continue
            late = overdue(record, now, self._timing)
            if late.input is not None:
                self.apply(record, late, now)
            elif (step := next_step(record)) is not None:
                turn = self._turns.setdefault(record.eviction, _Turn())
                if now >= turn.due:
                    self._submit(step, record)

    def came_back(self, kind: str, eviction: str, happened: Happened | None, now: float) -> None:
        """A step's outcome.

        :param kind: the step.
        :param happened: None where it broke in a way that nobody foresaw.
        """
        record = self._ledger.get(eviction)
        if record is None or record.state not in STATES_OF[Step(kind)]:
            return
        if happened is None:
            broke = kind == Step.REQUEST
            happened = Happened(Input.UNANSWERED, "an error of its own") if broke else NOTHING
        turn = self._turns.setdefault(eviction, _Turn())
        looks = kind == Step.LOOK
        turn.looks += looks
        turn.vain = turn.vain + 1 if happened.input is None and not looks else 0
        wait = min(LONGEST_WAIT_S, float(2 ** (turn.vain - 1))) if turn.vain else 0.0
        turn.due = now + (self._timing.follow_interval if looks else wait)
        if happened.input is None and happened.reason:
            LOG.info("Eviction of %s: %s: %s", record.instance, kind, happened.reason)
        self.apply(record, happened, now)

    def apply(self, record: EvictionRecord, happened: Happened, now: float) -> None:
        """Write down what happened to an eviction, say it, and do what follows at once."""
        if happened.input is None:
            return
        changes = dict(happened.changes)
        requested = record.at("requested")
        if happened.input is Input.COMPLETED and requested is not None:
            changes["measured_cost"] = now - requested
        after = record.after(happened.input, now, happened.reason, **changes)
        same = dataclasses.replace(after, revision=record.revision)
        if same == record:
            return
        after = self._written(record, after, now)
        if not after.adopted:
            self._voice.share(after)
            self._tell(record, after)
        if after.state is State.REQUESTING:
            self._submit(Step.REQUEST, after)
        if after.ended:
            self._turns.pop(after.eviction, None)
            if to_withdraw(after):
                self._submit(Step.WITHDRAW, after)

    def forget(self) -> None:
        """Somebody else leads now."""
        self._turns.clear()

    def _written(self, before: EvictionRecord, after: EvictionRecord, now: float) -> EvictionRecord:
        """`after`, on disk; what comes of `before` where that must be and cannot."""
        if after.state is not State.REQUESTING:
            self._ledger.keep_anyway(after)
            return after
        try:
            if self._ledger.keep(after):
                return after
            why = "another instance goes on with it"
        except exception.JournalError as error:
            # Unwritten, a restart would request it a second time.
            self._metrics.failed("journal")
            why = str(error)
        after = before.after(Input.REFUSED, now, f"not requested: {why}")
        self._ledger.keep_anyway(after)
        return after

    def _tell(self, before: EvictionRecord, after: EvictionRecord) -> None:
        if after.state is before.state:
            return
        turn = self._turns.setdefault(after.eviction, _Turn())
        level = logging.WARNING if after.state in (State.FAILED, State.GAVE_UP) else logging.INFO
        LOG.log(level, "Eviction of %s from %s: %s%s", after.instance, after.host, after.state,
                f": {after.reason}" if after.reason else "")  # fmt: skip
        event = _EVENTS.get(after.state)
        if event == events.STARTED and turn.started:
            event = None
        turn.started = turn.started or event == events.STARTED
        if event is not None:
            self._voice.notify(event, after)
        if after.ended:
            self._metrics.ended(after)

    def _submit(self, step: Step, record: EvictionRecord) -> None:
        turn = self._turns.setdefault(record.eviction, _Turn())
        # WITHDRAW comes after the end: its turn is forgotten at once.
        if record.ended:
            del self._turns[record.eviction]
        looks = turn.looks
        self._jobs.submit(
            (str(step), record.eviction), lambda: self._steps.take(step, record, looks)
        )

    def _relief(
        self, record: EvictionRecord, report: HostReport | None, now: float, *, over: bool
    ) -> Happened:
        """Whether the old host is relieved, as far as its reports tell by now."""
        left = record.at("completed") or now
        over = over or now - left > self._timing.relief_timeout
        if record.adopted:
            return Happened(Input.TIMED_OUT)
        if report is None or report.at < left + SETTLE_S:
            late = Happened(Input.TIMED_OUT, "no report of its old host tells of relief")
            return late if over else NOTHING
        relieved, measured = decisions.relief(record, report)
        changes: dict[str, Any] = {"measured_relief": measured}
        if relieved:
            return Happened(Input.RELIEVED, changes=changes)
        if over:
            return Happened(Input.NOT_RELIEVED, f"not relieved: {report.reason}", changes)
        return NOTHING
