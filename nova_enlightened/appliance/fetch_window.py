# SPDX-License-Identifier: Apache-2.0
"""How many bytes to have asked for and not yet received.

With too few, the link idles for a round trip after each answer. With too many, what the guest
waits for queues behind what nobody waits for yet. Between the two lies the product of
bandwidth and round trip, and neither is told: both are measured, as BBR does for packets
(Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016).

* *bandwidth*: the most that was delivered a second while a fetch was under way, of the fetches of
  the last `MEMORY` rounds; a round lasts until what was asked for in it has arrived;
* *round trip*: the least time an answer took, which small demanded fetches come close to;
* the window is their product, `GAIN` times, and one fetch. At first it doubles each round, until
  the bandwidth no longer grows by a quarter in two rounds. Later every `PROBE` rounds it is
  doubled for one round; if more is delivered then, it grows on as at first.
"""

from collections import deque
from typing import Final, NamedTuple

KIB: Final = 1024
GAIN: Final = 1.25
MEMORY: Final = 10
"""Rounds after which a bandwidth that was not reached again is forgotten."""
PROBE: Final = 16
GROWTH: Final = 1.25
STALE: Final = 2
"""Rounds without growth that end the doubling."""

FLOOR: Final = 64 * KIB
START: Final = 128 * KIB
CAP: Final = 16 * 1024 * KIB
LEAST_FETCH: Final = 32 * KIB
MOST_FETCH: Final = 256 * KIB
FETCH_TIME: Final = 0.005
"""Seconds of bandwidth in one fetch: a demanded one waits for at least the one before it."""


class Sent(NamedTuple):
    """What was known when a fetch was asked for."""

    at: float
    delivered: int
    delivered_at: float
    round: int
    full: bool


class FetchWindow:
    """The adaptive window. Times are seconds on the caller's clock.

    :ivar bandwidth: bytes a second; None before anything has arrived.
    :ivar rtt: seconds; None before anything has arrived.
    :ivar outstanding: bytes asked for and not yet arrived or failed.
    """

    def __init__(self) -> None:
        self.bandwidth: float | None = None
        self.rtt: float | None = None
        self.outstanding = 0
        self._delivered = 0
        self._delivered_at = 0.0
        self._round = 0
        self._rates: deque[tuple[int, float]] = deque()
        self._growing = True
        self._best = 0.0
        self._stale = 0
        self._window = START
        self._probe_at = PROBE

    @property
    def size(self) -> int:
        """Bytes that may be outstanding, now."""
        return self._window

    @property
    def fetch_limit(self) -> int:
        """Bytes that one fetch should not exceed, now."""
        if self.bandwidth is None:
            return LEAST_FETCH
        return max(LEAST_FETCH, min(MOST_FETCH, int(self.bandwidth * FETCH_TIME)))

    def sent(self, length: int, now: float) -> Sent:
        """A fetch of `length` bytes is asked for; to be handed back when it ends."""
        if not self.outstanding:
            self._delivered_at = now
        self.outstanding += length
        # Rates of a window that was not full say what was asked for, not what could be had.
        full = self.outstanding + self.fetch_limit >= self._window
        return Sent(now, self._delivered, self._delivered_at, self._round, full)

    def failed(self, length: int, sent: Sent, now: float) -> None:
        """A fetch ended without its bytes: nothing is learnt of the link."""
        del sent, now
        self.outstanding -= length

    def arrived(self, length: int, sent: Sent, now: float) -> None:
        """A fetch ended with its bytes."""
        self.outstanding -= length
        self._delivered += length
        self._delivered_at = now
        taken = max(now - sent.at, 1e-6)
        self.rtt = taken if self.rtt is None else min(self.rtt, taken)
        rate = (self._delivered - sent.delivered) / max(now - sent.delivered_at, taken)
        if sent.full or rate >= (self.bandwidth or 0.0):
            self._rates.append((self._round, rate))
        # A round without a full window is no occasion to forget.
        if sent.round == self._round and sent.full:
            self._end_round()
        elif self.bandwidth is None or rate > self.bandwidth:
            self.bandwidth = rate
        self._resize()

    def _end_round(self) -> None:
        self._round += 1
        while self._rates and self._rates[0][0] < self._round - MEMORY:
            self._rates.popleft()
        if self._rates:
            self.bandwidth = max(rate for _, rate in self._rates)
        reached = self.bandwidth or 0.0
        if self._growing:
            self._stale = 0 if reached >= self._best * GROWTH else self._stale + 1
            self._best = max(self._best, reached)
            if self._stale >= STALE:
                self._growing = False
                self._probe_at = self._round + PROBE
            elif not self._stale:
                self._window = min(CAP, 2 * self._window)
        elif self._round >= self._probe_at:
            self._growing, self._stale, self._best = True, STALE - 1, reached
            self._window = min(CAP, 2 * self._window)

    def _resize(self) -> None:
        if not self._growing and self.bandwidth is not None and self.rtt is not None:
            target = GAIN * self.bandwidth * self.rtt + self.fetch_limit
            self._window = max(FLOOR, min(CAP, int(target)))
