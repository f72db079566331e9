# SPDX-License-Identifier: Apache-2.0
"""What the API last said of the servers of hosts that are, or are about to be, contended.

It is asked ahead, while a host only warns, so that a decision waits for nothing. Values and time
only: the asking is done elsewhere.
"""

import dataclasses
from collections.abc import Iterable
from typing import Final

from nova_enlightened.contention.victims import VmFacts
from nova_enlightened.remediation.servers import Server

USABLE: Final = 6
"""Answers are used for so many times the age at which they are asked for again."""
AGAIN_S: Final = 5.0
"""After an answer did not come."""


@dataclasses.dataclass
class _Host:
    servers: tuple[Server, ...] | None = None
    at: float = 0.0
    next: float = 0.0
    asking: bool = False


class FleetView:
    """Servers by host.

    :param max_age: seconds after which the API is asked again.
    """

    def __init__(self, max_age: float) -> None:
        self._max_age = max_age
        self._hosts: dict[str, _Host] = {}

    def to_ask(self, hosts: Iterable[str], now: float) -> list[str]:
        """Those of `hosts` whose servers are to be asked for now; the others are forgotten."""
        wanted = set(hosts)
        for gone in self._hosts.keys() - wanted:
            del self._hosts[gone]
        due = []
        for name in sorted(wanted):
            host = self._hosts.setdefault(name, _Host())
            if not host.asking and now >= host.next:
                host.asking = True
                due.append(name)
        return due

    def answered(self, host: str, servers: Iterable[Server], now: float) -> None:
        """The API said which servers are on a host."""
        if host in self._hosts:
            self._hosts[host] = _Host(tuple(servers), now, now + self._max_age)

    def unanswered(self, host: str, now: float) -> None:
        """The API did not."""
        if host in self._hosts:
            self._hosts[host].asking = False
            self._hosts[host].next = now + AGAIN_S

    def knows(self, host: str, now: float) -> bool:
        """Whether there is an answer that may be used."""
        return bool(self.servers(host, now) is not None)

    def servers(self, host: str, now: float) -> tuple[Server, ...] | None:
        """The servers of a host, None where that is not known well enough."""
        held = self._hosts.get(host)
        if held is None or held.servers is None:
            return None
        usable = max(self._max_age, 1.0) * USABLE
        return held.servers if now - held.at <= usable else None

    def facts(self, now: float) -> dict[str, VmFacts]:
        """By UUID, of every server of the hosts that are known."""
        return {
            server.uuid: server.facts()
            for host in self._hosts
            for server in self.servers(host, now) or ()
        }
