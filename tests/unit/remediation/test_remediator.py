# SPDX-License-Identifier: Apache-2.0
"""The loop from reports to relief, with everything around it faked and time passed in."""

import pathlib

import pytest

from nova_enlightened import exception
from nova_enlightened.contention.report import Level
from nova_enlightened.remediation.eviction_states import State
from tests.unit.remediation.fakes import states
from tests.unit.remediation.world import GUESTS, World


def test_a_contended_host_is_relieved_and_the_whole_is_written_down(world: World) -> None:
    world.go_until(Level.ACT, lambda: world.nova.requested)
    world.nova.progress("running (post-copy)")
    world.go(Level.ACT, 2)
    world.nova.progress("completed")
    world.go(Level.ACT, 2)
    world.go_until(Level.CALM, lambda: world.evictions[0].ended)
    (one,) = world.evictions
    assert one.state is State.DONE
    assert one.urgent
    assert one.destination == "compute2"
    assert one.predicted_relief == pytest.approx(1.2)
    assert one.measured_relief == pytest.approx(1.2)
    assert one.measured_cost is not None
    order = ["detected", "decided", "ordered", "requested", "accepted", "post_copy", "completed"]
    passed = [one.times[milestone] for milestone in [*order, "relieved", "ended"]]
    assert passed == sorted(passed)
    assert world.voice.events == ["eviction.decided", "eviction.started", "eviction.completed"]
    assert len(world.nova.requested) == 1


def test_it_is_ordered_within_seconds(world: World) -> None:
    world.go(Level.WARN, 3)
    began = world.now
    world.go_until(Level.ACT, lambda: world.nova.requested)
    assert world.now - began <= 4.0


def test_every_change_is_shared_with_the_other_instances(world: World) -> None:
    world.go_until(Level.ACT, lambda: world.nova.requested)
    world.nova.progress("completed")
    world.go(Level.CALM, 10)
    assert states(world.voice.shared)[:4] == [
        State.DECIDED, State.ORDERED, State.REQUESTING, State.REQUESTED,
    ]  # fmt: skip
    assert world.voice.shared[-1].state is State.DONE


def test_a_host_is_left_alone_while_one_leaves_and_cools_down(world: World) -> None:
    world.go_until(Level.ACT, lambda: world.nova.requested)
    world.go(Level.ACT, 15)
    assert len(world.nova.requested) == 1
    world.nova.progress("completed")
    world.go(Level.ACT, 20)
    assert len(world.nova.requested) == 1
    world.go(Level.ACT, 10)
    assert len(world.nova.requested) == 2
    assert len(set(world.nova.requested)) == 2


def test_audit_says_what_it_would_do_and_does_nothing(tmp_path: pathlib.Path) -> None:
    world = World(tmp_path, acts=False)
    world.go(Level.WARN, 5)
    world.go(Level.ACT, 30)
    world.go(Level.CALM, 5)
    assert not world.agents.asked
    assert not world.nova.requested
    assert set(world.voice.events) == {"eviction.proposed"}
    assert world.evictions[0].state is State.PROPOSED
    # As if it had moved: not again each second.
    assert len(world.evictions) <= 2
    world.journal.close()


def test_what_audit_proposed_holds_nothing_back_once_it_may_act(tmp_path: pathlib.Path) -> None:
    world = World(tmp_path, acts=False)
    world.go_until(Level.ACT, lambda: world.evictions)
    world.acts = True
    world.restart()
    world.go(Level.ACT, 10)
    assert len(world.nova.requested) == 1
    world.journal.close()


def test_guests_are_armed_at_warn_renewed_and_disarmed_when_calm(world: World) -> None:
    world.go(Level.WARN, 130)
    armed = [asked for asked in world.agents.asked if asked[0] == "arm"]
    assert len(armed) == 3
    assert set(armed[0][2]) == set(GUESTS)
    world.go(Level.CALM, 2)
    assert world.agents.asked[-1] == ("disarm", "compute1", GUESTS)


def test_an_agent_that_does_not_answer_is_not_asked_to_arm_each_second(world: World) -> None:
    world.agents.error = exception.AgentUnreachable("silence")
    world.go(Level.WARN, 10)
    assert len(world.agents.asked) == 1
    world.agents.error = None
    world.go(Level.WARN, 10)
    assert len(world.agents.asked) == 2


def test_without_an_agent_the_eviction_goes_the_stock_way(world: World) -> None:
    world.agents.error = exception.AgentUnreachable("silence")
    world.go_until(Level.ACT, lambda: world.nova.requested)
    world.nova.progress("completed")
    world.go_until(Level.CALM, lambda: world.evictions[0].ended)
    assert world.evictions[0].urgent is False
    assert "stock" in world.evictions[0].reason


def test_with_the_api_down_nothing_is_decided_and_all_goes_on_when_it_is_back(
    world: World,
) -> None:
    down = exception.NovaUnreachable("503")
    for _ in range(20):
        world.nova.fail = {"servers_on": down, "migrations_since": down}
        world.go(Level.ACT)
    assert not world.evictions
    world.nova.fail = {}
    world.go(Level.ACT, 12)
    assert len(world.nova.requested) == 1


def test_a_request_whose_answer_is_lost_is_not_made_again(world: World) -> None:
    world.nova.lose_answer = True
    world.go_until(Level.ACT, lambda: world.nova.requested)
    world.nova.progress("completed")
    world.go_until(Level.CALM, lambda: world.evictions[0].ended)
    assert world.evictions[0].state is State.DONE
    assert len(world.nova.requested) == 1


def test_a_request_that_nova_never_heard_is_given_up_and_its_order_withdrawn(
    world: World,
) -> None:
    world.nova.fail["live_migrate"] = exception.NovaUnreachable("timeout")
    world.go_until(Level.ACT, lambda: world.nova.requested)
    world.go(Level.CALM, 40)
    assert world.evictions[0].state is State.GAVE_UP
    assert "never appeared" in world.evictions[0].reason
    assert world.voice.events[-1] == "eviction.failed"
    assert ("withdraw", "compute1", world.nova.requested[0]) in world.agents.asked


def test_a_server_deleted_while_it_leaves_ends_its_eviction(world: World) -> None:
    world.go_until(Level.ACT, lambda: world.nova.requested)
    world.nova.progress("running")
    del world.nova.servers[world.nova.requested[0]]
    world.go(Level.CALM, 20)
    assert world.evictions[0].state is State.FAILED
    assert "not found" in world.evictions[0].reason


def test_no_valid_host_cools_the_host_and_the_server_down(world: World) -> None:
    world.go_until(Level.ACT, lambda: world.nova.requested)
    world.nova.progress("error", destination="")
    world.go(Level.ACT, 15)
    assert world.evictions[0].state is State.FAILED
    assert len(world.nova.requested) == 1
    world.go(Level.ACT, 15)
    assert len(set(world.nova.requested)) == 2


def test_a_host_that_falls_silent_is_no_reason_to_act(world: World) -> None:
    world.go(Level.WARN, 3)
    world.reports.held = []
    for _ in range(30):
        world.now += 1.0
        world.remediator.tick()
    assert not world.evictions


def test_a_host_that_falls_silent_after_its_server_left_is_not_waited_for(world: World) -> None:
    world.go_until(Level.ACT, lambda: world.nova.requested)
    world.nova.progress("completed")
    world.go(Level.ACT)
    world.reports.held = []
    for _ in range(40):
        world.now += 1.0
        world.remediator.tick()
    assert world.evictions[0].state is State.DONE
    assert world.evictions[0].measured_relief is None


def test_relief_that_did_not_come_is_measured_too(world: World) -> None:
    world.go_until(Level.ACT, lambda: world.nova.requested)
    first = world.evictions[0].eviction
    world.nova.progress("completed")
    world.go(Level.ACT, 40)
    (one,) = [one for one in world.evictions if one.eviction == first]
    assert one.state is State.DONE
    assert one.measured_relief == pytest.approx(0.0)
    assert "not relieved" in one.reason


def test_relief_is_no_longer_measured_once_another_server_leaves(world: World) -> None:
    world.go_until(Level.ACT, lambda: world.nova.requested)
    first = world.evictions[0].eviction
    world.nova.progress("completed")
    world.go_until(Level.ACT, lambda: len(world.nova.requested) == 2)
    world.nova.progress("running (post-copy)")
    world.go(Level.CALM, 10)
    (one,) = [one for one in world.evictions if one.eviction == first]
    assert one.measured_relief == pytest.approx(0.0)


def test_metrics_tell_how_evictions_ended(world: World) -> None:
    world.go_until(Level.ACT, lambda: world.nova.requested)
    world.nova.progress("completed")
    world.go_until(Level.CALM, lambda: world.evictions[0].ended)
    sample = world.metrics.registry.get_sample_value
    prefix = "nova_enlightened_remediator"
    assert sample(f"{prefix}_evictions_total", {"outcome": "done"}) == 1
    assert sample(f"{prefix}_leads") == 1
    assert sample(f"{prefix}_relief_cpus_total", {"how": "measured"}) == pytest.approx(1.2)
