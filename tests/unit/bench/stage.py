# SPDX-License-Identifier: Apache-2.0
"""A stage without a lab: a guest whose throughput follows a formula, on a clock of its own."""

import numpy as np

from bench.measures import RateSeries, first_edge
from bench.rounds import StageError
from lab.way import Migration, Way

RATE = 1000.0
PAUSE_S = 0.1
SWITCH_S = 0.5
FREED_S = 12.0

RECOVERY_S = {
    Way.STOCK: 8.0,
    Way.STOCK_PREEMPT: 7.5,
    Way.ENLIGHTENED: 1.5,
    Way.ENLIGHTENED_PREEMPT: 1.25,
}


class FakeStage:
    """Every post-copy stops the guest at its switchover for ``RECOVERY_S``; pre-copy never ends.

    ``broken``: the (0-based) migrations that fail. ``calls`` records what was asked.
    """

    def __init__(self, broken: frozenset[int] = frozenset()) -> None:
        self.clock = 1000.0
        self.broken = broken
        self.calls: list[str] = []
        self._stopped: list[tuple[float, float]] = []
        self._count = 0

    def now(self) -> float:
        return self.clock

    def wait(self, seconds: float) -> None:
        self.clock += seconds

    def prepare(self, way: Way) -> None:
        pass

    def arm(self) -> None:
        self.calls.append("arm")
        self.clock += 2.0

    def migrate(self, way: Way, limit_s: float) -> Migration:
        self.calls.append(str(way))
        number, self._count = self._count, self._count + 1
        ordered = self.clock
        if number in self.broken:
            raise StageError("it broke")
        if not way.postcopy:
            self._stopped.append((ordered, ordered + limit_s / 2))
            self.clock += limit_s
            return Migration(way, "g", "host1", "host2", ordered, failure="did not converge")
        switchover = ordered + SWITCH_S
        self._stopped.append((switchover, switchover + RECOVERY_S[way]))
        self.clock = ordered + FREED_S
        return Migration(
            way,
            "g",
            "host1",
            "host2",
            ordered,
            switchover=switchover,
            executing=switchover + PAUSE_S,
            source_freed=self.clock,
            completed=self.clock,
        )

    def rates(self, first: float, last: float, edge: float, bin_s: float) -> RateSeries:
        start = first_edge(first, edge, bin_s)
        middles = start + bin_s * (np.arange(int((last - start) / bin_s + 1e-9)) + 0.5)
        rates = np.full(len(middles), RATE)
        for off, on in self._stopped:
            rates[(middles >= off) & (middles < on)] = 0.0
        return RateSeries(start, bin_s, rates)

    def recover(self) -> None:
        self.calls.append("recover")
