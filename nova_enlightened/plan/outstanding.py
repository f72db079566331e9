# SPDX-License-Identifier: Apache-2.0
"""Pages that were requested and have not been seen, in the order of the requests.

The source drops a request for a page it has already sent without a word, so a page can be
asked for and never come. Nothing may wait for it for ever: the source's queue is first in,
first out, and its background scan runs only while that queue is empty. So a page is *presumed
sent* once `SLACK` pages have been seen that were requested after it or were not requested at
all. Being wrong about it costs a slightly larger window, nothing more.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.plan.transfer_plan import Pages

SLACK: Final = 256
"""Pages (1 MiB): more than were under way before the source could act on a request."""

SEEN: Final = np.uint8(1)
"""Crossed since it was last discarded."""
ASKED: Final = np.uint8(2)
"""Was requested; it may or may not still be outstanding."""
OUT: Final = np.uint8(4)
"""Counted as outstanding."""
NEAR: Final = np.uint8(8)
"""Outstanding because it is a neighbour of a fault."""


class Outstanding:
    """The queue of requested pages.

    :param state: a byte for every page, of the bits above; shared with the injector, which
        keeps SEEN. This class keeps the other three.
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
        self.presumed_sent = 0

    def requested(self, pages: Pages, *, near: bool) -> None:
        """These distinct pages, neither seen nor asked for before, are requested now."""
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

    def seen(self, before: npt.NDArray[np.uint8]) -> tuple[int, int]:
        """Distinct pages crossed; `before` are their states until then.

        :returns: how many of them had been requested, and how many had not.
        """
        requested = int(np.count_nonzero(before & ASKED))
        unrequested = before.size - requested
        self._unrequested += unrequested
        self._since_retired += before.size
        self.count -= int(np.count_nonzero(before & OUT))
        self.near -= int(np.count_nonzero(before & NEAR))
        return requested, unrequested

    def retire(self) -> None:
        """Presume sent what `SLACK` other pages have overtaken. Cheap to call often."""
        if self._since_retired < SLACK // 4:
            return
        self._drop_arrived()
        late = self._passed[: self._length] + self._unrequested > SLACK
        if not late.any():
            return
        pages = self._pages[: self._length][late]
        self.near -= int(np.count_nonzero(self._state[pages] & NEAR))
        self.count -= pages.size
        self.presumed_sent += pages.size
        self._state[pages] = ASKED
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
