# SPDX-License-Identifier: Apache-2.0
"""A host whose guests share its CPUs fairly, as counters that a collector would read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nova_enlightened.contention.detector import Detector, Verdict
from nova_enlightened.contention.report import DomainSample, HostReport, HostSample, Level

MIB = 1 << 10
GIB = 1 << 20


def fair(cpus: float, wanted: Sequence[float]) -> list[float]:
    """CPUs that each gets: what it wants, or an equal part of what is left."""
    given, left = [0.0] * len(wanted), cpus
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    for place, number in enumerate(order):
        given[number] = min(wanted[number], left / (len(wanted) - place))
        left -= given[number]
    return given


class SimulatedHost:
    """Second by second; `vcpus` of each guest, by name."""

    def __init__(
        self, cpus: int, vcpus: Mapping[str, int], detector: Detector | None = None
    ) -> None:
        self.cpus = cpus
        self.vcpus = dict(vcpus)
        self.at = 1000.0
        self.busy = 0.0
        self.cpu = dict.fromkeys(vcpus, 0.0)
        self.delay = dict.fromkeys(vcpus, 0.0)
        self.detector = detector or Detector()
        self.host: dict[str, Any] = {
            "memory_total": 64 * GIB,
            "memory_available": 32 * GIB,
            "swap_in": 0,
        }

    def sample(self) -> HostSample:
        domains = tuple(
            DomainSample(name, count, self.cpu[name], self.delay[name], GIB, GIB)
            for name, count in self.vcpus.items()
        )
        return HostSample(
            at=self.at, cpus=self.cpus, cpu_busy=self.busy, domains=domains, **self.host
        )

    def second(self, wanted: Mapping[str, float], seconds: float = 1.0) -> Verdict:
        """Let the guests want so much for a while, then sample."""
        names = list(wanted)
        given = fair(self.cpus, [wanted[name] for name in names])
        for name, got in zip(names, given, strict=True):
            self.cpu[name] += got * seconds
            self.delay[name] += (wanted[name] - got) * seconds
            self.busy += got * seconds
        self.at += seconds
        return self.detector.observe(self.sample())

    def seconds(self, count: int, wanted: Mapping[str, float]) -> list[Level]:
        """The level after each of so many seconds of the same."""
        return [self.second(wanted).level for _ in range(count)]


def two_on_one_core(detector: Detector | None = None) -> SimulatedHost:
    host = SimulatedHost(1, {"a": 1, "b": 1}, detector)
    host.detector.observe(host.sample())
    return host


def host_report(name: str = "source", **values: Any) -> HostReport:
    """A calm, idle host with plenty of everything, but for `values`."""
    return HostReport(
        **{
            "host": name,
            "node": name,
            "at": 0.0,
            "level": Level.CALM,
            "reason": "said by a test",
            "cpu_level": values.get("level", Level.CALM),
            "memory_level": Level.CALM,
            "cpus": 8,
            "cpu_used": 1.0,
            "cpu_waiting": 0.0,
            "memory_total": 64 * GIB,
            "memory_available": 48 * GIB,
            "bandwidth": 1_000_000_000,
            "capable": True,
            **values,
        }
    )
