# SPDX-License-Identifier: Apache-2.0
"""Replays a guest's accesses against an ordering policy, in seconds instead of minutes.

What is modelled, because measurements showed that it decides the outcome:

* the source: requests first in, first out; pages already sent are skipped; the background scan
  goes on after the page sent last whenever the queue is empty (QEMU `ram_find_and_save_block`);
  pages are collected `batch` at a time before they are written (QEMU's 64 iovecs);
* what lies between the choice of a page and its arrival: that batch, the unix socket's
  buffer, the relay, what is under way on the link, its bandwidth and round trip;
* the relay: tells the injector what it reads and puts the injector's requests into the
  source's queue. While a plan lasts it reads ahead and gives the link what the guest waits for
  first, what was planned next, and what nobody asked for when the link would idle;
* the guest: one vCPU, which stops at the first page it touches that is not there.

Without a plan there is no relay: pages cross in the order the source sends them.

Not modelled: the CPU cost of anything, the preempt channel, a second vCPU.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.plan.injector import Injector, InjectorStatistics, Worth
from nova_enlightened.plan.simulated_qemu import (
    PAGE_RECORD,
    ZERO_RECORD,
    Accesses,
    Guest,
    Source,
)

__all__ = ["Accesses", "Link", "Outcome", "Simulation"]

KIB: Final = 1024
RECOVERED: Final = 0.9
RECOVERY_SPAN: Final = 0.2
"""Seconds over which the guest must hold `RECOVERED` of its pace."""
BIN: Final = 0.01
READ: Final = 32 * KIB
"""Bytes the relay reads at once for a page the guest waits for."""


NOT_HELD: Final = -1


@dataclass(frozen=True)
class Link:
    """What lies between the source QEMU and the guest. Sizes in bytes, times in seconds.

    :ivar bandwidth: bytes a second.
    :ivar rtt: round trip between the hosts.
    :ivar in_flight: what is given to the link and not yet delivered.
    :ivar socket: what the unix socket from QEMU to the relay holds.
    :ivar batch: pages the source collects for one write.
    :ivar source_rate: bytes a second the source can write.
    :ivar turnaround: from the relay's request to its being served.
    :ivar resequence: whether the relay gives pages another order than it reads them in.
    :ivar ahead: bytes of planned pages read ahead of the link.
    :ivar backlog: bytes that were read and wait for the link, beyond which no planned pages
        are asked for. Whoever waits for a page at the end of the source's queue has to read
        all before it; better planned pages than those of the source's own choice.
    :ivar hold: bytes that may wait in all; beyond that what nobody asked for goes along.
    :ivar idle: with less under way the link is nearly idle, and any page better than none.
    :ivar fault_cost: from a page's arrival to the guest's next instruction, and from the
        fault to the request: userfaultfd, QEMU's threads.
    """

    bandwidth: float = 50e6
    rtt: float = 0.0002
    in_flight: int = 128 * KIB
    socket: int = 208 * KIB
    batch: int = 32
    source_rate: float = 1e9
    turnaround: float = 0.0002
    resequence: bool = True
    ahead: int = 256 * KIB
    backlog: int = 16 * KIB * KIB
    hold: int = 64 * KIB * KIB
    idle: int = 64 * KIB
    fault_cost: float = 0.0003


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
        self._record = np.where(zero, ZERO_RECORD, PAGE_RECORD)
        self._zero = zero
        self._source = Source(dirty, zero)
        self._arrival = np.where(dirty, np.inf, -1.0)
        self._guest = Guest(accesses, self._arrival)
        self._socket: deque[int] = deque()
        self._socket_bytes = 0
        self._batch: deque[int] = deque()
        self._held: list[deque[int]] = [deque() for _ in range(Worth.BACKGROUND + 1)]
        self._held_as = np.full(dirty.size, NOT_HELD, np.int16)
        self._bytes = np.zeros(Worth.BACKGROUND + 1, np.int64)
        self._link_free = 0.0
        self._faults: deque[tuple[float, int]] = deque()
        self._requests: deque[tuple[float, int, int]] = deque()
        self._sent: list[tuple[float, int]] = [(0.0, 0)]
        injector.sent(np.flatnonzero(~dirty))
        planned = injector.statistics().plan_left > 0
        self._resequence = planned and link.resequence

    def run(self, seconds: float) -> Outcome:
        """Replay up to `seconds` after switchover."""
        step = self.QUANTUM * PAGE_RECORD / self._link.bandwidth
        per_step = round(self._link.source_rate * step) + PAGE_RECORD
        now = 0.0
        self._fill_socket(self._link.socket)  # the stream was flowing before switchover
        self._injector.start()
        self._ask(now)
        while now < seconds:
            now += step
            self._pass_requests(now)
            budget = self._fill_socket(per_step)
            while self._read(now):
                budget = self._fill_socket(budget)
            self._give(now)
            page = self._guest.run(now, self._link.fault_cost)
            while page >= 0:
                due = self._guest.waits_since + self._link.rtt / 2 + self._link.fault_cost
                self._faults.append((due, page))
                page = self._guest.run(now, self._link.fault_cost)
        return self._outcome(seconds)

    def _pass_requests(self, now: float) -> None:
        """Demand faults reach the relay, requests the source."""
        while self._faults and self._faults[0][0] <= now:
            _, page = self._faults.popleft()
            self._injector.fault(page, 1, now)
            self._promote(page, Worth.DEMANDED)
            for near in self._injector.promotions().tolist():
                self._promote(near, Worth.NEAR)
            self._requests.append((now + self._link.turnaround, page, 1))
            self._ask(now)
        while self._requests and self._requests[0][0] <= now:
            _, first, count = self._requests.popleft()
            self._source.ask(first, count)

    def _ask(self, now: float) -> None:
        due = now + self._link.turnaround
        planned = not self._resequence or self._ready() < self._link.backlog
        for first, count in self._injector.next_requests(now, planned=planned):
            self._requests.append((due, first, count))

    def _fill_socket(self, budget: int) -> int:
        """The source writes until the socket is full. :returns: what is left of `budget`."""
        while self._socket_bytes < self._link.socket and budget > 0:
            if not self._batch:
                self._batch.extend(self._source.batch(self._link.batch))
                if not self._batch:
                    break
            page = self._batch.popleft()
            self._socket.append(page)
            self._socket_bytes += int(self._record[page])
            budget -= int(self._record[page])
        return budget

    # -- the relay --------------------------------------------------------------------------

    def _ready(self) -> int:
        """Bytes that were read and need not wait for others."""
        return int(self._bytes[: self._injector.horizon + 1].sum())

    def _may_read(self) -> int:
        """Bytes the relay would read now."""
        if not self._resequence or self._injector.plan_done:
            return self._link.ahead - int(self._bytes.sum())
        if self._injector.awaited and int(self._bytes.sum()) < 2 * self._link.hold:
            return READ
        return self._link.ahead - self._ready() if self._injector.outstanding else 0

    def _read(self, now: float) -> bool:
        """The relay reads what there is. :returns: whether it read anything."""
        room = self._may_read()
        pages: list[int] = []
        while self._socket and room > 0:
            pages.append(self._socket.popleft())
            room -= int(self._record[pages[-1]])
            self._socket_bytes -= int(self._record[pages[-1]])
        if not pages:
            return False
        batch = np.array(pages, np.int64)
        worths = self._injector.worth(batch) if self._resequence else np.zeros_like(batch)
        for page, worth in zip(pages, worths.tolist(), strict=True):
            self._hold(page, worth)
        zero = self._zero[batch]
        for part, is_zero in ((batch[~zero], False), (batch[zero], True)):
            if part.size:
                self._injector.sent(part, zero=is_zero)
        self._ask(now)
        return True

    def _promote(self, page: int, worth: int) -> None:
        """The guest waits for a page that the relay may hold, or is likely to."""
        held_as = int(self._held_as[page])
        if held_as <= worth:
            return
        self._held[held_as].remove(page)
        self._bytes[held_as] -= self._record[page]
        self._hold(page, worth)

    def _hold(self, page: int, worth: int) -> None:
        self._held[worth].append(page)
        self._held_as[page] = worth
        self._bytes[worth] += self._record[page]

    def _give(self, now: float) -> None:
        """Give the link what is worth most, up to what may be under way."""
        at = max(self._link_free, now)
        while (under_way := (at - now) * self._link.bandwidth) < self._link.in_flight:
            page = self._next(under_way)
            if page < 0:
                break
            at += int(self._record[page]) / self._link.bandwidth
            self._arrival[page] = at + self._link.rtt / 2
            self._sent.append((at, self._sent[-1][1] + int(self._record[page])))
        self._link_free = at

    def _next(self, under_way: float) -> int:
        held = np.flatnonzero(self._bytes)
        if not held.size:
            return -1
        worth = int(held[0])
        anything = under_way < self._link.idle or int(self._bytes.sum()) > self._link.hold
        if worth > self._injector.horizon and not anything:
            return -1
        page = self._held[worth].popleft()
        self._held_as[page] = NOT_HELD
        self._bytes[worth] -= self._record[page]
        return page

    def _outcome(self, seconds: float) -> Outcome:
        made = np.array([*self._guest.made, self._guest.end(seconds)])
        edges = np.arange(0, seconds + BIN / 2, BIN)
        pace = np.diff(np.interp(edges, made[:, 0], made[:, 1])) / BIN
        recovered = _recovered(pace)
        sent = np.array(self._sent)
        upto = seconds if recovered is None else recovered
        complete = not (self._source.left or self._socket or self._batch or self._bytes.any())
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
