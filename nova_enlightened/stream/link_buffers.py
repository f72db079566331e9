# SPDX-License-Identifier: Apache-2.0
"""Reusable blocks of memory, so that page data is copied by the kernel only.

A block is filled by ``recv_into`` and its parts are handed on as views. It counts the bytes that
are still needed (not yet acknowledged, or not yet delivered); with none left it is used again,
the most recently used first because that one is still in the processor's cache.
"""

from __future__ import annotations


class Block:
    """A piece of memory, how much of it is filled, and how much of that is still needed."""

    __slots__ = ("filled", "filling", "held", "memory", "view")

    def __init__(self, size: int) -> None:
        self.memory = bytearray(size)
        self.view = memoryview(self.memory)
        self.filled = 0  # bytes from the beginning that hold something
        self.held = 0  # bytes somebody still needs
        self.filling = False  # more will be put in behind ``filled``


class BlockPool:
    """Blocks of one size; at most ``limit`` are out at a time."""

    def __init__(self, block_size: int, limit: int) -> None:
        self.block_size = block_size
        self.limit = limit
        self.taken = 0
        self._free: list[Block] = []

    @property
    def exhausted(self) -> bool:
        """Whether :meth:`take` would go beyond the limit."""
        return self.taken >= self.limit

    def take(self) -> Block:
        """Return an empty block to fill. The limit is the caller's to respect."""
        self.taken += 1
        block = self._free.pop() if self._free else Block(self.block_size)
        block.filled = 0
        block.filling = True
        return block

    def close(self, block: Block) -> None:
        """Nothing more will be put into ``block``."""
        if block.filling:
            block.filling = False
            if not block.held:
                self._give(block)

    def release(self, block: Block, count: int) -> None:
        """``count`` bytes of ``block`` are not needed any more."""
        block.held -= count
        if not block.held and not block.filling:
            self._give(block)

    def _give(self, block: Block) -> None:
        self.taken -= 1
        self._free.append(block)
