# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from nova_enlightened.contention.destinations import VCPU, Demand, Inventory
from nova_enlightened.contention.evictions import (
    Action,
    Eviction,
    EvictionLimits,
    Heard,
    barred_hosts,
    decide,
    total,
)
from nova_enlightened.contention.report import DomainReport, Level
from nova_enlightened.contention.victims import VmFacts
from nova_enlightened.exception import ConfigError
from tests.unit.contention.simulated_host import GIB, host_report

NOW = 50_000.0
LIMITS = EvictionLimits()


def guests(host, count=3, memory=4 * GIB, waiting=0.5):
    return tuple(
        DomainReport(f"{host}-{number}", 2, 1.0, waiting, memory) for number in range(count)
    )


def contended(name, level=Level.ACT, waiting=1.5, **values):
    values.setdefault("domains", guests(name))
    return host_report(name, level=level, cpu_used=8.0, cpu_waiting=waiting, **values)


def heard(*reports, at=NOW):
    return {one.host: Heard(one, at) for one in reports}


def facts_of(reports):
    return {
        one.uuid: VmFacts(one.uuid) for heard in reports.values() for one in heard.report.domains
    }


def decided(reports, running=(), history=(), now=NOW, limits=LIMITS, facts=None):
    known = facts_of(reports) if facts is None else facts
    return decide(reports, known, running, history, now, limits)


def past(uuid="gone", source="hot", ago=100.0, destination="cool", **values):
    return Eviction(uuid, source, destination, "c", NOW - ago - 5, NOW - ago, **values)


def running(uuid="leaving", source="hot", destination=None, **values):
    return Eviction(uuid, source, destination, "c", NOW - 5, **values)


def test_a_contended_host_evicts_one_vm_with_what_is_predicted():
    (one,) = decided(heard(contended("hot"), host_report("cool")))
    assert (one.action, one.host, one.instances) == (Action.EVICT, "hot", ("hot-0",))
    assert one.expected == "cool"
    assert one.cause == f"hot/cpu/{NOW:.3f}"
    assert one.candidate.relief_cpus == 1.5
    assert "hot-0 by relief-per-cost: relieves 1.50 CPUs" in one.reason


def test_calm_hosts_get_no_decision():
    assert decided(heard(host_report("a"), host_report("b"))) == []


def test_no_hosts_no_decisions():
    assert decided({}) == []


def test_a_warned_host_arms_those_likeliest_to_leave():
    host = contended("warm", Level.WARN, domains=guests("warm", 9))
    (one,) = decided(heard(host, host_report("cool")))
    assert one.action is Action.ARM
    assert one.instances == tuple(f"warm-{number}" for number in range(4))


def test_a_host_that_cannot_evict_in_order_arms_nobody():
    host = contended("warm", Level.WARN, capable=False)
    (one,) = decided(heard(host, host_report("cool")))
    assert (one.action, one.instances) == (Action.NOTHING, ())


def test_an_old_report_leads_to_nothing():
    reports = heard(contended("hot"), at=NOW - 10.1) | heard(host_report("cool"))
    assert decided(reports) == []


def test_one_leaves_a_host_at_a_time_and_the_others_are_left_alone_meanwhile():
    reports = heard(contended("hot"), host_report("cool"))
    (one,) = decided(reports, [running("hot-0")])
    assert one.action is Action.NOTHING
    assert one.reason == "1 leaving it already, of 1"


def test_a_host_cools_down_after_an_eviction():
    reports = heard(contended("hot"), host_report("cool"))
    assert decided(reports, history=[past(ago=19.0)])[0].action is Action.ARM
    assert decided(reports, history=[past(ago=20.0)])[0].action is Action.EVICT


def test_an_eviction_that_failed_cools_its_host_and_its_vm_down_too():
    reports = heard(contended("hot"), host_report("cool"))
    failed = past("hot-0", ago=19.0, moved=False)
    assert decided(reports, history=[failed])[0].action is Action.ARM
    failed = past("hot-0", ago=30.0, moved=False)
    assert decided(reports, history=[failed])[0].instances == ("hot-1",)


def test_no_more_at_once_than_the_limit_the_worst_hosts_first():
    hosts = [contended(f"hot{number}", waiting=1.0 + number / 10) for number in range(6)]
    cool = [host_report(f"cool{number}") for number in range(6)]
    made = decided(heard(*hosts, *cool), limits=EvictionLimits(total=2))
    assert [one.host for one in made if one.action is Action.EVICT] == ["hot5", "hot4"]
    assert {one.reason for one in made[2:]} == {"2 evictions running, of 2"}


def test_those_running_elsewhere_count_too():
    reports = heard(contended("hot"), host_report("cool"))
    others = [running(f"vm{number}", f"host{number}") for number in range(8)]
    assert decided(reports, others)[0].reason == "8 evictions running, of 8"


def test_no_more_towards_one_host_than_the_limit():
    hosts = [contended(f"hot{number}") for number in range(4)]
    made = decided(heard(*hosts, host_report("cool", cpus=64)))
    assert [one.action for one in made].count(Action.EVICT) == 2
    assert made[-1].reason == "no host can take any of 3 VMs that may leave"


def test_what_is_on_its_way_to_a_host_fills_it():
    reports = heard(contended("hot"), host_report("cool"))
    arriving = running("x", "elsewhere", "cool", demand=Demand(8, GIB, 6.0))
    assert decided(reports, [arriving])[0].action is Action.NOTHING


def test_with_nowhere_to_go_nobody_leaves():
    (one,) = decided(heard(contended("hot"), host_report("full", cpu_used=7.5)))
    assert (one.action, one.expected) == (Action.NOTHING, None)
    assert "no host can take any" in one.reason


def test_placement_counts_for_where_to_go():
    full = Heard(host_report("full"), NOW, {VCPU: Inventory(total=8, used=8)})
    assert decided(heard(contended("hot")) | {"full": full})[0].action is Action.NOTHING


def test_a_host_of_unknown_state_will_do_where_no_other_is_known_to_fit():
    silent = Heard(host_report("silent"), NOW - 60)
    (one,) = decided(heard(contended("hot")) | {"silent": silent})
    assert one.expected == "silent"
    (one,) = decided(heard(contended("hot"), host_report("cool", cpu_used=3)) | {"silent": silent})
    assert one.expected == "cool"


def test_the_next_best_leaves_where_the_best_fits_nowhere():
    large = DomainReport("large", 8, 6.0, 1.0, 4 * GIB)
    small = DomainReport("small", 2, 0.5, 0.5, 4 * GIB)
    host = contended("hot", domains=(large, small))
    (one,) = decided(heard(host, host_report("cool", cpu_used=4.0)))
    assert one.instances == ("small",)


def test_a_vm_that_moved_within_its_cool_down_stays():
    reports = heard(contended("hot"), host_report("cool"))
    (one,) = decided(reports, history=[past("hot-0", "elsewhere", 599.0)])
    assert one.instances == ("hot-1",)
    assert one.excluded[0].reason.startswith("cooling down")


def test_a_vm_does_not_go_back_where_it_left():
    limits = dataclasses.replace(LIMITS, return_after=1800.0)
    reports = heard(contended("hot", domains=guests("hot", 1)), host_report("old"))
    left = past("hot-0", "old", ago=700.0)
    assert decided(reports, history=[left], limits=limits)[0].action is Action.NOTHING
    assert barred_hosts("hot-0", [left], NOW, limits) == {"old"}
    assert barred_hosts("hot-0", [left], NOW + 1100, limits) == frozenset()
    assert barred_hosts("other", [left], NOW, limits) == frozenset()


def test_a_failed_move_bars_no_host():
    assert barred_hosts("a", [past("a", moved=False)], NOW, LIMITS) == frozenset()


def test_where_all_have_opted_out_nothing_is_done_and_said_why():
    reports = heard(contended("hot"), host_report("cool"))
    facts = {uuid: VmFacts(uuid, opted_out="owner") for uuid in facts_of(reports)}
    (one,) = decided(reports, facts=facts)
    assert one.action is Action.NOTHING
    assert one.reason == "none of its 3 VMs may leave: 3 opted out"


def test_a_vm_under_way_is_not_chosen_again_from_where_it_still_is():
    reports = heard(contended("hot"), host_report("cool"))
    limits = EvictionLimits(per_host=2)
    (one,) = decided(reports, [running("hot-0")], limits=limits)
    assert one.instances == ("hot-1",)


def test_the_same_round_twice_decides_the_same():
    hosts = [contended(f"hot{number}") for number in range(5)]
    cool = [host_report(f"cool{number}") for number in range(5)]
    forward = decided(heard(*hosts, *cool))
    assert decided(heard(*reversed(cool), *reversed(hosts))) == forward


def test_a_clock_that_was_set_back_extends_a_cool_down_and_ends_nothing():
    reports = heard(contended("hot"), host_report("cool"))
    assert decided(reports, history=[past(ago=-50.0)])[0].action is Action.ARM


def test_demands_add_up():
    assert total([Demand(1, 2, 0.5), Demand(3, 4)]) == Demand(4, 6, 0.5)


@pytest.mark.parametrize(
    "values", [{"per_host": 0}, {"total": 0}, {"host_cooldown": -1.0}, {"report_age": 0.0}]
)
def test_limits_out_of_range_are_refused_by_name(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        EvictionLimits(**values)
