# SPDX-License-Identifier: Apache-2.0
"""What a page is worth to a relay that holds pages and chooses which to send next."""

import enum
from typing import Final


class Worth(enum.IntEnum):
    """What a page is worth once it was read from the source, a byte; lower crosses sooner."""

    DEMANDED = 0
    """The guest waits for it."""
    NEAR = 1
    """It is the neighbour of such a page."""
    ASKED = 2
    """It was asked for, by a plan that is no more."""
    PLANNED = 3
    """From here on: the stretches of the plan, in its order."""
    BACKGROUND = 255
    """The plan leaves it out."""


LEAST_STRETCH: Final = 2048
"""Pages of a plan, at least, that are worth the same: 8 MiB."""
STRETCHES: Final = Worth.BACKGROUND - Worth.PLANNED


def stretch_of(ordered: int) -> int:
    """Pages in each stretch of a plan that orders `ordered` pages."""
    return max(LEAST_STRETCH, -(-ordered // STRETCHES))
