# SPDX-License-Identifier: Apache-2.0
"""Guests, as libvirt counts them: CPU time, time waited for a CPU, memory.

Everything comes in one call for all domains. It never waits for a domain that is busy; what
libvirt leaves out then is taken from the last time it told.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import libvirt

from nova_enlightened.contention.report import DomainSample
from nova_enlightened.host import procfs
from nova_enlightened.host.collectors.reading import Collector, Reading
from nova_enlightened.host.connection import translated
from nova_enlightened.host.qemu_process import PID_DIRECTORY

MEMORY_EVERY: Final = 5
"""Memory changes slowly, and asking for it costs libvirt a question to each QEMU."""
ALL_STATISTICS: Final = (
    libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_BALLOON
)
FLAGS: Final = (
    libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
)
_SWAP = re.compile(r"^VmSwap:\s+(\d+) kB$", re.MULTILINE)
_SWAP_IN_USE = re.compile(r"^/.*\s(\d+)\s+([1-9]\d*)\s+-?\d+$", re.MULTILINE)


@dataclasses.dataclass
class Known:
    """What is kept of a running domain. It is another one once its `id` is another."""

    id: int
    pid: int | None = None
    vcpu_tasks: tuple[str, ...] | None = None
    memory: int = 0
    resident: int = 0
    swapped: int = 0


def delays(statistics: Mapping[str, Any], vcpus: int) -> float | None:
    """Seconds all vCPUs waited for a CPU; None where libvirt (before 7.2) does not say."""
    found = [
        delay
        for number in range(vcpus)
        if (delay := statistics.get(f"vcpu.{number}.delay")) is not None
    ]
    return sum(found) / procfs.SECOND_NS if found else None


def cpu_time(statistics: Mapping[str, Any], vcpus: int) -> float | None:
    """Seconds of CPU a domain used; of its vCPUs alone where libvirt has no cgroup to ask."""
    whole = statistics.get("cpu.time")
    if whole is None:
        times = [statistics.get(f"vcpu.{number}.time") for number in range(vcpus)]
        whole = sum(time for time in times if time is not None) if any(times) else None
    return None if whole is None else float(whole) / procfs.SECOND_NS


class DomainStatistics(Collector):
    """Domains that run, and the process of each."""

    name = "libvirt"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._known: dict[str, Known] = {}
        self._rounds = 0
        self._swapping = False

    def collect(self, now: float, sofar: Reading) -> Reading:
        """See :class:`Collector`. :raises LibvirtError: libvirt does not answer."""
        statistics = ALL_STATISTICS
        with_memory = self._rounds % MEMORY_EVERY == 0 or not all(
            one.memory for one in self._known.values()
        )
        if not with_memory:
            statistics &= ~libvirt.VIR_DOMAIN_STATS_BALLOON
        connection = self.surroundings.connection()
        with translated("domain statistics"):
            records = connection.getAllDomainStats(statistics, FLAGS)
        if with_memory:
            # Nobody's memory is swapped out where no swap is in use: then QEMUs are not asked.
            swaps = self.surroundings.read("/proc/swaps") or ""
            self._swapping = _SWAP_IN_USE.search(swaps) is not None
        self._rounds += 1
        return self._reading(records)

    def _reading(self, records: Sequence[tuple[Any, Mapping[str, Any]]]) -> Reading:
        known: dict[str, Known] = {}
        samples = []
        for domain, statistics in records:
            uuid, number = domain.UUIDString(), domain.ID()
            one = self._known.get(uuid)
            if one is None or one.id != number:
                one = Known(number, self._pid(domain.name()))
            known[uuid] = one
            sample = self._sample(uuid, one, statistics)
            if sample is not None:
                samples.append(sample)
        self._known = known
        pids = {uuid: one.pid for uuid, one in known.items() if one.pid is not None}
        return Reading(domains=tuple(samples), pids=pids)

    def _sample(self, uuid: str, one: Known, statistics: Mapping[str, Any]) -> DomainSample | None:
        """None for a domain that just ended, or of which libvirt tells too little."""
        vcpus = int(statistics.get("vcpu.current", 0))
        cpu = cpu_time(statistics, int(statistics.get("vcpu.maximum", vcpus)))
        if not vcpus or cpu is None:
            return None
        waited = delays(statistics, int(statistics.get("vcpu.maximum", vcpus)))
        if waited is None:
            waited = self._waited(one)
        if "balloon.current" in statistics:
            one.memory = int(statistics["balloon.current"])
        if "balloon.rss" in statistics:
            one.resident = int(statistics["balloon.rss"])
            one.swapped = self._swapped(one.pid) if self._swapping else 0
        return DomainSample(
            uuid, vcpus, cpu, waited or 0.0, one.memory, one.resident, swapped=one.swapped
        )

    def _pid(self, name: str) -> int | None:
        text = self.surroundings.read(f"{PID_DIRECTORY}/{name}.pid")
        return int(text) if text is not None and text.strip().isdecimal() else None

    def _waited(self, one: Known) -> float | None:
        """The same from the kernel, thread by thread."""
        if one.pid is None:
            return None
        if one.vcpu_tasks is None:
            one.vcpu_tasks = tuple(self._vcpu_tasks(one.pid))
        found = []
        for task in one.vcpu_tasks:
            waited = procfs.run_delay(self.surroundings.read(f"{task}/schedstat") or "")
            if waited is None:
                one.vcpu_tasks = None  # a vCPU was unplugged: looked for again next time
                return None
            found.append(waited)
        return sum(found)

    def _vcpu_tasks(self, pid: int) -> Sequence[str]:
        tasks = [
            f"/proc/{pid}/task/{tid}" for tid in self.surroundings.listing(f"/proc/{pid}/task")
        ]
        return [
            task for task in tasks if procfs.is_vcpu(self.surroundings.read(f"{task}/comm") or "")
        ]

    def _swapped(self, pid: int | None) -> int:
        if pid is None:
            return 0
        found = _SWAP.search(self.surroundings.read(f"/proc/{pid}/status") or "")
        return int(found[1]) if found else 0
