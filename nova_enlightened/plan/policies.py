# SPDX-License-Identifier: Apache-2.0
"""Ordering policies: from what a guest knows to the order its pages should cross in.

Pages of equal standing cross in address order, so that adjacent pages stay one request. Free
pages are always left out: the source's background scan sends them last.

Installed under the stevedore namespace `nova_enlightened.ordering_policies`.
"""

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from nova_enlightened.exception import PlanError
from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.guest_pages import GuestPages, PlacedProcess
from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.plan import expected_use
from nova_enlightened.plan.transfer_plan import (
    Pages,
    TransferPlan,
    concatenate_virtual,
    empty_plan,
    first_mentions,
)

_CHUNK: Final = 1 << 20
"""Pages counted at a time: `bincount` makes 8 bytes of each byte."""


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
    """Expected use per byte; see `plan.expected_use` for what is known of it.

    Urgent is what `expected_use.urgent` says: a relay that orders the rest too takes more CPU from
    guests than the order gives them.
    """

    name = "heat"

    def plan(self, known: GuestPages | None, space: PageSpace) -> TransferPlan:
        """See `OrderingPolicy`."""
        if known is None:
            return empty_plan(self.name, space.pages)
        _check(known, space)
        processes = by_cpu(known)
        virtual, position = concatenate_virtual((p.pages for p in processes), space.pages)
        order, counts = by_score(expected_use.scores(known, processes))
        urgent = expected_use.urgent(counts)
        return TransferPlan(self.name, space.pages, order, urgent, virtual, position, known.classes)


class Process:
    """Page tables, running processes in virtual order, then classes; heat is not read."""

    name = "process"

    def plan(self, known: GuestPages | None, space: PageSpace) -> TransferPlan:
        """See `OrderingPolicy`."""
        if known is None:
            return empty_plan(self.name, space.pages)
        _check(known, space)
        processes = by_cpu(known)
        virtual, position = concatenate_virtual((p.pages for p in processes), space.pages)
        running = sum(p.pages.size for p in processes if p.running)
        mapped = first_mentions(virtual, position)
        # Running processes are laid out first, so theirs are the lowest positions.
        mapped = mapped[position[mapped] < running] if mapped.size else mapped
        mapped = mapped[_IS_MAPPED[known.classes[mapped]]]
        tables = np.flatnonzero(known.classes == PageClass.PAGE_TABLE)
        scores = expected_use.PRIOR[known.classes]
        scores[tables] = expected_use.LEFT_OUT
        scores[mapped] = expected_use.LEFT_OUT
        rest, _ = by_score(scores)
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


def by_score(scores: expected_use.Scores) -> tuple[Pages, npt.NDArray[np.int64]]:
    """Pages by score, highest first; of one level (`expected_use.LEVEL`) by address.

    :param scores: shape (pages,); LEFT_OUT pages are left out.
    :returns: the order, and how many pages each level has, shape (256,).
    """
    levels = expected_use.LEVEL[scores]
    left_out = expected_use.LEVEL[expected_use.LEFT_OUT]
    counts = np.zeros(256, np.int64)
    for start in range(0, levels.size, _CHUNK):
        counts += np.bincount(levels[start : start + _CHUNK], minlength=256)
    counts[left_out] = 0
    order = np.empty(int(counts.sum()), np.int64)
    filled = 0
    # A pass for each of the few levels is faster than sorting, and already in address order.
    for level in np.flatnonzero(counts).tolist():
        order[filled : filled + counts[level]] = np.flatnonzero(levels == level)
        filled += int(counts[level])
    return order, counts


def by_cpu(known: GuestPages) -> list[PlacedProcess]:
    """Processes, the running ones first, the busiest of them first."""
    return sorted(known.processes, key=lambda p: (not p.running, -p.cpu))


def _check(known: GuestPages, space: PageSpace) -> None:
    if known.classes.shape != (space.pages,) or known.heat.shape != (space.pages,):
        raise PlanError(f"knowledge of {known.classes.size} pages for a space of {space.pages}")


def _mapped_classes() -> npt.NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    table[[PageClass.ANON, PageClass.FILE]] = True
    return table


_IS_MAPPED: Final = _mapped_classes()
