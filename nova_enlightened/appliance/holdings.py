# SPDX-License-Identifier: Apache-2.0
"""What of an appliance is here, place by place, and what is under way, chunk by chunk."""

from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.appliance.layers import NOWHERE, Chunks, Layers, Places

IDLE: Final = 0
"""State of a chunk: neither here nor under way."""
OUT: Final = 1
"""Under way."""
HERE: Final = 2


class Holdings:
    """The places and chunks of stacked layers, at first all missing but the zero ones.

    :param memory_pages: how many of the places, the first, are RAM.
    :ivar present: bool[places].
    :ivar missing: how many places are not present; `missing_memory`: how many pages of RAM.
    :ivar states: for each chunk a byte, one of the states above.
    :ivar state: the same bytes as an array.
    :ivar home: u32[places]: the chunk to fetch a place in; moves when that chunk fails.
    :ivar needed: i64[chunks]: how many places have their home in the chunk and are missing.
    """

    def __init__(self, layers: Layers, memory_pages: int) -> None:
        self._layers = layers
        self._memory_pages = memory_pages
        self.home = layers.home
        self.present: npt.NDArray[np.bool_] = self.home == NOWHERE
        self.missing = int(np.count_nonzero(~self.present))
        self.missing_memory = int(np.count_nonzero(~self.present[:memory_pages]))
        self.states = bytearray(layers.chunks)
        self.state = np.frombuffer(self.states, np.uint8)
        self.needed = np.bincount(self.home[~self.present], minlength=layers.chunks)

    def wanted(self, chunk: int) -> bool:
        """Whether fetching a chunk would bring a place that is neither here nor under way."""
        return self.states[chunk] == IDLE and bool(self.needed[chunk] > 0)

    def under_way(self, place: int) -> int | None:
        """A chunk with the place that is under way."""
        for chunk in self._layers.chunks_with(place):
            if self.states[chunk] == OUT:
                return chunk
        return None

    def arrived(self, first: int, end: int) -> Places:
        """The chunks `first` to `end` - 1, of one layer, are here.

        :returns: the places that were not.
        """
        self.state[first:end] = HERE
        return self._note(self._layers.members(first, end))

    def have(self, chunks: Chunks) -> Places:
        """Some chunks of one layer are here, unless they are under way.

        :returns: the places that were not.
        """
        chunks = chunks[self.state[chunks] == IDLE]
        self.state[chunks] = HERE
        return self._note(self._layers.members_of(chunks))

    def _note(self, places: Places) -> Places:
        # Within a layer a place is in one chunk: none comes twice.
        new = places[~self.present[places]]
        self.present[new] = True
        np.subtract.at(self.needed, self.home[new], 1)
        self.missing -= new.size
        self.missing_memory -= int(np.count_nonzero(new < self._memory_pages))
        return new

    def lost(self, chunk: int) -> Places:
        """A chunk that was here is not. :returns: the places that therefore are not."""
        self.states[chunk] = IDLE
        places = [
            place
            for place in self._layers.members(chunk, chunk + 1).tolist()
            if all(self.states[other] != HERE for other in self._layers.chunks_with(place))
        ]
        gone = np.array(places, np.uint32)
        self.present[gone] = False
        np.add.at(self.needed, self.home[gone], 1)
        self.missing += gone.size
        self.missing_memory += int(np.count_nonzero(gone < self._memory_pages))
        return gone

    def move_home(self, chunk: int) -> list[int]:
        """Have the missing places of a chunk fetched from later layers, where they are there.

        :returns: the chunks that are their homes now.
        """
        if self._layers.layer_of(chunk) == len(self._layers.indexes) - 1:
            return []
        homes: dict[int, None] = {}
        for place in self._layers.members(chunk, chunk + 1).tolist():
            if self.home[place] == chunk and not self.present[place]:
                home = next(c for c in self._layers.chunks_with(place) if c > chunk)
                self.home[place] = home
                self.needed[chunk] -= 1
                self.needed[home] += 1
                homes[home] = None
        return list(homes)
