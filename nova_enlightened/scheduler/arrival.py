# SPDX-License-Identifier: Apache-2.0
"""Who a host is looked for: what a request says of it, and what hosts say of it.

Nova's request says neither that a server moves nor that its move is urgent. A server that moves
has hosts to be kept off (its own, and those tried), or runs on a host that reports it; and that
report lists those that have to leave urgently.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from nova_enlightened.contention.report import DomainReport, HostReport

KIB_PER_MIB = 1024


@dataclasses.dataclass(frozen=True)
class Arrival:
    """A server that is looked for a host for.

    :param memory: KiB of its flavor.
    :param moves: it exists on another host; False where it is new.
    :param home: the host that reports it, None where no host does: it is new, or its host is down
        or unknown.
    :param running: its load at home.
    :param urgent: its home has an order for it to leave by ordered post-copy.
    :param named: the host it is to go to, where the request names one.
    """

    uuid: str
    vcpus: int
    memory: int
    moves: bool = False
    home: str | None = None
    running: DomainReport | None = None
    urgent: bool = False
    named: str | None = None


def read(spec: Any, reports: Iterable[HostReport]) -> Arrival:
    """From a ``nova.objects.RequestSpec``, of which only fields that are set are read: others
    would be loaded.
    """
    uuid = str(_value(spec, "instance_uuid") or "")
    destination = _value(spec, "requested_destination")
    home, running, urgent = _home(uuid, reports)
    return Arrival(
        uuid=uuid,
        vcpus=spec.flavor.vcpus,
        memory=spec.flavor.memory_mb * KIB_PER_MIB,
        moves=home is not None or bool(_value(spec, "ignore_hosts")),
        home=home,
        running=running,
        urgent=urgent,
        named=_value(destination, "host") if destination is not None else None,
    )


def _value(thing: Any, name: str) -> Any:
    return getattr(thing, name) if name in thing else None


def _home(uuid: str, reports: Iterable[HostReport]) -> tuple[str | None, DomainReport | None, bool]:
    for report in reports:
        for domain in report.domains:
            if domain.uuid == uuid:
                return report.host, domain, uuid in report.urgent
        if uuid in report.urgent:
            return report.host, None, True
    return None, None, False
