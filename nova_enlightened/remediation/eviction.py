# SPDX-License-Identifier: Apache-2.0
"""One eviction: which step comes next, and what each step asks of Nova and of the agents.

:func:`next_step` and :func:`overdue` are values and time only. :class:`Steps` does the asking, in
a worker; it changes no record, it says what happened.
"""

import dataclasses
import enum
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from nova_enlightened import exception
from nova_enlightened.remediation.eviction_states import (
    FINAL,
    FOLLOWED,
    MIGRATION_STATUS,
    UNDER_WAY,
    Input,
    State,
)
from nova_enlightened.remediation.record import EvictionRecord
from nova_enlightened.remediation.servers import Migration, Nova

SERVER_LOOKS: Final = 10
"""Every how many looks at a migration the server itself is looked at too: it may be gone."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds; see the options of the same names."""

    order_ttl: float = 60.0
    follow_interval: float = 1.0
    appear_timeout: float = 30.0
    eviction_timeout: float = 900.0
    relief_timeout: float = 30.0
    request_timeout: float = 60.0
    """After which a request that has not come back counts as unanswered."""
    vm_cooldown: float = 600.0


class Step(enum.StrEnum):
    """What can be done for an eviction."""

    ORDER = "order"
    CHECK = "check"
    REQUEST = "request"
    LOOK = "look"
    WITHDRAW = "withdraw"


@dataclasses.dataclass(frozen=True)
class Happened:
    """What a step found; `input` None where nothing has changed.

    :param changes: fields of the record that are known now.
    """

    input: Input | None
    reason: str = ""
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)


NOTHING: Final = Happened(None)

STATES_OF: Final[dict[Step, frozenset[State]]] = {
    Step.ORDER: frozenset({State.DECIDED}),
    Step.CHECK: frozenset({State.ORDERED}),
    Step.REQUEST: frozenset({State.REQUESTING}),
    Step.LOOK: FOLLOWED,
    Step.WITHDRAW: frozenset(),
}
"""States in which what a step found still matters; later, time has passed it by."""


class Orders(Protocol):
    """What is asked of the agents here, see ``rpc.HostAPI``."""

    def order_urgent(self, host: str, instance: str, cause: str, ttl: float) -> dict[str, Any]:
        """Have the next live migration of an instance be urgent."""

    def withdraw_urgent(self, host: str, instance: str) -> dict[str, Any]:
        """Take that back."""


def next_step(record: EvictionRecord) -> Step | None:
    """What to do next for an eviction, None where there is nothing but to wait.

    :attr:`State.REQUESTING` has none: its step is taken once, right when it is entered. An
    eviction found in it, after a restart, may have been requested already.
    """
    if record.state is State.DECIDED:
        return Step.ORDER
    if record.state is State.ORDERED:
        return Step.CHECK
    return Step.LOOK if record.state in FOLLOWED else None


def overdue(record: EvictionRecord, now: float, timing: Timing) -> Happened:
    """What the passing of time means for an eviction."""
    decided = record.at("decided") or 0.0
    requested = record.at("requested") or decided
    if record.state in (State.DECIDED, State.ORDERED) and now - decided > timing.order_ttl:
        return Happened(Input.TIMED_OUT, _because(record, "not requested in time"))
    if record.state is State.REQUESTING and now - requested > timing.request_timeout:
        return Happened(Input.UNANSWERED, "the request did not come back")
    # An API that cannot reach the bus keeps its caller waiting, and hands the request on later.
    handed = record.at("accepted") or record.at("unanswered") or requested
    if record.state is State.REQUESTED and now - handed > timing.appear_timeout:
        return Happened(
            Input.TIMED_OUT, _because(record, "the migration never appeared in Nova's list")
        )
    followed = record.state in (State.MIGRATING, State.POST_COPY)
    if followed and now - decided > timing.eviction_timeout:
        return Happened(Input.TIMED_OUT, "not followed any more: it takes too long")
    return NOTHING


def found_at_start(record: EvictionRecord) -> Happened:
    """What is known of an eviction that an earlier process left as it is now."""
    if record.state is State.REQUESTING:
        return Happened(Input.UNANSWERED, "it is not known whether Nova was asked")
    return NOTHING


def to_withdraw(record: EvictionRecord) -> bool:
    """Whether an urgent order was left behind that no migration is going to take."""
    came_to_nothing = record.state in FINAL and record.at("completed") is None
    return came_to_nothing and bool(record.urgent)


class Steps:
    """Takes steps. Each returns what happened, and raises nothing of Nova's or the bus.

    :param may_act: asked right before anything is changed: whether this instance still leads.
    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        nova: Nova,
        hosts: Orders,
        timing: Timing,
        may_act: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._nova = nova
        self._hosts = hosts
        self._timing = timing
        self._may_act = may_act
        self._clock = clock

    def take(self, step: Step, record: EvictionRecord, turn: int = 0) -> Happened:
        """Take a step.

        :param turn: how many looks there were before.
        """
        if step in (Step.ORDER, Step.REQUEST) and not self._may_act():
            return NOTHING
        if step is Step.ORDER:
            return self._order(record)
        if step is Step.CHECK:
            return self._check(record)
        if step is Step.REQUEST:
            return self._request(record)
        if step is Step.LOOK:
            return self._look(record, turn)
        return self._withdraw(record)

    def _order(self, record: EvictionRecord) -> Happened:
        """Tell the source's agent. Where that fails the server leaves all the same, by a stock
        migration: its host is contended.
        """
        ttl = self._timing.order_ttl
        try:
            self._hosts.order_urgent(record.host, record.instance, record.cause, ttl)
        except (exception.AgentUnreachable, exception.AgentRefused) as error:
            return Happened(Input.ORDER_MISSED, f"by stock migration: {error}", {"urgent": False})
        return Happened(Input.ORDER_TAKEN, changes={"urgent": True})

    def _check(self, record: EvictionRecord) -> Happened:
        try:
            server = self._nova.server(record.instance)
            migrations = self._nova.migrations_of(record.instance)
        except exception.ServerGone as error:
            return Happened(Input.SERVER_GONE, str(error))
        except exception.NovaRefused as error:
            return Happened(Input.REFUSED, str(error))
        except exception.NovaUnreachable as error:
            return Happened(None, str(error))  # asked again until it is too late
        if server.host != record.host:
            return Happened(Input.OVERTAKEN, f"it is on {server.host or 'no host'} already")
        if server.obstacle:
            return Happened(Input.REFUSED, server.obstacle)
        if any(migration.status in UNDER_WAY for migration in migrations):
            return Happened(Input.OVERTAKEN, "a migration of it is under way")
        moved = max((one.updated or 0.0 for one in migrations if arrived(one)), default=0.0)
        ago = max(0.0, self._clock() - moved)
        if ago < self._timing.vm_cooldown:
            return Happened(Input.OVERTAKEN, f"it moved {ago:.0f} s ago, not ordered here")
        before = max((migration.id for migration in migrations), default=0)
        return Happened(Input.CHECKED, changes={"after_migration": before})

    def _request(self, record: EvictionRecord) -> Happened:
        try:
            self._nova.live_migrate(record.instance)
        except exception.ServerGone as error:
            return Happened(Input.SERVER_GONE, str(error))
        except exception.NovaRefused as error:
            return Happened(Input.REFUSED, str(error))
        except exception.NovaUnreachable as error:
            return Happened(Input.UNANSWERED, str(error))
        return Happened(Input.ACCEPTED)

    def _look(self, record: EvictionRecord, turn: int) -> Happened:
        try:
            ours = our_migration(record, self._nova.migrations_of(record.instance))
            happened = _said(ours)
            final = happened.input in (Input.COMPLETED, Input.MIGRATION_FAILED)
            if not final and turn % SERVER_LOOKS == SERVER_LOOKS - 1:
                self._nova.server(record.instance)
        except exception.ServerGone as error:
            return Happened(Input.SERVER_GONE, str(error))
        except (exception.NovaRefused, exception.NovaUnreachable) as error:
            return Happened(None, str(error))
        return happened

    def _withdraw(self, record: EvictionRecord) -> Happened:
        try:
            self._hosts.withdraw_urgent(record.host, record.instance)
        except (exception.AgentUnreachable, exception.AgentRefused) as error:
            return Happened(None, f"the order runs out by itself: {error}")
        return NOTHING


def arrived(migration: Migration) -> bool:
    """Whether the server has moved."""
    return MIGRATION_STATUS.get(migration.status) is Input.COMPLETED


def our_migration(record: EvictionRecord, migrations: Sequence[Migration]) -> Migration | None:
    """The migration that this eviction's request led to, if Nova shows it."""
    for migration in sorted(migrations, key=lambda one: one.id):
        if record.migration is not None:
            if migration.id == record.migration:
                return migration
        elif migration.id > record.after_migration and migration.source == record.host:
            return migration
    return None


def _said(migration: Migration | None) -> Happened:
    if migration is None:
        return NOTHING
    changes: dict[str, Any] = {"migration": migration.id}
    if migration.destination:
        changes["destination"] = migration.destination
    found = MIGRATION_STATUS.get(migration.status)
    if found is Input.MIGRATION_FAILED:
        where = f"on its way to {migration.destination}" if migration.destination else (
            "before a destination was found: see the events of the server"
        )  # fmt: skip
        return Happened(found, f"Nova ended the migration as {migration.status} {where}", changes)
    if found is None:
        return Happened(None, f"Nova calls the migration {migration.status!r}")
    return Happened(found, changes=changes)


def _because(record: EvictionRecord, what: str) -> str:
    return f"{what} ({record.reason})" if record.reason else what
