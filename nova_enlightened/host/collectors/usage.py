# SPDX-License-Identifier: Apache-2.0
"""The host's processors, memory and stalls, as the kernel counts them."""

import os
import re
from typing import Final

from nova_enlightened import exception
from nova_enlightened.host import procfs
from nova_enlightened.host.collectors.reading import Collector, Reading

WHOLE_HOST: Final = "/proc/pressure"
_SWAPPED_IN = re.compile(r"^pswpin (\d+)$", re.MULTILINE)


class Processors(Collector):
    """CPU time of everything, on the CPUs that guests may use."""

    name = "processors"

    def collect(self, now: float, sofar: Reading) -> Reading:
        """See :class:`Collector`."""
        busy = procfs.cpu_seconds(self.surroundings.read("/proc/stat") or "")
        allowed = sofar.allowed_cpus
        seconds = [taken for cpu, taken in busy.items() if allowed is None or cpu in allowed]
        if not seconds:
            raise exception.CollectorError(f"/proc/stat tells of none of the CPUs {allowed or ''}")
        return Reading(cpus=len(seconds), cpu_busy=sum(seconds))


class Memory(Collector):
    """Memory the host has and could give, and pages swapped in."""

    name = "memory"

    def collect(self, now: float, sofar: Reading) -> Reading:
        """See :class:`Collector`."""
        text = self.surroundings.read("/proc/meminfo") or ""
        numbers = procfs.keyed_numbers(text, ("MemTotal", "MemAvailable"))
        swapped = _SWAPPED_IN.search(self.surroundings.read("/proc/vmstat") or "")
        return Reading(
            memory_total=numbers.get("MemTotal"),
            memory_available=numbers.get("MemAvailable"),
            swap_in=int(swapped[1]) if swapped else None,
        )


class PressureStall(Collector):
    """Time in which tasks waited for CPUs or memory (PSI)."""

    name = "pressure"

    def collect(self, now: float, sofar: Reading) -> Reading:
        """See :class:`Collector`. A kernel without PSI is no trouble."""
        directory = self.surroundings.options.pressure_directory
        cpu, memory = self._read(directory, "cpu"), self._read(directory, "memory")
        some = cpu.some
        if directory == WHOLE_HOST and self._is_part(sofar.allowed_cpus):
            some = None  # who waits for the other CPUs would count
        return Reading(cpu_some=some, memory_some=memory.some, memory_full=memory.full)

    def _read(self, directory: str, resource: str) -> procfs.Pressure:
        read = self.surroundings.read
        text = read(f"{directory}/{resource}")
        if text is None:
            text = read(f"{directory}/{resource}.pressure")
        return procfs.pressure(text or "")

    @staticmethod
    def _is_part(allowed: frozenset[int] | None) -> bool:
        return allowed is not None and len(allowed) < (os.cpu_count() or 0)
