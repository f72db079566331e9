# SPDX-License-Identifier: Apache-2.0
"""Reports, host states and requests as Nova's scheduler has them, without Nova."""

import dataclasses
from typing import Any

from nova_enlightened.contention.report import DomainReport, HostReport, Level

GIB = 1 << 20  # KiB
MIB_OF_A_GIB = 1024
SERVER = "11111111-2222-4333-8444-555555555555"


class Fields:
    """Like a Nova object: reading a field that is not set is an error."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise NotImplementedError(f"Cannot load {name!r} in the base class") from None


def request(**values: Any) -> Fields:
    """For one vCPU and 1 GiB."""
    flavor = Fields(vcpus=1, memory_mb=MIB_OF_A_GIB)
    return Fields(**{"instance_uuid": SERVER, "flavor": flavor, **values})


def live_migration(source: str = "home", **values: Any) -> Fields:
    """As the conductor asks for a destination of a live migration."""
    return request(ignore_hosts=[source], requested_destination=Fields(cell="cell1"), **values)


@dataclasses.dataclass
class State:
    """What is read of Nova's ``HostState``."""

    host: str
    vcpus_total: int = 4
    vcpus_used: int = 0
    cpu_allocation_ratio: float | None = 4.0
    total_usable_ram_mb: int = 16 * MIB_OF_A_GIB
    free_ram_mb: int = 16 * MIB_OF_A_GIB
    ram_allocation_ratio: float | None = 1.0


def report(host: str, level: Level = Level.CALM, **values: Any) -> HostReport:
    """Of a host with four idle CPUs and 16 GiB."""
    calm = HostReport(
        host=host,
        node=host,
        at=1000.0,
        level=level,
        reason="figures",
        cpu_level=level,
        memory_level=Level.CALM,
        cpus=4,
        cpu_used=0.0,
        cpu_waiting=0.0,
        memory_total=16 * GIB,
        memory_available=15 * GIB,
    )
    return dataclasses.replace(calm, **values)


def home(*, urgent: bool = False) -> HostReport:
    """The contended host that the server runs on, using one CPU."""
    domain = DomainReport(SERVER, vcpus=1, cpu=0.6, waiting=0.6, memory=GIB)
    return report(
        "home", Level.ACT, domains=(domain,), urgent=(SERVER,) if urgent else (), capable=True
    )
