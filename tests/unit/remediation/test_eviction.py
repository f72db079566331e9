# SPDX-License-Identifier: Apache-2.0
"""One eviction: its steps, its clock, and that it never asks Nova twice."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova_enlightened import exception
from nova_enlightened.remediation.eviction import (
    Happened,
    Step,
    Steps,
    Timing,
    found_at_start,
    next_step,
    our_migration,
    overdue,
    to_withdraw,
)
from nova_enlightened.remediation.eviction_states import Input, State
from nova_enlightened.remediation.record import EvictionRecord
from nova_enlightened.remediation.servers import Migration, Server
from tests.unit.remediation.fakes import FakeAgents, FakeNova, record

TIMING = Timing()
SERVER = Server("vm1", "web", "compute1", "active")


def stepper(nova: FakeNova, agents: FakeAgents | None = None, *, leads: bool = True) -> Steps:
    return Steps(nova, agents or FakeAgents(), TIMING, lambda: leads)


def test_the_agent_is_told_first() -> None:
    agents = FakeAgents()
    happened = stepper(FakeNova(), agents).take(Step.ORDER, record())
    assert (happened.input, happened.changes) == (Input.ORDER_TAKEN, {"urgent": True})
    assert agents.asked == [("order", "compute1", "vm1")]


@pytest.mark.parametrize(
    "error", [exception.AgentUnreachable("silence"), exception.AgentRefused("no")]
)
def test_without_an_agent_the_server_leaves_by_stock_migration(
    error: exception.EnlightenedError,
) -> None:
    agents = FakeAgents()
    agents.error = error
    happened = stepper(FakeNova(), agents).take(Step.ORDER, record())
    assert happened.input is Input.ORDER_MISSED
    assert happened.reason.startswith("by stock migration")
    assert happened.changes == {"urgent": False}


def test_the_newest_migration_before_ours_is_remembered() -> None:
    nova = FakeNova(SERVER)
    nova.migrations = [Migration(4, "vm1", "compute0", "compute1", "completed")]
    happened = stepper(nova).take(Step.CHECK, record(state=State.ORDERED))
    assert happened == Happened(Input.CHECKED, changes={"after_migration": 4})


@pytest.mark.parametrize(
    ("server", "found"),
    [
        ({"host": "compute2"}, Input.OVERTAKEN),
        ({"task": "resize_prep"}, Input.REFUSED),
        ({"state": "paused"}, Input.REFUSED),
        ({"locked": True}, Input.REFUSED),
        ({"opted_out": "by its metadata"}, Input.REFUSED),
    ],
)
def test_a_server_that_changed_meanwhile_stays(server: dict[str, str], found: Input) -> None:
    nova = FakeNova(dataclasses.replace(SERVER, **server))  # type: ignore[arg-type]
    assert stepper(nova).take(Step.CHECK, record(state=State.ORDERED)).input is found


def test_a_server_that_somebody_migrates_already_is_left_to_them() -> None:
    nova = FakeNova(SERVER)
    nova.migrations = [Migration(4, "vm1", "compute1", "", "queued")]
    assert stepper(nova).take(Step.CHECK, record(state=State.ORDERED)).input is Input.OVERTAKEN


@pytest.mark.parametrize(("ago", "found"), [(599.0, Input.OVERTAKEN), (601.0, Input.CHECKED)])
def test_a_server_that_has_just_moved_is_left_alone_whoever_moved_it(
    ago: float, found: Input
) -> None:
    nova = FakeNova(SERVER)
    nova.migrations = [Migration(4, "vm1", "compute0", "compute1", "completed", 5000.0 - ago)]
    steps = Steps(nova, FakeAgents(), TIMING, lambda: True, lambda: 5000.0)
    assert steps.take(Step.CHECK, record(state=State.ORDERED)).input is found


def test_a_deleted_server_ends_it_before_nova_is_asked() -> None:
    happened = stepper(FakeNova()).take(Step.CHECK, record(state=State.ORDERED))
    assert happened.input is Input.SERVER_GONE


def test_a_check_that_is_not_answered_is_made_again() -> None:
    nova = FakeNova(SERVER)
    nova.fail["server"] = exception.NovaUnreachable("503")
    steps = stepper(nova)
    assert steps.take(Step.CHECK, record(state=State.ORDERED)).input is None
    assert steps.take(Step.CHECK, record(state=State.ORDERED)).input is Input.CHECKED


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (exception.NovaRefused("409"), Input.REFUSED),
        (exception.ServerGone("404"), Input.SERVER_GONE),
        (exception.NovaUnreachable("timeout"), Input.UNANSWERED),
    ],
)
def test_what_nova_answers_to_the_request(error: exception.EnlightenedError, found: Input) -> None:
    nova = FakeNova(SERVER)
    nova.fail["live_migrate"] = error
    assert stepper(nova).take(Step.REQUEST, record(state=State.REQUESTING)).input is found


def test_who_does_not_lead_any_more_changes_nothing() -> None:
    nova, agents = FakeNova(SERVER), FakeAgents()
    steps = stepper(nova, agents, leads=False)
    assert steps.take(Step.ORDER, record()).input is None
    assert steps.take(Step.REQUEST, record(state=State.REQUESTING)).input is None
    assert not nova.requested
    assert not agents.asked


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ("accepted", Input.APPEARED),
        ("queued", Input.APPEARED),
        ("preparing", Input.APPEARED),
        ("running", Input.APPEARED),
        ("running (post-copy)", Input.POST_COPY_SEEN),
        ("completed", Input.COMPLETED),
        ("failed", Input.MIGRATION_FAILED),
        ("error", Input.MIGRATION_FAILED),
        ("cancelled", Input.MIGRATION_FAILED),
        ("dancing", None),
    ],
)
def test_novas_word_for_our_migration(status: str, found: Input | None) -> None:
    nova = FakeNova(SERVER)
    nova.migrations = [Migration(5, "vm1", "compute1", "compute2", status)]
    happened = stepper(nova).take(Step.LOOK, record(state=State.REQUESTED, after_migration=4))
    assert happened.input is found


def test_no_valid_host_is_told_as_such() -> None:
    nova = FakeNova(SERVER)
    nova.migrations = [Migration(5, "vm1", "compute1", "", "error")]
    happened = stepper(nova).take(Step.LOOK, record(state=State.REQUESTED))
    assert "before a destination was found" in happened.reason


def test_a_server_deleted_while_its_migration_hangs_is_noticed() -> None:
    nova = FakeNova()
    nova.migrations = [Migration(5, "vm1", "compute1", "compute2", "running")]
    steps = stepper(nova)
    found = [steps.take(Step.LOOK, record(state=State.MIGRATING), turn).input for turn in range(10)]
    assert found == [Input.APPEARED] * 9 + [Input.SERVER_GONE]


def test_a_look_that_is_not_answered_changes_nothing() -> None:
    nova = FakeNova(SERVER)
    nova.fail["migrations_of"] = exception.NovaUnreachable("503")
    assert stepper(nova).take(Step.LOOK, record(state=State.MIGRATING)).input is None


def test_an_order_that_cannot_be_withdrawn_runs_out_by_itself() -> None:
    agents = FakeAgents()
    agents.error = exception.AgentUnreachable("silence")
    happened = stepper(FakeNova(), agents).take(Step.WITHDRAW, record())
    assert happened.input is None
    assert "runs out by itself" in happened.reason


MIGRATIONS = [
    Migration(3, "vm1", "compute1", "compute2", "completed"),
    Migration(6, "vm1", "compute2", "compute1", "completed"),
    Migration(7, "vm1", "compute1", "compute3", "running"),
    Migration(8, "vm1", "compute1", "compute3", "running"),
]


def test_ours_is_the_first_from_its_host_after_those_that_were_there() -> None:
    assert our_migration(record(after_migration=3), MIGRATIONS) == MIGRATIONS[2]


def test_ours_once_known_is_no_other() -> None:
    assert our_migration(record(migration=8), MIGRATIONS) == MIGRATIONS[3]
    assert our_migration(record(migration=9), MIGRATIONS) is None


@pytest.mark.parametrize(
    ("state", "at", "found"),
    [
        (State.DECIDED, 161.0, Input.TIMED_OUT),
        (State.ORDERED, 161.0, Input.TIMED_OUT),
        (State.REQUESTING, 162.0, Input.UNANSWERED),
        (State.REQUESTED, 132.0, Input.TIMED_OUT),
        (State.REQUESTED, 130.0, None),
        (State.MIGRATING, 1001.0, Input.TIMED_OUT),
        (State.POST_COPY, 1001.0, Input.TIMED_OUT),
        (State.POST_COPY, 999.0, None),
    ],
)
def test_nothing_lasts_for_ever(state: State, at: float, found: Input | None) -> None:
    one = record(state=state, times={"decided": 100.0, "requested": 101.0})
    assert overdue(one, at, TIMING).input is found


def test_a_migration_that_never_appeared_is_given_up_with_its_reason() -> None:
    one = record(state=State.REQUESTED, reason="timeout", times={"requested": 101.0})
    happened = overdue(one, 132.0, TIMING)
    assert happened.reason == "the migration never appeared in Nova's list (timeout)"
    assert one.after(Input.TIMED_OUT, 132.0).state is State.GAVE_UP


def test_a_migration_may_appear_long_after_a_request_that_nova_kept_waiting() -> None:
    asked = record(state=State.REQUESTING, times={"decided": 100.0, "requested": 101.0})
    one = asked.after(Input.UNANSWERED, 121.0, "timeout")
    assert overdue(one, 150.0, TIMING).input is None
    assert overdue(one, 152.0, TIMING).input is Input.TIMED_OUT


def test_an_order_is_withdrawn_where_no_migration_took_it() -> None:
    assert to_withdraw(record(state=State.FAILED, urgent=True))
    assert not to_withdraw(record(state=State.FAILED, urgent=False))
    assert not to_withdraw(record(state=State.DONE, urgent=True, times={"completed": 1.0}))
    assert not to_withdraw(record(state=State.MIGRATING, urgent=True))


# --- any order of events --------------------------------------------------------------------


class Story:
    """An eviction in the hands of a process that may be killed at any moment.

    The journal is what was written; memory is what a living process knows besides.
    """

    def __init__(self) -> None:
        self.nova = FakeNova(SERVER)
        self.agents = FakeAgents()
        self.steps = stepper(self.nova, self.agents)
        self.journal = record()
        self.request_due = False
        self.now = 100.0

    def apply(self, happened: Happened) -> None:
        if happened.input is None:
            return
        before = self.journal
        self.journal = before.after(happened.input, self.now, happened.reason, **happened.changes)
        entered = before.state is not State.REQUESTING
        self.request_due = entered and self.journal.state is State.REQUESTING

    def act(self, what: str) -> None:
        if what == "step":
            if self.request_due:
                self.request_due = False
                self.apply(self.steps.take(Step.REQUEST, self.journal))
            elif (step := next_step(self.journal)) is not None:
                self.apply(self.steps.take(step, self.journal))
        elif what == "killed before it asks":
            self.restart()
        elif what == "killed while it asks":
            if self.request_due:
                self.steps.take(Step.REQUEST, self.journal)  # Nova has it; nobody heard
            self.restart()
        elif what == "time":
            self.now += 45.0
            self.apply(overdue(self.journal, self.now, TIMING))
        elif what == "lost answer":
            self.nova.lose_answer = True
        elif what in ("server", "migrations_of", "live_migrate"):
            self.nova.fail[what] = exception.NovaUnreachable("503")
        elif what == "deleted":
            self.nova.servers.clear()
        elif self.nova.migrations:
            self.nova.progress(what)

    def restart(self) -> None:
        self.request_due = False
        self.apply(found_at_start(self.journal))


ACTS = st.sampled_from(
    [
        "step", "step", "step", "killed before it asks", "killed while it asks", "time",
        "lost answer", "server", "migrations_of", "live_migrate", "deleted", "running",
        "running (post-copy)", "completed", "failed", "error", "cancelled", "dancing",
    ]
)  # fmt: skip


@given(st.lists(ACTS, max_size=40))
def test_no_order_of_events_makes_two_migrations_for_one_cause(acts: list[str]) -> None:
    story = Story()
    for what in acts:
        story.act(what)
        assert len(story.nova.requested) <= 1
        assert len(story.nova.migrations) <= 1


@given(st.lists(ACTS, max_size=40))
def test_every_order_of_events_ends(acts: list[str]) -> None:
    story = Story()
    for what in acts:
        story.act(what)
    for _ in range(40):
        story.act("step")
        story.act("time")
    assert story.journal.ended or story.journal.state is State.VERIFYING


@given(st.lists(st.sampled_from(list(Input)), max_size=30), st.booleans())
def test_no_order_of_inputs_enters_the_request_twice(inputs: list[Input], restart: bool) -> None:
    one: EvictionRecord = record()
    entered = 0
    for happened in inputs:
        after = one.after(happened, 100.0)
        entered += one.state is not State.REQUESTING and after.state is State.REQUESTING
        one = after
        if restart and one.state is State.REQUESTING:
            one = one.after(Input.UNANSWERED, 100.0)
    assert entered <= 1
