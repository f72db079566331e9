# SPDX-License-Identifier: Apache-2.0
"""Page records that were read from QEMU and wait to be sent: by what they are worth, then age."""

import collections
import itertools
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.knowledge.space import TARGET_PAGE
from nova_enlightened.plan.transfer_plan import Pages
from nova_enlightened.plan.worth import Worth
from nova_enlightened.stream.wire import RamFlag

STRIDES: Final = {
    int(RamFlag.PAGE): 8 + TARGET_PAGE,
    int(RamFlag.ZERO): 8 + 1,
}
"""Bytes of a record that continues its block, by its kind."""
EMIT_PAGES: Final = 16
"""Pages given out at once: what becomes urgent next waits for no more than that."""
_NOWHERE: Final = 0


class Run:
    """Records of one block and one kind that lie behind each other.

    :ivar body: begins behind the header of the first record; later records have headers that
        continue the block.
    :ivar size: bytes on the wire, when the block need not be named.
    """

    __slots__ = ("block", "body", "count", "flag", "pages", "size")

    def __init__(self, block: str, flag: int, pages: Pages, body: memoryview) -> None:
        self.block = block
        self.flag = flag
        self.pages = pages
        self.body = body
        self.count = len(pages)
        self.size = self.count * STRIDES[flag]

    def copy_body(self) -> None:
        """Let go of the buffer it was read into."""
        self.body = memoryview(bytes(self.body))

    def part(self, first: int, last: int) -> "Run":
        """Records first to last, exclusive."""
        if last - first == self.count:
            return self
        stride = STRIDES[self.flag]
        body = self.body[first * stride : last * stride - 8]
        return Run(self.block, self.flag, self.pages[first:last], body)


class HeldPages:
    """Runs in queues, one for each `Worth`.

    A queue is a row of places, numbered as they are made; each page that is held knows its
    place, so that those that become worth more are found without a look at the others.

    :param pages: in the page space.
    """

    def __init__(self, pages: int) -> None:
        self.size = 0
        """Bytes held."""
        self._queues: tuple[collections.OrderedDict[int, collections.deque[Run]], ...] = tuple(
            collections.OrderedDict() for _ in range(Worth.BACKGROUND + 1)
        )
        self._sizes = [0] * (Worth.BACKGROUND + 1)  # bytes; few of them count: a list is faster
        self._place = np.zeros(pages, np.int32)
        self._worth_at: dict[int, int] = {}
        self._last_place = _NOWHERE

    def ready(self, horizon: int) -> int:
        """Bytes of pages that are worth no more than `horizon`."""
        return sum(self._sizes[: horizon + 1])

    def add(self, run: Run, worth: npt.NDArray[np.uint8]) -> Iterable[tuple[Run, int]]:
        """Hold a run, whose pages are worth so much; the parts it was cut into, with theirs."""
        changes = worth[1:] != worth[:-1]
        edges = [0, *(np.flatnonzero(changes) + 1).tolist(), run.count]
        place = self._new_places(len(edges) - 1)
        self._place[run.pages[0]] = place
        self._place[run.pages[1:]] = place + np.cumsum(changes)
        parts = [run.part(first, last) for first, last in itertools.pairwise(edges)]
        worths = worth[edges[:-1]].tolist()
        for part, index in zip(parts, worths, strict=True):
            self._sizes[index] += part.size
            self._worth_at[place] = index
            self._queues[index][place] = collections.deque((part,))
            place += 1
        self.size += run.size
        return zip(parts, worths, strict=True)

    def promote(self, pages: Pages, worth: int) -> None:
        """Pages became worth more: those that are held go sooner."""
        places = self._place[pages].tolist()
        found = {
            place: index
            for place in places
            if place != _NOWHERE and (index := self._worth_at[place]) > worth
        }
        if not found:
            return
        new = self._new_places(1)
        for page, place in zip(pages.tolist(), places, strict=True):
            if place in found:
                self._place[page] = new
        moved: collections.deque[Run] = collections.deque()
        for place, index in found.items():
            size = self._move(index, place, new, moved)
            self._sizes[index] -= size
            self._sizes[worth] += size
        self._worth_at[new] = worth
        self._queues[worth][new] = moved

    def take(self, room: int, horizon: int) -> list[Run]:
        """Runs of about `room` bytes in order of worth.

        :param horizon: the largest `Worth` that may be taken.
        """
        taken: list[Run] = []
        for worth, size in enumerate(self._sizes[: horizon + 1]):
            if not size or room <= 0:
                continue
            queue, before = self._queues[worth], room
            while queue and room > 0:
                taken.append(self._next(queue))
                room -= taken[-1].size
            self._sizes[worth] -= before - room
            self.size -= before - room
        for run in taken:
            self._place[run.pages] = _NOWHERE
        return taken

    def runs(self) -> list[Run]:
        """All that is held, in the order in which it would be taken."""
        return [run for queue in self._queues for runs in queue.values() for run in runs]

    def fix_order(self, runs: Iterable[Run]) -> None:
        """These, which are all that is held, are taken in this order: nothing is promoted."""
        for queue in self._queues:
            queue.clear()
        self._place[:] = _NOWHERE
        self._worth_at.clear()
        self._sizes = [0] * len(self._sizes)
        if self.size:
            place, first = self._new_places(1), Worth.DEMANDED
            self._worth_at[place], self._sizes[first] = first, self.size
            self._queues[first][place] = collections.deque(runs)

    def _next(self, queue: collections.OrderedDict[int, collections.deque[Run]]) -> Run:
        """Take the next run of a queue, or of a long one its first pages."""
        place = next(iter(queue))
        runs = queue[place]
        run = runs.popleft()
        if run.count > EMIT_PAGES:
            runs.appendleft(run.part(EMIT_PAGES, run.count))
            run = run.part(0, EMIT_PAGES)
        elif not runs:
            del queue[place], self._worth_at[place]
        return run

    def _move(self, index: int, place: int, new: int, moved: collections.deque[Run]) -> int:
        """Move the pages that have a `new` place from another; the bytes moved."""
        size = 0
        kept: collections.deque[Run] = collections.deque()
        for run in self._queues[index][place]:
            hit = self._place[run.pages] == new
            edges = [0, *(np.flatnonzero(hit[1:] != hit[:-1]) + 1).tolist(), run.count]
            for first, last in itertools.pairwise(edges):
                part = run.part(first, last)
                if hit[first]:
                    moved.append(part)
                    size += part.size
                else:
                    kept.append(part)
        if kept:
            self._queues[index][place] = kept
        else:
            del self._queues[index][place], self._worth_at[place]
        return size

    def _new_places(self, count: int) -> int:
        """The first of so many numbers of places that were never given before."""
        first = self._last_place + 1
        self._last_place += count
        return first
