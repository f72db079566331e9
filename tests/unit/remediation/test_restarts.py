# SPDX-License-Identifier: Apache-2.0
"""Restarts, other instances, full disks: what survives them, and what is never done twice."""

import pytest

from nova_enlightened import exception
from nova_enlightened.contention.report import Level
from nova_enlightened.remediation.eviction import Happened
from nova_enlightened.remediation.eviction_states import Input, State
from nova_enlightened.remediation.record import EvictionRecord
from tests.unit.remediation.fakes import record
from tests.unit.remediation.world import World


@pytest.mark.parametrize("status", ["accepted", "running", "running (post-copy)", "completed"])
def test_a_restart_goes_on_where_it_was(world: World, status: str) -> None:
    world.go_until(Level.ACT, lambda: world.nova.requested)
    world.nova.progress(status)
    world.restart()
    world.go(Level.ACT, 3)
    if status != "completed":
        world.nova.progress("completed")
    world.go_until(Level.CALM, lambda: world.evictions[0].ended)
    assert [one.state for one in world.evictions] == [State.DONE]
    assert len(world.nova.requested) == 1


def test_a_restart_between_writing_and_asking_does_not_ask(world: World) -> None:
    world.go(Level.ACT)
    world.journal.keep(record(state=State.REQUESTING, revision=9, urgent=True,
                              times={"decided": world.now, "requested": world.now}))  # fmt: skip
    world.restart()
    world.go(Level.CALM, 40)
    assert world.nova.requested == []
    assert world.evictions[-1].state is State.GAVE_UP


def test_a_restart_before_that_goes_on_to_ask(world: World) -> None:
    world.journal.keep(record(state=State.DECIDED, times={"decided": world.now}))
    world.go(Level.CALM, 5)
    assert world.nova.requested == ["vm1"]


def test_an_old_decision_is_not_carried_out_after_a_long_outage(world: World) -> None:
    world.journal.keep(record(state=State.DECIDED, times={"decided": world.now - 3600}))
    world.go(Level.CALM, 3)
    assert world.nova.requested == []
    assert world.evictions[0].state is State.FAILED


def test_who_does_not_lead_does_nothing(world: World) -> None:
    world.leads = False
    world.go(Level.ACT, 20)
    assert not world.nova.calls
    assert not world.agents.asked
    assert not world.evictions


def test_the_lead_lost_between_deciding_and_asking_asks_nothing(world: World) -> None:
    world.jobs.hold = True
    world.go(Level.ACT, 2)
    world.leads = False
    world.jobs.hold = False
    world.go(Level.ACT, 10)
    assert not world.nova.requested


def test_a_follower_writes_down_what_the_leader_shares(world: World) -> None:
    world.leads = False
    world.remediator.hear_peer(record(state=State.MIGRATING, revision=4))
    world.remediator.hear_peer(record(state=State.DECIDED, revision=0))
    world.go(Level.CALM)
    assert world.evictions == [record(state=State.MIGRATING, revision=4)]


def test_a_new_leader_goes_on_from_what_was_shared(world: World) -> None:
    world.leads = False
    world.nova.begin("vm1")
    world.remediator.hear_peer(
        record(state=State.REQUESTED, revision=4, times={"decided": 999.0, "requested": 1000.0})
    )
    world.go(Level.ACT)
    world.leads = True
    world.go(Level.ACT, 5)
    world.nova.progress("completed")
    world.go_until(Level.CALM, lambda: world.evictions[0].ended)
    assert world.evictions[0].state is State.DONE
    assert not world.nova.requested


def test_a_new_leader_that_heard_nothing_finds_it_in_nova(world: World) -> None:
    world.nova.begin("vm1")
    world.nova.progress("running")
    world.go(Level.ACT, 15)
    assert not world.nova.requested, "one from this host is under way"
    world.nova.progress("completed")
    world.go(Level.ACT, 10)
    assert not world.nova.requested, "it has just left: the host cools down"
    world.go(Level.ACT, 25)
    assert world.nova.requested == ["vm2"]


def test_a_server_that_an_operator_has_just_moved_is_left_alone(world: World) -> None:
    world.nova.begin("vm1")
    world.nova.progress("completed", destination="compute1")
    world.go(Level.ACT, 40)
    assert world.nova.requested == ["vm2"]


def test_without_the_journal_nothing_is_evicted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.go(Level.WARN, 3)

    def full(one: EvictionRecord) -> bool:
        raise exception.JournalError("disk full")

    monkeypatch.setattr(world.journal, "keep", full)
    world.go(Level.ACT, 20)
    assert not world.nova.requested
    assert "eviction.decided" not in world.voice.events


def test_a_disk_that_fills_up_before_the_request_keeps_it_from_being_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = world.journal.keep

    def full(one: EvictionRecord) -> bool:
        if one.state is State.REQUESTING:
            raise exception.JournalError("disk full")
        return keep(one)

    monkeypatch.setattr(world.journal, "keep", full)
    world.go(Level.ACT, 10)
    assert not world.nova.requested
    assert world.evictions[0].state is State.FAILED
    assert "disk full" in world.evictions[0].reason


def test_an_outcome_that_time_has_passed_by_changes_nothing(world: World) -> None:
    world.go_until(Level.ACT, lambda: world.nova.requested)
    world.go(Level.ACT, 2)
    (one,) = world.evictions
    late = Happened(Input.CHECKED, changes={"after_migration": 0})
    world.jobs.done.append((("check", one.eviction), (late, None)))
    world.go(Level.ACT)
    assert world.evictions[0].state is State.MIGRATING
    assert len(world.nova.requested) == 1


def test_who_cannot_read_the_journal_does_not_lead(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[EvictionRecord]:
        raise exception.JournalError("input/output error")

    monkeypatch.setattr(world.journal, "unfinished", broken)
    with pytest.raises(exception.JournalError):
        world.go(Level.ACT)
    assert not world.nova.calls


def test_what_another_instance_has_gone_on_with_is_not_requested(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = world.journal.keep

    def overtaken(one: EvictionRecord) -> bool:
        return one.state is not State.REQUESTING and keep(one)

    monkeypatch.setattr(world.journal, "keep", overtaken)
    world.go(Level.ACT, 10)
    assert not world.nova.requested
    assert "another instance" in world.evictions[0].reason
