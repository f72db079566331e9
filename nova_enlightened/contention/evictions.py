# SPDX-License-Identifier: Apache-2.0
"""What to do about contended hosts: arm guests, evict one, or nothing, each with its reason.

One call of :func:`decide` is one round. It holds no state: what runs and what was is passed in,
so that a remediator which restarts goes on from its journal. The caller must have written an
eviction that it began into `running` before the next round; that is what keeps a host's one
cause from costing two VMs.

A host is left alone while an eviction of it runs and for its cool-down afterwards: its report
then still shows what that eviction is about to end. What persists is a new cause.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from nova_enlightened.contention import destinations, victims
from nova_enlightened.contention.destinations import Demand, DestinationLimits, Inventory
from nova_enlightened.contention.report import HostReport, Level
from nova_enlightened.contention.victims import (
    Candidate,
    Choice,
    Excluded,
    VictimLimits,
    VictimPolicy,
    VmFacts,
)
from nova_enlightened.exception import ConfigError


@dataclass(frozen=True)
class EvictionLimits:
    """How much may happen.

    :param per_host: evictions from one host at once.
    :param into_host: evictions towards one host at once, as far as destinations are known.
    :param total: evictions at once.
    :param host_cooldown: seconds after an eviction ended before the next from the same host.
    :param return_after: seconds before a VM may go back to a host it has left. Not below the
        cool-down of a VM, which bounds it anyway.
    :param report_age: seconds; an older report leads to nothing.
    :param armed: guests of a warned host that are armed, the likeliest to leave.
    :param victims: of a VM; its cool-down is `victims.cooldown`.
    :raises ConfigError: one is out of its range.
    """

    per_host: int = 1
    into_host: int = 2
    total: int = 8
    host_cooldown: float = 20.0
    return_after: float = 1800.0
    report_age: float = 10.0
    armed: int = 4
    victims: VictimLimits = field(default_factory=VictimLimits)
    destinations: DestinationLimits = field(default_factory=DestinationLimits)

    def __post_init__(self) -> None:
        for name in ("per_host", "into_host", "total"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is not at least 1")
        for name in ("host_cooldown", "return_after", "armed"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} {getattr(self, name)} is negative")
        if not self.report_age > 0:
            raise ConfigError(f"report_age {self.report_age} is not above 0")


@dataclass(frozen=True)
class Heard:
    """A report and when it came in, on the clock of `now`.

    :param inventories: placement's, by resource class; what is missing is not looked at.
    """

    report: HostReport
    at: float
    inventories: Mapping[str, Inventory] = field(default_factory=dict)


@dataclass(frozen=True)
class Eviction:
    """One eviction, running or past.

    :param destination: None while, or where, it is not known.
    :param cause: of the decision that led to it.
    :param ordered_at, ended_at: on the clock of `now`; `ended_at` None while it runs.
    :param demand: what arrives with the VM.
    :param moved: whether the VM left; False for one that failed. It counts for cool-downs too:
        what failed a moment ago fails again.
    """

    uuid: str
    source: str
    destination: str | None
    cause: str
    ordered_at: float
    ended_at: float | None = None
    demand: Demand = destinations.NOTHING
    moved: bool = True

    @property
    def latest(self) -> float:
        """When it ended, or was ordered where it has not."""
        return self.ordered_at if self.ended_at is None else self.ended_at


class Action(enum.StrEnum):
    """What to do."""

    ARM = "arm"
    EVICT = "evict"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Decision:
    """One thing to do, or why nothing is done about a host that is contended.

    :param instances: the guests to arm (or to keep armed), the one to evict, or none.
    :param cause: identifies what an eviction is for; "" otherwise.
    :param candidate: the one that leaves, with what is predicted.
    :param expected: a host that could take it. Advice: Nova's scheduler decides.
    :param excluded: the VMs of this host that may not leave, and why.
    """

    action: Action
    host: str
    reason: str
    instances: tuple[str, ...] = ()
    cause: str = ""
    candidate: Candidate | None = None
    expected: str | None = None
    excluded: tuple[Excluded, ...] = ()


DEFAULT_POLICY: Final = victims.ReliefPerCost()


def decide(
    heard: Mapping[str, Heard],
    facts: Mapping[str, VmFacts],
    running: Sequence[Eviction],
    history: Iterable[Eviction],
    now: float,
    limits: EvictionLimits,
    policy: VictimPolicy = DEFAULT_POLICY,
) -> list[Decision]:
    """One round over all hosts; the most contended come first.

    :param heard: by host; every host that could receive a VM, not only contended ones.
    :param facts: by UUID, of the VMs of contended hosts at least.
    :param running: evictions under way, whoever began them.
    :param history: evictions that ended, within the longest of the limits' times.
    :param now: seconds, on the clock of all other times here.
    :returns: one decision for each host at WARN or ACT; an ARM and no EVICT for those that
        cannot be relieved now and whose guests can be armed meanwhile.
    """
    turn = _Round(heard, facts, list(running), list(history), now, limits, policy)
    contended = [
        one.report
        for one in heard.values()
        if one.report.level > Level.CALM and now - one.at <= limits.report_age
    ]
    contended.sort(key=_urgency)
    return [turn.decide(report) for report in contended]


def barred_hosts(
    uuid: str, history: Iterable[Eviction], now: float, limits: EvictionLimits
) -> frozenset[str]:
    """Hosts that a VM has left too recently to go back to."""
    return frozenset(
        one.source
        for one in history
        if one.uuid == uuid and one.moved and now - one.latest < limits.return_after
    )


def _urgency(report: HostReport) -> tuple[int, float, float, str]:
    available = report.memory_available / report.memory_total if report.memory_total > 0 else 1.0
    return (-report.level, -report.cpu_waiting, available, report.host)


class _Round:
    """What one round knows, and what it has decided so far."""

    def __init__(
        self,
        heard: Mapping[str, Heard],
        facts: Mapping[str, VmFacts],
        running: list[Eviction],
        history: list[Eviction],
        now: float,
        limits: EvictionLimits,
        policy: VictimPolicy,
    ) -> None:
        self._heard, self._facts = heard, facts
        self._running, self._history = running, history
        self._now, self._limits, self._policy = now, limits, policy
        self._past: dict[str, float] = {}
        self._moved: dict[str, list[Eviction]] = {}
        for one in history:
            self._past[one.source] = max(one.latest, self._past.get(one.source, one.latest))
            self._moved.setdefault(one.uuid, []).append(one)
        self._roomy: list[str] | None = None

    def decide(self, report: HostReport) -> Decision:
        """What to do about one contended host."""
        if report.level < Level.ACT:
            return self._arm(report, f"warned: {report.reason}")
        why = self._held_back(report.host)
        if why is not None:
            return self._arm(report, why)
        choice = self._choose(report, ahead=False)
        if not choice.candidates:
            return Decision(Action.NOTHING, report.host, choice.reason, excluded=choice.excluded)
        for candidate in choice.candidates:
            expected = self._destination(report.host, candidate)
            if expected is not None:
                return self._evict(report, choice, candidate, expected)
        reason = f"no host can take any of {len(choice.candidates)} VMs that may leave"
        return Decision(Action.NOTHING, report.host, reason, excluded=choice.excluded)

    def _held_back(self, host: str) -> str | None:
        """Why no further eviction may begin from this host now, or None."""
        limits, now = self._limits, self._now
        leaving = sum(1 for one in self._running if one.source == host)
        if leaving >= limits.per_host:
            return f"{leaving} leaving it already, of {limits.per_host}"
        ended = self._past.get(host)
        if ended is not None and now - ended < limits.host_cooldown:
            ago = max(0.0, now - ended)
            return f"one left {ago:.0f} s ago, next after {limits.host_cooldown:.0f} s"
        if len(self._running) >= limits.total:
            return f"{len(self._running)} evictions running, of {limits.total}"
        return None

    def _arm(self, report: HostReport, why: str) -> Decision:
        if any(one.source == report.host for one in self._running):
            # To sample costs what the host is short of, and nobody else leaves before this ends.
            return Decision(Action.NOTHING, report.host, why)
        choice = self._choose(report, ahead=True)
        likely = tuple(one.uuid for one in choice.candidates[: self._limits.armed])
        action = Action.ARM if likely and report.capable else Action.NOTHING
        return Decision(action, report.host, why, likely if action is Action.ARM else ())

    def _choose(self, report: HostReport, *, ahead: bool) -> Choice:
        """The ranking, with what is under way and what the journal knows taken into account."""
        moving = {one.uuid for one in self._running}
        facts = {}
        for domain in report.domains:
            known = self._facts.get(domain.uuid)
            if known is None:
                continue
            if domain.uuid in moving and known.task is None:
                known = replace(known, task="being evicted")
            past = self._moved.get(domain.uuid)
            if past:
                last = max(one.latest for one in past)
                last = last if known.last_moved is None else max(last, known.last_moved)
                known = replace(known, last_moved=last)
            facts[domain.uuid] = known
        return victims.choose(
            report, facts, self._now, self._limits.victims, self._policy, ahead=ahead
        )

    def _evict(
        self, report: HostReport, choice: Choice, candidate: Candidate, expected: str
    ) -> Decision:
        cause = f"{report.host}/{choice.resource}/{self._now:.3f}"
        self._running.append(
            Eviction(
                candidate.uuid, report.host, expected, cause, self._now, None, demand_of(candidate)
            )
        )
        return Decision(
            Action.EVICT,
            report.host,
            f"{candidate.uuid} by {self._policy.name}: {candidate.reason}; {report.reason}",
            (candidate.uuid,),
            cause,
            candidate,
            expected,
            choice.excluded,
        )

    def _destination(self, source: str, candidate: Candidate) -> str | None:
        """A host that could take it, or None. Unknown hosts count as able: Nova will see."""
        demand = demand_of(candidate)
        barred = barred_hosts(
            candidate.uuid, self._moved.get(candidate.uuid, ()), self._now, self._limits
        )
        unknown = None
        for host in self._roomiest():
            if host == source or host in barred:
                continue
            arriving = [one.demand for one in self._running if one.destination == host]
            if len(arriving) >= self._limits.into_host:
                continue
            one = self._heard[host]
            fit = destinations.judge(
                one.report,
                self._now - one.at,
                demand,
                self._limits.destinations,
                one.inventories,
                total(arriving),
            )
            if fit.fits:
                return host
            if fit.fits is None and unknown is None:
                unknown = host
        return unknown

    def _roomiest(self) -> list[str]:
        """Hosts, those with most CPU to spare first: the first that fits will do."""
        if self._roomy is None:

            def fullness(host: str) -> tuple[float, str]:
                report = self._heard[host].report
                used = report.cpu_used + report.cpu_waiting
                return (used / report.cpus if report.cpus > 0 else 1.0, host)

            self._roomy = sorted(self._heard, key=fullness)
        return self._roomy


def demand_of(candidate: Candidate) -> Demand:
    """What a candidate will need at its destination."""
    return Demand(candidate.vcpus, candidate.memory, candidate.cpu)


def total(demands: Iterable[Demand]) -> Demand:
    """The sum of demands."""
    vcpus, memory, cpu = 0, 0, 0.0
    for one in demands:
        vcpus, memory = vcpus + one.vcpus, memory + one.memory
        cpu += one.cpu or 0.0
    return Demand(vcpus, memory, cpu)
