# SPDX-License-Identifier: Apache-2.0
"""From page numbers to page requests: runs of adjacent pages, each within one RAM block."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.exception import PlanError
from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.plan.transfer_plan import Pages

MAX_RUN: Final = 16
"""Pages in one request (64 KiB): a demand fault waits behind at most what is being served."""

MAX_HOST_PAGE: Final = 1 << 18
"""Pages in a host page (1 GiB), the largest x86 knows."""


class RequestShape:
    """What a source will take as a request in each RAM block.

    The source sends whole *host* pages, beginning where the request begins: a request into
    the middle of a huge page would leave the destination with a part of one, which it
    refuses, and the guest would be lost (QEMU `ram_save_host_page`, `ram_load_postcopy`).
    So a request is whole host pages, always.

    :param host_pages: block name -> pages in one of its host pages (2 MiB: 512); blocks that
        are not named have 1.
    :raises PlanError: unknown block, or not a power of two within reason.
    """

    def __init__(self, space: PageSpace, host_pages: Mapping[str, int] | None = None) -> None:
        ranges = [space.block_range(name) for name in space.names]
        self._starts = np.array([block.start for block in ranges], np.int64)
        self._stops = np.array([block.stop for block in ranges], np.int64)
        sizes = dict.fromkeys(space.names, 1)
        for name, size in (host_pages or {}).items():
            if name not in sizes:
                raise PlanError(f"no RAM block is called {name!r}")
            if not 1 <= size <= MAX_HOST_PAGE or size & (size - 1):
                raise PlanError(f"RAM block {name!r} has host pages of {size} pages")
            sizes[name] = size
        self._sizes = np.array([sizes[name] for name in space.names], np.int64)
        self.plain = bool((self._sizes == 1).all())

    def block_index(self, pages: Pages) -> npt.NDArray[np.int64]:
        """Which block (index in `PageSpace.names`) each page is in."""
        return np.searchsorted(self._starts, pages, side="right").astype(np.int64) - 1

    def host_page(self, page: int) -> tuple[int, int]:
        """(first page, count) of the host page around `page`, cut at the end of its block."""
        block = int(np.searchsorted(self._starts, page, side="right")) - 1
        start, size = int(self._starts[block]), int(self._sizes[block])
        first = start + (page - start) // size * size
        return first, min(size, int(self._stops[block]) - first)

    def runs(self, pages: Pages) -> list[tuple[int, int]]:
        """Requests for `pages`, in their order: adjacent ascending pages become one.

        Each run is in one block and has at most `MAX_RUN` pages. For blocks of plain pages.
        """
        if not pages.size:
            return []
        index = np.arange(pages.size)
        breaks = np.ones(pages.size, bool)
        breaks[1:] = np.diff(pages) != 1
        if self._starts.size > 1:
            breaks[1:] |= np.diff(self.block_index(pages)) != 0
        start_of = np.maximum.accumulate(np.where(breaks, index, 0))
        firsts = np.flatnonzero((index - start_of) % MAX_RUN == 0)
        counts = np.diff(firsts, append=pages.size)
        return list(zip(pages[firsts].tolist(), counts.tolist(), strict=True))
