# SPDX-License-Identifier: Apache-2.0
"""The chunks of plan and tail, one after the other."""

from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.appliance.holdings import IDLE, Holdings
from nova_enlightened.appliance.layers import NOWHERE, Layers
from nova_enlightened.appliance.prefetch import PrefetchPlan

LOOK: Final = 256
"""Chunks looked at together, and the most that one fetch has."""


class PrefetchOrder:
    """Hands out chunks nobody waits for: the plan's, then the tail's.

    :param tail: whether to hand out what is in no plan, front to back, too.
    """

    def __init__(
        self, layers: Layers, holdings: Holdings, plan: PrefetchPlan | None, tail: bool
    ) -> None:
        self._layers = layers
        self._holdings = holdings
        self._plan = plan
        self._chunks = self._ordered(tail)
        self._cursor = 0
        self._by_place: tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]] | None = None

    def _ordered(self, tail: bool) -> npt.NDArray[np.uint32]:
        """Each chunk once, where it is wanted first."""
        parts = [np.empty(0, np.uint32)]
        if self._plan is not None:
            homes = self._holdings.home[self._plan.order]
            parts.append(homes[homes != NOWHERE])
        if tail:
            parts.append(np.arange(self._layers.chunks, dtype=np.uint32))
        chunks = np.concatenate(parts)
        firsts = np.empty(self._layers.chunks, np.int64)
        # Of several assignments to an index the last stays: from the back, the first.
        firsts[chunks[::-1]] = np.arange(chunks.size - 1, -1, -1)
        once: npt.NDArray[np.bool_] = np.equal(firsts[chunks], np.arange(chunks.size))
        return np.extract(once, chunks)

    def next(self, limit: int) -> tuple[int, int] | None:
        """The chunks to fetch next, as (first, end): back to back, and `limit` bytes at most,
        or a single one. None at the end.
        """
        look = LOOK
        while self._cursor < self._chunks.size:
            chunks = self._chunks[self._cursor : self._cursor + look]
            wanted = (self._holdings.state[chunks] == IDLE) & (self._holdings.needed[chunks] > 0)
            at = int(wanted.argmax())
            if wanted[at]:
                count = self._run(chunks[at : at + LOOK], wanted[at : at + LOOK], limit)
                self._cursor += at + count
                return int(chunks[at]), int(chunks[at]) + count
            self._cursor += chunks.size
            look *= 2  # towards the end, long stretches are here already
        return None

    def _run(
        self, chunks: npt.NDArray[np.uint32], wanted: npt.NDArray[np.bool_], limit: int
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
