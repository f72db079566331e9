# SPDX-License-Identifier: Apache-2.0
"""Replays a guest's accesses against an ordering policy, in seconds instead of minutes.

What is modelled, because measurements showed that it decides the outcome:

* the source: requests first in, first out; pages already sent are skipped; the background scan
  goes on after the page sent last whenever the queue is empty (QEMU `ram_find_and_save_block`);
  pages are collected `batch` at a time before they are written (QEMU's 64 iovecs);
* what lies between the choice of a page and its arrival: that batch, the unix socket's
  buffer, the relay's in-flight limit, the link's bandwidth and round trip;
* where the background scan is held back: QEMU counts all bytes in slices of 100 ms and lets
  only requests pass once they exceed the limit;
* the relay: tells the injector what it reads, and puts the injector's requests into the queue;
* the guest: one vCPU, which stops at the first page it touches that is not there.

Not modelled: the CPU cost of anything, the preempt channel, a second vCPU.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.plan.fault_trace import FaultTrace
from nova_enlightened.plan.injector import Injector, InjectorStatistics
from nova_enlightened.plan.transfer_plan import Pages

KIB: Final = 1024
PAGE_RECORD: Final = 4104
ZERO_RECORD: Final = 9
ZERO_BATCH: Final = 32 * KIB // ZERO_RECORD
"""Zero records that fit QEMU's write buffer."""
SLICE: Final = 0.1
"""Seconds over which QEMU limits its rate (`BUFFER_DELAY`)."""
RECOVERED: Final = 0.9
RECOVERY_SPAN: Final = 0.2
"""Seconds over which the guest must hold `RECOVERED` of its pace."""
BIN: Final = 0.01
LOOK_AHEAD: Final = 4096
"""Accesses looked at together."""


@dataclass(frozen=True)
class Link:
    """What lies between the source QEMU and the guest. Sizes in bytes, times in seconds.

    :ivar bandwidth: bytes a second.
    :ivar rtt: round trip between the hosts.
    :ivar socket: what the unix socket from QEMU to the relay holds.
    :ivar in_flight: what the relay has sent and the link not yet delivered.
    :ivar batch: pages the source collects for one write.
    :ivar read: room on the link below which the relay does not read.
    :ivar turnaround: from the relay's request to its being served by an idle source.
    :ivar background: bytes a second the background scan is held to until the plan is done
        (QEMU's `max-postcopy-bandwidth`: requests count but are served all the same);
        None: it is free from the start.
    :ivar fault_cost: from a page's arrival to the guest's next instruction, and from the
        fault to the request: userfaultfd, QEMU's threads.
    """

    bandwidth: float = 50e6
    rtt: float = 0.0002
    socket: int = 208 * KIB
    in_flight: int = 256 * KIB
    batch: int = 32
    read: int = 32 * KIB
    turnaround: float = 0.0002
    background: float | None = float(1 << 20)
    fault_cost: float = 0.0003


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


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one replay came to. Seconds from switchover; None: not within the replay.

    :ivar recovered: first time from which the guest keeps 90 % of its pace for 0.2 s.
    :ivar blocked: seconds the vCPU waited, which is also the work it lost.
    :ivar latencies: of each demand fault.
    :ivar finished: when the last page arrived.
    :ivar pace: share of full pace, in bins of 10 ms.
    """

    recovered: float | None
    blocked: float
    faults: int
    latencies: npt.NDArray[np.float64]
    finished: float | None
    bytes_at_recovery: int
    pace: npt.NDArray[np.float64]
    statistics: InjectorStatistics


class Source:
    """The sending QEMU: chooses the next page when it has room to write."""

    def __init__(self, dirty: npt.NDArray[np.bool_], zero: npt.NDArray[np.bool_]) -> None:
        self._dirty = dirty.copy()
        self._zero = zero
        self._at = 0
        self._queue: deque[tuple[int, int]] = deque()
        self.left = int(np.count_nonzero(dirty))
        self.background: float | None = None
        self._slice = 0
        self._used = 0.0

    def ask(self, first: int, count: int) -> None:
        """A page request arrived on the return path."""
        self._queue.append((first, count))

    def batch(self, size: int, now: float) -> list[int]:
        """The pages of the next write: `size` of them, more where they are zero."""
        if now >= self._slice * SLICE:
            self._slice, self._used = int(now / SLICE) + 1, 0.0
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
        while room > 0 and self.left and not self._queue and self._may_scan():
            room -= self._take(self._scan(max(1, int(room))), chosen, size)
        return chosen

    def _may_scan(self) -> bool:
        return self.background is None or self._used < self.background * SLICE

    def _take(self, pages: list[int], chosen: list[int], size: int) -> float:
        """Send `pages`. :returns: how much of a batch of `size` data pages they fill."""
        chosen += pages
        self.left -= len(pages)
        zeros = int(np.count_nonzero(self._zero[pages]))
        self._used += zeros * ZERO_RECORD + (len(pages) - zeros) * PAGE_RECORD
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


class Simulation:
    """One replay.

    :param injector: not yet started; made for a space of `dirty.size` pages.
    :param dirty: pages the source still has to send at switchover.
    :param zero: pages that cross as zero records.
    """

    QUANTUM: Final = 4
    """Pages between two looks at everything."""

    def __init__(
        self,
        injector: Injector,
        accesses: Accesses,
        link: Link,
        dirty: npt.NDArray[np.bool_],
        zero: npt.NDArray[np.bool_],
    ) -> None:
        self._injector = injector
        self._link = link
        self._zero = zero
        self._source = Source(dirty, zero)
        self._arrival = np.where(dirty, np.inf, -1.0)
        self._guest = Guest(accesses, self._arrival)
        self._socket: deque[int] = deque()
        self._socket_bytes = 0
        self._batch: deque[int] = deque()
        self._link_free = 0.0
        self._faults: deque[tuple[float, int]] = deque()
        self._requests: deque[tuple[float, int, int]] = deque()
        self._sent_bytes: list[tuple[float, int]] = [(0.0, 0)]
        injector.sent(np.flatnonzero(~dirty))
        self._unplanned = not injector.statistics().plan_left

    def run(self, seconds: float) -> Outcome:
        """Replay up to `seconds` after switchover."""
        step = self.QUANTUM * PAGE_RECORD / self._link.bandwidth
        now = 0.0
        self._fill_socket(now)  # the stream was flowing before switchover
        self._injector.start()
        self._source.background = None if self._unplanned else self._link.background
        self._ask(now)
        while now < seconds:
            now += step
            self._pass_requests(now)
            self._fill_socket(now)
            while self._relay(now):
                self._fill_socket(now)
            if self._injector.plan_done:
                self._source.background = None
            page = self._guest.run(now, self._link.fault_cost)
            while page >= 0:
                due = self._guest.waits_since + self._link.rtt / 2 + self._link.fault_cost
                self._faults.append((due, page))
                page = self._guest.run(now, self._link.fault_cost)
        return self._outcome(seconds)

    def _record(self, page: int) -> int:
        return ZERO_RECORD if self._zero[page] else PAGE_RECORD

    def _pass_requests(self, now: float) -> None:
        """Demand faults reach the relay, requests the source."""
        while self._faults and self._faults[0][0] <= now:
            _, page = self._faults.popleft()
            self._injector.fault(page, 1, now)
            self._requests.append((now, page, 1))
            self._ask(now)
        while self._requests and self._requests[0][0] <= now:
            _, first, count = self._requests.popleft()
            self._source.ask(first, count)

    def _ask(self, now: float) -> None:
        due = now + self._link.turnaround
        for first, count in self._injector.next_requests(now):
            self._requests.append((due, first, count))

    def _fill_socket(self, now: float) -> None:
        """The source writes until the socket is full."""
        while self._socket_bytes < self._link.socket:
            if not self._batch:
                self._batch.extend(self._source.batch(self._link.batch, now))
                if not self._batch:
                    return
            page = self._batch.popleft()
            self._socket.append(page)
            self._socket_bytes += self._record(page)

    def _relay(self, now: float) -> bool:
        """The relay reads what there is and there is room for. :returns: whether it did."""
        room = self._link.in_flight - max(0.0, self._link_free - now) * self._link.bandwidth
        if room < self._link.read or not self._socket:
            return False
        pages: list[int] = []
        times: list[float] = []
        at = max(self._link_free, now)
        while self._socket and room > 0 and len(pages) < 1024:
            pages.append(self._socket.popleft())
            record = self._record(pages[-1])
            room -= record
            self._socket_bytes -= record
            at += record / self._link.bandwidth
            times.append(at + self._link.rtt / 2)
        took = self._link.in_flight - room - max(0.0, self._link_free - now) * self._link.bandwidth
        self._sent_bytes.append((at, self._sent_bytes[-1][1] + round(took)))
        self._link_free = at
        batch = np.array(pages, np.int64)
        self._arrival[batch] = times
        zero = self._zero[batch]
        for part, is_zero in ((batch[~zero], False), (batch[zero], True)):
            if part.size:
                self._injector.sent(part, zero=is_zero)
        self._ask(now)
        return True

    def _outcome(self, seconds: float) -> Outcome:
        made = np.array([*self._guest.made, self._guest.end(seconds)])
        edges = np.arange(0, seconds + BIN / 2, BIN)
        pace = np.diff(np.interp(edges, made[:, 0], made[:, 1])) / BIN
        recovered = _recovered(pace)
        sent = np.array(self._sent_bytes)
        upto = seconds if recovered is None else recovered
        complete = not self._source.left and not self._socket and not self._batch
        return Outcome(
            recovered=recovered,
            blocked=float(seconds - made[-1, 1]),
            faults=self._injector.faults,
            latencies=np.array(self._guest.latencies),
            finished=float(self._link_free) if complete else None,
            bytes_at_recovery=int(np.interp(upto, sent[:, 0], sent[:, 1])),
            pace=pace,
            statistics=self._injector.statistics(),
        )


def _recovered(pace: npt.NDArray[np.float64]) -> float | None:
    span = round(RECOVERY_SPAN / BIN)
    if pace.size < span:
        return None
    held = np.convolve(pace, np.full(span, 1 / span), "valid") >= RECOVERED
    return float(np.argmax(held) * BIN) if held.any() else None
