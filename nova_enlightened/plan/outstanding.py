# SPDX-License-Identifier: Apache-2.0
"""Pages that were requested and have not been seen, in the order of the requests.

The source drops a request for a page it has already sent without a word, so a page can be
asked for and never come. Nothing may wait for it for ever: the source's queue is first in,
first out, and its background scan runs only while that queue is empty. So a page is *presumed
sent* once `SLACK` pages have been seen that were requested after it or were not requested at
all. Being wrong about it costs a slightly larger window, nothing more.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nova_enlightened.plan.transfer_plan import Pages

SLACK: Final = 4096
"""Pages (16 MiB): more than can pass before a busy source acts on a request."""

SEEN: Final = np.uint8(1)
"""Crossed since it was last discarded."""
ASKED: Final = np.uint8(2)
"""Was requested; it may or may not still be outstanding."""
OUT: Final = np.uint8(4)
"""Counted as outstanding."""
NEAR: Final = np.uint8(8)
"""Outstanding because it is a neighbour of a fault."""

DEMAND: Final = np.uint8(16)
"""The guest waits for it."""

STATES: Final = 32
_BITS: Final = np.array([SEEN, ASKED, OUT, OUT | NEAR, OUT | DEMAND])[:, np.newaxis]
_STATES_WITH: Final = (np.arange(STATES, dtype=np.uint8) & _BITS == _BITS).astype(np.int64)
"""A row for each field of `Seen`: 1 for the states that count in it."""


class Seen(NamedTuple):
    """Of a batch of pages that crossed: how many were in which state until then."""

    repeated: int
    asked: int
    outstanding: int
    near: int
    demanded: int


class Outstanding:
    """The queue of requested pages.

    :param state: a byte for every page, of the bits above; shared with the injector, which
        keeps SEEN. This class keeps the others.
    """

    def __init__(self, state: npt.NDArray[np.uint8]) -> None:
        self._state = state
        self._pages = np.empty(1024, np.int64)
        self._passed = np.empty(1024, np.int64)
        self._length = 0
        self._unrequested = 0
        self._since_retired = 0
        self.count = 0
        self.near = 0
        self.demanded = 0
        self.presumed_sent = 0

    def requested(self, pages: Pages, *, near: bool) -> None:
        """These distinct pages, neither seen nor outstanding, are requested now."""
        length = self._length + pages.size
        if length > self._pages.size:
            self._drop_arrived()
            length = self._length + pages.size
            self._grow(length)
        self._pages[self._length : length] = pages
        self._passed[self._length : length] = -self._unrequested
        self._length = length
        self._state[pages] = ASKED | OUT | NEAR if near else ASKED | OUT
        self.count += pages.size
        self.near += pages.size if near else 0

    def demand(self, pages: Pages) -> None:
        """The guest waits for these distinct pages. The destination asks for them anew."""
        state = self._state[pages]
        self.requested(pages[state & (SEEN | OUT) == 0], near=False)
        new = pages[self._state[pages] & (SEEN | DEMAND) == 0]
        self._state[new] |= DEMAND
        self.demanded += new.size

    def seen(self, before: npt.NDArray[np.uint8]) -> Seen:
        """Distinct pages crossed; `before` are their states until then."""
        seen = Seen(*(_STATES_WITH @ np.bincount(before, minlength=STATES)).tolist())
        self._unrequested += before.size - seen.asked
        self._since_retired += before.size
        self.count -= seen.outstanding
        self.near -= seen.near
        self.demanded -= seen.demanded
        return seen

    def retire(self) -> None:
        """Presume sent what `SLACK` other pages have overtaken. Cheap to call often."""
        if self._since_retired < SLACK // 4:
            return
        self._drop_arrived()
        late = self._passed[: self._length] + self._unrequested > SLACK
        if not late.any():
            return
        pages = self._pages[: self._length][late]
        state = self._state[pages]
        self.near -= int(np.count_nonzero(state & NEAR))
        self.demanded -= int(np.count_nonzero(state & DEMAND))
        self.count -= pages.size
        self.presumed_sent += pages.size
        # Still waited for, should it come after all.
        self._state[pages] = state & (ASKED | DEMAND)
        self._keep(~late)

    def forget_arrived(self) -> None:
        """To be called before pages lose SEEN, so that no page is queued twice."""
        self._drop_arrived()

    def _drop_arrived(self) -> None:
        """Shorten the queue to what is outstanding, noting what overtook each entry."""
        self._since_retired = 0
        alive = self._state[self._pages[: self._length]] & OUT != 0
        overtaken = np.cumsum(~alive[::-1])[::-1]
        self._passed[: self._length] += overtaken
        self._keep(alive)

    def _keep(self, chosen: npt.NDArray[np.bool_]) -> None:
        pages = self._pages[: self._length][chosen]
        self._passed[: pages.size] = self._passed[: self._length][chosen]
        self._pages[: pages.size] = pages
        self._length = pages.size

    def _grow(self, length: int) -> None:
        if length > self._pages.size:
            more = max(length, 2 * self._pages.size) - self._pages.size
            self._pages = np.append(self._pages, np.empty(more, np.int64))
            self._passed = np.append(self._passed, np.empty(more, np.int64))
