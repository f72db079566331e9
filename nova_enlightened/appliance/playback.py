# SPDX-License-Identifier: Apache-2.0
"""Playback decides what to fetch next while an appliance runs.

Most wanted is what a guest waits for; then the rest of its cluster; then the plan, in its order;
then everything else, first where the guest strays. Prefetching goes on while a guest waits: each
fetch takes a round trip, and they overlap. What is under way is never asked for again, and what
fails comes again in its turn.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.appliance.chunks import ChunkIndex
from nova_enlightened.appliance.fetch_window import FetchWindow, Sent
from nova_enlightened.appliance.fetches import Fetch as Fetch
from nova_enlightened.appliance.fetches import Progress as Progress
from nova_enlightened.appliance.holdings import HERE, IDLE, OUT, Holdings
from nova_enlightened.appliance.layers import Chunks, Layers, Places
from nova_enlightened.appliance.places import ApplianceSpace
from nova_enlightened.appliance.prefetch import PrefetchPlan
from nova_enlightened.appliance.prefetch_order import PrefetchOrder, Tail
from nova_enlightened.exception import ApplianceError

DEMAND_FETCH: Final = 64 * 1024
"""Bytes of demanded chunks that are fetched together."""
LAYER_FAILURES: Final = 2
"""Failures of a chunk after which its places are fetched from the next layer that has them."""
READY_STEP: Final = 4096


class Playback:
    """One appliance being played. Not thread-safe; times are seconds on the caller's clock.

    :param layers: the plan's layer first, where there is one; the base layer last.
    :param plan: None: only demands, and the tail.
    :param tail: what to fetch of that which is in no plan.
    :raises ApplianceError: layers, plan and space do not fit each other.
    """

    def __init__(
        self,
        space: ApplianceSpace,
        layers: Sequence[ChunkIndex],
        plan: PrefetchPlan | None = None,
        tail: Tail = Tail.FAULTED,
    ) -> None:
        self._layers = Layers(layers)
        if self._layers.places != space.places or (plan and plan.space_places != space.places):
            raise ApplianceError("layers, plan and space are not of one appliance")
        self._plan = plan
        self._space = space
        self._holdings = Holdings(self._layers, space.memory_pages)
        self._order = PrefetchOrder(self._layers, self._holdings, plan, tail)
        # Store and cache are not alike: what one teaches is not true of the other. The one that
        # answered last is the one that is expected to answer next.
        self._store, self._cache = FetchWindow(), FetchWindow()
        self._window = self._store
        # Chunks, in the order they were demanded; and the places waited for in each.
        self._demanded: dict[int, None] = {}
        self._waiting: dict[int, list[int]] = {}
        self._near: deque[int] = deque()
        self._again: deque[int] = deque()
        self._out: dict[int, tuple[Fetch, FetchWindow, Sent]] = {}
        self._failures: dict[int, int] = {}
        self._ready = 0
        self._fetched_bytes = self._fetches = self._failed = self._faults = 0

    # -- what there is ------------------------------------------------------------------------

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """bool[places]: what is here, or zero. Not to be written to."""
        return self._holdings.present

    @property
    def complete(self) -> bool:
        """Every place is here."""
        return not self._holdings.missing

    @property
    def memory_complete(self) -> bool:
        """Every page of RAM is here."""
        return not self._holdings.missing_memory

    @property
    def outstanding(self) -> int:
        """Bytes asked for and neither arrived nor failed."""
        return self._store.outstanding + self._cache.outstanding

    @property
    def ready(self) -> int:
        """How many places at the front of the plan are here, without a gap."""
        if self._plan is None:
            return 0
        order = self._plan.order
        while self._ready < order.size:
            here = self.present[order[self._ready : self._ready + READY_STEP]]
            if not here.all():
                self._ready += int(here.argmin())
                break
            self._ready += here.size
        return self._ready

    @property
    def before_done(self) -> bool:
        """Whether the guest may start: what the plan says should be there before is, for the
        bandwidth and round trip that were measured.
        """
        return self.buffer_left_s() == 0.0

    def buffer_left_s(self) -> float | None:
        """Seconds until `before_done`, as it looks now; None while nothing was measured."""
        plan, bandwidth, rtt = self._plan, self._window.bandwidth, self._window.rtt
        if plan is None or self.ready == plan.order.size:
            return 0.0
        if bandwidth is None or rtt is None:
            return None
        left = plan.before(bandwidth, rtt) - self.ready
        return max(0.0, left * plan.stored_bytes / plan.order.size / bandwidth)

    def progress(self) -> Progress:
        """Numbers for people."""
        holdings, window = self._holdings, self._window
        return Progress(
            places=self._space.places,
            present=self._space.places - holdings.missing,
            memory=self._space.memory_pages,
            memory_present=self._space.memory_pages - holdings.missing_memory,
            planned=0 if self._plan is None else self._plan.order.size,
            ready=self.ready,
            fetched_bytes=self._fetched_bytes,
            stored_bytes=self._layers.indexes[-1].stored_bytes,
            fetches=self._fetches,
            failed=self._failed,
            faults=self._faults,
            bandwidth=window.bandwidth or 0.0,
            rtt=window.rtt or 0.0,
            window=window.size,
            outstanding=self.outstanding,
        )

    # -- what is wanted -----------------------------------------------------------------------

    def fault(self, place: int) -> bool:
        """A guest waits for a place. :returns: whether it has to: the place is not here.

        :raises ApplianceError: there is no such place.
        """
        if not 0 <= place < self._space.places:
            raise ApplianceError(f"place {place} is outside an appliance of {self._space.places}")
        if self.present[place]:
            return False
        self._faults += 1
        self._demand(place)
        self._order.faulted(place)
        wanted = self._holdings.wanted
        self._near += [chunk for chunk in self._order.cluster_of(place) if wanted(chunk)]
        return True

    def faults(self, places: Iterable[int]) -> int:
        """A guest waits for several places. :returns: how many of them are not here."""
        return sum(self.fault(place) for place in places)

    def under_way(self, place: int) -> Fetch | None:
        """The fetch that will bring a place, if it is asked for already."""
        chunk = self._holdings.under_way(place)
        if chunk is None:
            return None
        while chunk not in self._out:  # they are kept by their first chunk
            chunk -= 1
        return self._out[chunk][0]

    def _demand(self, place: int) -> None:
        chunk = self._holdings.under_way(place)
        if chunk is None:
            chunk = int(self._holdings.home[place])
            self._demanded[chunk] = None
        waiting = self._waiting.setdefault(chunk, [])
        if place not in waiting:
            waiting.append(place)

    # -- what to ask for ----------------------------------------------------------------------

    def next(self, now: float, *, urgent_only: bool = False) -> Fetch | None:
        """What to ask the store for now; it counts as under way until `arrived` or `failed`.

        :param urgent_only: only what a guest waits for; for connections kept free for that.
        :returns: None when there is nothing (left) to ask for, or the window is full. What a
            guest waits for does not mind the window.
        """
        if self._demanded:
            chunks = self._from_demands()
            if chunks is not None:
                return self._ask(*chunks, now, urgent=True)
        if urgent_only or self._window.room <= 0:
            return None
        chunks = self._from_queue(self._near) or self._from_queue(self._again)
        chunks = chunks or self._order.planned(self._window.fetch_limit)
        if chunks is not None:
            return self._ask(*chunks, now, urgent=False)
        if self._window.spare <= 0:
            return None
        chunks = self._order.spare(self._window.fetch_limit)
        return None if chunks is None else self._ask(*chunks, now, urgent=False, spare=True)

    def _from_demands(self) -> tuple[int, int] | None:
        while self._demanded:
            first = next(iter(self._demanded))
            del self._demanded[first]
            if not self._holdings.wanted(first):
                continue
            end = first + 1
            length = int(self._layers.length[first])
            while end in self._demanded and self._joins(end):
                length += int(self._layers.length[end])
                if length > DEMAND_FETCH:
                    break
                del self._demanded[end]
                end += 1
            return first, end
        return None

    def _from_queue(self, queue: deque[int]) -> tuple[int, int] | None:
        while queue:
            first = queue.popleft()
            if not self._holdings.wanted(first):
                continue
            end = first + 1
            length = int(self._layers.length[first])
            while queue and queue[0] == end and self._joins(end):
                length += int(self._layers.length[end])
                if length > self._window.fetch_limit:
                    break
                queue.popleft()
                end += 1
            return first, end
        return None

    def _joins(self, chunk: int) -> bool:
        """Whether a chunk that is wanted lies right behind the one before it."""
        return bool(self._layers.glued[chunk - 1]) and self._holdings.wanted(chunk)

    def _ask(self, first: int, end: int, now: float, *, urgent: bool, spare: bool = False) -> Fetch:
        number = self._layers.layer_of(first)
        index = self._layers.indexes[number]
        chunk, last = first - self._layers.first[number], end - 1 - self._layers.first[number]
        offset = int(index.offset[chunk])
        fetch = Fetch(
            number,
            index.packs[int(index.pack[chunk])],
            offset,
            int(index.offset[last]) + int(index.length[last]) - offset,
            tuple(range(chunk, last + 1)),
            urgent,
        )
        self._holdings.state[first:end] = OUT
        sent = self._window.sent(fetch.length, now, urgent=urgent, spare=spare)
        self._out[first] = fetch, self._window, sent
        return fetch

    # -- what came of it ------------------------------------------------------------------------

    def _ended(self, fetch: Fetch) -> tuple[int, int, FetchWindow, Sent]:
        first = self._layers.first[fetch.layer] + fetch.chunks[0]
        asked = self._out.get(first)
        if asked is None or asked[0] != fetch:
            raise ApplianceError(f"bytes {fetch.offset}+{fetch.length} were not asked for")
        del self._out[first]
        return first, first + len(fetch.chunks), *asked[1:]

    def arrived(self, fetch: Fetch, now: float, *, cached: bool = False) -> Places:
        """The bytes of a fetch are here, and are what they should be.

        :param cached: they came from a cache on this host, not from the store.
        :returns: the places that were not here before.
        :raises ApplianceError: it is not under way.
        """
        first, end, window, sent = self._ended(fetch)
        self._window = self._cache if cached else self._store
        if window is self._window:
            window.arrived(fetch.length, sent, now)
        else:
            window.untold(fetch.length)
        self._fetched_bytes += fetch.length
        self._fetches += 1
        if self._waiting:
            for chunk in range(first, end):
                self._waiting.pop(chunk, None)
        return self._holdings.arrived(first, end)

    def failed(self, fetch: Fetch, now: float) -> None:
        """A fetch came to nothing, or its bytes are not what they should be. It comes again;
        after `LAYER_FAILURES` from another layer, where there is one.

        :raises ApplianceError: it is not under way.
        """
        del now  # as `arrived` has it
        first, end, window, _ = self._ended(fetch)
        window.untold(fetch.length)
        self._failed += 1
        self._holdings.state[first:end] = IDLE
        for chunk in range(first, end):
            self._failures[chunk] = self._failures.get(chunk, 0) + 1
            if self._failures[chunk] >= LAYER_FAILURES:
                self._again += self._holdings.move_home(chunk)
            self._again.append(chunk)
            for place in self._waiting.pop(chunk, ()):
                if not self.present[place]:
                    self._demand(place)

    # -- the cache ------------------------------------------------------------------------------

    def have(self, layer: int, chunks: npt.NDArray[np.integer]) -> Places:
        """Chunks of a layer are here already, from a cache.

        :returns: the places that were not here before.
        :raises ApplianceError: there is no such chunk.
        """
        numbers: Chunks = np.asarray(chunks, np.int64)
        if numbers.size and not (
            int(numbers.min()) >= 0 and int(numbers.max()) < self._layers.indexes[layer].chunks
        ):
            raise ApplianceError(f"layer {layer} does not have all of these chunks")
        return self._holdings.have(np.unique(numbers) + self._layers.first[layer])

    def lost(self, layer: int, chunk: int) -> Places:
        """A chunk that was here is not, or not as it should be: the cache dropped it.

        :returns: the places that are no longer here.
        :raises ApplianceError: it was not here.
        """
        number = self._layers.first[layer] + chunk
        if not 0 <= number < self._layers.chunks or self._holdings.states[number] != HERE:
            raise ApplianceError(f"chunk {chunk} of layer {layer} is not here")
        gone = self._holdings.lost(number)
        self._again += np.unique(self._holdings.home[gone]).tolist()
        self._ready = 0
        return gone
