# SPDX-License-Identifier: Apache-2.0
"""From page numbers to page requests: runs of adjacent pages, each within one RAM block."""

import bisect
from collections.abc import Mapping
from typing import Final

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
        self._starts = [block.start for block in ranges]
        self._stops = [block.stop for block in ranges]
        sizes = dict.fromkeys(space.names, 1)
        for name, size in (host_pages or {}).items():
            if name not in sizes:
                raise PlanError(f"no RAM block is called {name!r}")
            if not 1 <= size <= MAX_HOST_PAGE or size & (size - 1):
                raise PlanError(f"RAM block {name!r} has host pages of {size} pages")
            sizes[name] = size
        self._sizes = [sizes[name] for name in space.names]
        self.plain = all(size == 1 for size in self._sizes)

    def host_page(self, page: int) -> tuple[int, int]:
        """(first page, count) of the host page around `page`, cut at the end of its block."""
        block = bisect.bisect_right(self._starts, page) - 1
        start, size = self._starts[block], self._sizes[block]
        first = start + (page - start) // size * size
        return first, min(size, self._stops[block] - first)

    def runs(self, pages: Pages) -> list[tuple[int, int]]:
        """Requests for `pages`, in their order: adjacent ascending pages become one.

        Each run is in one block and has at most `MAX_RUN` pages. For blocks of plain pages.
        """
        # A loop: windows are a hundred pages or so, too few for numpy to be worth its calls.
        runs: list[tuple[int, int]] = []
        first = following = end = -1
        for page in pages.tolist():
            if page != following or page == end:
                if first >= 0:
                    runs.append((first, following - first))
                first = page
                block = bisect.bisect_right(self._stops, page)
                end = min(page + MAX_RUN, self._stops[block])
            following = page + 1
        if first >= 0:
            runs.append((first, following - first))
        return runs
