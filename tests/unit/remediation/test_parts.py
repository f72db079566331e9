# SPDX-License-Identifier: Apache-2.0
"""The small parts: what is asked ahead, who is armed, what others migrate, what is decided from."""

import dataclasses
import threading

import pytest

from nova_enlightened import exception
from nova_enlightened.contention.evictions import Action, Decision, EvictionLimits
from nova_enlightened.contention.report import Level
from nova_enlightened.contention.victims import ReliefPerCost
from nova_enlightened.remediation import decisions, takeover
from nova_enlightened.remediation.arming import AGAIN_S, Arming
from nova_enlightened.remediation.eviction_states import State
from nova_enlightened.remediation.fleet_view import FleetView
from nova_enlightened.remediation.jobs import Jobs
from nova_enlightened.remediation.servers import Migration, Server, moment
from tests.unit.remediation.fakes import record, report

SERVER = Server("vm1", "web", "compute1", "active")


# --- what the API said ----------------------------------------------------------------------


def test_a_host_is_asked_for_once_until_the_answer_comes() -> None:
    view = FleetView(5.0)
    assert view.to_ask(["b", "a"], 100.0) == ["a", "b"]
    assert view.to_ask(["b", "a"], 200.0) == []
    view.answered("a", [SERVER], 200.0)
    assert view.to_ask(["b", "a"], 204.0) == []
    assert view.to_ask(["b", "a"], 205.0) == ["a"]


def test_an_answer_is_used_while_the_next_is_awaited_but_not_for_ever() -> None:
    view = FleetView(5.0)
    view.to_ask(["a"], 100.0)
    assert not view.knows("a", 100.0)
    view.answered("a", [SERVER], 100.0)
    view.to_ask(["a"], 106.0)
    assert view.facts(106.0)["vm1"].state == "active"
    assert view.knows("a", 130.0)
    assert not view.knows("a", 131.0)
    assert view.facts(131.0) == {}


def test_an_api_that_does_not_answer_is_asked_again_in_a_while() -> None:
    view = FleetView(5.0)
    view.to_ask(["a"], 100.0)
    view.unanswered("a", 120.0)
    assert view.to_ask(["a"], 124.0) == []
    assert view.to_ask(["a"], 125.0) == ["a"]


def test_hosts_that_are_calm_again_are_forgotten() -> None:
    view = FleetView(5.0)
    view.to_ask(["a"], 100.0)
    view.to_ask([], 101.0)
    view.answered("a", [SERVER], 102.0)
    assert not view.knows("a", 102.0)


# --- who is armed ---------------------------------------------------------------------------

ARM = Decision(Action.ARM, "compute1", "warned", ("vm1", "vm2"))


def test_guests_are_armed_once_and_again_before_their_lease_ends() -> None:
    arming = Arming(60.0)
    assert arming.to_arm([ARM], 100.0) == {"compute1": ["vm1", "vm2"]}
    assert arming.to_arm([ARM], 159.0) == {}
    assert arming.to_arm([ARM], 160.0) == {"compute1": ["vm1", "vm2"]}
    assert arming.armed == 2


def test_only_a_guest_that_is_new_is_armed_beside_those_that_are() -> None:
    arming = Arming(60.0)
    arming.to_arm([ARM], 100.0)
    more = dataclasses.replace(ARM, instances=("vm1", "vm3"))
    assert arming.to_arm([more], 101.0) == {"compute1": ["vm3"]}


def test_who_stays_where_one_leaves_is_disarmed() -> None:
    arming = Arming(60.0)
    arming.to_arm([ARM], 100.0)
    acts = [report("compute1", 101.0, Level.ACT)]
    assert arming.to_disarm(acts, {"compute1": {"vm1"}}) == {"compute1": ["vm2"]}
    assert arming.to_disarm(acts, {"compute1": {"vm1"}}) == {}
    assert arming.armed == 1


def test_who_leaves_is_armed_if_it_was_not() -> None:
    arming = Arming(60.0)
    evict = dataclasses.replace(ARM, action=Action.EVICT, instances=("vm1",))
    assert arming.to_arm([evict], 100.0) == {"compute1": ["vm1"]}


def test_guests_of_a_host_that_is_calm_are_disarmed_once() -> None:
    arming = Arming(60.0)
    arming.to_arm([ARM], 100.0)
    assert arming.to_disarm([report("compute1", 101.0, Level.WARN)], {}) == {}
    assert arming.to_disarm([report("compute1", 102.0)], {}) == {"compute1": ["vm1", "vm2"]}
    assert arming.to_disarm([report("compute1", 103.0)], {}) == {}


def test_an_agent_that_failed_is_left_in_peace_for_a_while() -> None:
    arming = Arming(60.0)
    arming.to_arm([ARM], 100.0)
    arming.failed("compute1", 100.0)
    assert arming.to_arm([ARM], 100.0 + AGAIN_S - 1) == {}
    assert arming.to_arm([ARM], 100.0 + AGAIN_S) == {"compute1": ["vm1", "vm2"]}


# --- what others migrate ----------------------------------------------------------------------

RUNNING = Migration(7, "vm1", "compute1", "compute2", "running")
AT = 1795348800.0
COMPLETED = Migration(8, "vm2", "compute1", "compute2", "completed", AT)


def test_a_migration_under_way_is_adopted_and_counts() -> None:
    (one,) = takeover.adopted([RUNNING], [], 100.0)
    assert (one.state, one.migration, one.adopted) == (State.MIGRATING, 7, True)
    assert decisions.past_of(one).ended_at is None


def test_one_that_has_completed_cools_down_from_when_it_did() -> None:
    (one,) = takeover.adopted([COMPLETED], [], AT + 50)
    assert one.state is State.DONE
    assert decisions.past_of(one).ended_at == AT


@pytest.mark.parametrize(
    ("written", "at"),
    [
        ("2026-11-22T12:00:00.000000", AT),
        ("2026-11-22T12:00:00", AT),
        ("2026-11-22T12:00:00Z", AT),
        ("2026-11-22T14:00:00+02:00", AT),
        ("yesterday", None),
        ("", None),
        (None, None),
        (3, None),
    ],
)
def test_a_moment_is_read_as_nova_writes_it(written: object, at: float | None) -> None:
    assert moment(written) == at


def test_a_moment_that_is_not_said_or_lies_ahead_is_taken_as_now() -> None:
    odd = dataclasses.replace(COMPLETED, updated=None)
    assert takeover.adopted([odd], [], 100.0)[0].at("ended") == 100.0
    assert takeover.adopted([COMPLETED], [], 100.0)[0].at("ended") == 100.0


def test_one_that_failed_is_no_reason_for_anything() -> None:
    assert takeover.adopted([dataclasses.replace(RUNNING, status="error")], [], 100.0) == []


def test_our_own_are_not_adopted() -> None:
    followed = record(state=State.MIGRATING, migration=7)
    awaited = record(state=State.REQUESTED, after_migration=6)
    assert takeover.adopted([RUNNING], [followed], 100.0) == []
    assert takeover.adopted([RUNNING], [awaited], 100.0) == []


def test_the_same_migration_is_the_same_record_at_every_look_and_in_every_process() -> None:
    (one,) = takeover.adopted([RUNNING], [], 100.0)
    (again,) = takeover.adopted([RUNNING], [], 200.0)
    assert one.eviction == again.eviction
    assert takeover.adopted([RUNNING], [one], 100.0) == []


def test_nova_is_asked_for_changes_a_little_earlier_than_needed() -> None:
    assert takeover.changes_since(AT) == "2026-11-22T11:59:00Z"


# --- what is decided from ---------------------------------------------------------------------


def test_nothing_is_decided_about_a_contended_host_whose_servers_are_not_known() -> None:
    reports = [report("compute1", 100.0, Level.ACT, ("vm1",)), report("compute2", 100.0)]
    facts = {"vm1": SERVER.facts()}
    limits, policy = EvictionLimits(), ReliefPerCost()
    assert decisions.decide(reports, facts, {}, [], 100.0, limits, policy) == []
    (one,) = decisions.decide(reports, facts, {"compute1": True}, [], 100.0, limits, policy)
    assert one.action is Action.EVICT


def test_a_server_that_has_left_runs_no_more_while_relief_is_awaited() -> None:
    verifying = record(state=State.VERIFYING, times={"decided": 100.0, "completed": 110.0})
    past = decisions.past_of(verifying)
    assert past.ended_at == 110.0
    assert past.moved


def test_one_that_failed_cools_down_but_bars_no_host() -> None:
    past = decisions.past_of(record(state=State.FAILED, times={"decided": 100.0, "ended": 105.0}))
    assert past.ended_at == 105.0
    assert not past.moved


def test_a_policy_that_is_not_installed_is_refused() -> None:
    assert decisions.load_policy("smallest").name == "smallest"
    with pytest.raises(exception.ConfigError, match="victim_policy = dice"):
        decisions.load_policy("dice")


def test_relief_of_memory_is_what_is_available_again() -> None:
    short = record(resource="memory", before=1000.0)
    found = dataclasses.replace(report("compute1", 100.0), memory_available=5000)
    assert decisions.relief(short, found) == (True, 4000.0)


# --- calls that take long ---------------------------------------------------------------------


def test_a_call_under_way_is_not_made_twice() -> None:
    wake, gate = threading.Event(), threading.Event()
    jobs = Jobs(2, wake)
    assert jobs.submit(("look", "e1"), lambda: gate.wait(10))
    assert not jobs.submit(("look", "e1"), lambda: None)
    assert jobs.finished() == []
    gate.set()
    assert wake.wait(10)
    assert jobs.finished() == [(("look", "e1"), (True, None))]
    assert jobs.submit(("look", "e1"), lambda: None)
    jobs.stop()


def test_what_was_forgotten_does_not_come_back() -> None:
    wake, gate, made = threading.Event(), threading.Event(), []
    jobs = Jobs(1, wake)
    jobs.submit(("look", "e1"), lambda: gate.wait(10))
    jobs.submit(("request", "e1"), lambda: made.append("request"))
    jobs.forget()
    gate.set()
    jobs.submit(("order", "e2"), lambda: "ordered")
    while not (done := jobs.finished()):
        assert wake.wait(10)
        wake.clear()
    assert done == [(("order", "e2"), ("ordered", None))]
    assert made == [], "it had not begun"
    jobs.stop()
