# SPDX-License-Identifier: Apache-2.0
"""How much may be requested from the source and not yet have been seen.

The source serves requests first in, first out, and runs its background scan whenever that
queue is empty. So the window is a compromise:

* too small, and the queue runs dry while what was requested is still on its way to us
  (QEMU collects 64 iovecs, 32 pages, per write, and a unix socket holds about 200 KiB):
  the scan fills the gap with pages nobody asked for;
* too large, and a demand fault waits behind what was injected.

Control law. Bytes seen since switchover are counted in *rounds* of one window each, about
the time a change needs to show. At the end of a round in which a share `u` of the pages
was unrequested although urgent pages were left to request:

* `u` above `TOLERATED`: grow by the unrequested bytes of the round, which is exactly the
  hole that was found in the queue, but at least by `STEP` and at most to double. Then one
  round is skipped, because its bytes were chosen by the source before the growth.
* otherwise: shrink by 1/`SHRINK` of the window; the next hole costs less than the delay
  to faults that is saved.

While no urgent page is left the window is not adapted (every unrequested page is then as
it should be) and `relaxed` applies: the floor, which leaves the source's own scan its
room and faults their speed.
"""

from dataclasses import dataclass
from typing import Final

from nova_enlightened.exception import PlanError
from nova_enlightened.knowledge.space import TARGET_PAGE

KIB: Final = 1024
TOLERATED: Final = 0.02
"""Share of unrequested pages that is not worth a larger window."""
STEP: Final = 16 * KIB
SHRINK: Final = 32


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


class InjectionWindow:
    """The adaptive window; see the module for the control law."""

    def __init__(self, limits: WindowLimits | None = None) -> None:
        self.limits = limits or WindowLimits()
        self._bytes = float(self.limits.start)
        self._requested = 0
        self._unrequested = 0
        self._skip_round = False
        self._relaxed = False

    @property
    def size(self) -> int:
        """Bytes that may be requested and not yet seen, now."""
        return self.limits.floor if self._relaxed else int(self._bytes)

    @property
    def pages(self) -> int:
        """`size` in whole pages, at least one."""
        return self.size // TARGET_PAGE

    def seen(self, requested: int, unrequested: int, *, urgent_left: bool) -> None:
        """Learn from a batch of the forward stream.

        :param requested: pages in it that had been requested, injected or by the guest.
        :param unrequested: pages in it that the background scan chose.
        :param urgent_left: the plan still holds urgent pages that were not requested.
        """
        self._relaxed = not urgent_left
        if not urgent_left:
            self._requested = self._unrequested = 0
            return
        self._requested += requested
        self._unrequested += unrequested
        total = (self._requested + self._unrequested) * TARGET_PAGE
        if total >= self._bytes:
            self._end_round(total)

    def _end_round(self, total: int) -> None:
        unrequested = self._unrequested * TARGET_PAGE
        self._requested = self._unrequested = 0
        if self._skip_round:
            self._skip_round = False
        elif unrequested > total * TOLERATED:
            grown = self._bytes + max(STEP, min(unrequested, self._bytes))
            self._bytes = min(float(self.limits.cap), grown)
            self._skip_round = True
        else:
            shrunk = self._bytes * (1 - 1 / SHRINK)
            self._bytes = max(float(self.limits.floor), shrunk)
