# SPDX-License-Identifier: Apache-2.0
"""The chunks of plan and tail, one after the other.

What no plan names is not equally likely to be wanted: a guest that strays from what was known of it
strays into some parts of its memory and disk, and into these again. So the tail goes on behind the
fault that was last in whatever stretch there were most faults in lately, and from front to back
where there were none.
"""

import enum
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.appliance.holdings import IDLE, Holdings
from nova_enlightened.appliance.layers import NOWHERE, Layers
from nova_enlightened.appliance.prefetch import PrefetchPlan

LOOK: Final = 256
"""Chunks looked at together, and the most that one fetch has."""
STRETCH: Final = 256
"""Chunks whose faults are counted together: 4 MiB of RAM, 16 of a disk."""
FADES: Final = 0.98
"""What a fault counts for after the next, wherever that is."""
COLD: Final = 0.1
"""What a stretch has left when its faults are forgotten."""


class Tail(enum.StrEnum):
    """What is handed out of that which is in no plan."""

    NONE = "none"
    LINEAR = "linear"
    """All, front to back."""
    FAULTED = "faulted"
    """All, first where there were faults."""


class PrefetchOrder:
    """Hands out chunks nobody waits for: the plan's, then the tail's."""

    def __init__(
        self, layers: Layers, holdings: Holdings, plan: PrefetchPlan | None, tail: Tail
    ) -> None:
        self._layers = layers
        self._holdings = holdings
        self._plan = plan
        self._tail = tail
        self._chunks, self._planned = self._ordered()
        self._cursor = 0
        stretches = max(1, -(-layers.chunks // STRETCH))
        self._heat = np.zeros(stretches)
        self._latest = np.zeros(stretches, np.int64)
        self._by_place: tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]] | None = None

    def _ordered(self) -> tuple[npt.NDArray[np.uint32], int]:
        """Each chunk once, where it is wanted first; and how many of them are the plan's."""
        parts = [np.empty(0, np.uint32)]
        if self._plan is not None:
            homes = self._holdings.home[self._plan.order]
            parts.append(homes[homes != NOWHERE])
        if self._tail is not Tail.NONE:
            parts.append(np.arange(self._layers.chunks, dtype=np.uint32))
        chunks = np.concatenate(parts)
        firsts = np.empty(self._layers.chunks, np.int64)
        # Of several assignments to an index the last stays: from the back, the first.
        firsts[chunks[::-1]] = np.arange(chunks.size - 1, -1, -1)
        once: npt.NDArray[np.bool_] = np.equal(firsts[chunks], np.arange(chunks.size))
        planned = 0 if self._plan is None else int(np.count_nonzero(once[: parts[1].size]))
        return np.extract(once, chunks), planned

    def faulted(self, place: int) -> None:
        """A guest waits for a place."""
        chunk = self._holdings.home[place]
        if self._tail is Tail.FAULTED and chunk != NOWHERE:
            stretch = int(chunk) // STRETCH
            self._heat *= FADES
            self._heat[stretch] += 1.0
            self._latest[stretch] = chunk

    def planned(self, limit: int) -> tuple[int, int] | None:
        """The chunks of the plan to fetch next, as (first, end): back to back, and `limit` bytes at
        most, or a single one. None at its end.
        """
        return self._in_order(self._planned, limit)

    def spare(self, limit: int) -> tuple[int, int] | None:
        """The same of the tail. To be asked for at the end of the plan."""
        return self._near_faults(limit) or self._in_order(self._chunks.size, limit)

    def _in_order(self, end: int, limit: int) -> tuple[int, int] | None:
        look = LOOK
        while self._cursor < end:
            chunks = self._chunks[self._cursor : min(self._cursor + look, end)]
            at, count = self._first(chunks, limit)
            self._cursor += at + count
            if count:
                return int(chunks[at]), int(chunks[at]) + count
            look *= 2  # towards the end, long stretches are here already
        return None

    def _near_faults(self, limit: int) -> tuple[int, int] | None:
        while self._heat[stretch := int(self._heat.argmax())] >= COLD:
            begin, end = stretch * STRETCH, min((stretch + 1) * STRETCH, self._layers.chunks)
            latest = int(self._latest[stretch])
            for part in (np.arange(latest, end), np.arange(begin, latest)):
                at, count = self._first(part, limit)
                if count:
                    return int(part[at]), int(part[at]) + count
            self._heat[stretch] = 0.0  # all of it is here, or under way
        return None

    def _first(self, chunks: npt.NDArray[np.integer], limit: int) -> tuple[int, int]:
        """Where the first of the chunks is that is wanted, and how many can be one fetch with it;
        (how many there are, 0) where none is.
        """
        wanted = (self._holdings.state[chunks] == IDLE) & (self._holdings.needed[chunks] > 0)
        at = int(wanted.argmax()) if wanted.size else 0
        if not wanted.size or not wanted[at]:
            return chunks.size, 0
        return at, self._run(chunks[at : at + LOOK], wanted[at : at + LOOK], limit)

    def _run(
        self, chunks: npt.NDArray[np.integer], wanted: npt.NDArray[np.bool_], limit: int
    ) -> int:
        """How many of the chunks, from the first, can be one fetch."""
        fits = wanted & (np.cumsum(self._layers.length[chunks]) <= limit)
        most = int(fits[1:].argmin()) + 1 if not fits[1:].all() else fits.size
        first = int(chunks[0])
        glued = self._layers.glued
        count = 1
        for chunk in chunks[1:most].tolist():
            if chunk != first + count or not glued[chunk - 1]:
                break
            count += 1
        return count

    def cluster_of(self, place: int) -> list[int]:
        """The chunks of the cluster a place is in, each once; none where it is in no plan."""
        if self._plan is None or not self._plan.order.size:
            return []
        if self._by_place is None:
            positions = np.argsort(self._plan.order)
            self._by_place = positions, self._plan.order[positions]
        positions, places = self._by_place
        at = int(np.searchsorted(places, np.uint32(place)))
        if at == places.size or places[at] != place:
            return []
        starts = self._plan.cluster_starts
        cluster = int(np.searchsorted(starts, positions[at], "right"))
        end = int(starts[cluster]) if cluster < starts.size else self._plan.order.size
        homes = self._holdings.home[self._plan.order[int(starts[cluster - 1]) : end]]
        return list(dict.fromkeys(homes[homes != NOWHERE].tolist()))
