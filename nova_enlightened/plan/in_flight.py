# SPDX-License-Identifier: Apache-2.0
"""How many bytes may be under way on the link, so that a demand fault does not wait behind them.

A slow link with large buffers takes whatever it is given and lets it queue; a page that the guest
waits for would then arrive after everything that was sent before. So the limit is found from
delay: the time between sending a byte and its acknowledgement, compared with the smallest such
time seen lately (the empty path). What is above that is queue, and the limit steers it to a
target. The idea is that of TCP Vegas and FAST TCP; the update is FAST's, once per round trip:
what the path itself holds, ``window * base / rtt``, and the queue aimed at; at most doubled.
"""

from __future__ import annotations

import collections

#: The base is the smallest round trip of this long, and measured anew this often.
BASE_WINDOW_S = 10.0
TARGET_S = 0.002
FLOOR = 64 * 1024
CAP = 8 * 1024 * 1024
#: Queue aimed at, at most: a path of gigabytes a second would take many megabytes in the target's
#: time, which keep it no busier and let a demand fault wait for longer.
QUEUE = 512 * 1024
_START = 128 * 1024
#: Round trips of at least this long count together: one of them is late when the processor,
#: not the link, was busy.
_ROUND_S = 0.002
_SHRINK = 0.5


class InFlightLimit:
    """A limit of bytes under way that follows delay.

    :param floor: never below this many bytes.
    :param cap: never above.
    :param target: seconds of queue aimed at.
    """

    def __init__(self, floor: int = FLOOR, cap: int = CAP, target: float = TARGET_S) -> None:
        if not 0 < floor <= cap or target <= 0:
            raise ValueError("0 < floor <= cap and a target above 0 are needed")
        self._floor = floor
        self._cap = cap
        self._target = target
        self._queue = QUEUE
        self._steered = min(max(_START, floor), cap)
        self.window = self._steered
        self.queue_delay = 0.0  # seconds, as of the last round trip
        self._base: collections.deque[tuple[float, float]] = collections.deque()
        self._probe_at: float | None = None  # when the base is to be measured anew
        self._probe_until: float | None = None
        self._round_end = 0.0
        self._round_rtt: float | None = None
        self._round_full = False

    @property
    def base_rtt(self) -> float | None:
        """The empty path's round trip in seconds; None before the first acknowledgement."""
        return self._base[0][1] if self._base else None

    def aim(self, target: float, queue: int = QUEUE) -> None:
        """Aim at another delay, and at most so many bytes of queue.

        Larger costs less CPU, as more crosses at a time, and keeps a path busy whose delay is
        that of busy processors.
        """
        self._target = target
        self._queue = queue

    def restart(self, now: float) -> None:
        """The path may be another one: forget it."""
        self._steered = self.window = min(max(_START, self._floor), self._cap)
        self._base.clear()
        self._probe_at = self._probe_until = None
        self._new_round(now)

    def acknowledged(self, count: int, rtt: float, in_flight: int, now: float) -> None:
        """Take one acknowledgement.

        :param count: bytes that it acknowledges.
        :param rtt: seconds since the last of them was sent.
        :param in_flight: bytes under way before it, itself included.
        :param now: seconds, monotonic.
        """
        self._note_base(rtt, now)
        self._round_rtt = rtt if self._round_rtt is None else min(rtt, self._round_rtt)
        # Not to be grown on the word of a time when less was sent than allowed.
        self._round_full = self._round_full or in_flight >= self.window // 2
        if self._probe_until is not None:
            if now >= self._probe_until:
                self._end_probe(now)
        elif now >= self._round_end:
            self._steer(now)
            if self._probe_at is not None and now >= self._probe_at:
                self._begin_probe(now)

    def _note_base(self, rtt: float, now: float) -> None:
        base = self._base
        while base and base[-1][1] >= rtt:
            base.pop()
        base.append((now, rtt))
        while base[0][0] < now - BASE_WINDOW_S and len(base) > 1:
            base.popleft()
        if self._probe_at is None:
            self._probe_at = now + BASE_WINDOW_S * 0.9

    def _steer(self, now: float) -> None:
        """A round trip is over: set the window by the smallest delay in it."""
        rtt, base = self._round_rtt, self._base[0][1]
        assert rtt is not None
        self.queue_delay = rtt - base
        rate = self._steered / max(rtt, 1e-6)
        wanted = rate * base + min(rate * self._target, self._queue)
        if wanted < self._steered:
            wanted = max(wanted, self._steered * _SHRINK)
        elif self._round_full:
            wanted = min(wanted, self._steered * 2)
        else:
            wanted = self._steered
        self._steered = int(min(max(wanted, self._floor), self._cap))
        self.window = self._steered
        self._new_round(now + max(rtt, _ROUND_S))

    def _new_round(self, end: float) -> None:
        self._round_end, self._round_rtt, self._round_full = end, None, False

    def _begin_probe(self, now: float) -> None:
        """Let the queue drain, to see the empty path."""
        self.window = self._floor
        self._probe_until = now + self._base[0][1] + self.queue_delay + 2 * self._target

    def _end_probe(self, now: float) -> None:
        self.window = self._steered
        self._probe_until = None
        self._probe_at = now + BASE_WINDOW_S * 0.9
        self._new_round(now)
