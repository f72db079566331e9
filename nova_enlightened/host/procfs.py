# SPDX-License-Identifier: Apache-2.0
"""Parsers of the kernel's text files: text in, values out. Formats are those of proc(5),
Documentation/accounting/psi.rst and Documentation/admin-guide/cgroup-v2.rst.

What a file does not say is None, or missing from the answer; nothing here raises for it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

USER_HZ: Final = 100
"""Ticks a second in /proc/stat: fixed on every architecture that Nova runs on."""
SECOND_NS: Final = 1_000_000_000
MOST_CPUS: Final = 8192
"""As many as CONFIG_NR_CPUS can say on x86."""

_IDLE, _IOWAIT, _GUEST = 3, 4, 8
_CPU_LINE = re.compile(r"^cpu(\d+) (.*)$", re.MULTILINE)
_PRESSURE_LINE = re.compile(r"^(some|full) .*\btotal=(\d+)$", re.MULTILINE)
_CGROUP_LINE = re.compile(r"^(\d+):([^:]*):(/.*)$", re.MULTILINE)


def cpu_seconds(stat: str) -> dict[int, float]:
    """CPU -> seconds it was not idle since boot, from /proc/stat.

    Time that a hypervisor below took away (steal) counts: it was not there to be used.
    """
    busy = {}
    for found in _CPU_LINE.finditer(stat):
        try:
            ticks = [int(word) for word in found[2].split()[:_GUEST]]
        except ValueError:
            continue
        if len(ticks) > _IOWAIT:
            busy[int(found[1])] = (sum(ticks) - ticks[_IDLE] - ticks[_IOWAIT]) / USER_HZ
    return busy


def keyed_numbers(text: str, names: Iterable[str] = ()) -> dict[str, int]:
    """Name -> number of a file of such lines (/proc/meminfo, /proc/vmstat, cpu.stat).

    :param names: only these; all without any.
    """
    wanted = frozenset(names)
    numbers = {}
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        name = name.rstrip(":")
        if wanted and name not in wanted:
            continue
        words = rest.split(maxsplit=1)
        if words and words[0].isdecimal():
            numbers[name] = int(words[0])
    return numbers


@dataclass(frozen=True)
class Pressure:
    """Seconds stalled since boot; None where the kernel does not say."""

    some: float | None = None
    full: float | None = None


def pressure(text: str) -> Pressure:
    """From a PSI file; its totals are microseconds."""
    totals = {found[1]: int(found[2]) / 1e6 for found in _PRESSURE_LINE.finditer(text)}
    return Pressure(totals.get("some"), totals.get("full"))


def run_delay(schedstat: str) -> float | None:
    """Seconds a task was ready and waited for a CPU, from /proc/PID/task/TID/schedstat."""
    words = schedstat.split()
    if len(words) < 2 or not words[1].isdecimal():
        return None
    return int(words[1]) / SECOND_NS


def is_vcpu(comm: str) -> bool:
    """Whether a thread of QEMU is a vCPU's, by its name ("CPU 0/KVM", "CPU 0/TCG")."""
    return comm.startswith("CPU ") and comm.rstrip().endswith(("/KVM", "/TCG"))


def cpu_set(text: str) -> frozenset[int] | None:
    """CPUs of a list such as ``0-3,8``; None where it is empty or no such list."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            return None
        low, high = int(first), int(last or first)
        if not low <= high < MOST_CPUS:
            return None
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


def cgroup_paths(text: str) -> dict[str, str]:
    """Controller -> path, from /proc/PID/cgroup; the unified hierarchy's controller is ""."""
    paths = {}
    for _, controllers, path in _CGROUP_LINE.findall(text):
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def has_quota(cpu_max: str | None, cfs_quota: str | None) -> bool:
    """Whether a cgroup has a CPU quota: ``cpu.max`` of v2 or ``cpu.cfs_quota_us`` of v1."""
    if cpu_max is not None:
        return cpu_max.split(" ", 1)[0].isdecimal()
    return cfs_quota is not None and cfs_quota.strip().isdecimal()


def throttled_seconds(cpu_stat: str) -> float | None:
    """Seconds for which a quota held a cgroup back, from ``cpu.stat`` of v2 or v1."""
    numbers = keyed_numbers(cpu_stat, ("throttled_usec", "throttled_time"))
    if "throttled_usec" in numbers:
        return numbers["throttled_usec"] / 1e6
    if "throttled_time" in numbers:
        return numbers["throttled_time"] / SECOND_NS
    return None
