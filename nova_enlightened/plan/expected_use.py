# SPDX-License-Identifier: Apache-2.0
"""How likely each page is to be used soon, as a score of one byte.

The scale is that of heat (`knowledge.heat`): 32 plus a likelihood of use times 223. `LEFT_OUT`
pages are not planned at all. In order of trust:

* pages that samples saw in use have their heat;
* page tables are needed to reach 512 pages each, and nothing says which: while they are
  few, all of them come first;
* pages of a running process that no sample saw: what the samples say of pages they missed. If
  one sample saw f1 pages and two saw f2, about f1² / 2 f2 were used and not seen (A. Chao,
  "Nonparametric estimation of the number of classes in a population", 1984), which all unseen
  pages of the process share. Where a working set is sharp this is next to nothing, however few
  of it each sample sees; under a zipf load it is not;
* memory no sampling can see (the kernel's): a prior per class. It is above memory that was
  watched and found unused;
* without samples: what the kernel marks as used, pages of running processes.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.knowledge import heat
from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.guest_pages import GuestPages, PlacedProcess
from nova_enlightened.plan.transfer_plan import Pages, inside

Scores = npt.NDArray[np.uint8]

LEFT_OUT: Final = 0
COLD: Final = heat.SAMPLED_MIN
SCALE: Final = 255 - heat.SAMPLED_MIN

FIRST: Final = 255
"""A level of its own, above the hottest pages."""
FEW_PAGE_TABLES: Final = 1024
PAGE_TABLE_PART: Final = 8
"""Page tables are few below this many, or this part of the pages seen in use."""
LATE_PAGE_TABLE: Final = COLD + 15

MOST_UNSEEN: Final = 0.15
"""Pages that no sample saw are never thought likelier to be used than this."""
FEWEST_SAMPLES: Final = 2
"""With fewer, every page was seen by one sample at most, and says nothing of the others."""
MARKED: Final = np.uint8(COLD + 3)
"""Score of pages marked by the guest's kernel where samples did not see them used."""

UNSAMPLED_RUNNING: Final = 160
"""Without samples: score of the busiest process's pages; the next one's is 8 lower."""
UNSAMPLED_LEAST: Final = 64
UNSAMPLED_MARK: Final = 64
"""Without samples: added for the kernel's mark; alone it is worth a little less."""

FINE: Final = 48
COARSE_STEP: Final = 16
"""Scores from FINE up are quantised to steps of this, so that runs of pages survive."""


def _prior() -> Scores:
    """Class -> score of a page of which nothing else is known. Indexed by any byte."""
    table = np.full(256, COLD, np.uint8)
    table[PageClass.FREE] = LEFT_OUT
    for page_class, likelihood in (
        (PageClass.SLAB, 0.05),
        (PageClass.RESERVED, 0.03),  # the kernel's image, where faults bring their neighbours
        (PageClass.KERNEL, 0.02),
        (PageClass.PAGE_TABLE, 0.02),
    ):
        table[page_class] = COLD + round(likelihood * SCALE)
    return table


def _level() -> npt.NDArray[np.uint8]:
    """Score -> level, lower crossing sooner."""
    scores = np.arange(256)
    coarse = scores // COARSE_STEP * COARSE_STEP
    fine = (scores < FINE) | (scores == FIRST)
    return (255 - np.where(fine, scores, coarse)).astype(np.uint8)


PRIOR: Final = _prior()
URGENT_LIKELIHOOD: Final = 0.045
"""Pages at least as likely to be used are urgent."""
URGENT_PART: Final = 0.25
"""So are many pages that are less likely, if this part of all uses is expected of them."""
LEVEL: Final = _level()
_IS_MAPPED: Final = np.isin(np.arange(256), (PageClass.ANON, PageClass.FILE))


def scores(known: GuestPages, processes: Sequence[PlacedProcess]) -> Scores:
    """The score of every page.

    :param processes: of `known`, busiest first; page numbers outside the space are ignored.
    """
    found = PRIOR[known.classes]
    sampled = known.heat >= heat.SAMPLED_MIN
    seen = int(np.count_nonzero(sampled))
    marked = (known.heat > 0) & ~sampled
    running = [p for p in processes if p.running]
    if seen:
        np.maximum(found, MARKED, out=found, where=marked)
        _raise_unseen(found, known, running)
    else:
        _raise_unsampled(found, known, marked, running)
    np.copyto(found, known.heat, where=sampled)
    np.minimum(found, np.uint8(FIRST - 1), out=found)
    tables = np.flatnonzero((known.classes == PageClass.PAGE_TABLE) & ~sampled)
    few = max(FEW_PAGE_TABLES, seen // PAGE_TABLE_PART)
    found[tables] = FIRST if tables.size <= few else LATE_PAGE_TABLE
    return found


def urgent(counts: npt.NDArray[np.int64]) -> int:
    """How many pages, of those in order, are worth the CPU that keeping the order takes.

    :param counts: pages of each level, shape (256,).
    """
    likelihood = np.clip((255.0 - COLD - np.arange(256)) / SCALE, 0.0, 1.0)
    uses = counts * likelihood
    before = np.cumsum(uses) - uses
    worth = (counts > 0) & ((likelihood >= URGENT_LIKELIHOOD) | (uses > URGENT_PART * before))
    return int(counts[: int(np.flatnonzero(worth)[-1]) + 1].sum()) if worth.any() else 0


def unseen_likelihood(heats: npt.NDArray[np.uint8], samples: int) -> float:
    """How likely a page that no sample saw is in use all the same.

    :param heats: of all pages of one process; 0 or a kernel mark: not seen.
    :param samples: taken. Of more than `heat.HISTORY` the newest are looked at, and pages that
        only older ones saw are of those that these have missed.
    """
    if samples < FEWEST_SAMPLES:
        return 0.0
    taken = min(samples, heat.HISTORY)
    newest = taken if samples <= heat.HISTORY else taken - 1
    counts = np.bincount(heats, minlength=256)
    unseen = int(counts[: heat.SAMPLED_MIN].sum())
    once = (1 << (heat.HISTORY - 1 - np.arange(newest))).astype(np.uint8)
    first, second = np.triu_indices(newest, 1)
    seen_once = _count(counts, once, taken)
    seen_twice = _count(counts, once[first] | once[second], taken)
    missed = min(float(seen_once), seen_once**2 / (2 * max(seen_twice, 1)))
    if newest < taken:
        missed -= _count(counts, np.ones(1, np.uint8), taken)
    return min(MOST_UNSEEN, max(missed, 0.0) / max(unseen, 1))


def _count(counts: npt.NDArray[np.int64], histories: npt.NDArray[np.uint8], samples: int) -> int:
    """Pages that have one of these histories, by the heat it gives them."""
    values = heat.from_samples(histories, samples, 0, histories.size)
    return int(counts[np.bincount(values, minlength=256) > 0].sum())


def _raise_unseen(found: Scores, known: GuestPages, running: Sequence[PlacedProcess]) -> None:
    for process in running:
        pages = _mapped(known, process)
        likelihood = unseen_likelihood(known.heat[pages], known.samples)
        score = np.uint8(COLD + round(likelihood * SCALE))
        found[pages] = np.maximum(found[pages], score)


def _raise_unsampled(
    found: Scores,
    known: GuestPages,
    marked: npt.NDArray[np.bool_],
    running: Sequence[PlacedProcess],
) -> None:
    np.maximum(found, np.uint8(UNSAMPLED_LEAST - 8), out=found, where=marked)
    for index, process in enumerate(running):
        pages = _mapped(known, process)
        score = max(UNSAMPLED_LEAST, UNSAMPLED_RUNNING - 8 * index)
        raised = (score + UNSAMPLED_MARK * marked[pages]).astype(np.uint8)
        found[pages] = np.maximum(found[pages], raised)


def _mapped(known: GuestPages, process: PlacedProcess) -> Pages:
    """A process's pages, without frames that were freed since it mapped them."""
    pages = inside(process.pages, known.classes.size)
    mapped = _IS_MAPPED[known.classes[pages]]
    return pages if mapped.all() else pages[mapped]
