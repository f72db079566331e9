# SPDX-License-Identifier: Apache-2.0
"""Threads that bring chunks: from this host's cache, or from the store, and verified either way."""

import collections
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard

from nova_enlightened import exception
from nova_enlightened.appliance import chunks, frames
from nova_enlightened.appliance.chunks import UNIT, ChunkIndex
from nova_enlightened.appliance.fetches import Fetch
from nova_enlightened.transfer.chunk_cache import ChunkCache
from nova_enlightened.transfer.stores import Store, object_name

LOG = logging.getLogger(__name__)

READINGS: Final = 3
"""How often a range is read that is not what its digests say."""
AGAIN_S: Final = 0.3
RESERVED: Final = 2
"""Threads that only bring what a guest waits for, so that it never waits for a free one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Fetched:
    """How a fetch ended.

    :ivar units: u8[n, 4096]: the units of all its chunks, in the order of ``fetch.chunks``;
        None where it failed.
    :ivar error: why it failed, or None.
    :ivar cached: it was in this host's cache.
    :ivar seconds: how long it took.
    """

    fetch: Fetch
    units: npt.NDArray[np.uint8] | None
    error: exception.EnlightenedError | None
    cached: bool
    seconds: float


class Throttle:
    """Holds reading to a rate. :param rate: bytes a second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0
        self._lock = threading.Lock()

    def delay(self, length: int, now: float) -> float:
        """Seconds to wait before reading so many bytes more."""
        with self._lock:
            begin = max(self._free_at, now)
            self._free_at = begin + length / self._rate
            return begin - now


class Fetchers:
    """The threads.

    :param layers: chunk indexes that fetches refer to by number.
    :param connections: fetches at once.
    :param done: called by any of the threads with each end of a fetch.
    :param rate: bytes a second read of the store, or None.
    """

    def __init__(
        self,
        store: Store,
        cache: ChunkCache,
        layers: Sequence[ChunkIndex],
        connections: int,
        done: Callable[[Fetched], None],
        rate: float | None = None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._layers = layers
        self._done = done
        self._throttle = Throttle(rate) if rate is not None else None
        self._urgent: collections.deque[Fetch] = collections.deque()
        self._background: collections.deque[Fetch] = collections.deque()
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._ready_reserved = threading.Condition(self._lock)
        # More threads at once than there are processors only wait for each other.
        self._slots = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._work, args=(number < RESERVED,), name=f"fetch-{number}", daemon=True
            )
            for number in range(connections + RESERVED)
        ]

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def submit(self, fetch: Fetch) -> None:
        """Have a range brought."""
        with self._lock:
            (self._urgent if fetch.urgent else self._background).append(fetch)
            if fetch.urgent:
                self._ready_reserved.notify()
            self._ready.notify()

    def promote(self, fetch: Fetch) -> bool:
        """A guest waits for what was asked for ahead: bring it before anything that nobody waits
        for. :returns: whether it was still in the queue.
        """
        with self._lock:
            for place, queued in enumerate(self._background):
                if queued is fetch:
                    del self._background[place]
                    self._urgent.append(fetch)
                    self._ready_reserved.notify()
                    return True
        return False

    def close(self) -> None:
        """End; what is under way is waited for as long as the store takes over a range."""
        self._closed.set()
        with self._lock:
            self._urgent.clear()
            self._background.clear()
            self._ready.notify_all()
            self._ready_reserved.notify_all()
        self._store.close()

    def join(self, seconds: float) -> None:
        """Wait for the threads' end, at most so long in all."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _take(self, reserved: bool) -> Fetch | None:
        with self._lock:
            while not self._closed.is_set():
                if self._urgent:
                    return self._urgent.popleft()
                if self._background and not reserved:
                    return self._background.popleft()
                (self._ready_reserved if reserved else self._ready).wait()
        return None

    def _work(self, reserved: bool) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=frames.MAX_WINDOW)
        while (fetch := self._take(reserved)) is not None:
            began = time.monotonic()
            cached = False
            units, error = None, None
            try:
                units = self._from_cache(fetch, decompressor)
                cached = units is not None
                if units is None:
                    units = self._from_store(fetch, decompressor)
            except exception.EnlightenedError as failure:
                error = failure
            except Exception as failure:  # a thread that dies would leave its guest waiting
                LOG.exception("Fetching %s", fetch)
                error = exception.PlayerError(f"fetching {fetch}: {failure!r}")
            self._done(Fetched(fetch, units, error, cached, time.monotonic() - began))

    def _from_cache(
        self, fetch: Fetch, decompressor: zstandard.ZstdDecompressor
    ) -> npt.NDArray[np.uint8] | None:
        data = self._cache.read(fetch.pack, fetch.offset, fetch.length)
        if data is None:
            return None
        try:
            return self._units(fetch, data, decompressor)
        except exception.ChunkError:
            self._cache.forget(fetch.pack, fetch.offset, fetch.length)
            return None

    def _from_store(
        self, fetch: Fetch, decompressor: zstandard.ZstdDecompressor
    ) -> npt.NDArray[np.uint8]:
        name = object_name(fetch.pack)
        for reading in range(1, READINGS + 1):
            if self._throttle is not None:
                self._closed.wait(self._throttle.delay(fetch.length, time.monotonic()))
            data = self._store.read(name, fetch.offset, fetch.length)
            try:
                units = self._units(fetch, data, decompressor)
            except exception.ChunkError as error:
                LOG.warning("Reading %d of it: %s", reading, error)
                if reading == READINGS or self._closed.wait(AGAIN_S):
                    raise
            else:
                self._cache.write(fetch.pack, fetch.offset, data)
                return units
        raise AssertionError("not reached")

    def _units(
        self, fetch: Fetch, data: bytes, decompressor: zstandard.ZstdDecompressor
    ) -> npt.NDArray[np.uint8]:
        """:raises ChunkError: one of the chunks is not what it should be."""
        if fetch.urgent:
            return self._unpacked(fetch, data, decompressor)
        with self._slots:
            return self._unpacked(fetch, data, decompressor)

    def _unpacked(
        self, fetch: Fetch, data: bytes, decompressor: zstandard.ZstdDecompressor
    ) -> npt.NDArray[np.uint8]:
        layer = self._layers[fetch.layer]
        view = memoryview(data)
        units = []
        for chunk in fetch.chunks:
            begin = int(layer.offset[chunk]) - fetch.offset
            stored = view[begin : begin + int(layer.length[chunk])]
            units.append(chunks.unpack(layer, chunk, stored, decompressor))
        joined = units[0] if len(units) == 1 else b"".join(units)
        return np.frombuffer(joined, np.uint8).reshape(-1, UNIT)
