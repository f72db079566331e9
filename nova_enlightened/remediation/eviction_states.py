# SPDX-License-Identifier: Apache-2.0
"""What one eviction goes through: everything that changes its state is in this table.

Nova is asked to migrate in one state only, :attr:`State.REQUESTING`, and every way out of it leads
forward: whether the request reached Nova or nobody knows, it is never sent again for the same
cause. An eviction that comes to nothing ends; the host stays contended, and the next decision is
a new cause.
"""

import enum
from typing import Final


class State(enum.StrEnum):
    """Where an eviction is. Values are what the journal holds."""

    DECIDED = "decided"
    """The source's agent is to be told that the server leaves urgently."""
    ORDERED = "ordered"
    """Nova's view of the server is to be compared with ours."""
    REQUESTING = "requesting"
    """The live migration is being requested; written down before it is."""
    REQUESTED = "requested"
    """Nova has, or may have, the request; its migration is not seen yet."""
    MIGRATING = "migrating"
    POST_COPY = "post-copy"
    """The server executes at its destination while its memory follows."""
    VERIFYING = "verifying"
    """The server has left; is its old host relieved?"""
    DONE = "done"
    FAILED = "failed"
    """The server is where it was, or gone."""
    GAVE_UP = "gave up"
    """Nobody knows, and it is not followed any more."""
    PROPOSED = "proposed"
    """What would have been decided, had it not been for ``mode = audit``."""


class Input(enum.StrEnum):
    """What happens to an eviction."""

    ORDER_TAKEN = "order taken"
    ORDER_MISSED = "order missed"
    CHECKED = "checked"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNANSWERED = "unanswered"
    APPEARED = "appeared"
    POST_COPY_SEEN = "post-copy seen"
    COMPLETED = "completed"
    MIGRATION_FAILED = "migration failed"
    SERVER_GONE = "server gone"
    OVERTAKEN = "overtaken"
    """Somebody else moves the server, or has done so."""
    TIMED_OUT = "timed out"
    RELIEVED = "relieved"
    NOT_RELIEVED = "not relieved"


FINAL: Final = frozenset({State.DONE, State.FAILED, State.GAVE_UP, State.PROPOSED})
BEFORE_REQUEST: Final = frozenset({State.DECIDED, State.ORDERED})
FOLLOWED: Final = frozenset({State.REQUESTED, State.MIGRATING, State.POST_COPY})
"""States in which Nova's list of migrations says what happens."""
ASKED: Final = FOLLOWED | {State.REQUESTING}
"""Nova has been asked, or is being asked, and the server has not left."""

_S, _I = State, Input

TRANSITIONS: Final[dict[tuple[State, Input], State]] = {
    (_S.DECIDED, _I.ORDER_TAKEN): _S.ORDERED,
    (_S.DECIDED, _I.ORDER_MISSED): _S.ORDERED,
    (_S.DECIDED, _I.TIMED_OUT): _S.FAILED,
    (_S.ORDERED, _I.CHECKED): _S.REQUESTING,
    (_S.ORDERED, _I.REFUSED): _S.FAILED,
    (_S.ORDERED, _I.OVERTAKEN): _S.FAILED,
    (_S.ORDERED, _I.SERVER_GONE): _S.FAILED,
    (_S.ORDERED, _I.TIMED_OUT): _S.FAILED,
    (_S.REQUESTING, _I.ACCEPTED): _S.REQUESTED,
    (_S.REQUESTING, _I.UNANSWERED): _S.REQUESTED,
    (_S.REQUESTING, _I.REFUSED): _S.FAILED,
    (_S.REQUESTING, _I.SERVER_GONE): _S.FAILED,
    (_S.REQUESTED, _I.APPEARED): _S.MIGRATING,
    (_S.REQUESTED, _I.POST_COPY_SEEN): _S.POST_COPY,
    (_S.REQUESTED, _I.COMPLETED): _S.VERIFYING,
    (_S.REQUESTED, _I.MIGRATION_FAILED): _S.FAILED,
    (_S.REQUESTED, _I.SERVER_GONE): _S.FAILED,
    (_S.REQUESTED, _I.TIMED_OUT): _S.GAVE_UP,
    (_S.MIGRATING, _I.APPEARED): _S.MIGRATING,
    (_S.MIGRATING, _I.POST_COPY_SEEN): _S.POST_COPY,
    (_S.MIGRATING, _I.COMPLETED): _S.VERIFYING,
    (_S.MIGRATING, _I.MIGRATION_FAILED): _S.FAILED,
    (_S.MIGRATING, _I.SERVER_GONE): _S.FAILED,
    (_S.MIGRATING, _I.TIMED_OUT): _S.GAVE_UP,
    (_S.POST_COPY, _I.APPEARED): _S.POST_COPY,
    (_S.POST_COPY, _I.POST_COPY_SEEN): _S.POST_COPY,
    (_S.POST_COPY, _I.COMPLETED): _S.VERIFYING,
    (_S.POST_COPY, _I.MIGRATION_FAILED): _S.FAILED,
    (_S.POST_COPY, _I.SERVER_GONE): _S.FAILED,
    (_S.POST_COPY, _I.TIMED_OUT): _S.GAVE_UP,
    (_S.VERIFYING, _I.RELIEVED): _S.DONE,
    (_S.VERIFYING, _I.NOT_RELIEVED): _S.DONE,
    (_S.VERIFYING, _I.TIMED_OUT): _S.DONE,
}


def advance(state: State, happened: Input) -> State:
    """The next state. A pair that is not listed ends the eviction: nothing more is done for it."""
    if state in FINAL:
        return state
    return TRANSITIONS.get((state, happened), State.GAVE_UP)


# Nova's own words (nova/compute/manager.py, nova/conductor), and what they say of a migration.
MIGRATION_STATUS: Final[dict[str, Input]] = {
    "accepted": Input.APPEARED,
    "queued": Input.APPEARED,
    "preparing": Input.APPEARED,
    "running": Input.APPEARED,
    "post-migrating": Input.APPEARED,
    "running (post-copy)": Input.POST_COPY_SEEN,
    "completed": Input.COMPLETED,
    "done": Input.COMPLETED,
    "failed": Input.MIGRATION_FAILED,
    "error": Input.MIGRATION_FAILED,
    "cancelled": Input.MIGRATION_FAILED,
}
UNDER_WAY: Final = frozenset(
    status
    for status, said in MIGRATION_STATUS.items()
    if said in (Input.APPEARED, Input.POST_COPY_SEEN)
)
