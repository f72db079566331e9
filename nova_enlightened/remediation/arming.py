# SPDX-License-Identifier: Apache-2.0
"""Which guests are to sample their memory's use now: those that may have to leave soon, and of a
host that one is leaving only that one, as sampling costs what the host is short of.

Being armed is a lease in the guest: whatever is lost here ends by itself.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from nova_enlightened.contention.evictions import Action, Decision
from nova_enlightened.contention.report import HostReport, Level

AGAIN_S: Final = 10.0
"""After an agent did not take it."""


class Arming:
    """What was asked of the agents, by host.

    :param renew: seconds after which a guest is armed again.
    """

    def __init__(self, renew: float) -> None:
        self._renew = renew
        self._armed: dict[str, dict[str, float]] = {}
        self._not_before: dict[str, float] = {}

    def to_arm(self, decisions: Iterable[Decision], now: float) -> dict[str, list[str]]:
        """Guests to arm, by host, now that this has been decided."""
        wanted: dict[str, list[str]] = {}
        for decision in decisions:
            if decision.action not in (Action.ARM, Action.EVICT):
                continue
            if now < self._not_before.get(decision.host, now):
                continue
            held = self._armed.setdefault(decision.host, {})
            due = [one for one in decision.instances if now - held.get(one, -1e9) >= self._renew]
            if due:
                wanted[decision.host] = due
                held.update(dict.fromkeys(due, now))
        return wanted

    def to_disarm(
        self, reports: Iterable[HostReport], leaving: Mapping[str, Collection[str]]
    ) -> dict[str, list[str]]:
        """Guests to disarm, by host: those of calm hosts, and who stays where one leaves.

        :param leaving: by host, who does.
        """
        spared: dict[str, list[str]] = {}
        for host in [
            one.host for one in reports if one.host in self._armed and _ends(one, leaving)
        ]:
            held = self._armed.pop(host)
            kept = {one: at for one, at in held.items() if one in leaving.get(host, ())}
            if kept:
                self._armed[host] = kept
            if rest := sorted(held.keys() - kept.keys()):
                spared[host] = rest
        return spared

    def failed(self, host: str, now: float) -> None:
        """A host's agent did not take it; it is asked again in a while."""
        self._armed.pop(host, None)
        self._not_before[host] = now + AGAIN_S

    def forget(self) -> None:
        """Somebody else leads now."""
        self._armed.clear()
        self._not_before.clear()

    @property
    def armed(self) -> int:
        """Guests that were armed and not disarmed."""
        return sum(len(guests) for guests in self._armed.values())


def _ends(report: HostReport, leaving: Mapping[str, Collection[str]]) -> bool:
    return report.level is Level.CALM or bool(leaving.get(report.host))
