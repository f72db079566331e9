# SPDX-License-Identifier: Apache-2.0
"""A collector of nova-enlightened-agent's: processors that nobody but guests uses.

The laboratory's hosts share their processors with the cloud's own services and with whatever else
this machine does, as no compute host of a real cloud does. Counted as the host's load, that would
make an idle host full.
"""

from nova_enlightened.host.collectors.reading import Collector, Reading, Surroundings


class GuestsOnly(Collector):
    """Counts what domains use. Named after ``libvirt``, whose samples it needs."""

    name = "lab-guests"

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        self._busy = 0.0
        self._last: dict[str, float] = {}

    def collect(self, now: float, sofar: Reading) -> Reading:
        """One processor, and the time that domains have had of it since the agent began."""
        seen = {domain.uuid: domain.cpu for domain in sofar.domains or ()}
        self._busy += sum(max(0.0, cpu - self._last.get(uuid, cpu)) for uuid, cpu in seen.items())
        self._last = seen
        return Reading(cpus=1, cpu_busy=self._busy)
