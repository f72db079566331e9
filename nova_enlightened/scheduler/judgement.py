# SPDX-License-Identifier: Apache-2.0
"""Whether a host should take a server, and how gladly. Decides; the filter and weigher apply.

Placement has seen to what may be promised. What can be *given* is judged by what the operator
offers (inventory, what is reserved, allocation ratio) and by what the host says of itself; an
unknown host is judged as stock Nova would.
"""

import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import Any, Final

from nova_enlightened.contention import destinations
from nova_enlightened.contention.report import HostReport, Level
from nova_enlightened.scheduler.arrival import Arrival

KIB: Final = 1024


@dataclasses.dataclass(frozen=True)
class Offer:
    """What Nova's scheduler knows of a host's inventory; `memory` in MiB.

    What is allocated of it is left out: Placement has offered this host for the request, by
    ratios that an operator may have set there only, and allocations that Nova hears of later.
    """

    host: str
    cpus: int
    cpu_ratio: float
    memory: int
    memory_ratio: float


def offer(state: Any) -> Offer:
    """From a ``nova.scheduler.host_manager.HostState``; it has no ratios before the host's first
    update, and 1.0 is meant then.
    """
    return Offer(
        host=state.host,
        cpus=state.vcpus_total,
        cpu_ratio=state.cpu_allocation_ratio or 1.0,
        memory=state.total_usable_ram_mb,
        memory_ratio=state.ram_allocation_ratio or 1.0,
    )


@dataclasses.dataclass(frozen=True)
class Policy:
    """Whom hosts are refused to.

    :param moves: servers that move; `new`: those that are created.
    :param refuse_new: refuse every host, where all are contended, to a new server too.
    :param limits: when a host is full.
    """

    moves: bool = True
    new: bool = True
    refuse_new: bool = False
    limits: destinations.DestinationLimits = dataclasses.field(
        default_factory=destinations.DestinationLimits
    )


@dataclasses.dataclass(frozen=True)
class Choice:
    """Of the hosts that were offered, in their order, which remain; and what to log of it."""

    keep: tuple[bool, ...]
    lines: tuple[str, ...] = ()


class Grade(enum.IntEnum):
    """What a host is as a destination."""

    CONTENDED = 0
    FULL = 1
    """Not contended now, but it might be with the server."""
    FREE = 2
    """It has room, or is not known not to have it."""


def choose(
    server: Arrival, offers: Sequence[Offer], reports: Iterable[HostReport], policy: Policy
) -> Choice:
    """The hosts that may take a server.

    An urgent move is for relief, so it goes only where there is room, and to a host that can
    receive it by ordered post-copy where there is any. Another move goes where there is room,
    else where there is no contention yet; a new server, where there is none. Where nothing
    remains, everything does for a server that cannot wait: a new one, unless the policy says
    otherwise, and one whose home is not heard of, which may be down.
    """
    if not (policy.moves if server.moves else policy.new):
        return Choice((True,) * len(offers))
    known = {report.host: report for report in reports}
    grades = [grade(server, one, known.get(one.host), policy.limits) for one in offers]
    lines = tuple(
        f"{one.host} is {found.name.lower()}: {why}"
        for one, (found, why) in zip(offers, grades, strict=True)
        if found is not Grade.FREE
    )
    for least in _acceptable(server, policy):
        keep = tuple(found >= least for found, _ in grades)
        if any(keep):
            break
    else:
        return Choice((False,) * len(offers), (*lines, "no host remains"))
    if server.urgent:
        able = tuple(
            kept and one.host in known and known[one.host].capable
            for kept, one in zip(keep, offers, strict=True)
        )
        if any(able):
            keep = able
        else:
            lines = (*lines, "no host that remains says it receives by ordered post-copy")
    return Choice(keep, lines)


def _acceptable(server: Arrival, policy: Policy) -> tuple[Grade, ...]:
    """The least a host has to be, best first."""
    if server.urgent:
        return (Grade.FREE,)
    if server.moves:
        usual = (Grade.FREE, Grade.FULL)
        return usual if server.home is not None else (*usual, Grade.CONTENDED)
    return (Grade.FULL,) if policy.refuse_new else (Grade.FULL, Grade.CONTENDED)


def grade(
    server: Arrival,
    host: Offer,
    report: HostReport | None,
    limits: destinations.DestinationLimits,
) -> tuple[Grade, str]:
    """What a host is to a server, and why. Where it runs already, and where its request sends it
    by name, is free.
    """
    if report is None or host.host in (server.home, server.named):
        return Grade.FREE, ""
    if report.level is Level.ACT:
        return Grade.CONTENDED, report.reason
    fit = _fit(server, host, report, limits)
    return (Grade.FULL if fit.fits is False else Grade.FREE), fit.reason


def weight(
    server: Arrival,
    host: Offer,
    report: HostReport | None,
    limits: destinations.DestinationLimits,
) -> float:
    """How gladly a host is chosen: -1 contended, 0 unknown, up to 1 with much to spare."""
    return 0.0 if report is None else _fit(server, host, report, limits).score


def _fit(
    server: Arrival, host: Offer, report: HostReport, limits: destinations.DestinationLimits
) -> destinations.Fit:
    running = server.running
    wanted = None if running is None else min(running.cpu + running.waiting, float(server.vcpus))
    demand = destinations.Demand(server.vcpus, server.memory, wanted)
    # The report was fresh when it was taken from the cache.
    return destinations.judge(report, 0.0, demand, limits, _inventories(host, report))


def _inventories(host: Offer, report: HostReport) -> dict[str, destinations.Inventory]:
    """What the operator offers. Nothing is used of it: see :class:`Offer`."""
    return {
        destinations.VCPU: destinations.Inventory(host.cpus, report.reserved_cpus, host.cpu_ratio),
        destinations.MEMORY_MB: destinations.Inventory(
            host.memory, report.reserved_memory // KIB, host.memory_ratio
        ),
    }
