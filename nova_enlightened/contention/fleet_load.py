# SPDX-License-Identifier: Apache-2.0
"""A simulated fleet's load: what each VM wants, what its host gives it, and what it waits for.

A VM's demand is a share of its vCPUs of its own, that wanders, with bursts of one sample; from
some moment on the VMs of some hosts want more (the surge). A host shares its CPUs as the kernel
does: everybody gets what they want up to a level that is the same for every vCPU. Waiting is
the rest, and a little more the busier the host is.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.contention.report import DomainSample, HostSample

GIB: Final = 1 << 20
"""In KiB."""
VCPUS: Final = (1, 2, 4, 8)
_SPLITS: Final = 24
"""Halvings until the level of a host is known: to a millionth of a CPU."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FleetSpec:
    """A fleet and its trace. Shares are 0 to 1, times in simulated seconds.

    :param surged: share of the hosts whose VMs want more from some moment between `surge_from`
        and `surge_to` on: the least and most times their CPUs in `surge`.
    :param bound: share of the surged hosts whose VMs have all opted out.
    :param opted_out: share of all VMs that have.
    :param busy: CPUs wanted of those there are, before: its mean, and its spread over hosts.
    :param filled: share of the memory for guests that they have at most, before.
    :param failing: share of evictions that fail.
    """

    hosts: int = 2000
    vms_per_host: int = 20
    cpus: int = 32
    memory: int = 192 * GIB
    host_memory: int = 8 * GIB
    memory_per_vcpu: int = 2 * GIB
    seconds: int = 240
    surged: float = 0.10
    surge: tuple[float, float] = (1.15, 1.5)
    surge_from: float = 20.0
    surge_to: float = 50.0
    bound: float = 0.03
    opted_out: float = 0.10
    busy: tuple[float, float] = (0.45, 0.08)
    filled: float = 0.9
    failing: float = 0.02
    bandwidth: int = 1_000_000_000


class FleetLoad:
    """Every VM's demand and counters, as arrays by VM number.

    :param rng: decides everything that is random; the same one gives the same trace.
    """

    def __init__(self, spec: FleetSpec, rng: np.random.Generator) -> None:
        self.spec, self._rng = spec, rng
        count = spec.hosts * spec.vms_per_host
        self.host: Ints = np.repeat(np.arange(spec.hosts), spec.vms_per_host)
        self.vcpus = self._flavors()
        self.memory: Ints = self.vcpus * spec.memory_per_vcpu
        self.uuids = [f"{number:08x}-0000-4000-8000-{number:012x}" for number in range(count)]
        self.members: list[list[int]] = [
            list(range(first, first + spec.vms_per_host))
            for first in range(0, count, spec.vms_per_host)
        ]
        self.surged: Ints = rng.choice(spec.hosts, round(spec.hosts * spec.surged), replace=False)
        self._starts = np.full(count, np.inf)
        self._base = self._quiet()
        self._high = self._base.copy()
        for host in self.surged.tolist():
            self._surge(host)
        self._wander = np.ones(count)
        self._burst = np.zeros(count, np.bool_)
        self._cpu, self._delay = np.zeros(count), np.zeros(count)
        self._busy = np.zeros(spec.hosts)
        self.wanted = np.zeros(count)
        self.waiting = np.zeros(count)

    def step(self, at: float) -> None:
        """One second, up to `at`."""
        rng, vcpus = self._rng, self.vcpus
        self._wander += 0.2 * (1 - self._wander) + rng.normal(0, 0.05, vcpus.size)
        # A burst lasts for one sample: none follows another.
        self._burst = (rng.random(vcpus.size) < 0.01) & ~self._burst
        share = np.where(at >= self._starts, self._high, self._base) * self._wander
        self.wanted = np.clip(np.where(self._burst, vcpus, share), 0.0, vcpus)
        given = self._given()
        used = self._sum(given)
        crowded = (used / self.spec.cpus)[self.host] ** 4
        self.waiting = self.wanted - given + 0.03 * given * crowded
        self._cpu += given
        self._delay += self.waiting
        self._busy += used + 0.2

    def samples(self, at: float, absent: int = 0) -> list[HostSample]:
        """What the hosts' collectors find, by host number.

        :param absent: KiB more than its VMs have that each host lacks.
        """
        spec, uuids = self.spec, self.uuids
        cpu, delay = self._cpu.tolist(), self._delay.tolist()
        vcpus, memory = self.vcpus.tolist(), self.memory.tolist()
        free = spec.memory - spec.host_memory - absent - self._sum(self.memory)
        return [
            HostSample(
                at=at,
                cpus=spec.cpus,
                cpu_busy=busy,
                memory_total=spec.memory,
                memory_available=max(0, int(left)),
                domains=tuple(
                    [
                        DomainSample(uuids[v], vcpus[v], cpu[v], delay[v], memory[v], memory[v])
                        for v in members
                    ]
                ),
            )
            for busy, left, members in zip(
                self._busy.tolist(), free.tolist(), self.members, strict=True
            )
        ]

    def move(self, vm: int, destination: int) -> None:
        """The VM executes there from now on; a new QEMU counts from zero."""
        self.members[int(self.host[vm])].remove(vm)
        self.members[destination].append(vm)
        self.host[vm] = destination
        self._cpu[vm] = self._delay[vm] = 0.0

    def _sum(self, values: npt.NDArray[np.float64] | Ints) -> Floats:
        """Of each host's VMs."""
        found: Floats = np.bincount(self.host, values, self.spec.hosts).astype(np.float64)
        return found

    def _given(self) -> Floats:
        """CPUs each VM gets: what it wants, up to its vCPUs times its host's level."""
        low, high = np.zeros(self.spec.hosts), np.ones(self.spec.hosts)
        for _ in range(_SPLITS):
            middle = (low + high) / 2
            given = np.minimum(self.wanted, middle[self.host] * self.vcpus)
            fits = self._sum(given) <= self.spec.cpus
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        free = self._sum(self.wanted) <= self.spec.cpus
        level = np.where(free, 1.0, low)
        return np.minimum(self.wanted, level[self.host] * self.vcpus)

    def _flavors(self) -> Ints:
        """How many vCPUs each VM has, such that all of a host fit into its memory."""
        spec = self.spec
        most = int(spec.filled * (spec.memory - spec.host_memory)) // spec.memory_per_vcpu
        drawn = self._rng.choice(np.array(VCPUS, np.int64), (spec.hosts, spec.vms_per_host))
        for host in np.flatnonzero(drawn.sum(axis=1) > most).tolist():
            while drawn[host].sum() > most and drawn[host].max() > 1:
                drawn[host, drawn[host].argmax()] //= 2
        return drawn.ravel()

    def _quiet(self) -> Floats:
        """CPUs each VM wants before the surge: unevenly spread within its host."""
        spec, rng = self.spec, self._rng
        raw = self.vcpus * rng.beta(1.0, 3.0, self.vcpus.size)
        target = np.clip(rng.normal(*spec.busy, spec.hosts), 0.1, 0.75) * spec.cpus
        wanted: Floats = raw * (target / self._sum(raw))[self.host]
        most: Floats = 0.9 * self.vcpus.astype(np.float64)
        return np.minimum(wanted, most)

    def _surge(self, host: int) -> None:
        """Raise VMs of a host, one after the other, until together they want enough."""
        spec, rng = self.spec, self._rng
        wanted = rng.uniform(*spec.surge) * spec.cpus
        start = rng.uniform(spec.surge_from, spec.surge_to)
        members = self.members[host]
        self._starts[members] = start
        for vm in rng.permutation(members).tolist():
            missing = wanted - float(self._high[members].sum())
            if missing <= 0:
                return
            room = 0.95 * float(self.vcpus[vm]) - float(self._high[vm])
            self._high[vm] += max(0.0, min(room, missing))
