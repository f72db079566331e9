# SPDX-License-Identifier: Apache-2.0
"""How many bytes to have asked for and not yet received.

With too few, the link idles for a round trip after each answer. With too many, what the guest
waits for queues behind what nobody waits for yet. Between the two lies the product of
bandwidth and round trip, and neither is told: both are measured, as BBR does for packets
(Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016).

* *bandwidth*: the most that was delivered a second while a fetch was under way, of the last
  `MEMORY` rounds in which there was more to fetch than the window let through; a round lasts
  until a fetch that was asked for in it has arrived;
* *round trip*: the least time an answer took, which small demanded fetches come close to;
* the window is their product and one fetch, `GAIN` times. At first it doubles each round, until
  the bandwidth no longer grows by a quarter in two rounds. Later every `PROBE` rounds it is half as
  large again for one round; if more is delivered then, it grows on as at first;
* for what nobody is known to want, `SHY` times the product, or two fetches: whatever the guest
  turns out to want meanwhile finds hardly a queue. That tells nothing of the link, so the first
  `PROBING` rounds of each `PROBE` use the window.
"""

from collections import deque
from typing import Final, NamedTuple

KIB: Final = 1024
GAIN: Final = 1.1
MEMORY: Final = 6
"""Rounds after which a bandwidth that was not reached again is forgotten."""
PROBE: Final = 64
GROWTH: Final = 1.25
STALE: Final = 2
"""Rounds without growth that end the doubling."""

SHY: Final = 0.8
"""Of the product of the largest bandwidth seen, which a busy host, that takes answers in batches,
makes a quarter more than there is: about as much as the link holds."""
PROBING: Final = 2

FLOOR: Final = 64 * KIB
START: Final = 128 * KIB
CAP: Final = 16 * 1024 * KIB
LEAST_FETCH: Final = 16 * KIB
MOST_FETCH: Final = 256 * KIB
FETCH_TIME: Final = 0.005
"""Seconds of bandwidth in one fetch: a demanded one waits for at least the one before it."""


class Sent(NamedTuple):
    """What was known when a fetch was asked for."""

    at: float
    delivered: int
    delivered_at: float
    round: int
    telling: bool


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
        self._telling_rounds = 0
        self._rates: deque[tuple[int, float]] = deque()
        self._growing = True
        self._best = 0.0
        self._stale = 0
        self._window = START

    @property
    def size(self) -> int:
        """Bytes that may be outstanding, now."""
        return self._window

    @property
    def room(self) -> int:
        """Bytes that may be asked for now."""
        return self._window - self.outstanding

    @property
    def spare(self) -> int:
        """Bytes that may be asked for now of what nobody is known to want."""
        if self._full or self.bandwidth is None or self.rtt is None:
            return self.room
        product = SHY * self.bandwidth * self.rtt
        return max(int(product), 2 * self.fetch_limit) - self.outstanding

    @property
    def _full(self) -> bool:
        return self._growing or self._round % PROBE < PROBING

    @property
    def fetch_limit(self) -> int:
        """Bytes that one fetch should not exceed, now."""
        if self.bandwidth is None:
            return LEAST_FETCH
        return max(LEAST_FETCH, min(MOST_FETCH, int(self.bandwidth * FETCH_TIME)))

    def sent(self, length: int, now: float, *, urgent: bool, spare: bool = False) -> Sent:
        """A fetch of `length` bytes is asked for.

        :param urgent: whatever the window says. How fast these come depends on how many there
            are, and says nothing of what the link could carry.
        :param spare: nobody is known to want it.
        :returns: to be handed back when it ends.
        """
        if not self.outstanding:
            self._delivered_at = now
        self.outstanding += length
        telling = not urgent and (self._full or not spare)
        return Sent(now, self._delivered, self._delivered_at, self._round, telling)

    def untold(self, length: int) -> None:
        """A fetch ended in a way that says nothing of the link: it failed, or took another."""
        self.outstanding -= length

    def arrived(self, length: int, sent: Sent, now: float) -> None:
        """A fetch ended with its bytes."""
        self.outstanding -= length
        self._delivered += length
        self._delivered_at = now
        taken = max(now - sent.at, 1e-6)
        self.rtt = taken if self.rtt is None else min(self.rtt, taken)
        rate = (self._delivered - sent.delivered) / max(now - sent.delivered_at, taken)
        if sent.telling:
            self._rates.append((self._telling_rounds, rate))
        self.bandwidth = max(self.bandwidth or 0.0, rate)
        if sent.round == self._round:
            self._end_round(sent.telling)
        if not self._growing:
            target = GAIN * (self.bandwidth * self.rtt + self.fetch_limit)
            self._window = max(FLOOR, min(CAP, int(target)))

    def _end_round(self, telling: bool) -> None:
        self._round += 1
        if not telling:
            return
        self._telling_rounds += 1
        while self._rates and self._rates[0][0] < self._telling_rounds - MEMORY:
            self._rates.popleft()
        reached = max(rate for _, rate in self._rates)
        self.bandwidth = reached
        if self._growing:
            self._stale = 0 if reached >= self._best * GROWTH else self._stale + 1
            self._best = max(self._best, reached)
            self._growing = self._stale < STALE
            if not self._stale:
                self._window = min(CAP, 2 * self._window)
        elif self._round % PROBE == 0:
            self._growing, self._stale, self._best = True, STALE - 1, reached
            self._window = min(CAP, 3 * self._window // 2)
