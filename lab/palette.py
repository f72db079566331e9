# SPDX-License-Identifier: Apache-2.0
"""Colours and dashes shared by the picture and the page.

The colours are Okabe and Ito's, told apart with every common colour blindness; dashes and
direct labels say the same once more for print in grey.
"""

from __future__ import annotations

from collections.abc import Sequence

from lab.story import Moment, VmLine

LEAVES = "#D55E00"
STAYS = ("#0072B2", "#009E73", "#CC79A7")
LOST = "#E69F00"
INK = "#1c2530"
QUIET = "#66727f"
GRID = "#dde3ea"

DASHES: dict[Moment, tuple[float, ...]] = {
    Moment.DECISION: (),
    Moment.SWITCHOVER: (6, 2),
    Moment.EXECUTING: (4, 2, 1, 2),
    Moment.RECOVERED: (2, 2),
    Moment.SOURCE_FREED: (1, 2),
    Moment.GIVEN_UP: (8, 2, 1, 2),
    Moment.DOWNLOADED: (6, 2),
    Moment.FIRST_ANSWER: (1, 2),
}


def colours(vms: tuple[VmLine, ...]) -> tuple[str, ...]:
    """One colour for each VM: the one that leaves stands out."""
    staying = iter(STAYS * len(vms))
    return tuple(LEAVES if vm.moves else next(staying) for vm in vms)


def label_rows(places: Sequence[float], widths: Sequence[float], gap: float) -> list[int]:
    """Rows, 0 lowest, for mark labels written to the right of ``places``.

    ``places`` ascending; ``widths`` of the labels and ``gap`` between two, the same unit. An
    earlier label goes above every later one that begins under it, so that no label covers
    another and no mark's line, which ends at its own label, crosses a label.
    """
    rows = [0] * len(places)
    for n in reversed(range(len(places))):
        under = [
            rows[later]
            for later in range(n + 1, len(places))
            if places[later] < places[n] + widths[n] + gap
        ]
        rows[n] = max(under, default=-1) + 1
    return rows
