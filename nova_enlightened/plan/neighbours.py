# SPDX-License-Identifier: Apache-2.0
"""Which pages are likely to be touched soon after a demand fault.

The neighbours of a page are its neighbours in the *process* (virtual order), not in physical
memory: an allocator's slab or a scanned array is scattered over frames. Faults there are sorted
into *streams*, as a file system's read-ahead does. How far a fault is ahead of the stream's
last one is what was used of the cluster since, and by so much the next one is larger: it
doubles when the cluster was used up. A fault near no stream begins a new one, with a size
that follows how often streams have been continued at all: it shrinks while faults are random.

A page that no process maps (the kernel's, or one just allocated) has physical neighbours. The
guest uses those in no order but densely, so what counts is density: the *leaf* of 16 pages
around the fault is asked for, or the largest aligned region of a power of two of leaves
more than half of which were asked for. (GPU drivers page unified memory by such a rule.)
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.plan.transfer_plan import NO_POSITION, Pages, TransferPlan

STREAMS: Final = 16
"""Streams remembered of each kind; the one not continued for longest is forgotten."""
BEHIND: Final = 4
"""A cluster has 1/BEHIND as many pages behind the fault as ahead of it."""
STREAM_AGE: Final = 5.0
"""Seconds without a fault after which a stream is over."""


@dataclass(frozen=True)
class ClusterLimits:
    """Pages ahead of the fault: the smallest and largest first cluster, the largest ever."""

    least: int
    first: int
    most: int


VIRTUAL_CLUSTER: Final = ClusterLimits(least=1, first=4, most=1024)
"""Chosen by replay: under random faults larger first clusters only delay the plan, while a
guest that walks its memory is served best by clusters of megabytes."""

LEAF: Final = 16
REGIONS: Final = (2, 4, 8, 16, 32)
"""Leaves; the largest region is a huge page of 2 MiB."""
KERNEL_REGIONS: Final = REGIONS[:1]
"""For memory of the kernel: it is used densely, but not wholly as a page that is being cleared.
Measured: larger regions hold up pages that are hotter by more than the faults they spare."""
KERNEL: Final = frozenset(
    int(one) for one in (PageClass.SLAB, PageClass.KERNEL, PageClass.RESERVED, PageClass.PAGE_TABLE)
)
FREE: Final = int(PageClass.FREE)

PROVEN: Final = 32
"""A stream whose cluster has grown past this many pages is sure to use the next one."""


@dataclass
class _Stream:
    last: int
    low: int
    high: int
    size: int
    at: float
    down: bool = False
    """It goes towards lower indices, as a kernel does that clears a huge page."""


class _Streams:
    """Streams over the virtual order."""

    def __init__(self, limits: ClusterLimits) -> None:
        self._limits = limits
        self._streams: list[_Stream] = []
        self._first = float(limits.first)

    def cluster(self, index: int, now: float) -> tuple[int, int, bool]:
        """The half-open range of indices to ask for around a fault at `index`.

        :returns: its bounds, and whether the stream goes towards lower indices.
        """
        found = self._near(index, now)
        if found is None:
            stream = _Stream(index, index, index, round(self._first), now)
            self._first = max(float(self._limits.least), self._first * 0.9)
            if len(self._streams) >= STREAMS:
                self._streams.pop(0)
        else:
            stream = found
            self._streams.remove(stream)
            stream.down = index < stream.last
            used = min(stream.size, abs(index - stream.last))
            stream.size = min(self._limits.most, stream.size + used)
            if not stream.low <= index < stream.high:
                self._first = min(float(self._limits.first * 2), self._first * 1.25)
        ahead, behind = stream.size, stream.size // BEHIND
        if stream.down:
            ahead, behind = behind, ahead
        low, high = index - behind, index + 1 + ahead
        stream.last, stream.low, stream.high, stream.at = index, low, high, now
        self._streams.append(stream)
        return low, high, stream.down

    def _near(self, index: int, now: float) -> _Stream | None:
        for stream in reversed(self._streams):
            reach = stream.size
            if stream.low - reach <= index < stream.high + reach and now - stream.at <= STREAM_AGE:
                return stream
        return None


class _Leaves:
    """Physical memory in leaves, and which of them were asked for."""

    def __init__(self, pages: int) -> None:
        self._asked = np.zeros(-(-pages // LEAF), np.bool_)

    def region(self, page: int, regions: tuple[int, ...]) -> tuple[int, int]:
        """The half-open range of pages to ask for around a fault at `page`."""
        leaf = page // LEAF
        self._asked[leaf] = True
        first, last = leaf, leaf + 1
        for leaves in regions:
            start = leaf // leaves * leaves
            if 2 * np.count_nonzero(self._asked[start : start + leaves]) > leaves:
                first, last = start, start + leaves
                self._asked[first:last] = True
        return first * LEAF, last * LEAF


class Neighbours:
    """Clusters around demand faults.

    :param limits: sizes of clusters in virtual order.
    """

    def __init__(
        self, space: PageSpace, plan: TransferPlan, limits: ClusterLimits = VIRTUAL_CLUSTER
    ) -> None:
        self._space = space
        self._plan = plan
        self._limits = limits
        self._virtual = _Streams(limits)
        self._physical = _Leaves(space.pages)

    def replan(self, plan: TransferPlan) -> None:
        """Take another plan: virtual positions have changed, physical ones have not."""
        self._plan = plan
        self._virtual = _Streams(self._limits)

    def around(self, page: int, now: float) -> tuple[Pages, bool]:
        """Pages likely to follow a fault at `page`, likeliest first; `page` left out.

        :returns: the pages, and whether they are as good as certain to be used. None when
            the plan knows nothing: then the source's own scan goes on from the fault, which
            is all that stock does.
        """
        plan = self._plan
        if plan.empty:
            return np.empty(0, np.int64), False
        index = int(plan.position[page]) if plan.position.size else NO_POSITION
        if index == NO_POSITION:
            return self._beside(page)
        low, high, down = self._virtual.cluster(index, now)
        proven = high - low > PROVEN * (1 + 1 / BEHIND)
        low, high = max(low, 0), min(high, plan.virtual.size)
        above, below = plan.virtual[index + 1 : high], plan.virtual[low:index][::-1]
        return np.concatenate((below, above) if down else (above, below)), proven

    def _beside(self, page: int) -> tuple[Pages, bool]:
        """Physical neighbours that no process maps; free ones only of a free page."""
        plan = self._plan
        page_class = int(plan.classes[page]) if plan.classes.size else None
        kernels = page_class in KERNEL
        low, high = self._physical.region(page, KERNEL_REGIONS if kernels else REGIONS)
        block = self._space.block_range(self._space.locate(page)[0])
        low, high = max(low, block.start), min(high, block.stop)
        alike = np.ones(high - low, np.bool_)
        if plan.position.size:
            alike &= plan.position[low:high] == NO_POSITION
        if page_class not in (None, FREE):
            alike &= plan.classes[low:high] != FREE
        alike[page - low] = False
        found = np.flatnonzero(alike) + low
        turn = int(np.searchsorted(found, page))
        return np.concatenate((found[turn:], found[:turn][::-1])), high - low > PROVEN
