# SPDX-License-Identifier: Apache-2.0
"""A transfer plan: the order pages should cross in, and who is whose neighbour.

A plan is advice. It may leave pages out (the source's own background scan sends those) and
it may be wrong (the guest faults, and is answered). It never makes a page unreachable.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.exception import PlanError
from nova_enlightened.plan.worth import Worth, stretch_of

Pages = npt.NDArray[np.int64]
"""Page numbers (see `knowledge.space`), one dimension."""

NO_POSITION: Final = -1
"""In `TransferPlan.position`: the page has no place in any process's virtual order."""

MAX_VIRTUAL: Final = 2**31 - 1
"""`position` is int32 to halve its size: 2^31 mapped pages are 8 TiB."""


def _no_pages() -> Pages:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class TransferPlan:
    """What an ordering policy decided. Arrays are not to be written to.

    :ivar policy: name of the policy, for logs and state files.
    :ivar pages: pages in the page space the plan was made for.
    :ivar order: page numbers, soonest first, no duplicates; need not cover all pages.
    :ivar urgent: how many leading entries of `order` are worth delaying other traffic for:
        pages known to be in use. The rest only replaces the background scan's order.
    :ivar virtual: pages of all processes, each process in virtual-address order. May repeat
        a page that processes share.
    :ivar position: page -> index in `virtual`, or NO_POSITION; length `pages`, or length 0
        when `virtual` is empty.
    :ivar classes: page -> `PageClass` value, for statistics; length `pages` or 0 (unknown).
    :ivar worths: page -> `Worth` by its place in `order`; made here.
    """

    policy: str
    pages: int
    order: Pages = field(default_factory=_no_pages)
    urgent: int = 0
    virtual: Pages = field(default_factory=_no_pages)
    position: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    classes: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    worths: npt.NDArray[np.uint8] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """:raises PlanError: lengths disagree or a page is outside the space."""
        if not 0 <= self.urgent <= self.order.size:
            raise PlanError(f"{self.urgent} urgent pages in an order of {self.order.size}")
        for name, array in (("order", self.order), ("virtual", self.virtual)):
            if array.size and (int(array.min()) < 0 or int(array.max()) >= self.pages):
                raise PlanError(f"{name} leaves the space of {self.pages} pages")
        worths = np.full(self.pages, Worth.BACKGROUND, np.uint8)
        for start in range(0, self.order.size, self.stretch):
            part = self.order[start : start + self.stretch]
            worths[part] = Worth.PLANNED + start // self.stretch
        object.__setattr__(self, "worths", worths)
        if int(np.count_nonzero(worths != Worth.BACKGROUND)) != self.order.size:
            raise PlanError(f"the order of policy {self.policy!r} has pages more than once")
        if self.position.size not in ((self.pages,) if self.virtual.size else (0, self.pages)):
            raise PlanError(f"{self.position.size} positions for {self.pages} pages")
        if self.classes.size not in (0, self.pages):
            raise PlanError(f"{self.classes.size} classes for {self.pages} pages")

    @property
    def stretch(self) -> int:
        """Pages of `order` that are worth the same."""
        return stretch_of(self.order.size)

    @property
    def empty(self) -> bool:
        """True when there is nothing to inject and no neighbour to know: stock behaviour."""
        return not self.order.size and not self.virtual.size

    def grown(self, pages: int) -> "TransferPlan":
        """The same plan for a space with further pages behind, of which nothing is known."""
        more = pages - self.pages
        position, classes = self.position, self.classes
        if position.size:
            position = np.append(position, np.full(more, NO_POSITION, np.int32))
        if classes.size:
            classes = np.append(classes, np.zeros(more, np.uint8))
        return replace(self, pages=pages, position=position, classes=classes)


def inside(numbers: Pages, pages: int) -> Pages:
    """Those of `numbers` that are pages of a space of `pages`; no copy where all are."""
    if not numbers.size or (int(numbers.min()) >= 0 and int(numbers.max()) < pages):
        return numbers
    return numbers[(numbers >= 0) & (numbers < pages)]


def distinct(numbers: Pages) -> Pages:
    """`numbers` ascending, each once.

    As ``np.unique``, which loads numpy's masked arrays when first called: on a relay's way to a
    page that a guest waits for, that took 60 ms.
    """
    ordered = np.sort(numbers)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if ordered.size else ordered


def empty_plan(policy: str, pages: int) -> TransferPlan:
    """The plan that leaves everything to the source's own order."""
    return TransferPlan(policy, pages)


def concatenate_virtual(parts: Iterable[Pages], pages: int) -> tuple[Pages, npt.NDArray[np.int32]]:
    """Lay processes' pages end to end.

    :param parts: each process's page numbers in virtual-address order, most important
        process first. Numbers outside 0..pages-1 are dropped: they come from a guest.
    :returns: (`virtual`, `position`) of `TransferPlan`. A page listed more than once has
        the position of its first mention. Both are empty when nothing is left.
    :raises PlanError: more mentions than `MAX_VIRTUAL`.
    """
    kept = [inside(part, pages) for part in parts]
    total = sum(part.size for part in kept)
    if total > MAX_VIRTUAL:
        raise PlanError(f"{total} mapped pages are more than the limit of {MAX_VIRTUAL}")
    if not total:
        return _no_pages(), np.empty(0, np.int32)
    virtual: Pages = np.concatenate(kept).astype(np.int64, copy=False)
    position = np.full(pages, NO_POSITION, np.int32)
    # Of repeated indices the last assignment stays: backwards, that is the first mention.
    position[virtual[::-1]] = np.arange(total - 1, -1, -1, dtype=np.int32)
    return virtual, position


def first_mentions(virtual: Pages, position: npt.NDArray[np.int32]) -> Pages:
    """`virtual` without its repeats: each page where it is first mentioned."""
    if not virtual.size:
        return virtual
    first: npt.NDArray[np.bool_] = position[virtual] == np.arange(virtual.size, dtype=np.int32)
    return virtual[first]
