# SPDX-License-Identifier: Apache-2.0
"""How much may be requested from the source and not yet have been seen.

The source serves requests first in, first out. A demand fault waits behind what was injected
before it, so the window should be small; but never so small that the source has nothing
left to serve while urgent pages are missing. Two things show that this happened:

* *unrequested pages* in the stream: the queue ran empty while the source's background scan was
  free to run, and it filled the gap with pages nobody asked for. What was requested is then
  behind them in QEMU's write batch (64 iovecs, 32 pages) and the unix socket (about 200 KiB),
  so the window has to reach past these;
* *nothing outstanding*: all that was requested has been seen. Where the background scan is held
  back (QEMU's `max-postcopy-bandwidth`, which requests do not obey) the source idles then.

Control law. Bytes seen since switchover are counted in *rounds* of one window each, about the
time a change needs to show. `low` is the least that was outstanding within the round. At the
end of a round in which urgent pages were left to request:

* more than the share `TOLERATED` of the pages unrequested: grow by the unrequested bytes,
  which is exactly the hole found in the queue, but at least by `STEP` and at most to double.
  The next round is skipped, its bytes were chosen by the source before the growth;
* else `low` under `LOW_WATER`: grow by `STEP`;
* else shrink by 1/`SHRINK` of the window, but by no more than `low` exceeds `LOW_WATER`.

While no urgent page is left, unrequested pages are as they should be: the window does not
grow for them, and starts from its floor, which leaves faults their speed.
"""

from dataclasses import dataclass
from typing import Final

from nova_enlightened.exception import PlanError
from nova_enlightened.knowledge.space import TARGET_PAGE

KIB: Final = 1024
TOLERATED: Final = 0.02
"""Share of unrequested pages that is not worth a larger window."""
STEP: Final = 16 * KIB
LOW_WATER: Final = 16 * KIB
SHRINK: Final = 16


@dataclass(frozen=True)
class WindowLimits:
    """Bytes. :raises PlanError: not 4096 <= floor <= start <= cap."""

    floor: int = 64 * KIB
    start: int = 128 * KIB
    cap: int = 512 * KIB

    def __post_init__(self) -> None:
        if not TARGET_PAGE <= self.floor <= self.start <= self.cap:
            raise PlanError(
                f"injection window: not {TARGET_PAGE} <= floor {self.floor} "
                f"<= start {self.start} <= cap {self.cap}"
            )


RESEQUENCED: Final = WindowLimits(256 * KIB, 512 * KIB, 1024 * KIB)
"""For a relay that reads ahead of the link and gives pages another order: a demand fault
then waits for the window at the source's speed, not the link's, and a window that reaches past
QEMU's write batch and socket keeps it from sending pages of its own choice."""


class InjectionWindow:
    """The adaptive window; see the module for the control law."""

    def __init__(self, limits: WindowLimits | None = None) -> None:
        self.limits = limits or WindowLimits()
        self._bytes = float(self.limits.start)
        self._requested = 0
        self._unrequested = 0
        self._low = self.limits.cap
        self._skip_round = False
        self._urgent = True

    @property
    def size(self) -> int:
        """Bytes that may be requested and not yet seen, now."""
        return int(self._bytes)

    @property
    def pages(self) -> int:
        """`size` in whole pages, at least one."""
        return self.size // TARGET_PAGE

    def seen(
        self, requested: int, unrequested: int, *, outstanding: int, urgent_left: bool
    ) -> None:
        """Learn from a batch of the forward stream.

        :param requested: pages in it that had been requested, injected or by the guest.
        :param unrequested: pages in it that the background scan chose.
        :param outstanding: pages requested and not seen, after this batch.
        :param urgent_left: the plan still holds urgent pages that were not requested.
        """
        if self._urgent and not urgent_left:
            self._bytes = float(self.limits.floor)
        self._urgent = urgent_left
        self._requested += requested
        self._unrequested += unrequested if urgent_left else 0
        self._low = min(self._low, outstanding * TARGET_PAGE)
        total = (self._requested + self._unrequested) * TARGET_PAGE
        if total >= self._bytes:
            self._end_round(total)

    def _end_round(self, total: int) -> None:
        unrequested, low = self._unrequested * TARGET_PAGE, self._low
        self._requested = self._unrequested = 0
        self._low = self.limits.cap
        if self._skip_round:
            self._skip_round = False
        elif unrequested > total * TOLERATED:
            self._resize(max(STEP, min(unrequested, self._bytes)))
            self._skip_round = True
        elif low < LOW_WATER:
            self._resize(STEP)
        else:
            self._resize(-min(self._bytes / SHRINK, low - LOW_WATER))

    def _resize(self, by: float) -> None:
        limits = self.limits
        self._bytes = max(float(limits.floor), min(float(limits.cap), self._bytes + by))
