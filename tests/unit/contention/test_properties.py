# SPDX-License-Identifier: Apache-2.0
"""What holds for every input, however odd: found by Hypothesis, not by thought."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.contention.destinations import (
    MEMORY_MB,
    VCPU,
    Demand,
    DestinationLimits,
    Inventory,
    judge,
)
from nova_enlightened.contention.detector import Detector
from nova_enlightened.contention.evictions import (
    Action,
    Eviction,
    EvictionLimits,
    Heard,
    barred_hosts,
    decide,
)
from nova_enlightened.contention.report import (
    DomainReport,
    DomainSample,
    HostReport,
    HostSample,
    Level,
)
from nova_enlightened.contention.victims import (
    PriorityFirst,
    ReliefPerCost,
    Smallest,
    VictimLimits,
    VmFacts,
    choose,
)

MANY = settings(max_examples=150, deadline=None)
NOW = 10_000.0

counts = st.integers(-(2**63), 2**63 - 1)
figures = st.floats()  # not a number and the infinities among them
uuids = st.sampled_from(["a", "b", "c", "d"])
domain_samples = st.builds(
    DomainSample,
    uuid=uuids,
    vcpus=counts,
    cpu=figures,
    run_delay=figures,
    memory=counts,
    resident=counts,
    swapped=counts,
    throttled=figures,
)
host_samples = st.builds(
    HostSample,
    at=figures | st.floats(0, 20),
    cpus=counts,
    cpu_busy=figures,
    memory_total=counts,
    memory_available=counts,
    cpu_some=st.none() | figures,
    memory_some=st.none() | figures,
    memory_full=st.none() | figures,
    swap_in=counts,
    domains=st.lists(domain_samples, max_size=4).map(tuple),
)

shares = st.floats(0, 1)


@st.composite
def load(draw, waits=True):
    """What one host's guests do in a second: (seconds, per guest (used, waited))."""
    seconds = draw(st.floats(0.2, 9.0))
    waited = st.floats(0, 4) if waits else st.just(0.0)
    return seconds, draw(st.lists(st.tuples(st.floats(0, 4), waited), max_size=4))


def samples_of(loads):
    at, busy, counters = 0.0, 0.0, [(0.0, 0.0)] * 4
    yield HostSample(at, 8, busy, 1 << 26, 1 << 25)
    for seconds, guests in loads:
        at += seconds
        for number, (used, waited) in enumerate(guests):
            cpu, delay = counters[number]
            counters[number] = (cpu + used * seconds, delay + waited * seconds)
            busy += used * seconds
        domains = tuple(
            DomainSample(str(number), 4, *counters[number], 1 << 20, 1 << 20)
            for number in range(len(guests))
        )
        yield HostSample(at, 8, busy, 1 << 26, 1 << 25, domains=domains)


@MANY
@given(st.lists(host_samples, max_size=12))
def test_a_detector_never_raises_and_always_gives_a_sound_verdict(samples):
    detector = Detector()
    for sample in samples:
        verdict = detector.observe(sample)
        assert verdict.level == max(verdict.cpu_level, verdict.memory_level)
        assert 0 <= verdict.cpu_share <= 1
        assert verdict.reason
        assert {one.uuid for one in verdict.domains} <= {"a", "b", "c", "d"}
        for one in verdict.domains:
            assert 0 <= one.cpu <= max(0, sample.cpus)
            assert 0 <= one.waiting <= max(0, one.vcpus)


@MANY
@given(st.lists(load(waits=False), max_size=30))
def test_nobody_waits_nothing_to_act_on(loads):
    detector = Detector()
    assert {detector.observe(sample).level for sample in samples_of(loads)} == {Level.CALM}


@MANY
@given(st.lists(load(), max_size=30))
def test_act_takes_as_long_as_its_hold_time(loads):
    detector, calm_until = Detector(), 0.0
    hold = detector.thresholds.holds.act
    for sample in samples_of(loads):
        verdict = detector.observe(sample)
        if verdict.cpu_share < detector.thresholds.cpu.act:
            calm_until = sample.at
        if verdict.level < Level.ACT:
            continue
        assert sample.at - calm_until >= 0.9 * hold
        return


@MANY
@given(st.lists(load(), min_size=1, max_size=10))
def test_two_detectors_of_one_trace_agree(loads):
    first, second = Detector(), Detector()
    for sample in samples_of(loads):
        assert first.observe(sample) == second.observe(sample)


domain_reports = st.builds(
    DomainReport,
    uuid=st.uuids().map(str),
    vcpus=st.integers(0, 64),
    cpu=st.floats(0, 64),
    waiting=st.floats(0, 64),
    memory=st.integers(0, 2**40),
    resident=st.integers(0, 2**40),
    hot=st.none() | st.integers(0, 2**41),
)


@st.composite
def host_reports(draw, name):
    level, memory_level = draw(st.sampled_from(Level)), draw(st.sampled_from(Level))
    domains = draw(st.lists(domain_reports, max_size=5, unique_by=lambda one: one.uuid))
    return HostReport(
        host=name,
        node=name,
        at=0.0,
        level=max(level, memory_level),
        reason="drawn",
        cpu_level=level,
        memory_level=memory_level,
        cpus=draw(st.integers(0, 128)),
        cpu_used=draw(st.floats(0, 128)),
        cpu_waiting=draw(st.floats(0, 128)),
        memory_total=draw(st.integers(0, 2**40)),
        memory_available=draw(st.integers(0, 2**40)),
        bandwidth=draw(st.sampled_from([0, 10**6, 10**9])),
        capable=draw(st.booleans()),
        domains=tuple(domains),
    )


@st.composite
def facts_of(draw, report):
    made = [
        VmFacts(
            one.uuid,
            draw(st.integers(0, 100)),
            draw(st.sampled_from([None, None, "owner"])),
            draw(st.none() | st.floats(NOW - 2000, NOW + 10)),
            draw(st.booleans()),
        )
        for one in report.domains
        if draw(st.integers(0, 9))
    ]
    return {one.uuid: one for one in made}


@pytest.mark.parametrize("policy", [ReliefPerCost(), PriorityFirst(), Smallest()])
@MANY
@given(st.data())
def test_every_domain_is_a_candidate_or_excluded_whatever_the_order(policy, data):
    report = data.draw(host_reports("h"))
    facts = data.draw(facts_of(report))
    shuffled = dataclasses.replace(
        report, domains=tuple(data.draw(st.permutations(report.domains)))
    )
    choice = choose(report, facts, NOW, VictimLimits(), policy)
    named = Counter(one.uuid for one in (*choice.candidates, *choice.excluded))
    assert named == Counter(one.uuid for one in report.domains)
    again = choose(shuffled, facts, NOW, VictimLimits(), policy)
    assert again.candidates == choice.candidates
    for one in choice.candidates:
        assert facts[one.uuid].opted_out is None
        assert one.cost_s >= 0
        assert 0 <= one.relief_cpus <= report.cpu_waiting


HOSTS = [f"host{number}" for number in range(6)]


@st.composite
def fleets(draw):
    reports = [draw(host_reports(name)) for name in HOSTS[: draw(st.integers(0, 6))]]
    facts = {}
    for one in reports:
        facts |= draw(facts_of(one))
    domains = [(one.host, domain.uuid) for one in reports for domain in one.domains]
    some = st.sampled_from(domains) if domains else st.just((HOSTS[0], "gone"))
    running = [
        Eviction(uuid, host, draw(st.none() | st.sampled_from(HOSTS)), "c", NOW - 3)
        for host, uuid in draw(st.lists(some, max_size=4, unique=True))
    ]
    ago = st.floats(-10, 3000)
    history = [
        Eviction(uuid, draw(st.sampled_from(HOSTS)), host, "c", NOW - 5000, NOW - draw(ago))
        for host, uuid in draw(st.lists(some, max_size=4))
    ]
    heard = {one.host: Heard(one, NOW - draw(st.floats(0, 12))) for one in reports}
    return heard, facts, running, history


@MANY
@given(fleets(), st.integers(1, 2), st.integers(1, 4))
def test_no_round_of_decisions_passes_a_limit(fleet, per_host, at_once):
    heard, facts, running, history = fleet
    limits = EvictionLimits(per_host=per_host, total=at_once)
    made = decide(heard, facts, running, history, NOW, limits)
    ordered = [one for one in made if one.action is Action.EVICT]
    assert len(made) == len({one.host for one in made})
    assert not ordered or len(running) + len(ordered) <= at_once
    leaving = Counter(one.source for one in running)
    for one in ordered:
        (uuid,) = one.instances
        assert leaving[one.host] < per_host
        assert heard[one.host].report.level is Level.ACT
        assert uuid not in {other.uuid for other in running}
        assert facts[uuid].opted_out is None
        assert one.expected not in (None, one.host)
        assert one.expected not in barred_hosts(uuid, history, NOW, limits)
        ended = [past.latest for past in history if uuid == past.uuid or past.source == one.host]
        assert all(NOW - at >= limits.host_cooldown for at in ended)
        moved = [past.latest for past in history if uuid == past.uuid]
        assert all(NOW - at >= limits.victims.cooldown for at in moved)
    victims = [one.instances for one in ordered]
    assert len(set(victims)) == len(victims)


@MANY
@given(fleets())
def test_every_decision_has_a_reason_and_a_second_round_orders_nothing_for_the_same_cause(fleet):
    heard, facts, running, history = fleet
    made = decide(heard, facts, running, history, NOW, EvictionLimits())
    assert all(one.reason for one in made)
    begun = [
        Eviction(one.instances[0], one.host, one.expected, one.cause, NOW)
        for one in made
        if one.action is Action.EVICT
    ]
    again = decide(heard, facts, [*running, *begun], history, NOW + 0.5, EvictionLimits())
    hosts = {one.source for one in begun}
    assert not [one for one in again if one.action is Action.EVICT and one.host in hosts]


amounts = st.integers(0, 2**31)
inventories = st.builds(Inventory, amounts, amounts, st.floats(0, 32), amounts)


@MANY
@given(
    host_reports("h") | st.none(),
    figures,
    st.builds(Demand, amounts, amounts, st.none() | st.floats(0, 1e6)),
    st.dictionaries(st.sampled_from([VCPU, MEMORY_MB]), inventories),
)
def test_a_judgement_is_always_within_its_range(report, age, demand, held):
    fit = judge(report, age, demand, DestinationLimits(), held)
    assert -1.0 <= fit.score <= 1.0
    assert fit.reason
    assert fit.fits is None or fit.fits == (fit.score >= 0)
    assert fit.fits is not None or fit.score == 0
