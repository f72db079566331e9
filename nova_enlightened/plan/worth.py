# SPDX-License-Identifier: Apache-2.0
"""What a page is worth to a relay that holds pages and chooses which to send next."""

from typing import Final


class Worth:
    """What a page is worth once it was read from the source, a byte; lower crosses sooner.

    Plain numbers: a plan's stretches have them too, and to look up a member of an enumeration
    costs more than all else that is done with one.
    """

    DEMANDED: Final = 0
    """The guest waits for it."""
    NEAR: Final = 1
    """It is the neighbour of such a page."""
    ASKED: Final = 2
    """It was asked for, by a plan that is no more."""
    PLANNED: Final = 3
    """From here on: the stretches of the plan, in its order."""
    BACKGROUND: Final = 255
    """The plan leaves it out."""


LEAST_STRETCH: Final = 2048
"""Pages of a plan, at least, that are worth the same: 8 MiB."""
STRETCHES: Final = Worth.BACKGROUND - Worth.PLANNED


def stretch_of(ordered: int) -> int:
    """Pages in each stretch of a plan that orders `ordered` pages."""
    return max(LEAST_STRETCH, -(-ordered // STRETCHES))
