# SPDX-License-Identifier: Apache-2.0
"""What a compute host says of itself: samples as collected, and the report made of them.

Samples hold counters as the kernel and libvirt keep them; what happened between two samples is
their difference. A report crosses the message bus as plain values (:meth:`HostReport.to_dict`).
"""

import dataclasses
import enum
import typing
from collections.abc import Collection, Mapping
from typing import Any, Final, Self

REPORT_VERSION: Final = 1
MAX_DOMAINS: Final = 10_000
MAX_TEXT: Final = 4096
"""Characters of a name or a reason."""
MAX_NUMBER: Final = 1 << 63


class Level(enum.IntEnum):
    """How contended a host is."""

    CALM = 0
    WARN = 1
    """Guests may have to leave soon: time to arm them."""
    ACT = 2
    """Guests hinder each other: one should leave now."""


@dataclasses.dataclass(frozen=True)
class DomainSample:
    """One domain at one moment. Counters are seconds since the domain started.

    :param uuid: of the Nova instance, which is the domain's.
    :param cpu: CPU time used by the domain, all threads.
    :param run_delay: time its vCPUs were ready and waited for a CPU (schedstat), summed.
    :param memory: KiB the guest has (its balloon's size).
    :param resident: KiB of the host's memory it occupies.
    :param swapped: KiB of it that the host has swapped out.
    :param throttled: part of `run_delay` that its own CPU quota made it wait; 0 where not known.
        Nobody who leaves can give it that time.
    """

    uuid: str
    vcpus: int
    cpu: float
    run_delay: float
    memory: int
    resident: int
    swapped: int = 0
    throttled: float = 0.0


@dataclasses.dataclass(frozen=True)
class HostSample:
    """A host at one moment. Stall counters are seconds (PSI totals); None where there is no PSI.

    :param at: seconds of the host's monotonic clock.
    :param cpus: CPUs that guests may use.
    :param cpu_busy: CPU time used by everything on those CPUs, summed.
    :param memory_total, memory_available: KiB.
    :param swap_in: pages swapped in since boot.
    """

    at: float
    cpus: int
    cpu_busy: float
    memory_total: int
    memory_available: int
    cpu_some: float | None = None
    memory_some: float | None = None
    memory_full: float | None = None
    swap_in: int = 0
    domains: tuple[DomainSample, ...] = ()


@dataclasses.dataclass(frozen=True)
class DomainReport:
    """One domain over the last interval.

    :param cpu: CPUs used: 1.5 is one and a half.
    :param waiting: CPUs its vCPUs were ready to use and lost to others.
    :param memory: KiB the guest has.
    :param hot: KiB found in use by an armed guest, None where not known.
    :param dirty_rate: KiB a second newly dirtied, None where not known.
    :param armed: whether the guest is sampling.
    """

    uuid: str
    vcpus: int
    cpu: float
    waiting: float
    memory: int
    resident: int = 0
    hot: int | None = None
    dirty_rate: int | None = None
    armed: bool = False


@dataclasses.dataclass(frozen=True)
class HostReport:
    """A host's state as its agent sees it.

    :param host: name of the compute service, as Nova has it.
    :param node: hypervisor host name, which names the resource provider.
    :param at: seconds since the epoch, of the host's wall clock.
    :param level: the verdict, `reason` in words with the figures that led to it.
    :param cpu_used: CPUs in use of `cpus`; `cpu_waiting` those wanted and not given.
    :param bandwidth: bytes a second of migration traffic it can send, 0 where not known.
    :param capable: whether guests can leave and arrive by ordered post-copy.
    :param urgent: uuids of instances that are ordered to leave urgently, which the scheduler
        cannot learn from a request.
    :param reserved_cpus, reserved_memory: CPUs and KiB that the operator keeps for the host itself
        (of its inventory in Placement).
    """

    host: str
    node: str
    at: float
    level: Level
    reason: str
    cpu_level: Level
    memory_level: Level
    cpus: int
    cpu_used: float
    cpu_waiting: float
    memory_total: int
    memory_available: int
    bandwidth: int = 0
    capable: bool = False
    domains: tuple[DomainReport, ...] = ()
    urgent: tuple[str, ...] = ()
    reserved_cpus: int = 0
    reserved_memory: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a message."""
        return {"version": REPORT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A report from a message; keys that a newer sender adds are left out.

        :raises ValueError: not a report, or one of a version that cannot be read.
        """
        version = values.get("version") if isinstance(values, Mapping) else None
        if version != REPORT_VERSION:
            raise ValueError(f"host report of version {version!r:.40}, not {REPORT_VERSION}")
        try:
            known = _known(cls, values)
            known["domains"] = tuple(
                DomainReport(**_known(DomainReport, one))
                for one in _bounded(values.get("domains", ()))
            )
            known["urgent"] = tuple(str(uuid) for uuid in _bounded(values.get("urgent", ())))
            for level in ("level", "cpu_level", "memory_level"):
                known[level] = Level(known[level])
            report = cls(**known)
            _check(report)
            for domain in report.domains:
                _check(domain)
            return report
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"not a host report: {error!s:.200}") from error


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in _TYPES[kind] if name in values}


def _bounded(values: Collection[Any]) -> Collection[Any]:
    if isinstance(values, str) or len(values) > MAX_DOMAINS:
        raise ValueError(f"not a list of at most {MAX_DOMAINS}")
    return values


def _check(report: DomainReport | HostReport) -> None:
    """Every value is of its type, no text is long and no number absurd. :raises ValueError: no."""
    for name, kind in _TYPES[type(report)].items():
        value = getattr(report, name)
        if not isinstance(value, kind):
            raise ValueError(f"{name} is {value!r:.40}")
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise ValueError(f"{name} has {len(value)} characters")
        # Written so that it is not true of "not a number" either.
        if isinstance(value, int | float) and not 0 <= value < MAX_NUMBER:
            raise ValueError(f"{name} is {value!r:.40}")


def _type_of(field: dataclasses.Field[Any]) -> Any:
    """What ``isinstance`` has to find: JSON has one kind of number, and lists are tuples here."""
    if field.type is float:
        return int | float
    return tuple if typing.get_origin(field.type) is tuple else field.type


_TYPES: Final[dict[type, dict[str, Any]]] = {
    kind: {field.name: _type_of(field) for field in dataclasses.fields(kind)}
    for kind in (DomainReport, HostReport)
}
