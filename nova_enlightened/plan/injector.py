# SPDX-License-Identifier: Apache-2.0
"""What to request from the source next.

The injector sees what the forward stream carried and what the guest faulted on, and says
which pages to ask for, so that the plan's order is kept, faults stay fast and nothing is asked
for twice. It is called for every batch of the stream, so its work is proportional to the batch.

Nothing here can lose a page: what is not requested, the source's background scan sends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.exception import PlanError
from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.plan.fault_trace import FaultFlag
from nova_enlightened.plan.neighbours import Neighbours
from nova_enlightened.plan.outstanding import ASKED, DEMAND, NEAR, SEEN, Outstanding
from nova_enlightened.plan.requests import RequestShape
from nova_enlightened.plan.transfer_plan import Pages, TransferPlan, distinct
from nova_enlightened.plan.window import InjectionWindow
from nova_enlightened.plan.worth import Worth

__all__ = ["Injector", "InjectorStatistics", "Worth"]

CLASSES: Final = 16
"""`PageClass` values counted; a larger one is counted as the last."""
CLUSTER_SHARE: Final = 0.5
"""Neighbours of faults that may be outstanding, as a part of the window and beside it."""
PROVEN_SHARE: Final = 0.875
"""The same for neighbours that are as good as certain to be used."""
CLUSTER_BACKLOG: Final = 2048
"""Neighbour pages kept waiting; beyond it the oldest fault's are forgotten."""
MOST_PROMOTIONS: Final = 64
"""Faults whose neighbours are kept for a caller that does not ask for promotions."""
REFILL: Final = 8
"""Requests are made when 1/REFILL of the window is free, not for every page."""

_FLAGS: Final = {
    0: FaultFlag(0),
    int(ASKED): FaultFlag.ASKED,
    int(SEEN): FaultFlag.ON_ITS_WAY,
    int(SEEN | ASKED): FaultFlag.ON_ITS_WAY,
}


@dataclass(frozen=True)
class InjectorStatistics:
    """Counts of pages unless said otherwise. Tuples are indexed by `PageClass`."""

    policy: str
    total: int
    remaining: int
    plan_left: int
    urgent_left: int
    outstanding: int
    injected: int
    injected_near_faults: int
    unrequested: int
    presumed_sent: int
    faults: int
    window_bytes: int
    urgent_done_at: float | None
    sent_by_class: tuple[int, ...]
    injected_by_class: tuple[int, ...]
    faults_by_class: tuple[int, ...]


class Injector:
    """Decides requests for one migration.

    :param plan: made for `space`.
    :param window: how much may be asked for at once; owned by the injector from here.
    :param host_pages: see `RequestShape`; from the page sizes in the stream's RAM setup.
    :raises PlanError: the plan was made for another number of pages.
    """

    def __init__(
        self,
        plan: TransferPlan,
        space: PageSpace,
        window: InjectionWindow | None = None,
        *,
        host_pages: Mapping[str, int] | None = None,
    ) -> None:
        self._space = space
        self._window = window or InjectionWindow()
        self._shape = RequestShape(space, host_pages)
        self._state = np.zeros(space.pages, np.uint8)
        self._fifo = Outstanding(self._state)
        self._waiting: list[tuple[Pages, float]] = []
        self._promotions: list[Pages] = []
        self._plan = self._checked(plan)
        self._neighbours = Neighbours(space, plan)
        self._cursor = 0
        self._started = False
        self._urgent_done_at: float | None = None
        self.remaining = space.pages
        self.injected = 0
        self.faults = 0
        self._near_faults = 0
        self._unrequested = 0
        self._sent_by_class = np.zeros(CLASSES, np.int64)
        self._injected_by_class = np.zeros(CLASSES, np.int64)
        self._faults_by_class = np.zeros(CLASSES, np.int64)

    @property
    def outstanding(self) -> int:
        """Pages requested (here or by the guest) and neither seen nor presumed sent."""
        return self._fifo.count

    @property
    def awaited(self) -> int:
        """Pages the guest waits for that the source has not sent.

        While there are any, whoever reads from the source should read on, and no longer:
        all that stands before such a page has to be held.
        """
        return self._fifo.demanded

    @property
    def urgent_left(self) -> int:
        """Urgent plan entries that were not looked at yet."""
        return max(0, self._plan.urgent - self._cursor)

    @property
    def plan_done(self) -> bool:
        """Everything the plan names has been asked for. False for a plan that names nothing."""
        return 0 < self._plan.order.size <= self._cursor

    @property
    def window_bytes(self) -> int:
        """The window now."""
        return self._window.size

    def start(self) -> None:
        """The guest runs at the destination: from now on pages are requested."""
        self._started = True

    def replan(self, plan: TransferPlan) -> None:
        """Go on with another plan (better knowledge arrived). :raises PlanError: as above."""
        self._plan = self._checked(plan)
        self._neighbours.replan(plan)
        self._cursor = 0
        self._urgent_done_at = None

    def sent(self, pages: Pages, *, zero: bool = False) -> None:
        """The forward stream carried these pages.

        :param pages: page numbers, any order; those outside the space are ignored.
        :param zero: they crossed as zero records, which take no room worth a larger window.
        """
        pages = self._distinct(pages)
        if not pages.size:
            return
        before = self._state[pages]
        self._state[pages] = SEEN
        seen = self._fifo.seen(before)
        fresh = pages[before & SEEN == 0] if seen.repeated else pages
        self.remaining -= fresh.size
        self._count(self._sent_by_class, fresh)
        if not self._started:
            return
        unrequested = pages.size - seen.asked
        self._unrequested += unrequested
        if not zero:
            self._window.seen(
                seen.asked,
                unrequested,
                outstanding=self._fifo.count,
                urgent_left=self.urgent_left > 0,
            )

    def discarded(self, first: int, last_exclusive: int) -> None:
        """These pages will be sent (again): they changed since they crossed.

        :raises PlanError: the range leaves the space.
        """
        if not 0 <= first <= last_exclusive <= self._space.pages:
            raise PlanError(f"discard of {first}..{last_exclusive} leaves the page space")
        self._fifo.forget_arrived()
        part = self._state[first:last_exclusive]
        seen = part & SEEN != 0
        self.remaining += int(np.count_nonzero(seen))
        part[seen] = 0
        self._cursor = 0

    def fault(self, page: int, count: int, now: float) -> FaultFlag:
        """The guest waits for these pages; the destination's own request goes to the source.

        :param now: seconds, any monotonic clock.
        :returns: what was known of the first page, for the fault trace.
        :raises PlanError: the range leaves the space.
        """
        if count < 1 or page < 0 or page + count > self._space.pages:
            raise PlanError(f"fault at {page}+{count} leaves the page space")
        self.faults += 1
        flags = _FLAGS[int(self._state[page]) & int(SEEN | ASKED)]
        pages = np.arange(page, page + count, dtype=np.int64)
        self._count(self._faults_by_class, pages[:1])
        self._fifo.demand(pages)
        near, proven = self._neighbours.around(page, now)
        state = self._state[near]
        self._promotions = [*self._promotions[-MOST_PROMOTIONS:], near[state & SEEN != 0]]
        near = near[state == 0]
        if near.size:
            self._waiting.append((near, PROVEN_SHARE if proven else CLUSTER_SHARE))
            while sum(part.size for part, _ in self._waiting) > CLUSTER_BACKLOG:
                self._waiting.pop(0)
        return flags

    def promotions(self) -> Pages:
        """Neighbours of faults since the last call that the source has sent already.

        Whoever holds some of them gives them out as `Worth.NEAR`: nobody else can.
        """
        pages = np.concatenate(self._promotions) if self._promotions else np.empty(0, np.int64)
        self._promotions.clear()
        return pages

    def next_requests(self, now: float, *, planned: bool = True) -> list[tuple[int, int]]:
        """Requests to make now: (first page, count), most urgent first.

        :param now: seconds, any monotonic clock.
        :param planned: pages of the plan too, not only neighbours of faults: False while
            more was read from the source than the link can soon take.

        Each is within one block, whole host pages, at most `MAX_RUN` pages (or one host
        page), and holds nothing that was seen or asked for, save parts of a host page.
        """
        if not self._started:
            return []
        size = self._window.pages
        requests = self._requests(self._take_near(size), near=True) if self._waiting else []
        if self._room(size) < max(1, size // REFILL):
            self._fifo.retire()
        room = self._room(size) if planned else 0
        if room < max(1, size // REFILL):
            return requests
        if self._shape.plain:
            requests += self._requests(self._take_planned(room), near=False)
        else:
            while self._room(size) > 0 and (page := self._take_planned(1)).size:
                requests += self._requests(page, near=False)
        if self._urgent_done_at is None and not self.urgent_left:
            self._urgent_done_at = now
        return requests

    def worth(self, pages: Pages) -> npt.NDArray[np.uint8]:
        """How soon pages should cross that were read from the source: a `Worth` each.

        :param pages: page numbers of the space.
        """
        state = self._state[pages]
        worth = self._plan.worths[pages]
        # What was asked for keeps its place in the plan: it must not overtake, again and again,
        # pages of the same stretch that the source happened to send unasked.
        worth[(worth == Worth.BACKGROUND) & (state & ASKED != 0)] = Worth.ASKED
        worth[(state & NEAR) != 0] = Worth.NEAR
        worth[(state & DEMAND) != 0] = Worth.DEMANDED
        return worth

    @property
    def horizon(self) -> int:
        """The largest `Worth` that need not wait: the stretch of the plan being asked for."""
        return min(Worth.PLANNED + self._cursor // self._plan.stretch, Worth.BACKGROUND - 1)

    def statistics(self) -> InjectorStatistics:
        """All counts at this moment."""
        return InjectorStatistics(
            policy=self._plan.policy,
            total=self._space.pages,
            remaining=self.remaining,
            plan_left=self._plan.order.size - self._cursor,
            urgent_left=self.urgent_left,
            outstanding=self.outstanding,
            injected=self.injected,
            injected_near_faults=self._near_faults,
            unrequested=self._unrequested,
            presumed_sent=self._fifo.presumed_sent,
            faults=self.faults,
            window_bytes=self._window.size,
            urgent_done_at=self._urgent_done_at,
            sent_by_class=tuple(self._sent_by_class.tolist()),
            injected_by_class=tuple(self._injected_by_class.tolist()),
            faults_by_class=tuple(self._faults_by_class.tolist()),
        )

    def _checked(self, plan: TransferPlan) -> TransferPlan:
        if plan.pages != self._space.pages:
            raise PlanError(f"a plan of {plan.pages} pages for a space of {self._space.pages}")
        return plan

    def _distinct(self, pages: Pages) -> Pages:
        """Pages of the space, each once. Batches nearly always are so already."""
        pages = pages.astype(np.int64, copy=False)
        if pages.size > 1 and not (pages[1:] > pages[:-1]).all():
            pages = distinct(pages)
        if pages.size and (int(pages[0]) < 0 or int(pages[-1]) >= self._space.pages):
            pages = pages[(pages >= 0) & (pages < self._space.pages)]
        return pages

    def _count(self, counts: npt.NDArray[np.int64], pages: Pages) -> None:
        classes = self._plan.classes
        if not classes.size:
            counts[0] += pages.size
        elif pages.size:
            found = np.bincount(classes[pages], minlength=CLASSES)
            counts += found[:CLASSES]
            counts[-1] += found[CLASSES:].sum()

    def _room(self, size: int) -> int:
        """Pages of the plan that may be asked for; neighbours of faults have room of their own."""
        return size - self._fifo.count + self._fifo.near

    def _take_near(self, size: int) -> Pages:
        """Neighbours of the latest faults, as many as may be outstanding beside the plan's."""
        taken: list[Pages] = []
        used = self._fifo.near
        while self._waiting:
            part, share = self._waiting[-1]
            allowed = int(size * share) - used
            if allowed <= 0:
                break
            self._waiting.pop()
            part = part[self._state[part] == 0]
            if part.size > allowed:
                self._waiting.append((part[allowed:], share))
            taken.append(part[:allowed])
            used += taken[-1].size
        # Two faults' clusters may overlap, and processes share pages.
        return distinct(np.concatenate(taken)) if taken else np.empty(0, np.int64)

    def _take_planned(self, room: int) -> Pages:
        """The next pages of the plan that still have to be asked for."""
        order = self._plan.order
        taken: list[Pages] = []
        step = max(256, 2 * room)
        while room > 0 and self._cursor < order.size:
            chunk = order[self._cursor : self._cursor + step]
            wanted = np.flatnonzero(self._state[chunk] == 0)
            if wanted.size >= room:
                wanted = wanted[:room]
                self._cursor += int(wanted[-1]) + 1
            else:
                self._cursor += chunk.size
            taken.append(chunk[wanted])
            room -= wanted.size
            step = min(4 * step, 1 << 18)  # where much has crossed already
        return np.concatenate(taken) if taken else np.empty(0, np.int64)

    def _requests(self, pages: Pages, *, near: bool) -> list[tuple[int, int]]:
        if self._shape.plain:
            self._inject(pages, near=near)
            return self._shape.runs(pages)
        runs: list[tuple[int, int]] = []
        for page in pages.tolist():
            if self._state[page]:
                continue  # part of a host page asked for a moment ago
            first, count = self._shape.host_page(page)
            whole = np.arange(first, first + count, dtype=np.int64)
            self._inject(whole[self._state[whole] == 0], near=near)
            runs.append((first, count))
        return runs

    def _inject(self, pages: Pages, *, near: bool) -> None:
        self._fifo.requested(pages, near=near)
        self.injected += pages.size
        self._near_faults += pages.size if near else 0
        self._count(self._injected_by_class, pages)
