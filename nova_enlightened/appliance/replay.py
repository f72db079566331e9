# SPDX-License-Identifier: Apache-2.0
"""Replays a run of an appliance over a link that is modelled, to compare ways of fetching.

What is modelled: the store takes up requests one after the other, each costs it some time; answers
share the link, first come first served; each takes a round trip; so many connections there are.
The guest is one vCPU, which stops at the first place it touches that is not here, and from its
start follows the clock of the trace. Not modelled: congestion control of TCP, caches, CPU.
"""

import heapq
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.appliance.fetches import Fetch
from nova_enlightened.appliance.playback import Playback
from nova_enlightened.appliance.trace import Trace

START_AT_ONCE: Final = "at once"
START_BUFFERED: Final = "buffered"
START_COMPLETE: Final = "complete"
STARTS: Final = (START_AT_ONCE, START_BUFFERED, START_COMPLETE)

BIN: Final = 0.1
SPAN: Final = 1.0
"""Seconds over which the guest's pace is looked at."""
RECOVERED: Final = 0.9
HELD: Final = 5.0
"""Seconds for which it has to keep that pace."""


@dataclass(frozen=True)
class StoreLink:
    """What lies between store and guest. Sizes in bytes, times in seconds.

    :ivar bandwidth: bytes a second.
    :ivar rtt: round trip.
    :ivar service: that the store takes for a request before it looks at the next.
    :ivar connections: fetches that can be under way.
    :ivar reserved: of these, those kept free for what a guest waits for.
    :ivar fault_cost: from a place's arrival to the guest's next instruction.
    """

    bandwidth: float = 12.5e6
    rtt: float = 0.01
    service: float = 0.001
    connections: int = 16
    reserved: int = 2
    fault_cost: float = 0.0003


@dataclass(frozen=True, eq=False)
class Replayed:
    """What one replay came to. Seconds from the first request; None: not within the replay.

    :ivar started: when the guest was started.
    :ivar recovered: from when on it keeps 90 % of its pace, in each second of the next five.
    :ivar bytes_at_recovery: that had arrived then, or in all.
    :ivar stall: that the guest waited after its start.
    :ivar faults: how often it waited.
    :ivar complete: when everything was here.
    :ivar pace: share of full pace in bins of 0.1 s.
    """

    started: float | None
    recovered: float | None
    bytes_at_recovery: int
    stall: float
    faults: int
    complete: float | None
    fetched_bytes: int
    pace: npt.NDArray[np.float64]


class _Guest:
    """One vCPU that follows a trace."""

    def __init__(self, trace: Trace) -> None:
        self._times = trace.times_us / 1e6
        self._places = trace.places
        self._next = 0
        self._worked = 0.0
        self._at = 0.0
        self.started: float | None = None
        self.waits_for = -1
        self.faults = 0
        self.made: list[tuple[float, float]] = [(0.0, 0.0)]

    def start(self, now: float) -> None:
        self.started = self._at = now
        self.made.append((now, 0.0))

    def run(self, until: float, present: npt.NDArray[np.bool_]) -> float | None:
        """Work up to a time. :returns: when the guest came to wait, within that time."""
        if self.started is None or self.waits_for >= 0:
            return None
        while self._next < self._places.size:
            here = present[self._places[self._next : self._next + 256]]
            if here.all():
                ahead = here.size
            else:
                ahead = int(here.argmin())
            if ahead < here.size:
                due = float(self._times[self._next + ahead])
                at = self._at + max(0.0, due - self._worked)
                if at > until:
                    break
                self._next += ahead
                self._work_to(at, max(due, self._worked))
                self.waits_for = int(self._places[self._next])
                self.faults += 1
                return at
            due = float(self._times[self._next + ahead - 1])
            if self._at + max(0.0, due - self._worked) > until:
                break
            self._next += ahead
        if until > self._at:
            self._work_to(until, self._worked + until - self._at)
        return None

    def resume(self, now: float) -> None:
        self.waits_for = -1
        self._work_to(max(now, self._at), self._worked)

    def _work_to(self, at: float, worked: float) -> None:
        self._at, self._worked = at, worked
        self.made.append((at, worked))


class Replay:
    """One replay of a run.

    :param playback: that has asked for nothing yet.
    :param start: one of `STARTS`: when the guest is started.
    """

    def __init__(
        self, playback: Playback, trace: Trace, link: StoreLink, start: str = START_AT_ONCE
    ) -> None:
        self._playback = playback
        self._link = link
        self._start = start
        self._guest = _Guest(trace)
        self._events: list[tuple[float, int, Fetch]] = []
        self._asked = 0
        self._store_free = self._link_free = 0.0
        self._received: list[tuple[float, int]] = [(0.0, 0)]
        self._complete: float | None = None

    def run(self, seconds: float) -> Replayed:
        """Replay `seconds` from the first request on."""
        now = 0.0
        while now < seconds:
            self._maybe_start(now)
            self._ask(now)
            due = min(self._events[0][0] if self._events else seconds, seconds)
            waits = self._guest.run(due, self._playback.present)
            if waits is not None:
                now = waits
                self._playback.fault(self._guest.waits_for)
                continue
            now = due
            if self._events and due == self._events[0][0]:
                self._arrive(now)
        return self._outcome(seconds)

    def _maybe_start(self, now: float) -> None:
        if self._guest.started is None:
            ready = {
                START_AT_ONCE: True,
                START_BUFFERED: self._playback.before_done,
                START_COMPLETE: self._playback.complete,
            }
            if ready[self._start]:
                self._guest.start(now)

    def _ask(self, now: float) -> None:
        link = self._link
        while len(self._events) < link.connections:
            scarce = len(self._events) >= link.connections - link.reserved
            fetch = self._playback.next(now, urgent_only=scarce)
            if fetch is None:
                break
            self._store_free = max(self._store_free, now + link.rtt / 2) + link.service
            self._link_free = max(self._link_free, self._store_free)
            self._link_free += fetch.length / link.bandwidth
            self._asked += 1
            heapq.heappush(self._events, (self._link_free + link.rtt / 2, self._asked, fetch))

    def _arrive(self, now: float) -> None:
        _, _, fetch = heapq.heappop(self._events)
        self._playback.arrived(fetch, now)
        self._received.append((now, self._received[-1][1] + fetch.length))
        if self._complete is None and self._playback.complete:
            self._complete = now
        if self._guest.waits_for >= 0 and self._playback.present[self._guest.waits_for]:
            self._guest.resume(now + self._link.fault_cost)

    def _outcome(self, seconds: float) -> Replayed:
        made = np.array(self._guest.made)
        edges = np.arange(0, seconds + BIN / 2, BIN)
        pace = np.diff(np.interp(edges, made[:, 0], made[:, 1])) / BIN
        recovered = _recovered(pace)
        received = np.array(self._received)
        until = seconds if recovered is None else recovered
        started = self._guest.started
        worked = float(np.interp(seconds, made[:, 0], made[:, 1]))
        return Replayed(
            started=started,
            recovered=recovered,
            bytes_at_recovery=int(received[np.searchsorted(received[:, 0], until, "right") - 1, 1]),
            stall=0.0 if started is None else max(0.0, seconds - started - worked),
            faults=self._guest.faults,
            complete=self._complete,
            fetched_bytes=int(received[-1, 1]),
            pace=pace,
        )


def _recovered(pace: npt.NDArray[np.float64]) -> float | None:
    span = round(SPAN / BIN)
    if pace.size < span:
        return None
    held = np.convolve(pace, np.full(span, 1 / span), "valid") >= RECOVERED
    # Where `held` begins to be true for so many bins in a row.
    bins = round((HELD - SPAN) / BIN) + 1
    if held.size < bins:
        return None
    kept = np.convolve(held, np.ones(bins, np.int64), "valid") == bins
    return float(np.argmax(kept) * BIN) if kept.any() else None
