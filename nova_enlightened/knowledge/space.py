# SPDX-License-Identifier: Apache-2.0
"""The page space: one number for every page of guest RAM, over all of its RAM blocks.

The migration stream names RAM as (block, byte offset). Plans, traces and guest knowledge
need one flat index. A *page number* is the index of a 4096-byte page in the concatenation
of the blocks, in the order in which the stream's RAM setup section lists them.
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import Final

from nova_enlightened.exception import PlanError

TARGET_PAGE: Final = 4096
"""Bytes in a page of the page space: QEMU's TARGET_PAGE_SIZE on x86 and aarch64."""

MAX_PAGES: Final = 1 << 36
"""256 TiB: far past any guest; a larger sum is a damaged stream, not a large guest."""


class PageSpace:
    """RAM blocks laid end to end.

    :param blocks: (name, size in bytes), in the order the migration stream lists them.
    :raises PlanError: a size is not a positive multiple of 4096, a name is repeated, or
        the sum is absurd.
    """

    __slots__ = ("_bases", "_by_name", "names", "pages")

    def __init__(self, blocks: Sequence[tuple[str, int]]) -> None:
        self.names: tuple[str, ...] = tuple(name for name, _ in blocks)
        self._by_name: dict[str, range] = {}
        first = 0
        for name, size in blocks:
            if size <= 0 or size % TARGET_PAGE:
                raise PlanError(f"RAM block {name!r} has a size of {size} bytes")
            if name in self._by_name:
                raise PlanError(f"RAM block {name!r} is listed twice")
            end = first + size // TARGET_PAGE
            self._by_name[name] = range(first, end)
            first = end
        if first > MAX_PAGES:
            raise PlanError(f"{first} pages of RAM is more than the limit of {MAX_PAGES}")
        self.pages: int = first
        self._bases = [pages.start for pages in self._by_name.values()]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PageSpace) and self.blocks() == other.blocks()

    def __hash__(self) -> int:
        return hash(self.blocks())

    def __repr__(self) -> str:
        return f"PageSpace({list(self.blocks())!r})"

    def blocks(self) -> tuple[tuple[str, int], ...]:
        """The (name, bytes) pairs this space was made from."""
        return tuple((name, len(pages) * TARGET_PAGE) for name, pages in self._by_name.items())

    def block_range(self, name: str) -> range:
        """Page numbers of one block. :raises PlanError: there is no such block."""
        try:
            return self._by_name[name]
        except KeyError:
            raise PlanError(f"no RAM block is called {name!r}") from None

    def base(self, name: str) -> int:
        """First page number of a block. :raises PlanError: there is no such block."""
        return self.block_range(name).start

    def number(self, name: str, offset: int) -> int:
        """The page number at a byte offset of a block.

        :raises PlanError: unknown block, offset not page aligned, or outside the block.
        """
        pages = self.block_range(name)
        if offset % TARGET_PAGE:
            raise PlanError(f"offset {offset:#x} of RAM block {name!r} is not page aligned")
        index = offset // TARGET_PAGE
        if not 0 <= index < len(pages):
            raise PlanError(f"offset {offset:#x} is outside RAM block {name!r}")
        return pages.start + index

    def locate(self, page: int) -> tuple[str, int]:
        """The (block name, byte offset) of a page number.

        :raises PlanError: there is no such page.
        """
        if not 0 <= page < self.pages:
            raise PlanError(f"page {page} is outside a space of {self.pages} pages")
        block = bisect.bisect_right(self._bases, page) - 1
        return self.names[block], (page - self._bases[block]) * TARGET_PAGE

    def split(self, first: int, count: int) -> list[tuple[int, int]]:
        """Cut `count` pages from `first` at block boundaries: [(first, count), ...].

        :raises PlanError: the range leaves the space.
        """
        if count < 0 or first < 0 or first + count > self.pages:
            raise PlanError(f"pages {first}+{count} leave a space of {self.pages} pages")
        inner = (base for base in self._bases if first < base < first + count)
        edges = [first, *inner, first + count]
        return [(a, b - a) for a, b in itertools.pairwise(edges) if b > a]
