# SPDX-License-Identifier: Apache-2.0
import dataclasses
import math
import random

import pytest

from nova_enlightened.contention.detector import Detector, Thresholds
from nova_enlightened.contention.levels import Bounds, Holds
from nova_enlightened.contention.report import DomainSample, HostSample, Level
from nova_enlightened.exception import ConfigError
from tests.unit.contention.simulated_host import GIB, SimulatedHost, two_on_one_core

CALM, WARN, ACT = Level.CALM, Level.WARN, Level.ACT
BOTH = {"a": 1.0, "b": 1.0}
ONE = {"a": 1.0, "b": 0.0}


def memory_host(**host):
    """An idle host that has been sampled once."""
    simulated = SimulatedHost(4, {"a": 1})
    simulated.host |= {"memory_some": 0.0, "memory_full": 0.0, **host}
    simulated.detector.observe(simulated.sample())
    return simulated


def memory_levels(host, seconds, **a_second):
    """Levels while these counters grow so much a second."""
    levels = []
    for _ in range(seconds):
        for name, growth in a_second.items():
            host.host[name] += growth
        levels.append(host.second({}).memory_level)
    return levels


def test_the_first_sample_says_nothing():
    verdict = Detector().observe(SimulatedHost(1, {"a": 1}).sample())
    assert verdict.level is CALM
    assert verdict.reason == "first sample"
    assert verdict.domains[0].cpu == verdict.domains[0].waiting == 0.0


def test_guests_that_wait_for_each_other_warn_first_and_act_after_the_hold_time():
    assert two_on_one_core().seconds(4, BOTH) == [CALM, WARN, ACT, ACT]


@pytest.mark.parametrize("tenth", range(10))
def test_acts_within_four_seconds_of_a_rise_wherever_it_falls_between_samples(tenth):
    host = two_on_one_core()
    host.seconds(5, ONE)
    calm = tenth / 10
    host.cpu["a"] += calm
    host.busy += calm
    # The second in which load rises: calm first, both busy for the rest of it.
    host.cpu["a"] += (1 - calm) / 2
    host.cpu["b"] += (1 - calm) / 2
    host.delay["a"] += (1 - calm) / 2
    host.delay["b"] += (1 - calm) / 2
    host.busy += 1 - calm
    host.at += 1.0
    rose = host.at - (1 - calm)
    verdict = host.detector.observe(host.sample())
    while verdict.level < ACT:
        verdict = host.second(BOTH)
    assert host.at - rose <= 4.0


def test_what_each_domain_used_and_waited_for_is_told():
    host = two_on_one_core()
    domains = host.second(BOTH).domains
    assert [(one.uuid, round(one.cpu, 6), round(one.waiting, 6)) for one in domains] == [
        ("a", 0.5, 0.5),
        ("b", 0.5, 0.5),
    ]


def test_the_reason_gives_the_figures():
    host = two_on_one_core()
    host.seconds(3, BOTH)
    reason = host.second(BOTH).reason
    assert "CPU act: 1.00 of 1 in use, guests wait for 1.00 (50%" in reason
    assert "memory calm: 50% available" in reason


def test_a_busy_host_whose_guests_get_what_they_want_is_calm():
    host = SimulatedHost(4, {str(n): 1 for n in range(4)})
    assert set(host.seconds(600, {str(n): 1.0 for n in range(4)})) == {CALM}


def test_a_brief_spike_is_no_contention():
    host = two_on_one_core()
    host.seconds(5, ONE)
    assert host.seconds(1, BOTH) + host.seconds(20, ONE) == [CALM] * 21


def test_a_spike_of_two_seconds_does_not_act():
    host = two_on_one_core()
    host.seconds(5, ONE)
    assert ACT not in host.seconds(2, BOTH) + host.seconds(20, ONE)


@pytest.mark.parametrize("seed", range(5))
def test_steady_uneven_load_for_ten_minutes_never_acts(seed):
    """Just below capacity, very unevenly spread, with bursts of one sample now and then."""
    chance = random.Random(seed)
    names = [f"guest{number}" for number in range(12)]
    host = SimulatedHost(8, dict.fromkeys(names, 4))
    host.detector.observe(host.sample())
    parts = [chance.paretovariate(1.2) for _ in names]
    bursting = False
    for _ in range(600):
        noisy = [part * chance.uniform(0.9, 1.1) for part in parts]
        wanted = {
            name: min(4.0, 0.97 * 8 * part / sum(noisy))
            for name, part in zip(names, noisy, strict=True)
        }
        bursting = not bursting and chance.random() < 0.1
        if bursting:
            wanted[chance.choice(names)] = 4.0
        assert host.second(wanted).level < ACT


def test_contention_that_ends_is_left_after_the_hold_time():
    host = two_on_one_core()
    host.seconds(5, BOTH)
    levels = host.seconds(8, ONE)
    assert levels[:4] == [ACT] * 4
    assert levels[-1] is CALM


def test_waiting_between_the_bounds_keeps_the_level():
    host = SimulatedHost(10, {str(n): 10 for n in range(2)})
    host.seconds(5, {"0": 10.0, "1": 10.0})
    assert set(host.seconds(60, {"0": 6.2, "1": 6.2})) == {ACT}


def test_one_guest_that_waits_is_not_outvoted_by_many_that_do_not():
    names = {str(n): 1 for n in range(60)}
    host = SimulatedHost(64, {**names, "slow": 1})
    wanted = dict.fromkeys(names, 0.9)
    host.seconds(2, wanted)
    for _ in range(4):
        host.delay["slow"] += 0.5
        verdict = host.second({**wanted, "slow": 0.5})
    assert verdict.cpu_level is ACT
    assert "slow" in verdict.reason


def test_a_guest_that_loses_next_to_nothing_does_not_count_by_itself():
    host = SimulatedHost(64, {"busy": 32, "idle": 1})
    for _ in range(5):
        host.delay["idle"] += 0.05
        level = host.second({"busy": 32.0, "idle": 0.01}).level
    assert level is CALM


def test_a_nearly_idle_host_is_calm_though_its_guest_waits_for_half_of_the_little_it_wants():
    host = SimulatedHost(2, {"idle": 1, "other": 1})
    for _ in range(5):
        host.delay["idle"] += 0.05
        level = host.second({"idle": 0.05, "other": 0.0}).level
    assert level is CALM


def test_a_guest_that_waits_for_its_own_quota_is_not_hindered_by_others():
    host = SimulatedHost(8, {"a": 4, "b": 4})
    for number in range(5):
        sample = host.sample()
        bound = dataclasses.replace(
            sample.domains[0], cpu=number * 1.0, run_delay=number * 3.0, throttled=number * 3.0
        )
        verdict = host.detector.observe(
            dataclasses.replace(sample, domains=(bound, sample.domains[1]))
        )
        host.second({"b": 4.0})
        host.at += 1
    assert verdict.level is CALM


def test_a_guest_alone_on_its_host_loses_nothing_to_others():
    host = SimulatedHost(2, {"a": 8})
    verdict = [host.second({"a": 8.0}) for _ in range(5)][-1]
    assert verdict.level is CALM
    assert verdict.cpu_waiting == pytest.approx(0.0, abs=1e-6)


def test_psi_that_saw_nobody_wait_holds_back_the_act_level():
    host = two_on_one_core()
    host.host["cpu_some"] = 0.0
    host.second(BOTH)
    levels = host.seconds(5, BOTH)
    assert levels[-1] is WARN
    assert "PSI saw 0%" in host.second(BOTH).reason


def test_psi_alone_is_no_contention():
    host = two_on_one_core()
    host.host["cpu_some"] = 0.0
    for _ in range(5):
        host.host["cpu_some"] += 1.0
        level = host.second(ONE).level
    assert level is CALM


def test_a_domain_whose_counters_began_anew_is_left_out_of_one_interval():
    host = two_on_one_core()
    host.seconds(2, ONE)
    host.cpu["a"], host.delay["a"] = 0.0, 0.0
    again = host.second(ONE)
    assert again.domains[0].cpu == pytest.approx(0.0)
    assert host.second(ONE).domains[0].cpu == pytest.approx(1.0)


def test_a_domain_that_arrives_with_old_counters_has_used_nothing_yet():
    host = two_on_one_core()
    host.vcpus["c"], host.cpu["c"], host.delay["c"] = 1, 5000.0, 4000.0
    verdict = host.second(ONE)
    assert verdict.domains[2].cpu == verdict.domains[2].waiting == 0.0
    assert verdict.level is CALM


def test_contention_ends_when_the_other_domain_vanishes():
    host = two_on_one_core()
    host.seconds(4, BOTH)
    for counters in (host.vcpus, host.cpu, host.delay):
        del counters["b"]
    assert host.seconds(8, {"a": 1.0})[-1] is CALM


def test_a_host_without_domains_is_calm():
    host = SimulatedHost(1, {})
    assert host.seconds(3, {}) == [CALM] * 3


def test_a_thousand_domains():
    names = {f"{number:04d}": 2 for number in range(1000)}
    host = SimulatedHost(128, names)
    assert host.seconds(4, dict.fromkeys(names, 0.2))[-1] is ACT


def test_after_a_long_gap_nothing_is_known():
    host = two_on_one_core()
    host.seconds(4, BOTH)
    verdict = host.second(BOTH, seconds=11.0)
    assert verdict.level is CALM
    assert verdict.reason == "no sample for 11.0 s"
    assert host.seconds(3, BOTH) == [CALM, WARN, ACT]


def test_a_missing_sample_is_bridged():
    host = two_on_one_core()
    host.seconds(1, BOTH)
    assert host.second(BOTH, seconds=2.0).level is ACT


def test_a_sample_at_the_same_time_is_passed_over():
    host = two_on_one_core()
    before = host.second(BOTH)
    host.cpu["a"] += 100.0
    assert host.detector.observe(host.sample()) is before


def test_a_clock_that_goes_back_keeps_the_level_and_begins_anew():
    host = two_on_one_core()
    host.seconds(4, BOTH)
    host.at = 5.0
    verdict = host.detector.observe(host.sample())
    assert verdict.level is ACT
    assert "the clock went back" in verdict.reason
    assert host.second(BOTH).cpu_waiting == pytest.approx(1.0)


def test_a_time_that_is_no_number_begins_anew():
    host = two_on_one_core()
    host.seconds(4, BOTH)
    verdict = host.detector.observe(dataclasses.replace(host.sample(), at=math.nan))
    assert verdict.level is CALM
    assert host.second(BOTH).reason == "first sample"


def test_a_host_counter_that_began_anew_costs_no_verdict():
    host = two_on_one_core()
    host.second(BOTH)
    host.busy = 0.0
    assert host.second(BOTH).cpu_waiting == pytest.approx(1.0)


def test_stalls_while_memory_is_scarce_act():
    host = memory_host(memory_available=GIB)
    assert memory_levels(host, 4, memory_some=0.3) == [CALM, WARN, ACT, ACT]


def test_stalls_while_memory_is_ample_only_warn():
    assert memory_levels(memory_host(), 5, memory_some=0.9, memory_full=0.9)[-1] is WARN


def test_scarce_memory_alone_only_warns():
    host = memory_host(memory_available=GIB)
    assert memory_levels(host, 5)[-1] is WARN


def test_without_psi_swapping_in_acts():
    host = memory_host(memory_available=GIB, memory_some=None, memory_full=None)
    assert memory_levels(host, 5, swap_in=5000)[-1] is ACT


def test_a_little_swapping_is_no_contention():
    assert set(memory_levels(memory_host(memory_available=8 * GIB), 5, swap_in=20)) == {CALM}


def test_a_host_of_no_memory_and_no_cpu_is_calm():
    nothing = [HostSample(float(at), 0, 0.0, 0, 0) for at in range(5)]
    detector = Detector()
    assert {detector.observe(sample).level for sample in nothing} == {CALM}


def test_the_level_of_a_host_is_the_higher_of_its_resources():
    host = memory_host(memory_available=GIB)
    memory_levels(host, 4, memory_some=0.3)
    verdict = host.second({})
    assert (verdict.level, verdict.cpu_level) == (ACT, CALM)


def test_a_verdict_makes_the_report_of_its_host():
    host = two_on_one_core()
    verdict = host.second(BOTH)
    report = verdict.report(host.sample(), host="h", node="n", at=5.0, bandwidth=7, capable=True)
    assert (report.host, report.node, report.at, report.bandwidth) == ("h", "n", 5.0, 7)
    assert (report.cpus, report.cpu_used, report.cpu_waiting) == (1, 1.0, 1.0)
    assert report.domains == verdict.domains


def test_other_thresholds_are_obeyed():
    strict = Thresholds(cpu=Bounds(0.01, 0.02), cpu_least=0.01, holds=Holds(0.0, 0.0, 0.0))
    host = two_on_one_core(Detector(strict))
    assert host.second({"a": 0.53, "b": 0.5}).level is ACT


@pytest.mark.parametrize(
    "values", [{"cpu_least": -1.0}, {"cpu_stall": 2.0}, {"memory_scarce": math.nan}, {"gap": 0.0}]
)
def test_thresholds_out_of_range_are_refused_by_name(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        Thresholds(**values)


def test_a_domain_listed_twice_counts_once():
    host = two_on_one_core()
    twin = DomainSample("a", 1, 0.5, 0.5, GIB, GIB)
    host.at += 1
    sample = dataclasses.replace(host.sample(), domains=(twin, twin))
    assert len(host.detector.observe(sample).domains) == 1
