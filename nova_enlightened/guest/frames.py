# SPDX-License-Identifier: Apache-2.0
"""What every frame of the guest is, read a piece at a time.

Reading /proc/kpageflags costs 30 to 400 ns a frame, by kernel: nothing in a small guest, seconds
in a large one. So it is read in pieces, each when its budget allows, and what was read before
counts until it is read again.
"""

import time
from typing import Iterator, List

from nova_enlightened.guest import wire
from nova_enlightened.guest.budget import Budget
from nova_enlightened.guest.proc import Proc

PIECE = 1 << 15
"""Frames read at a time: a millisecond or ten, some tens on a slow guest."""
REFRESH_S = 10.0
"""After all is read, this long passes before it is read again."""
MOST = 192 << 20
"""Frames told of in a snapshot, 768 GiB: what a host takes in one."""


class Frames:
    """The evidence of the first `count` frames (or of `MOST` if there are more)."""

    def __init__(self, proc: Proc, count: int, budget: Budget) -> None:
        self.count = count
        self.described = min(count, MOST)
        self.passes = 0
        """How often all was read."""
        self._proc = proc
        self._budget = budget
        self._pieces: List[wire.Packed] = []
        self._next = 0
        self._not_before = 0.0

    def due(self, now: float) -> float:
        """Seconds until the next piece may be read."""
        return max(self._not_before - now, self._budget.wait(now), 0.0)

    def hurry(self, now: float) -> None:
        """Read on as soon as the budget allows, though it was all read lately."""
        self._not_before = now

    def step(self, now: float) -> bool:
        """Read one piece. Returns whether that completed the first pass. Raises OSError."""
        began = time.process_time()
        first = self._next * PIECE
        piece = wire.pack(self._proc.evidence(first, min(PIECE, self.described - first)))
        self._pieces[self._next : self._next + 1] = [piece]
        self._next += 1
        ended = self._next * PIECE >= self.described
        if ended:
            self.passes += 1
            self._next = 0
            self._not_before = now + REFRESH_S
        self._budget.spend(time.process_time() - began, now)
        return ended and self.passes == 1

    def read_for(self, seconds: float) -> None:
        """Read the first pass on for so long, whatever the budget says. Raises OSError."""
        began = now = time.monotonic()
        while not self.passes and now - began < seconds:
            self.step(now)
            now = time.monotonic()

    def parts(self) -> Iterator[wire.Packed]:
        """For a snapshot: of the frames from the first, as far as they were read."""
        yield from self._pieces

    @property
    def read(self) -> int:
        """Frames that `parts` tells of."""
        return sum(len(piece.raw) for piece in self._pieces)
