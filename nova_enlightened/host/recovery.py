# SPDX-License-Identifier: Apache-2.0
"""What to do about a migration that was switched to post-copy and lost its way; no I/O.

From the switch on the VM's memory is in two places. A step either waits, or clears away what is
left of a broken pair of relays, or has QEMU resume the stream from one paused end to the other, or
sends what is missing where QEMU at the source will not, or says how it ended. The source's
processors are started again in one case only: the destination's QEMU has ended, and it is certain
that none of its own ever executed.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Final

from nova_enlightened.host.standing import SWITCHED, Standing


class Carrier(enum.StrEnum):
    """A relay of the migration, on one host."""

    ALIVE = "alive"
    """It runs; what the network does between the two is for them to make good."""
    GONE = "gone"
    """There is no such process: the socket of the QEMU beside it is closed."""
    UNKNOWN = "unknown"


class Step(enum.StrEnum):
    """What is to be done next."""

    WAIT = "wait"
    END_HERE = "end the source's relay"
    END_THERE = "end the destination's relay"
    END_UNSTARTED = "end the VM at the destination, which never executed"
    RESUME = "resume"
    RESEND = "send the rest in QEMU's place"
    END_SOURCE = "end what is left at the source"
    GO_ON_HERE = "go on at the source"
    MOVED = "moved"
    STAYED = "stayed"
    LOST = "lost"


@dataclasses.dataclass(frozen=True)
class Seen:
    """What both hosts say. Here is the source, there the destination.

    :param completed: the source's relay has seen QEMU say that the last page is sent.
    :param relayed: through relays, not on a channel of QEMU's own.
    :param idle: no QEMU is connected to the source's relay, and none is about to be.
    :param never_executed: the VM has not executed in the destination's QEMU, which has ended.
    :param sends_no_more: QEMU at the source does not; its migration has failed, or paused.
    :param gave_up: QEMU at the source will not resume: its migration has failed.
    :param resends: what its destination lacks can be sent in its place, as far as is known.
    :param delivered: the destination has said that it has all of it, to who sent the rest.
    :param waits: the VM has not executed so far in the destination's QEMU, which is there.
    """

    here: Standing
    there: Standing
    relay_here: Carrier
    relay_there: Carrier
    completed: bool = False
    relayed: bool = True
    idle: bool = False
    never_executed: bool = False
    sends_no_more: bool = False
    gave_up: bool = False
    resends: bool = False
    delivered: bool = False
    waits: bool = False


CONFIRMED: Final = 3
"""Looks where libvirt may be starting, or QEMU's end be on its way from one host to the other."""
ENDING: Final = 15
"""Looks in which libvirt that has given up is to hear from QEMU that the last page has crossed. A
resume that comes between would have it miss that."""
BLOCKED: Final = 6
"""Looks in which QEMU at the destination could not take its last step, though it lacks nothing."""
PATIENT: Final = 60
"""Looks where libvirt may not have begun yet."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """A step, and why in words. ``looks``: in a row that have to agree before it is taken."""

    step: Step
    why: str
    looks: int = 1


_SPLIT: Final = frozenset({Standing.POSTCOPY, Standing.FAILED, Standing.SWITCHING})
_BOTH_FAILED: Final = (Standing.FAILED, Standing.FAILED)
AWAY: Final = frozenset({Standing.GONE, Standing.ENDED})
"""Of a domain: its host has none of it."""

_Rule = tuple[Callable[[Seen], bool], Decision]

# The first that holds decides. A pair that no rule names waits.
_RULES: Final[tuple[_Rule, ...]] = (
    # --- what libvirt of the source does not tell, nobody may guess
    (
        lambda seen: seen.here is Standing.UNKNOWN,
        Decision(Step.WAIT, "libvirt of the source does not answer"),
    ),
    # --- the source has it whole
    (
        lambda seen: (
            seen.here is Standing.EXECUTES and not seen.relayed and seen.there is Standing.GONE
        ),
        Decision(Step.STAYED, "its destination has nothing of it", looks=PATIENT),
    ),
    (
        lambda seen: (
            seen.here is Standing.EXECUTES
            and (seen.relay_here is not Carrier.GONE or not seen.relayed)
        ),
        Decision(Step.WAIT, "not switched yet"),
    ),
    (
        lambda seen: seen.here is Standing.EXECUTES,
        Decision(Step.STAYED, "it never left its source", looks=CONFIRMED),
    ),
    # --- the source has it no more
    (
        lambda seen: seen.here in AWAY and seen.there is Standing.EXECUTES,
        Decision(Step.MOVED, "it executes at its destination, all of it"),
    ),
    (
        lambda seen: seen.here is Standing.GONE and seen.completed,
        Decision(Step.MOVED, "the last page has crossed"),
    ),
    (
        lambda seen: seen.here in AWAY and seen.there in _SPLIT,
        Decision(
            Step.LOST,
            "QEMU at the source has ended, and the rest of the VM's memory with it: "
            "the destination's copy waits for pages that nobody has",
            looks=CONFIRMED,
        ),
    ),
    (
        lambda seen: seen.here is Standing.ENDED and seen.there in AWAY,
        Decision(Step.LOST, "QEMU has ended on both hosts", looks=CONFIRMED),
    ),
    (
        lambda seen: seen.here is Standing.GONE,
        Decision(
            Step.MOVED,
            "libvirt of the source says that it has migrated",
            looks=CONFIRMED,
        ),
    ),
    (
        lambda seen: seen.here is Standing.ENDED,
        Decision(Step.WAIT, "QEMU at the source has ended; the destination does not answer"),
    ),
    # --- its memory is on both hosts
    (
        lambda seen: seen.delivered and seen.here in SWITCHED,
        Decision(Step.END_SOURCE, "the destination has all of it"),
    ),
    (
        lambda seen: seen.there in AWAY and seen.here in _SPLIT and seen.never_executed,
        Decision(
            Step.GO_ON_HERE,
            "QEMU at the destination has ended, and the VM never executed there",
            looks=CONFIRMED,
        ),
    ),
    (
        lambda seen: seen.there in AWAY and seen.here in _SPLIT,
        Decision(
            Step.LOST,
            "QEMU at the destination has ended, and with it what the VM has done since the switch",
            looks=CONFIRMED,
        ),
    ),
    (
        # QEMU from 8.2 on, where the stream breaks after the last page, before the other's word.
        lambda seen: (
            seen.gave_up and not seen.resends and seen.here in SWITCHED and seen.there in SWITCHED
        ),
        Decision(
            Step.LOST,
            "QEMU at the source has given its migration up: the destination's copy waits for "
            "pages that are sent no more",
            looks=CONFIRMED,
        ),
    ),
    (
        lambda seen: (
            seen.gave_up
            and seen.here in SWITCHED
            and seen.there in SWITCHED
            and (seen.relay_here, seen.relay_there) == (Carrier.GONE, Carrier.GONE)
        ),
        Decision(
            Step.RESEND,
            "QEMU at the source has given its migration up: what is missing is sent in its place",
            looks=CONFIRMED,
        ),
    ),
    (
        lambda seen: (
            seen.there is Standing.SWITCHING
            and seen.sends_no_more
            and seen.relay_here is Carrier.GONE
            and seen.relay_there is Carrier.ALIVE
        ),
        Decision(
            Step.END_THERE,
            "QEMU at the source sends no more of it: the destination's waits for nothing",
            looks=CONFIRMED,
        ),
    ),
    (
        # QEMU 10.0, which has all of the device state, and loading it waits for a page.
        lambda seen: (
            seen.waits
            and seen.there is Standing.SWITCHING
            and seen.here in SWITCHED
            and seen.relay_there is Carrier.GONE
            and seen.relay_here is not Carrier.UNKNOWN
        ),
        Decision(
            Step.END_UNSTARTED,
            "QEMU at the destination never executed it, and waits for what cannot reach it",
            looks=BLOCKED,
        ),
    ),
    (
        # QEMU at the destination ends, and does not pause, where its socket closes before it runs.
        lambda seen: Standing.SWITCHING in (seen.here, seen.there),
        Decision(Step.WAIT, "it is being handed over"),
    ),
    (
        # Relays end with the last page, a moment before libvirt does.
        lambda seen: (
            seen.completed and not seen.gave_up and Standing.FAILED not in (seen.here, seen.there)
        ),
        Decision(Step.WAIT, "the last page has crossed, and libvirt ends it"),
    ),
    (
        lambda seen: not seen.relayed and (seen.here, seen.there) != _BOTH_FAILED,
        Decision(Step.WAIT, "QEMU's own channel carries it"),
    ),
    (
        lambda seen: seen.idle and seen.relay_here is Carrier.ALIVE,
        Decision(Step.END_HERE, "QEMU did not come to the source's relay", looks=CONFIRMED),
    ),
    (
        lambda seen: seen.relay_here is Carrier.ALIVE and seen.relay_there is not Carrier.GONE,
        Decision(Step.WAIT, "the relays carry it, or connect again"),
    ),
    (
        lambda seen: seen.relay_here is Carrier.ALIVE and seen.relay_there is Carrier.GONE,
        Decision(Step.END_HERE, "the destination's relay is gone", looks=CONFIRMED),
    ),
    (
        lambda seen: seen.relay_there is Carrier.UNKNOWN,
        Decision(Step.WAIT, "the destination's agent does not answer"),
    ),
    (
        lambda seen: seen.relay_here is Carrier.GONE and seen.relay_there is Carrier.ALIVE,
        Decision(Step.END_THERE, "the source's relay is gone", looks=CONFIRMED),
    ),
    (
        lambda seen: (
            seen.completed and seen.relay_here is Carrier.GONE and seen.relay_there is Carrier.GONE
        ),
        Decision(Step.RESUME, "both relays are gone, and the last page with them", looks=ENDING),
    ),
    (
        lambda seen: seen.relay_here is Carrier.GONE and seen.relay_there is Carrier.GONE,
        Decision(Step.RESUME, "both relays are gone: QEMU waits on both hosts"),
    ),
)
_ELSE: Final = Decision(Step.WAIT, "nothing to be done")


def decide(seen: Seen) -> Decision:
    """The next step."""
    return next((made for holds, made in _RULES if holds(seen)), _ELSE)


class State(enum.StrEnum):
    """How a migration after its order stands, for people."""

    FOLLOWED = "followed"
    """Nothing is wrong that does not mend itself."""
    CLEARING = "clearing"
    """A relay was lost; what is left of the pair is ended, so that QEMU pauses on both hosts."""
    RESUMING = "resuming"
    """Fresh relays were asked for, and libvirt to resume through them."""
    STOPPED = "stopped"
    """By an operator: nothing more is tried until one says so."""
    MOVED = "moved"
    STAYED = "stayed"
    LOST = "lost"


ENDS: Final = frozenset({State.MOVED, State.STAYED, State.LOST})

_LIVE: Final = (State.FOLLOWED, State.CLEARING, State.RESUMING)
ATTEMPTS: Final = (Step.RESUME, Step.RESEND)
"""Those that may fail, and are made again after a pause."""
_AFTER: Final[Mapping[tuple[State, Step], State]] = {
    **{(state, Step.END_HERE): State.CLEARING for state in _LIVE},
    **{(state, Step.END_THERE): State.CLEARING for state in _LIVE},
    **{(state, Step.END_UNSTARTED): State.CLEARING for state in _LIVE},
    **{(state, step): State.RESUMING for state in _LIVE for step in ATTEMPTS},
    **{(state, Step.END_SOURCE): State.CLEARING for state in _LIVE},
    (State.FOLLOWED, Step.WAIT): State.FOLLOWED,
    (State.CLEARING, Step.WAIT): State.CLEARING,
    (State.RESUMING, Step.WAIT): State.FOLLOWED,
    (State.STOPPED, Step.WAIT): State.STOPPED,
    **{(state, Step.GO_ON_HERE): State.CLEARING for state in _LIVE},
    **{(state, Step.MOVED): State.MOVED for state in (*_LIVE, State.STOPPED)},
    **{(state, Step.STAYED): State.STAYED for state in (*_LIVE, State.STOPPED)},
    **{(state, Step.LOST): State.LOST for state in (*_LIVE, State.STOPPED)},
}


def after(state: State, step: Step) -> State:
    """The state after a step is taken. One that is not listed, as any after an end, changes
    nothing: an operator's stop holds, and an end is an end.
    """
    return _AFTER.get((state, step), state)


def takes(state: State, step: Step) -> bool:
    """Whether the step may be taken in this state."""
    return (state, step) in _AFTER


FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0


def pause_after(attempts: int) -> float:
    """Seconds to wait after so many attempts to resume that failed."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(max(attempts - 1, 0), 10))
