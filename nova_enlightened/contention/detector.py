# SPDX-License-Identifier: Apache-2.0
"""From a host's samples to a verdict: do its guests hinder each other?

CPU: a busy host is not contended, one whose guests wait is. The figure is the *waiting share*,
waiting / (used + waiting): the part of the CPU time it wanted that a guest did not get. It is
taken of the guest that fares worst, among those that lose a quantity worth mentioning, and of
all guests together. A guest's waiting counts up to what others used: more it cannot have lost
to them, whatever its own quota or its own too many vCPUs cost it.

Memory: stalls (PSI) and pages swapped in, while memory is scarce. Scarcity alone warns.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from nova_enlightened.contention.levels import Bounds, HeldLevel, Holds, Zone
from nova_enlightened.contention.report import (
    DomainReport,
    DomainSample,
    HostReport,
    HostSample,
    Level,
)
from nova_enlightened.exception import ConfigError

SHORTEST_S: Final = 0.1
"""Differences over less time than this are noise; the sample is passed over."""
_TERSE: Final = 8
"""Characters of a UUID that a reason shows."""


@dataclass(frozen=True)
class Thresholds:
    """What counts as contention. Shares are 0 to 1.

    :param cpu: of the waiting share.
    :param cpu_least: CPUs a guest, or all together, have to lose before the waiting share counts.
    :param cpu_stall: with CPU PSI *some* below this share, waiting warns at most: the kernel
        saw nobody wait.
    :param memory_some, memory_full: of the share of time stalled on memory.
    :param swap_in: of pages swapped in a second.
    :param memory_scarce: share of memory available below which memory warns.
    :param memory_ample: with a larger share available, stalls and swapping warn at most: a guest
        that leaves would not end them.
    :param gap: seconds; what happened between samples further apart is not known.
    :raises ConfigError: one is out of its range.
    """

    cpu: Bounds = field(default_factory=lambda: Bounds(0.10, 0.25))
    cpu_least: float = 0.1
    cpu_stall: float = 0.05
    memory_some: Bounds = field(default_factory=lambda: Bounds(0.05, 0.20))
    memory_full: Bounds = field(default_factory=lambda: Bounds(0.02, 0.10))
    swap_in: Bounds = field(default_factory=lambda: Bounds(200.0, 2000.0))
    memory_scarce: float = 0.05
    memory_ample: float = 0.20
    holds: Holds = field(default_factory=Holds)
    gap: float = 10.0

    def __post_init__(self) -> None:
        if not self.cpu_least >= 0:
            raise ConfigError(f"cpu_least {self.cpu_least} is negative")
        for name in ("cpu_stall", "memory_scarce", "memory_ample"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is not a share")
        if not self.gap > SHORTEST_S:
            raise ConfigError(f"gap {self.gap} is not above {SHORTEST_S}")


@dataclass(frozen=True)
class Verdict:
    """What a sample led to.

    :param reason: in words, with figures.
    :param cpu_used, cpu_waiting: CPUs over the last interval; waiting is the guests'.
    :param cpu_share: the waiting share that was judged.
    :param domains: those of the sample; one seen for the first time, or whose counters began
        anew, has used nothing and waited for nothing.
    """

    level: Level
    cpu_level: Level
    memory_level: Level
    reason: str
    cpu_used: float = 0.0
    cpu_waiting: float = 0.0
    cpu_share: float = 0.0
    domains: tuple[DomainReport, ...] = ()

    def report(
        self,
        sample: HostSample,
        *,
        host: str,
        node: str,
        at: float,
        bandwidth: int = 0,
        capable: bool = False,
        domains: tuple[DomainReport, ...] | None = None,
    ) -> HostReport:
        """The report of a host; see :class:`HostReport`.

        :param sample: the one that led to this verdict.
        :param domains: in place of the verdict's, with what is known of armed guests.
        """
        return HostReport(
            host=host,
            node=node,
            at=at,
            level=self.level,
            reason=self.reason,
            cpu_level=self.cpu_level,
            memory_level=self.memory_level,
            cpus=sample.cpus,
            cpu_used=self.cpu_used,
            cpu_waiting=self.cpu_waiting,
            memory_total=sample.memory_total,
            memory_available=sample.memory_available,
            bandwidth=bandwidth,
            capable=capable,
            domains=self.domains if domains is None else domains,
        )


@dataclass(frozen=True)
class _Finding:
    """One figure and what it asks for."""

    zone: Zone
    words: str


class Detector:
    """Judges one host. Feed it every sample; it holds the last one and the levels."""

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self._last: HostSample | None = None
        self._domains: dict[str, DomainSample] = {}
        self._cpu = HeldLevel(self.thresholds.holds)
        self._memory = HeldLevel(self.thresholds.holds)
        self._verdict = Verdict(Level.CALM, Level.CALM, Level.CALM, "no sample yet")

    def observe(self, sample: HostSample) -> Verdict:
        """The verdict after one more sample. Never raises, whatever the figures."""
        last = self._last
        if last is None or not math.isfinite(sample.at):
            return self._begin(sample, "first sample")
        interval = sample.at - last.at
        if interval < 0:
            # Another clock: a reboot, or a restored machine. Levels stay, nothing is held over.
            return self._begin(sample, f"the clock went back by {-interval:.1f} s", keep=True)
        if interval > self.thresholds.gap:
            return self._begin(sample, f"no sample for {interval:.1f} s")
        if interval < SHORTEST_S:
            return self._verdict
        return self._judge(last, sample, interval)

    def _begin(self, sample: HostSample, why: str, *, keep: bool = False) -> Verdict:
        for held in (self._cpu, self._memory):
            held.forget(level=not keep)
        self._remember(sample)
        domains = tuple(
            DomainReport(one.uuid, one.vcpus, 0.0, 0.0, one.memory, one.resident)
            for one in self._domains.values()
        )
        cpu, memory = self._cpu.level, self._memory.level
        self._verdict = Verdict(max(cpu, memory), cpu, memory, why, domains=domains)
        return self._verdict

    def _remember(self, sample: HostSample) -> None:
        self._last = sample if math.isfinite(sample.at) else None
        self._domains = {one.uuid: one for one in sample.domains}

    def _judge(self, last: HostSample, sample: HostSample, interval: float) -> Verdict:
        before = self._domains
        self._remember(sample)
        busy = rate(last.cpu_busy, sample.cpu_busy, interval)
        domains = tuple(_reports(before, self._domains, busy, interval, sample.cpus))
        used = sum([one.cpu for one in domains])
        waiting = sum([one.waiting for one in domains])
        stalled = rate(last.cpu_some, sample.cpu_some, interval)
        share, worst = self._waiting_share(domains, used, waiting)
        used = max(used, min(busy or 0.0, float(max(sample.cpus, 0))))
        cpu = self._cpu_finding(share, worst, waiting, stalled)
        memory = max(self._memory_findings(last, sample, interval), key=lambda found: found.zone)
        cpu_level = self._cpu.observe(cpu.zone, sample.at)
        memory_level = self._memory.observe(memory.zone, sample.at)
        self._verdict = Verdict(
            max(cpu_level, memory_level),
            cpu_level,
            memory_level,
            f"CPU {cpu_level.name.lower()}: {used:.2f} of {sample.cpus} in use, {cpu.words}; "
            f"memory {memory_level.name.lower()}: {memory.words}",
            used,
            waiting,
            share,
            domains,
        )
        return self._verdict

    def _waiting_share(
        self, domains: tuple[DomainReport, ...], used: float, waiting: float
    ) -> tuple[float, str]:
        """The share to judge and who fares worst ("" where it is all together)."""
        least = max(self.thresholds.cpu_least, 1e-9)
        share, worst = (waiting / (used + waiting) if waiting >= least else 0.0), ""
        for one in domains:
            if one.waiting >= least:
                own = one.waiting / (one.cpu + one.waiting)
                if own > share:
                    share, worst = own, one.uuid
        return share, worst

    def _cpu_finding(
        self, share: float, worst: str, waiting: float, stalled: float | None
    ) -> _Finding:
        zone = self.thresholds.cpu.zone(share)
        words = f"guests wait for {waiting:.2f}"
        if share > 0:
            words += f" ({share:.0%} of what {worst[:_TERSE] or 'all of them'} wanted)"
        if stalled is not None and stalled < self.thresholds.cpu_stall and zone > Zone.WARN:
            return _Finding(Zone.WARN, f"{words}, but PSI saw {stalled:.0%}")
        return _Finding(zone, words)

    def _memory_findings(
        self, last: HostSample, sample: HostSample, interval: float
    ) -> Iterator[_Finding]:
        limits = self.thresholds
        total = sample.memory_total
        available = min(1.0, max(0.0, sample.memory_available / total)) if total > 0 else 1.0
        scarce = Bounds(1.0, math.inf).zone(limits.memory_scarce / max(available, 1e-6))
        yield _Finding(scarce, f"{available:.0%} available")
        most = Zone.ACT if available <= limits.memory_ample else Zone.WARN
        for name, before, after, bounds in (
            ("some", last.memory_some, sample.memory_some, limits.memory_some),
            ("full", last.memory_full, sample.memory_full, limits.memory_full),
        ):
            share = rate(before, after, interval)
            if share is not None:
                zone = min(most, bounds.zone(share))
                yield _Finding(zone, f"{name} stalled {share:.0%}, {available:.0%} available")
        pages = rate(last.swap_in, sample.swap_in, interval)
        if pages is not None:
            zone = min(most, limits.swap_in.zone(pages))
            yield _Finding(zone, f"{pages:.0f} pages/s swapped in, {available:.0%} available")


def rate(before: float | None, after: float | None, interval: float) -> float | None:
    """A counter's growth a second; None where it is not kept, began anew or is no number."""
    if before is None or after is None:
        return None
    grown = (after - before) / interval
    return grown if 0 <= grown < math.inf else None


def _reports(
    before: dict[str, DomainSample],
    after: dict[str, DomainSample],
    busy: float | None,
    interval: float,
    cpus: int,
) -> Iterator[DomainReport]:
    """What each domain used, and lost to others, between two samples.

    :param busy: CPUs in use by everything, None where not known.
    """
    most = float(max(cpus, 0))
    rates = [_rates(before.get(uuid), one, interval, most) for uuid, one in after.items()]
    everything = max(busy or 0.0, sum([cpu for cpu, _ in rates]))
    for one, (cpu, waiting) in zip(after.values(), rates, strict=True):
        lost = waiting and max(0.0, min(waiting, everything - cpu))
        yield DomainReport(one.uuid, one.vcpus, cpu, lost, one.memory, one.resident)


def _rates(
    before: DomainSample | None, after: DomainSample, interval: float, most: float
) -> tuple[float, float]:
    """(CPUs used, CPUs waited for); nothing for a domain that is new or began anew.

    Called for every domain of a host each second, so it is written out.
    """
    if before is None:
        return 0.0, 0.0
    cpu = (after.cpu - before.cpu) / interval
    delay = (after.run_delay - before.run_delay) / interval
    if not (0 <= cpu < math.inf and 0 <= delay < math.inf):
        return 0.0, 0.0
    if after.throttled:
        delay = max(0.0, delay - (rate(before.throttled, after.throttled, interval) or 0.0))
    return (cpu if cpu < most else most), (delay if delay < after.vcpus else max(0, after.vcpus))
