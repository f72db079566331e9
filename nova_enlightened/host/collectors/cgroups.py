# SPDX-License-Identifier: Apache-2.0
"""What guests are bound to: the CPUs that all of them may use, and the CPU quota of each.

Nova's ``quota:cpu_quota`` becomes a quota of each vCPU thread's cgroup. Time such a thread is
held back counts as waiting for a CPU, and no eviction could give it back.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.host import procfs
from nova_enlightened.host.collectors.reading import Collector, Reading

ROOT: Final = "/sys/fs/cgroup"
CPUSETS: Final = (
    f"{ROOT}/machine.slice/cpuset.cpus.effective",
    f"{ROOT}/cpuset/machine.slice/cpuset.effective_cpus",
    f"{ROOT}/cpuset/machine/cpuset.effective_cpus",
)
LOOK_AGAIN_S: Final = 30.0
"""Between two looks at what only an operator changes."""


@dataclasses.dataclass(frozen=True)
class Quota:
    """Where a domain's throttling is counted: one directory for each vCPU that has a quota."""

    pid: int
    directories: tuple[str, ...]


class ControlGroups(Collector):
    """CPUs that guests may use, and how long quotas held them back."""

    name = "cgroups"

    def __init__(
        self, *arguments: Any, own_cpus: Callable[[], set[int]] = lambda: os.sched_getaffinity(0)
    ) -> None:
        super().__init__(*arguments)
        self._own_cpus = own_cpus
        self._looked: float | None = None
        self._allowed: frozenset[int] | None = None
        self._quotas: dict[str, Quota] = {}

    def collect(self, now: float, sofar: Reading) -> Reading:
        """See :class:`Collector`."""
        if self._looked is None or now - self._looked >= LOOK_AGAIN_S:
            self._looked = now
            self._allowed = self._allowed_cpus()
            self._quotas = {}
        throttled = {}
        for uuid, quota in self._current_quotas(sofar.pids or {}).items():
            seconds = [self._throttled(directory) for directory in quota.directories]
            if seconds:
                throttled[uuid] = sum(seconds)
        return Reading(allowed_cpus=self._allowed, throttled=throttled)

    def _allowed_cpus(self) -> frozenset[int]:
        wanted = self.surroundings.options.guest_cpus
        if wanted:
            cpus = procfs.cpu_set(wanted)
            if cpus is None:
                raise exception.CollectorError(f"[enlightened_agent] guest_cpus = {wanted}")
            return cpus
        for path in CPUSETS:
            cpus = procfs.cpu_set(self.surroundings.read(path) or "")
            if cpus is not None:
                return cpus
        return frozenset(self._own_cpus())

    def _current_quotas(self, pids: Mapping[str, int]) -> dict[str, Quota]:
        quotas = {}
        for uuid, pid in pids.items():
            known = self._quotas.get(uuid)
            quotas[uuid] = known if known is not None and known.pid == pid else self._quota(pid)
        self._quotas = quotas
        return quotas

    def _quota(self, pid: int) -> Quota:
        read, found = self.surroundings.read, []
        for tid in self.surroundings.listing(f"/proc/{pid}/task"):
            task = f"/proc/{pid}/task/{tid}"
            if not procfs.is_vcpu(read(f"{task}/comm") or ""):
                continue
            directory = cpu_directory(procfs.cgroup_paths(read(f"{task}/cgroup") or ""))
            if directory is None:
                continue
            limit, older = read(f"{directory}/cpu.max"), read(f"{directory}/cpu.cfs_quota_us")
            if procfs.has_quota(limit, older):
                found.append(directory)
        return Quota(pid, tuple(found))

    def _throttled(self, directory: str) -> float:
        text = self.surroundings.read(f"{directory}/cpu.stat") or ""
        return procfs.throttled_seconds(text) or 0.0


def cpu_directory(paths: Mapping[str, str]) -> str | None:
    """Directory of the cgroup whose CPU controller holds a task; None where there is none."""
    if "cpu" in paths:
        return f"{ROOT}/cpu{paths['cpu']}"
    return f"{ROOT}{paths['']}" if "" in paths else None
