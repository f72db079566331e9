# SPDX-License-Identifier: Apache-2.0
"""How large the steps are in which a source's bytes go on, and when which."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from nova_enlightened.plan.in_flight import QUEUE, TARGET_S
from nova_enlightened.transfer.link_connection import UNSENT
from nova_enlightened.transfer.relay import SMALL_READ

FAULTS: Final = 3
WITHIN_S: Final = 0.25
"""So many pages waited for in so little time: delay costs the guest more than small steps do."""


class Gait(NamedTuple):
    """How large the steps are in which bytes go on.

    Fewer, larger steps spare both hosts' CPU, and let what comes up in between wait for longer.

    :ivar delay: seconds of queueing that the link aims at.
    :ivar queue: bytes of queueing at most.
    :ivar send: bytes of pages given to the link at once.
    :ivar ack: seconds that acknowledgements, and what they are of, may wait for more; 0: none.
    :ivar read: bytes that there must be room for before QEMU is read from, at most.
    :ivar unsent: bytes left to the kernel that it has not sent, which nothing can pass.
    """

    delay: float
    queue: int
    send: int
    ack: float
    read: int
    unsent: int


BULK: Final = Gait(0.05, 4 * 1024 * 1024, 64 * 1024, 0.002, 128 * 1024, 1024 * 1024)
"""Nobody waits: a migration nothing is known of, before its switch."""
URGENT: Final = Gait(TARGET_S, QUEUE, 64 * 1024, 0.0, SMALL_READ, UNSENT)
"""The guest waits for what it needs most, or often for what it needs besides."""
CALM: Final = Gait(0.01, QUEUE + QUEUE // 4, 256 * 1024, 0.005, 128 * 1024, 512 * 1024)
"""The guest has that: guests need the CPU more than the rest of the memory. A page that is waited
for takes some ten milliseconds longer."""


def next_gait(
    gait: Gait, *, switched: bool, urgent_done: bool, faults: Sequence[float], now: float
) -> Gait:
    """The gait to go on with.

    :param switched: the guest executes at the destination.
    :param urgent_done: it has what it needs most.
    :param faults: when it last waited for pages, by ``now``'s clock, the newest last.
    """
    if gait is BULK and not switched:
        return BULK
    often = len(faults) >= FAULTS and now - faults[-FAULTS] < WITHIN_S
    return CALM if urgent_done and not often else URGENT
