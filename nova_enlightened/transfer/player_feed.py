# SPDX-License-Identifier: Apache-2.0
"""Between what is wanted and what has come: hands fetches out, and contents to memory and disks.

Playback decides what is fetched. Here is what follows from how a fetch ended.
"""

import collections
import logging
import time
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened import exception
from nova_enlightened.appliance.chunks import ChunkIndex
from nova_enlightened.appliance.fetches import Fetch
from nova_enlightened.appliance.playback import Playback
from nova_enlightened.appliance.prefetch_order import Tail
from nova_enlightened.transfer.player_appliance import Appliance
from nova_enlightened.transfer.player_disks import Disks
from nova_enlightened.transfer.player_fetch import Fetched, Fetchers
from nova_enlightened.transfer.player_memory import Memory
from nova_enlightened.transfer.player_retries import Retries

LOG = logging.getLogger(__name__)

QUEUE: Final = 4 << 20
"""Bytes of pages queued for a QEMU that takes them: beyond that nothing more is prefetched."""
BUFFER: Final = 256 << 20
"""The same while QEMU is not connected."""


class Feed:
    """One VM's contents on their way; of the event loop's thread.

    :param memory: None where only the disks are played.
    :param prefetch: whether to fetch what nobody asked for. Without, QEMU does not get either
        what came along in the chunk of a page that was asked for, before it asks for that too:
        else nobody would see that it is touched.
    """

    def __init__(
        self,
        appliance: Appliance,
        memory: Memory | None,
        disks: Disks,
        fetchers: Fetchers,
        *,
        prefetch: bool,
        tail: Tail,
    ) -> None:
        self._appliance = appliance
        self._memory = memory
        self._disks = disks
        self._fetchers = fetchers
        self._done: collections.deque[Fetched] = collections.deque()
        self._retries = Retries()
        self._again: dict[tuple[int, int], Fetch] = {}
        self._held: dict[int, npt.NDArray[np.uint8]] = {}
        self.prefetch = prefetch
        self.playback = self._made(prefetch, tail)
        self.bytes_stored = 0
        """That came from the store."""
        self.bytes_cached = 0
        """That came from this host's cache."""
        self.fatal: str | None = None
        """Why the VM cannot be started, if something failed before it was."""

    def _made(self, prefetch: bool, tail: Tail) -> Playback:
        plan = self._appliance.plan if prefetch else None
        tail = tail if prefetch else Tail.NONE
        made = Playback(self._appliance.space, self._appliance.layers, plan, tail)
        for number, kept in enumerate(self._appliance.kept):
            made.have(number, kept)
        if self._memory is None:
            self._leave_out(made, np.ones(self._appliance.space.memory_pages, np.bool_))
        return made

    def took_up(self) -> None:
        """QEMU has told which pages it has: they are not fetched again."""
        if self._memory is not None:
            self._leave_out(self.playback, self._memory.sent)

    def fill(self) -> None:
        """From now on fetch everything."""
        self.prefetch = True
        self._held.clear()
        self._retries = Retries()
        self.playback = self._made(prefetch=True, tail=Tail.FAULTED)
        self.took_up()
        for waiting in (self._memory.waiting if self._memory else {}, self._disks.waiting):
            self.playback.faults(waiting)

    def _leave_out(self, made: Playback, pages: npt.NDArray[np.bool_]) -> None:
        """Take chunks as here whose places are all among these pages."""
        wanted = np.ones(self._appliance.space.places, np.bool_)
        wanted[: pages.size] = ~pages
        for number, layer in enumerate(self._appliance.layers):
            stored = layer.stored
            needed = np.zeros(layer.chunks, np.bool_)
            needed[layer.chunk_of[stored & wanted]] = True
            made.have(number, np.flatnonzero(~needed))

    # -- wanted -----------------------------------------------------------------------------

    def wanted(self, places: Sequence[int]) -> None:
        """A guest waits for these places, as far as they are not here."""
        for place in places:
            held = self._held.pop(place, None)
            if held is not None and self._memory is not None:
                self._memory.put(np.array([place], np.uint32), held, urgent=True)
            elif self.playback.fault(place):
                under_way = self.playback.under_way(place)
                if under_way is not None and not under_way.urgent:
                    self._fetchers.promote(under_way)
            elif place >= self._appliance.space.memory_pages:
                self._bring_again(place)

    def _bring_again(self, place: int) -> None:
        """It came once, and is no longer in memory."""
        for number, layer in enumerate(self._appliance.layers):
            chunk = int(layer.chunk_of[place])
            if chunk >= layer.chunks:
                continue
            if (number, chunk) not in self._again:
                fetch = Fetch(
                    number,
                    layer.packs[int(layer.pack[chunk])],
                    int(layer.offset[chunk]),
                    int(layer.length[chunk]),
                    (chunk,),
                    True,
                )
                self._again[number, chunk] = fetch
                self._fetchers.submit(fetch)
            return

    def pump(self, now: float, *, serving: bool) -> None:
        """Hand out what is to be fetched now. :param serving: QEMU takes pages."""
        limit = QUEUE if serving else BUFFER
        for fetch in self._retries.due(now):
            if (fetch.layer, fetch.chunks[0]) in self._again:
                self._fetchers.submit(fetch)
            else:
                self._failed(fetch, now)
        while True:
            urgent_only = self._memory is not None and self._memory.backlog >= limit
            wanted = self.playback.next(now, urgent_only=urgent_only)
            if wanted is None:
                return
            self._fetchers.submit(wanted)

    # -- come -------------------------------------------------------------------------------

    def done(self, fetched: Fetched) -> None:
        """A fetch has ended; called by the threads that fetch."""
        self._done.append(fetched)

    def work(self, now: float, *, executing: bool) -> None:
        """Work off what has come. :param executing: the guest does, and cannot be refused."""
        while self._done:
            fetched = self._done.popleft()
            if fetched.units is None:
                assert fetched.error is not None
                self._on_failure(fetched.fetch, fetched.error, now, executing)
                continue
            if fetched.cached:
                self.bytes_cached += fetched.fetch.length
            else:
                self.bytes_stored += fetched.fetch.length
            self._retries.arrived(fetched.fetch)
            self._on_arrival(fetched.fetch, fetched.units, now, fetched.cached)

    def _on_arrival(
        self, fetch: Fetch, units: npt.NDArray[np.uint8], now: float, cached: bool
    ) -> None:
        layer = self._appliance.layers[fetch.layer]
        first = fetch.chunks[0]
        again = self._again.get((fetch.layer, first))
        if again is fetch:
            del self._again[fetch.layer, first]
            waiting = np.fromiter(self._disks.waiting, np.uint32, len(self._disks.waiting))
            places = waiting[layer.chunk_of[waiting] == first]
        else:
            try:
                places = self.playback.arrived(fetch, now, cached=cached)
            except exception.ApplianceError:
                return  # asked for by a playback that another took the place of
        if not places.size:
            return
        rows = self._rows(layer, fetch, places)
        inside = places < self._appliance.space.memory_pages
        if self._memory is not None and inside.any():
            self._put(self._memory, places[inside], units[rows[inside]], urgent=fetch.urgent)
        if not inside.all():
            self._disks.arrived(places[~inside], units[rows[~inside]])

    def _put(
        self,
        memory: Memory,
        places: npt.NDArray[np.uint32],
        pages: npt.NDArray[np.uint8],
        *,
        urgent: bool,
    ) -> None:
        if not self.prefetch:
            asked = np.array([int(place) in memory.waiting for place in places], np.bool_)
            for place, page in zip(places[~asked].tolist(), pages[~asked], strict=True):
                self._held[place] = page[None]
            places, pages = places[asked], pages[asked]
        memory.put(places, pages, urgent=urgent)

    @staticmethod
    def _rows(
        layer: ChunkIndex, fetch: Fetch, places: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.int64]:
        """Which of a fetch's units are those of some places."""
        first, last = fetch.chunks[0], fetch.chunks[-1]
        counts = layer.units[first : last + 1].astype(np.int64)
        begins = np.cumsum(counts) - counts
        return begins[layer.chunk_of[places].astype(np.int64) - first] + layer.slot_of[places]

    def _on_failure(
        self, fetch: Fetch, error: exception.EnlightenedError, now: float, executing: bool
    ) -> None:
        why = self._words(fetch, error)
        LOG.error("%s", why)
        reread = (fetch.layer, fetch.chunks[0]) in self._again
        if not reread and fetch.layer < len(self._appliance.layers) - 1:
            self._failed(fetch, now)  # soon from the layer behind it
        elif executing:
            self._retries.failed(fetch, why, now)
        else:
            self.fatal = why

    def _failed(self, fetch: Fetch, now: float) -> None:
        try:
            self.playback.failed(fetch, now)
        except exception.ApplianceError:
            pass  # asked for by a playback that another took the place of

    def _words(self, fetch: Fetch, error: exception.EnlightenedError) -> str:
        """What failed, which chunk it is and what of the VM is in it."""
        layer = self._appliance.layers[fetch.layer]
        waiting = [*(self._memory.waiting if self._memory else {}), *self._disks.waiting]
        chunk = fetch.chunks[0]
        place = next((p for p in waiting if int(layer.chunk_of[p]) in fetch.chunks), None)
        if place is not None:
            chunk = int(layer.chunk_of[place])
        else:
            place = int(np.flatnonzero(layer.chunk_of == chunk)[0])
        where = self._appliance.describe(place)
        return f"chunk {chunk} of pack {fetch.pack}, needed for {where}: {error}"

    # -- how it stands ----------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """What could not be had and is tried again."""
        return self._retries.trouble

    @property
    def before_wanted(self) -> int:
        """How many places of the plan should be there before the guest executes."""
        plan = self._appliance.plan
        if plan is None or not self.prefetch:
            return 0
        progress = self.playback.progress()
        if not progress.bandwidth:
            return progress.planned
        return plan.before(progress.bandwidth, progress.rtt)

    @property
    def someone_waits(self) -> bool:
        """Whether a guest waits for anything."""
        return bool(self._disks.waiting or (self._memory is not None and self._memory.waiting))

    def timeout(self) -> float | None:
        """Seconds until something has to be tried again."""
        return self._retries.timeout(time.monotonic())
