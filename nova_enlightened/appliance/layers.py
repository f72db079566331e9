# SPDX-License-Identifier: Apache-2.0
"""Several chunk indexes of one appliance seen as one, chunk by chunk.

The chunks of all layers are numbered through, first layer first. A place is fetched from the
first layer that stores it: its *home*. Other chunks may hold it too.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.appliance.chunks import ChunkIndex
from nova_enlightened.exception import ChunkIndexError

Chunks = npt.NDArray[np.int64]
Places = npt.NDArray[np.uint32]

NOWHERE: Final = 0xFFFFFFFF
"""In `Layers.home`: the place is zero."""


class Layers:
    """Chunk indexes stacked.

    :param indexes: at least one, all of the same number of places; the last knows every place.
    :ivar places: of the appliance.
    :ivar chunks: of all layers.
    :ivar first: number of the first chunk of each layer, and behind them `chunks`.
    :ivar length: i64[chunks]: stored bytes.
    :ivar glued: for each chunk a byte: 1 where the next number follows it in the same pack.
    :ivar home: u32[places]: the chunk a place is to be fetched in, or `NOWHERE`.
    :raises ChunkIndexError: they do not fit each other, or the last leaves a place out.
    """

    def __init__(self, indexes: Sequence[ChunkIndex]) -> None:
        if not indexes or len({index.places for index in indexes}) != 1:
            raise ChunkIndexError("layers of different appliances, or none")
        self.indexes = tuple(indexes)
        self.places = indexes[0].places
        self.first = [0, *np.cumsum([index.chunks for index in indexes]).tolist()]
        self.chunks: int = self.first[-1]
        self.length = np.concatenate([index.length for index in indexes]).astype(np.int64)
        self.glued = b"".join(_glued(index) for index in indexes)
        known = indexes[-1].stored | indexes[-1].zero
        if not bool(known.all()):
            raise ChunkIndexError(f"the last layer leaves out {np.count_nonzero(~known)} places")
        self.home = np.full(self.places, NOWHERE, np.uint32)
        zero = np.zeros(self.places, np.bool_)
        for number in reversed(range(len(indexes))):
            index = indexes[number]
            stored = index.stored
            self.home[stored] = index.chunk_of[stored] + np.uint32(self.first[number])
            zero |= index.zero
        self.home[zero] = NOWHERE
        self._starts = np.empty(self.chunks + 1, np.int64)
        self._members = self._collect()

    def _collect(self) -> Places:
        """The places in each chunk, chunk after chunk."""
        members = []
        at = 0
        for number, index in enumerate(self.indexes):
            places = np.flatnonzero(index.stored).astype(np.uint32)
            chunk = index.chunk_of[places]
            if bool((chunk[1:] < chunk[:-1]).any()):
                by_chunk = np.argsort(chunk, kind="stable")
                places = places[by_chunk]
            counts = np.bincount(chunk, minlength=index.chunks)
            first, end = self.first[number], self.first[number + 1]
            self._starts[first] = at
            self._starts[first + 1 : end + 1] = at + np.cumsum(counts)
            at += places.size
            members.append(places)
        if not self.chunks:
            self._starts[0] = 0
        return np.concatenate(members)

    def members(self, first: int, end: int) -> Places:
        """Places in the chunks `first` to `end` - 1, perhaps more than once."""
        return self._members[self._starts[first] : self._starts[end]]

    def members_of(self, chunks: Chunks) -> Places:
        """Places in any chunks, perhaps more than once."""
        starts, counts = self._starts[chunks], self._starts[chunks + 1] - self._starts[chunks]
        total = int(counts.sum())
        # Each chunk's run of positions, from one long count.
        shift = np.repeat(starts - np.cumsum(counts) + counts, counts)
        positions: Chunks = np.arange(total) + shift
        return self._members[positions]

    def layer_of(self, chunk: int) -> int:
        """The layer that a chunk is of."""
        return next(n for n, end in enumerate(self.first[1:]) if chunk < end)

    def chunks_with(self, place: int) -> list[int]:
        """All chunks that hold a place, in the order of layers."""
        found = []
        for number, index in enumerate(self.indexes):
            chunk = int(index.chunk_of[place])
            if chunk < index.chunks:
                found.append(chunk + self.first[number])
        return found


def _glued(index: ChunkIndex) -> bytes:
    follows = np.zeros(index.chunks, np.uint8)
    ends = index.offset + index.length
    follows[:-1] = (index.pack[1:] == index.pack[:-1]) & (index.offset[1:] == ends[:-1])
    return follows.tobytes()
