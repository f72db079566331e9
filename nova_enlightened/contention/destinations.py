# SPDX-License-Identifier: Apache-2.0
"""Whether a host can take a VM without becoming contended itself.

Two things have to hold: what the operator allows (placement's inventory: total, reserved,
allocation ratio, used), and what the host has left by its own report. A report that is missing
or old says nothing: such a host is neither refused nor preferred.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nova_enlightened.contention.report import HostReport, Level
from nova_enlightened.exception import ConfigError

VCPU: Final = "VCPU"
MEMORY_MB: Final = "MEMORY_MB"
KIB: Final = 1024
_AHEAD_S: Final = 30.0
"""A report this far in the future shows a clock that is wrong, not one that is a little fast."""
_WHOLE: Final = 1.05
"""Demand is measured: a VM that wants one CPU may be seen to want a little more."""


@dataclass(frozen=True)
class Demand:
    """What a VM needs.

    :param memory: KiB.
    :param cpu: CPUs it wants, None where nothing is known of it (a new server).
    """

    vcpus: int
    memory: int
    cpu: float | None = None

    def expected_cpu(self, share: float) -> float:
        """CPUs it will want; `share` of its vCPUs where that is not known."""
        return self.vcpus * share if self.cpu is None else self.cpu


@dataclass(frozen=True)
class Inventory:
    """Placement's account of one resource class of a host. Memory is in MiB there."""

    total: int
    reserved: int = 0
    allocation_ratio: float = 1.0
    used: int = 0

    @property
    def headroom(self) -> float:
        """What may still be allocated; negative where more is than should be."""
        return (self.total - self.reserved) * self.allocation_ratio - self.used

    @property
    def usable(self) -> float:
        """What guests may occupy of the real thing: a ratio above 1 makes no more of it."""
        return max(0.0, (self.total - self.reserved) * min(1.0, self.allocation_ratio))


@dataclass(frozen=True)
class DestinationLimits:
    """When a host is full.

    :param age: seconds after which a report says nothing.
    :param cpu: share of the CPUs that may be wanted once the VM is there.
    :param empty: share of the CPUs in use up to which a host counts as empty: one VM may then
        want all of it.
    :param memory: share of the memory that has to be available then.
    :param expected_cpu: share of its vCPUs that a VM of which nothing is known is taken to want.
    :raises ConfigError: one is out of its range.
    """

    age: float = 10.0
    cpu: float = 0.85
    empty: float = 0.2
    memory: float = 0.08
    expected_cpu: float = 0.25

    def __post_init__(self) -> None:
        if not self.age > 0:
            raise ConfigError(f"age {self.age} is not above 0")
        for name in ("cpu", "empty", "memory", "expected_cpu"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is not a share")


@dataclass(frozen=True)
class Fit:
    """The judgement.

    :param fits: None where it is not known.
    :param score: for weighing: 0 where not known; above 0, up to 1, the share left of what is
        scarcer; below 0, down to -1, a host that should not take it.
    :param reason: in words, with figures.
    """

    fits: bool | None
    score: float
    reason: str


NOTHING: Final = Demand(0, 0, 0.0)


def judge(
    report: HostReport | None,
    age_s: float,
    demand: Demand,
    limits: DestinationLimits,
    inventories: Mapping[str, Inventory] | None = None,
    arriving: Demand = NOTHING,
) -> Fit:
    """Whether a host can take `demand`.

    :param age_s: of the report.
    :param inventories: by resource class; what is missing is not looked at. Nova's scheduler has
        these already filtered by placement; used must not include `demand` yet.
    :param arriving: sum of what is on its way and not in the report.
    """
    inventories = inventories or {}
    for name, wanted in ((VCPU, demand.vcpus), (MEMORY_MB, -(-demand.memory // KIB))):
        held = inventories.get(name)
        if held is not None and held.headroom < wanted:
            return Fit(False, -1.0, f"{name}: {held.headroom:.0f} left in placement, not {wanted}")
    if report is None:
        return Fit(None, 0.0, "no report")
    if not -_AHEAD_S <= age_s <= limits.age:
        return Fit(None, 0.0, f"its report is {age_s:.0f} s old")
    if report.level > Level.CALM:
        return Fit(False, -report.level / Level.ACT, f"contended: {report.reason}")
    cpu = _cpu_left(report, demand, limits, inventories.get(VCPU), arriving)
    memory = _memory_left(report, demand, limits, inventories.get(MEMORY_MB), arriving)
    left = max(-1.0, min(1.0, cpu, memory))
    words = f"CPU {cpu:+.0%}, memory {memory:+.0%} of the host to spare once it is there"
    return Fit(left >= 0, left, words)


def _cpu_left(
    report: HostReport,
    demand: Demand,
    limits: DestinationLimits,
    held: Inventory | None,
    arriving: Demand,
) -> float:
    """Share of the usable CPUs left below the limit; negative where it is passed."""
    own_account = float(report.cpus - report.reserved_cpus)
    usable = own_account if held is None else min(report.cpus, held.usable)
    if usable <= 0:
        return -1.0
    own = demand.expected_cpu(limits.expected_cpu) / usable
    others = report.cpu_used + report.cpu_waiting + arriving.expected_cpu(limits.expected_cpu)
    left = limits.cpu - own - others / usable
    if own <= _WHOLE and others / usable <= limits.empty:
        # A VM as large as the host: it may have it to itself, there is nobody to hinder.
        return max(left, 0.0)
    return left


def _memory_left(
    report: HostReport,
    demand: Demand,
    limits: DestinationLimits,
    held: Inventory | None,
    arriving: Demand,
) -> float:
    """Share of the memory left above the limit; negative where it is passed.

    What is reserved for the host counts as gone only as far as a ratio below 1 or the limit
    say so: what the host itself occupies of it is missing from its available memory already.
    """
    total = report.memory_total
    if total <= 0:
        return -1.0
    available = report.memory_available
    if held is not None and held.allocation_ratio < 1:
        available -= int((held.total - held.reserved) * (1 - held.allocation_ratio)) * KIB
    return (available - demand.memory - arriving.memory) / total - limits.memory
