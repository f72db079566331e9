# SPDX-License-Identifier: Apache-2.0
"""How a migration ends that libvirt gave up after its switch.

An error of libvirt's migrate call after the switch says that libvirt does not watch any more, not
that the migration failed: the memory may flow, and where it does not, the host's agent recovers
it. Rolled back at that point, the VM would be destroyed at its destination.
"""

import enum
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.host.standing import Standing

LOG = logging.getLogger(__name__)

LOOK_S: Final = 1.0
CONFIRMED: Final = 3
"""Looks in a row that have to agree: libvirtd may be starting."""
TOLD_S: Final = 60.0


class End(enum.StrEnum):
    """What became of the VM."""

    MOVED = "moved"
    STAYED = "stayed"
    LOST_HERE = "lost at the source"
    """The source's QEMU ended: the copy at the destination waits for pages that nobody has."""
    LOST_THERE = "lost at the destination"
    """The destination's QEMU ended, and what the VM has done since the switch with it."""


@dataclass(frozen=True)
class Outcome:
    """An end, and why in words."""

    end: End
    words: str


def judged(here: Standing, agent: Mapping[str, Any]) -> Outcome | None:
    """How it has ended; None while it has not.

    :param here: at the source.
    :param agent: of ``HostAPI.recovery``; may be empty.
    """
    why = str(agent.get("why", "")) or "libvirt of the source says so"
    if here is Standing.EXECUTES:
        return Outcome(End.STAYED, "it executes at its source")
    if agent.get("state") == "lost":
        return Outcome(End.LOST_HERE if here is Standing.ENDED else End.LOST_THERE, why)
    if here is Standing.GONE or (here is Standing.ENDED and agent.get("state") == "moved"):
        return Outcome(End.MOVED, why)
    if here is Standing.ENDED and not agent:
        return Outcome(End.LOST_HERE, "QEMU at the source has ended before the last page crossed")
    return None


def wait(
    here: Callable[[], Standing],
    agent: Callable[[], Mapping[str, Any]],
    who: str,
    pause: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Wait for the end, however long that takes: somebody may have to mend a network first.

    :param agent: asks the host's agent; raises ``EnlightenedError``.
    """
    last: Outcome | None = None
    times = 0
    told = clock()
    while True:
        try:
            said = agent()
        except exception.EnlightenedError as error:
            said = {"state": "unknown", "why": str(error)}
        found = judged(here(), said)
        times = times + 1 if found is not None and found == last else 1
        last = found
        if found is not None and times >= CONFIRMED:
            return found
        if clock() - told >= TOLD_S:
            told = clock()
            LOG.warning("%s is not whole yet: %s", who, said or "no agent follows it")
        pause(LOOK_S)
