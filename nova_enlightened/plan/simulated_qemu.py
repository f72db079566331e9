# SPDX-License-Identifier: Apache-2.0
"""The two ends of a simulated migration: the sending QEMU, and the guest that runs already."""

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.plan.fault_trace import FaultTrace
from nova_enlightened.plan.transfer_plan import Pages

PAGE_RECORD: Final = 4104
"""Bytes of a page in the stream: be64 offset and flags, the page."""
ZERO_RECORD: Final = 9
ZERO_BATCH: Final = 32 * 1024 // ZERO_RECORD
"""Zero records that fit QEMU's write buffer."""
LOOK_AHEAD: Final = 4096
"""Accesses looked at together."""


@dataclass(frozen=True, eq=False)
class Accesses:
    """What a guest touches, on the clock of its own progress (waiting not counted).

    :ivar at: float64, non-decreasing seconds of progress.
    :ivar pages: int64, the page touched at each.
    :ivar duration: seconds after which it all begins again.
    """

    at: npt.NDArray[np.float64]
    pages: Pages
    duration: float

    @classmethod
    def from_trace(cls, trace: FaultTrace) -> "Accesses":
        """The faults of a recorded migration, with the waiting taken out.

        Only first touches of pages that were not there are known: good for comparing
        policies, best when the trace was recorded under `stock`.
        """
        waited = np.nan_to_num(trace.entries["latency"])
        at = trace.entries["time"] - np.concatenate(([0.0], np.cumsum(waited)[:-1]))
        at = np.maximum.accumulate(np.maximum(at, 0.0))
        end = float(at[-1]) if at.size else 0.0
        return cls(at, trace.entries["page"].astype(np.int64), end + 3600.0)


class Source:
    """The sending QEMU: chooses the next page when it has room to write."""

    def __init__(self, dirty: npt.NDArray[np.bool_], zero: npt.NDArray[np.bool_]) -> None:
        self._dirty = dirty.copy()
        self._zero = zero
        self._at = 0
        self._queue: deque[tuple[int, int]] = deque()
        self.left = int(np.count_nonzero(dirty))

    def ask(self, first: int, count: int) -> None:
        """A page request arrived on the return path."""
        self._queue.append((first, count))

    def batch(self, size: int) -> list[int]:
        """The pages of the next write: `size` of them, more where they are zero."""
        chosen: list[int] = []
        room = float(size)
        while room > 0 and self._queue:
            first, count = self._queue.popleft()
            if count > 1:
                self._queue.appendleft((first + 1, count - 1))
            if self._dirty[first]:
                self._dirty[first] = False
                self._at = first + 1
                room -= self._take([first], chosen, size)
        while room > 0 and self.left and not self._queue:
            room -= self._take(self._scan(max(1, int(room))), chosen, size)
        return chosen

    def _take(self, pages: list[int], chosen: list[int], size: int) -> float:
        """Send `pages`. :returns: how much of a batch of `size` data pages they fill."""
        chosen += pages
        self.left -= len(pages)
        zeros = int(np.count_nonzero(self._zero[pages]))
        return zeros * size / ZERO_BATCH + len(pages) - zeros

    def _scan(self, most: int) -> list[int]:
        """Up to `most` pages from where the scan stands, wrapping round."""
        reach = 512
        while True:
            if self._at >= self._dirty.size:
                self._at = 0
            ahead = np.flatnonzero(self._dirty[self._at : self._at + reach])[:most]
            if ahead.size:
                found = ahead + self._at
                self._dirty[found] = False
                self._at = int(found[-1]) + 1
                return list(map(int, found))
            self._at += reach
            reach = min(reach * 4, 1 << 20)


class Guest:
    """One vCPU at the destination."""

    def __init__(self, accesses: Accesses, arrival: npt.NDArray[np.float64]) -> None:
        self._accesses = accesses
        self._arrival = arrival
        self._index = 0
        self._laps = 0.0
        self._now = 0.0
        self._progress = 0.0
        self.waits_for = -1
        self.waits_since = 0.0
        self.latencies: list[float] = []
        self.made: list[tuple[float, float]] = [(0.0, 0.0)]

    def run(self, until: float, fault_cost: float) -> int:
        """Run up to time `until`. :returns: a page it newly waits for, or -1."""
        if self.waits_for >= 0:
            came = self._arrival[self.waits_for] + fault_cost
            if came > until:
                return -1
            self.latencies.append(came - self.waits_since)
            self._now, self.waits_for = came, -1
            self.made.append((came, self._progress))
        while self._now < until:
            page = self._advance(until)
            if page >= 0:
                self.waits_for, self.waits_since = page, self._now
                self.made.append((self._now, self._progress))
                return page
        return -1

    def end(self, at: float) -> tuple[float, float]:
        """(`at`, progress made by then)."""
        return at, self._progress

    def _advance(self, until: float) -> int:
        """Progress to `until`, to the end of the lap or to a page that is missing."""
        at, pages = self._accesses.at, self._accesses.pages
        goal = self._progress + until - self._now
        end = int(np.searchsorted(at[self._index : self._index + LOOK_AHEAD], goal - self._laps))
        touched = pages[self._index : self._index + end]
        missing = np.flatnonzero(self._arrival[touched] > self._now)
        for offset in missing.tolist():
            index = self._index + offset
            when = self._now + max(0.0, float(at[index]) + self._laps - self._progress)
            if self._arrival[pages[index]] <= when:
                continue
            self._progress = max(self._progress, float(at[index]) + self._laps)
            self._now, self._index = when, index
            return int(pages[index])
        self._index += end
        reached = goal
        if self._index >= at.size:
            reached = min(goal, self._laps + self._accesses.duration)
        elif end == LOOK_AHEAD:
            reached = min(goal, float(at[self._index]) + self._laps)
        # Exactly `until`, or rounding would leave a moment that never ends.
        self._now = until if reached >= goal else self._now + reached - self._progress
        self._progress = reached
        if self._index >= at.size and reached >= self._laps + self._accesses.duration:
            self._laps += self._accesses.duration
            self._index = 0
        return -1
