# SPDX-License-Identifier: Apache-2.0
import pytest
from stevedore import ExtensionManager

from nova_enlightened.contention import victims
from nova_enlightened.contention.report import DomainReport, Level
from nova_enlightened.contention.victims import (
    PriorityFirst,
    ReliefPerCost,
    Resource,
    Smallest,
    VictimLimits,
    VmFacts,
    choose,
)
from nova_enlightened.exception import ConfigError
from tests.unit.contention.simulated_host import GIB, MIB, host_report

NOW = 10_000.0
POLICIES = [ReliefPerCost(), PriorityFirst(), Smallest()]


def domain(uuid, cpu=1.0, waiting=1.0, **values):
    return DomainReport(
        **{"uuid": uuid, "vcpus": 4, "cpu": cpu, "waiting": waiting, "memory": 4 * GIB, **values}
    )


def contended(*domains, **values):
    waiting = sum(one.waiting for one in domains)
    return host_report(level=Level.ACT, cpu_waiting=waiting, domains=domains, **values)


def chosen(report, policy=ReliefPerCost(), limits=VictimLimits(), ahead=False, **facts):  # noqa: B008
    known = {one.uuid: VmFacts(one.uuid) for one in report.domains} | facts
    return choose(report, known, NOW, limits, policy, ahead=ahead)


def order(choice):
    return [one.uuid for one in choice.candidates]


def test_most_relief_for_its_cost_leaves_first():
    small = domain("small", memory=1 * GIB)
    large = domain("large", memory=32 * GIB)
    assert order(chosen(contended(large, small))) == ["small", "large"]


def test_what_an_armed_guest_knows_to_be_hot_is_what_has_to_cross():
    guessed = domain("guessed", memory=8 * GIB)
    armed = domain("armed", memory=32 * GIB, hot=64 * MIB, armed=True)
    choice = chosen(contended(guessed, armed))
    assert order(choice) == ["armed", "guessed"]
    assert choice.candidates[0].cost_s == pytest.approx(2.0 + (64 << 20) / 1e9)


def test_relief_is_the_waiting_that_ends_and_never_more_than_there_is():
    busy = domain("busy", cpu=6.0, waiting=0.5)
    other = domain("other", cpu=1.0, waiting=0.5)
    relief = {one.uuid: one.relief_cpus for one in chosen(contended(busy, other)).candidates}
    assert relief == {"busy": 1.0, "other": 1.0}


def test_the_bandwidth_of_the_host_is_used_and_else_the_assumed_one():
    slow = chosen(contended(domain("a"), bandwidth=0)).candidates[0]
    fast = chosen(contended(domain("a"), bandwidth=10**10)).candidates[0]
    assert slow.cost_s > 10 > 3 > fast.cost_s


def test_short_of_memory_all_of_it_has_to_cross_and_only_what_is_missing_counts():
    report = host_report(
        level=Level.ACT,
        cpu_level=Level.CALM,
        memory_level=Level.ACT,
        memory_available=6 * GIB,
        domains=(domain("a", memory=4 * GIB, resident=2 * GIB), domain("b", memory=16 * GIB)),
    )
    choice = chosen(report)
    by_uuid = {one.uuid: one for one in choice.candidates}
    assert choice.resource is Resource.MEMORY
    assert by_uuid["a"].relief_memory == 2 * GIB
    assert by_uuid["b"].relief_memory == int(0.15 * 64 * GIB) - 6 * GIB
    assert by_uuid["a"].cost_s == pytest.approx(2.0 + (2 << 30) / 1e9)


def test_memory_goes_before_cpu_where_both_are_short():
    report = host_report(level=Level.ACT, cpu_level=Level.ACT, memory_level=Level.ACT)
    assert victims.short_of(report) is Resource.MEMORY


@pytest.mark.parametrize(
    "facts, reason",
    [
        ({"opted_out": "flavor says never"}, "opted out: flavor says never"),
        ({"locked": True}, "locked"),
        ({"task": "migrating"}, "busy: migrating"),
        ({"state": "paused"}, "not active: paused"),
        ({"last_moved": NOW - 599}, "cooling down: moved 599 s ago, left alone for 600 s"),
    ],
)
def test_who_may_not_leave_is_named_with_the_reason(facts, reason):
    choice = chosen(contended(domain("a"), domain("b")), a=VmFacts("a", **facts))
    assert order(choice) == ["b"]
    assert [(one.uuid, one.reason) for one in choice.excluded] == [("a", reason)]


def test_a_domain_that_nova_does_not_know_stays():
    report = contended(domain("a"))
    choice = choose(report, {}, NOW, VictimLimits(), ReliefPerCost())
    assert choice.excluded[0].reason == "unknown: not a VM of Nova"


def test_a_cool_down_ends():
    choice = chosen(contended(domain("a")), a=VmFacts("a", last_moved=NOW - 600))
    assert order(choice) == ["a"]


def test_a_move_in_the_future_of_this_clock_is_still_a_move():
    choice = chosen(contended(domain("a")), a=VmFacts("a", last_moved=NOW + 50))
    assert order(choice) == []


def test_relief_that_is_next_to_nothing_moves_nobody():
    choice = chosen(contended(domain("a", cpu=0.05, waiting=0.02)))
    assert choice.candidates == ()
    assert choice.reason == "none of its 1 VMs may leave: 1 not worth it"


def test_a_move_that_loses_more_work_than_it_gives_back_is_not_made():
    huge = domain("huge", cpu=16.0, waiting=0.0, memory=512 * GIB)
    waits = domain("waits", cpu=0.0, waiting=0.2, memory=512 * GIB)
    choice = chosen(contended(huge, waits), limits=VictimLimits(horizon=30.0))
    assert order(choice) == []


def test_freeing_memory_for_longer_than_it_may_count_on_is_not_worth_it():
    report = host_report(
        level=Level.ACT,
        memory_level=Level.ACT,
        memory_available=0,
        bandwidth=1_000_000,
        domains=(domain("a"),),
    )
    assert "takes" in chosen(report).excluded[0].reason


def test_to_arm_ahead_relief_need_not_be_worth_it_yet():
    report = host_report(level=Level.WARN, cpu_waiting=0.0, domains=(domain("a", 0.1, 0.0),))
    assert order(chosen(report)) == []
    assert order(chosen(report, ahead=True)) == ["a"]


def test_a_host_without_vms_has_nobody_to_leave():
    assert chosen(contended()).reason == "none of its 0 VMs may leave: it has none"


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_equals_leave_in_the_order_of_their_uuids(policy):
    names = ["d", "b", "a", "c"]
    assert order(chosen(contended(*map(domain, names)), policy)) == ["a", "b", "c", "d"]


def test_priority_makes_a_move_dearer():
    report = contended(domain("a"), domain("b"))
    assert order(chosen(report, a=VmFacts("a", priority=75))) == ["b", "a"]


def test_much_relief_outweighs_some_priority():
    report = contended(domain("large", cpu=3.0, waiting=1.0), domain("tiny", cpu=0.2, waiting=0.1))
    assert order(chosen(report, large=VmFacts("large", priority=60)))[0] == "large"


def test_priority_first_asks_for_nothing_but_priority():
    report = contended(domain("best", memory=MIB), domain("least", memory=64 * GIB))
    facts = {"best": VmFacts("best", priority=51)}
    assert order(chosen(report, PriorityFirst(), **facts)) == ["least", "best"]


def test_smallest_takes_the_least_memory():
    report = contended(domain("a", memory=2 * GIB), domain("b", memory=GIB))
    assert order(chosen(report, Smallest())) == ["b", "a"]


def test_the_policies_are_installed_under_their_names():
    found = ExtensionManager("nova_enlightened.victim_policies")
    if not found.names():
        pytest.skip("installed before these policies were")
    assert {one.name: one.plugin.name for one in found} == {
        policy.name: policy.name for policy in POLICIES
    }


@pytest.mark.parametrize(
    "values", [{"cooldown": -1.0}, {"bandwidth": 0}, {"hot_share": 1.5}, {"horizon": 0.0}]
)
def test_limits_out_of_range_are_refused_by_name(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        VictimLimits(**values)
