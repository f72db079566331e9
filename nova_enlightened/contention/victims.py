# SPDX-License-Identifier: Apache-2.0
"""Which VM should leave a contended host: predicted relief against predicted cost.

Relief is by how much the host's shortage shrinks: of CPU, the waiting that ends when a guest
takes its own demand away; of memory, what it occupies, as far as that much is missing. Cost is
time: of CPU, until the guest has its hot memory at the destination, as it is disturbed that
long; of memory, until all of it has crossed, as the source is freed only then.

Victim policies are installed under the stevedore namespace `nova_enlightened.victim_policies`.
A policy only ranks; who may leave, and whether it is worth it, is decided here for all of them.
"""

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from nova_enlightened.contention.report import DomainReport, HostReport, Level
from nova_enlightened.exception import ConfigError

KIB: Final = 1024
USUAL_PRIORITY: Final = 50


class Resource(enum.StrEnum):
    """What a host is short of."""

    CPU = "cpu"
    MEMORY = "memory"


@dataclass(frozen=True)
class VmFacts:
    """What Nova and the owner say of a VM.

    :param priority: 0 to 100: how much it is to be spared; 0 leaves first.
    :param opted_out: why it must never be evicted, None where it may be.
    :param last_moved: when it last moved, on the clock of `now`; None where not known to have.
    :param state, task: Nova's `vm_state`, and `task_state` while it does something.
    """

    uuid: str
    priority: int = USUAL_PRIORITY
    opted_out: str | None = None
    last_moved: float | None = None
    locked: bool = False
    state: str = "active"
    task: str | None = None


@dataclass(frozen=True)
class VictimLimits:
    """What is worth it, and what is assumed where nothing is known.

    :param cooldown: seconds after a move in which a VM is left alone.
    :param least_cpus: CPUs a move has to give the host at least.
    :param least_memory: KiB it has to free at least.
    :param memory_wanted: share of a host's memory that should be available again.
    :param horizon: seconds of relief that a move may count on: it has to cost less than it gives
        within them.
    :param bandwidth: bytes a second, of hosts that do not know theirs.
    :param hot_share: of a guest's memory, where what is hot is not known.
    :param fixed_s: seconds a move takes whatever the memory.
    :raises ConfigError: one is out of its range.
    """

    cooldown: float = 600.0
    least_cpus: float = 0.1
    least_memory: int = 256 * KIB
    memory_wanted: float = 0.15
    horizon: float = 120.0
    bandwidth: int = 125_000_000
    hot_share: float = 0.3
    fixed_s: float = 2.0

    def __post_init__(self) -> None:
        for name in ("cooldown", "least_cpus", "least_memory", "fixed_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} {getattr(self, name)} is negative")
        for name in ("horizon", "bandwidth"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} {getattr(self, name)} is not above 0")
        for name in ("memory_wanted", "hot_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is not a share above 0")


@dataclass(frozen=True)
class Candidate:
    """A VM that may leave.

    :param relief_cpus: by how much the host's waiting would shrink.
    :param relief_memory: KiB the host would have back, of those it is short of.
    :param cost_s: seconds; see the module.
    :param worth: relief gained for each unit of cost, for comparison on one host only.
    :param cpu: CPUs it wants: those it uses and those it waits for.
    :param reason: the figures in words.
    """

    uuid: str
    resource: Resource
    priority: int
    vcpus: int
    memory: int
    cpu: float
    relief_cpus: float
    relief_memory: int
    cost_s: float
    worth: float
    reason: str


@dataclass(frozen=True)
class Excluded:
    """A VM that may not leave, and why."""

    uuid: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """Who may leave, the best first, and who may not. `reason` says why there is nobody."""

    resource: Resource
    candidates: tuple[Candidate, ...]
    excluded: tuple[Excluded, ...]
    reason: str


class VictimPolicy(Protocol):
    """The plugin contract. A policy has no state between calls."""

    name: str

    def score(self, candidate: Candidate) -> tuple[float, ...]:
        """Compared item by item, the highest leaves first; ties go by UUID."""
        ...


class ReliefPerCost:
    """Relief for each second it costs; sparing a VM by its priority makes it cost more."""

    name = "relief-per-cost"

    def score(self, candidate: Candidate) -> tuple[float, ...]:
        """See `VictimPolicy`. Every 25 points of priority double what a move costs."""
        spared = 2.0 ** ((candidate.priority - USUAL_PRIORITY) / 25)
        return (candidate.worth / spared,)


class PriorityFirst:
    """Lowest priority first, whatever it costs; among equals, relief for its cost."""

    name = "priority-first"

    def score(self, candidate: Candidate) -> tuple[float, ...]:
        """See `VictimPolicy`."""
        return (-candidate.priority, candidate.worth)


class Smallest:
    """Least memory first: the shortest moves, perhaps several of them."""

    name = "smallest"

    def score(self, candidate: Candidate) -> tuple[float, ...]:
        """See `VictimPolicy`."""
        return (-candidate.memory, candidate.worth)


def short_of(report: HostReport) -> Resource:
    """What a host is short of. Memory goes first: without it guests are killed, not slowed."""
    if report.memory_level > Level.CALM and report.memory_level >= report.cpu_level:
        return Resource.MEMORY
    return Resource.CPU


def choose(
    report: HostReport,
    facts: Mapping[str, VmFacts],
    now: float,
    limits: VictimLimits,
    policy: VictimPolicy,
    *,
    ahead: bool = False,
) -> Choice:
    """Rank the VMs of a host.

    :param facts: by UUID. A domain without is not known to Nova, and stays.
    :param now: on the clock of `VmFacts.last_moved`.
    :param ahead: only to know who might have to leave: relief need not be worth its cost yet.
    """
    resource = short_of(report)
    candidates, excluded = [], []
    for domain in report.domains:
        known = facts.get(domain.uuid)
        why = "unknown: not a VM of Nova" if known is None else barred(known, now, limits.cooldown)
        if known is None or why is not None:
            excluded.append(Excluded(domain.uuid, why or ""))
            continue
        candidate = _candidate(report, domain, known, resource, limits)
        why = None if ahead else not_worth(candidate, limits)
        if why is not None:
            excluded.append(Excluded(domain.uuid, why))
        else:
            candidates.append(candidate)
    candidates.sort(key=lambda one: one.uuid)
    candidates.sort(key=policy.score, reverse=True)
    if candidates:
        reason = f"{candidates[0].uuid} by {policy.name}: {candidates[0].reason}"
    else:
        reason = f"none of its {len(report.domains)} VMs may leave: {_summary(excluded)}"
    return Choice(resource, tuple(candidates), tuple(excluded), reason)


def barred(known: VmFacts, now: float, cooldown: float) -> str | None:
    """Why a VM must not be moved now, or None."""
    if known.opted_out is not None:
        return f"opted out: {known.opted_out}"
    if known.locked:
        return "locked"
    if known.task is not None:
        return f"busy: {known.task}"
    if known.state != "active":
        return f"not active: {known.state}"
    if known.last_moved is not None and now - known.last_moved < cooldown:
        ago = max(0.0, now - known.last_moved)
        return f"cooling down: moved {ago:.0f} s ago, left alone for {cooldown:.0f} s"
    return None


def not_worth(candidate: Candidate, limits: VictimLimits) -> str | None:
    """Why a move would not be worth it, or None."""
    if candidate.resource is Resource.MEMORY:
        if candidate.relief_memory < limits.least_memory:
            return f"not worth it: frees {candidate.relief_memory // KIB} MiB"
        if candidate.cost_s > limits.horizon:
            return f"not worth it: takes {candidate.cost_s:.0f} s"
        return None
    if candidate.relief_cpus < limits.least_cpus:
        return f"not worth it: relieves {candidate.relief_cpus:.2f} CPUs"
    # While it moves it may get nothing done at all: that is the most it can lose.
    lost = candidate.cost_s * candidate.cpu
    if lost >= candidate.relief_cpus * limits.horizon:
        return f"not worth it: {candidate.reason}"
    return None


def _candidate(
    report: HostReport,
    domain: DomainReport,
    known: VmFacts,
    resource: Resource,
    limits: VictimLimits,
) -> Candidate:
    wants = domain.cpu + domain.waiting
    cpus = max(0.0, min(report.cpu_waiting, wants))
    held = domain.resident or domain.memory
    missing = int(limits.memory_wanted * report.memory_total) - report.memory_available
    memory = max(0, min(held, missing))
    bandwidth = report.bandwidth or limits.bandwidth
    if resource is Resource.MEMORY:
        crossing, relief, words = held, float(memory), f"frees {memory // KIB} MiB"
    else:
        guessed = int(held * limits.hot_share)
        crossing = min(domain.hot, held) if domain.hot is not None else guessed
        relief, words = cpus, f"relieves {cpus:.2f} CPUs"
    cost = limits.fixed_s + crossing * KIB / bandwidth
    return Candidate(
        uuid=domain.uuid,
        resource=resource,
        priority=known.priority,
        vcpus=domain.vcpus,
        memory=domain.memory,
        cpu=wants,
        relief_cpus=cpus,
        relief_memory=memory,
        cost_s=cost,
        worth=relief / max(cost, 1e-3),
        reason=f"{words} for {cost:.1f} s ({crossing // KIB} MiB to cross)",
    )


def _summary(excluded: list[Excluded]) -> str:
    """Each kind of reason, what stands before its colon, with how many it holds for."""
    kinds = Counter(one.reason.partition(":")[0] for one in excluded)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "it has none"
