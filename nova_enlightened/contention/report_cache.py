# SPDX-License-Identifier: Apache-2.0
"""The newest report of each host, while it is worth anything.

Both ages count: a report is too old when it was *received* too long ago (its host is silent) and
when it was *made* too long ago (it lay in a queue). So a host whose clock is behind by more than
the limit is unknown, which is the safe side; OpenStack needs hosts' clocks to agree anyway.
"""

from typing import Final

from nova_enlightened.contention.report import HostReport

MAX_HOSTS: Final = 10_000
"""Hosts held, at most: whoever can cast on the bus must not fill a service's memory."""


class ReportCache:
    """Not safe for threads by itself; :class:`nova_enlightened.rpc.ReportListener` is.

    :param max_age: seconds after which a report says nothing any more.
    :param max_hosts: beyond this many, the host heard of least recently is forgotten.
    """

    def __init__(self, max_age: float, max_hosts: int = MAX_HOSTS) -> None:
        self._max_age = max_age
        self._max_hosts = max_hosts
        # Ordered by when each was received, the oldest first.
        self._held: dict[str, tuple[float, HostReport]] = {}

    def add(self, report: HostReport, now: float) -> bool:
        """Keep a report. False if one made later is held already, which is kept then.

        :param now: seconds since the epoch, as all times here.
        """
        held = self._held.get(report.host)
        # One that was held for too long gives way whatever it says: clocks can be set back.
        if held is not None and held[1].at > report.at and self._fresh(held, now):
            return False
        self._held.pop(report.host, None)
        self._held[report.host] = (now, report)
        if len(self._held) > self._max_hosts:
            del self._held[next(iter(self._held))]
        return True

    def get(self, host: str, now: float) -> HostReport | None:
        """The newest report of a host; None where there is none that is fresh enough."""
        held = self._held.get(host)
        return held[1] if held is not None and self._fresh(held, now) else None

    def current(self, now: float) -> list[HostReport]:
        """Every report that is fresh enough, by name of the host."""
        fresh = (held[1] for held in self._held.values() if self._fresh(held, now))
        return sorted(fresh, key=lambda report: report.host)

    def _fresh(self, held: tuple[float, HostReport], now: float) -> bool:
        received, report = held
        return now - min(received, report.at) <= self._max_age
