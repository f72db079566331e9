# SPDX-License-Identifier: Apache-2.0
"""Ordering policies: from what a guest knows to the order its pages should cross in.

A policy gives every page a *rank* (a byte: lower crosses sooner, `LEFT_OUT` not at all) and
pages of one rank cross in address order, so that adjacent pages stay one request. Free
pages are always left out: the source's background scan sends them last.

Installed under the stevedore namespace `nova_enlightened.ordering_policies`.
"""

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from nova_enlightened.exception import PlanError
from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.guest_pages import GuestPages, PlacedProcess
from nova_enlightened.knowledge.heat import KERNEL_MARK
from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.plan.transfer_plan import (
    Pages,
    TransferPlan,
    concatenate_virtual,
    empty_plan,
    first_mentions,
)

Ranks = npt.NDArray[np.uint8]

PAGE_TABLE_RANK: Final = 0
HOTTEST_RANK: Final = 1
HEAT_STEP: Final = 16
"""Heat is quantised to steps of this size, so that runs of adjacent pages survive."""
URGENT_HEAT: Final = 48
"""Pages at least this hot are urgent: used in a tenth of the samples or so."""
LATE_PAGE_TABLE_RANK: Final = HOTTEST_RANK + 256 // HEAT_STEP
MARKED_RANK: Final = LATE_PAGE_TABLE_RANK + 1
PROCESS_RANK: Final = MARKED_RANK + 1
MAX_PROCESS_RANKS: Final = 16
"""Running processes told apart by their use of the CPU; the rest share the last rank."""
TAIL_RANK: Final = PROCESS_RANK + MAX_PROCESS_RANKS
LEFT_OUT: Final = 255

TAIL: Final = (
    PageClass.ANON,
    PageClass.FILE,
    PageClass.SLAB,
    PageClass.KERNEL,
    PageClass.PAGE_TABLE,
    PageClass.UNKNOWN,
    PageClass.RESERVED,
)
"""Pages nobody is known to use, by how likely they are to be used all the same."""

FEW_PAGE_TABLES: Final = 1024
PAGE_TABLE_PART: Final = 8
"""Page tables are few below this many, or this part of the urgent pages."""


class OrderingPolicy(Protocol):
    """The plugin contract. A policy has no state between calls."""

    name: str

    def plan(self, known: GuestPages | None, space: PageSpace) -> TransferPlan:
        """Plan for one guest.

        :param known: what the guest knows, or None. It is advice from a hostile place.
        :raises PlanError: `known` was made for another page space.
        """
        ...


class Stock:
    """Nothing is asked for: QEMU's own order."""

    name = "stock"

    def plan(self, known: GuestPages | None, space: PageSpace) -> TransferPlan:
        """See `OrderingPolicy`."""
        return empty_plan(self.name, space.pages)


class Heat:
    """Expected use per byte: page tables, hot pages, running processes, then the rest.

    Page tables come first while they are few: each is needed to reach 512 pages, and the
    guest says nothing of which are in use. Where they are many (large shared mappings) they
    are worth no more than any page and follow the hot ones.

    Where no sample was taken in the guest, what its kernel marks as used and the pages of
    running processes are the urgent ones.
    """

    name = "heat"

    def plan(self, known: GuestPages | None, space: PageSpace) -> TransferPlan:
        """See `OrderingPolicy`."""
        if known is None:
            return empty_plan(self.name, space.pages)
        _check(known, space)
        processes = _by_cpu(known)
        virtual, position = concatenate_virtual((p.pages for p in processes), space.pages)
        ranks = _TAIL_RANKS[known.classes]
        _rank_running(ranks, processes)
        warm = np.flatnonzero(known.heat)
        ranks[warm] = _HEAT_RANKS[known.heat[warm]]
        urgent_pages = int(np.count_nonzero(known.heat >= URGENT_HEAT))
        tables = np.flatnonzero((known.classes == PageClass.PAGE_TABLE) & (known.heat == 0))
        few = max(FEW_PAGE_TABLES, urgent_pages // PAGE_TABLE_PART)
        ranks[tables] = PAGE_TABLE_RANK if tables.size <= few else LATE_PAGE_TABLE_RANK
        last_urgent = _HEAT_RANKS[URGENT_HEAT] if urgent_pages else TAIL_RANK - 1
        order, urgent = order_by_rank(ranks, int(last_urgent))
        return TransferPlan(self.name, space.pages, order, urgent, virtual, position, known.classes)


class Process:
    """Page tables, running processes in virtual order, then classes; heat is not read."""

    name = "process"

    def plan(self, known: GuestPages | None, space: PageSpace) -> TransferPlan:
        """See `OrderingPolicy`."""
        if known is None:
            return empty_plan(self.name, space.pages)
        _check(known, space)
        processes = _by_cpu(known)
        virtual, position = concatenate_virtual((p.pages for p in processes), space.pages)
        ranks = _TAIL_RANKS[known.classes]
        tables = np.flatnonzero(known.classes == PageClass.PAGE_TABLE)
        ranks[tables] = LEFT_OUT
        running = sum(p.pages.size for p in processes if p.running)
        mapped = first_mentions(virtual, position)
        # Running processes are laid out first, so theirs are the lowest positions.
        mapped = mapped[position[mapped] < running] if mapped.size else mapped
        mapped = mapped[ranks[mapped] != LEFT_OUT]
        ranks[mapped] = LEFT_OUT
        rest, _ = order_by_rank(ranks, LEFT_OUT - 1)
        order = np.concatenate((tables, mapped, rest))
        urgent = int(tables.size + mapped.size)
        return TransferPlan(self.name, space.pages, order, urgent, virtual, position, known.classes)


class Physical:
    """Address order with free pages left out: for guests that know no more than that."""

    name = "physical"

    def plan(self, known: GuestPages | None, space: PageSpace) -> TransferPlan:
        """See `OrderingPolicy`."""
        if known is None:
            return empty_plan(self.name, space.pages)
        _check(known, space)
        order = np.flatnonzero(known.classes != PageClass.FREE)
        return TransferPlan(self.name, space.pages, order, 0, classes=known.classes)


def order_by_rank(ranks: Ranks, last_urgent: int) -> tuple[Pages, int]:
    """Pages by rank, of one rank by address.

    :param ranks: shape (pages,).
    :param last_urgent: the highest rank that is urgent.
    :returns: (`order`, `urgent`) of `TransferPlan`.
    """
    chosen = np.flatnonzero(ranks != LEFT_OUT)
    kept = ranks[chosen]
    order: Pages = chosen[np.argsort(kept, kind="stable")]
    return order, int(np.count_nonzero(kept <= last_urgent))


def _check(known: GuestPages, space: PageSpace) -> None:
    if known.classes.shape != (space.pages,) or known.heat.shape != (space.pages,):
        raise PlanError(f"knowledge of {known.classes.size} pages for a space of {space.pages}")


def _by_cpu(known: GuestPages) -> list[PlacedProcess]:
    """Processes, the running ones first, the busiest of them first."""
    return sorted(known.processes, key=lambda p: (not p.running, -p.cpu))


def _rank_running(ranks: Ranks, processes: list[PlacedProcess]) -> None:
    """Lift the process pages (only) of running processes, the busiest highest."""
    running = [p for p in processes if p.running]
    for index, process in reversed(list(enumerate(running))):
        pages = process.pages[(process.pages >= 0) & (process.pages < ranks.size)]
        # Only process memory: a frame that was freed since it was mapped stays left out.
        pages = pages[_IS_MAPPED[ranks[pages]]]
        ranks[pages] = PROCESS_RANK + min(index, MAX_PROCESS_RANKS - 1)


def _tail_ranks() -> Ranks:
    """Class -> rank of a page nothing else is known of. Unknown classes rank last."""
    table = np.full(256, TAIL_RANK + len(TAIL), np.uint8)
    for index, page_class in enumerate(TAIL):
        table[page_class] = TAIL_RANK + index
    table[PageClass.FREE] = LEFT_OUT
    return table


def _heat_ranks() -> Ranks:
    """Heat (1..255) -> rank."""
    heat = np.arange(256)
    table = HOTTEST_RANK + (255 - heat) // HEAT_STEP
    return np.where(heat > KERNEL_MARK, table, MARKED_RANK).astype(np.uint8)


def _is_mapped() -> npt.NDArray[np.bool_]:
    """Rank -> whether it is one that a page mapped by a process may have."""
    table = np.zeros(256, np.bool_)
    table[[_TAIL_RANKS[PageClass.ANON], _TAIL_RANKS[PageClass.FILE]]] = True
    table[PROCESS_RANK:TAIL_RANK] = True
    return table


_TAIL_RANKS: Final = _tail_ranks()
_HEAT_RANKS: Final = _heat_ranks()
_IS_MAPPED: Final = _is_mapped()
