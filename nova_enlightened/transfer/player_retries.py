# SPDX-License-Identifier: Apache-2.0
"""Fetches that failed: when to try them again, and what to say of them meanwhile."""

import heapq
import itertools
from typing import Final

from nova_enlightened.appliance.fetches import Fetch

FIRST_S: Final = 2.0
LONGEST_S: Final = 30.0


class Retries:
    """Holds failed fetches back, longer each time; times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Fetch]] = []
        self._numbers = itertools.count()
        self._failures: dict[tuple[int, int], int] = {}
        self._told: dict[tuple[int, int], str] = {}

    def __len__(self) -> int:
        return len(self._due)

    @property
    def trouble(self) -> str | None:
        """What failed last and has not come since."""
        return next(reversed(self._told.values()), None)

    def failed(self, fetch: Fetch, why: str, now: float) -> None:
        """It failed, for a reason in words."""
        for chunk in fetch.chunks:
            self._told[fetch.layer, chunk] = why
        key = fetch.layer, fetch.chunks[0]
        times = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(LONGEST_S, FIRST_S * 2 ** min(times - 1, 8))
        heapq.heappush(self._due, (now + delay, next(self._numbers), fetch))

    def arrived(self, fetch: Fetch) -> None:
        """It came, at last or at once."""
        if self._told:
            for chunk in fetch.chunks:
                self._told.pop((fetch.layer, chunk), None)
                self._failures.pop((fetch.layer, chunk), None)

    def due(self, now: float) -> list[Fetch]:
        """What is to be tried again now; each is given once."""
        ready = []
        while self._due and self._due[0][0] <= now:
            ready.append(heapq.heappop(self._due)[2])
        return ready

    def timeout(self, now: float) -> float | None:
        """Seconds until something is due; None: nothing is."""
        return max(0.0, self._due[0][0] - now) if self._due else None
