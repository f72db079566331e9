# SPDX-License-Identifier: Apache-2.0
"""The model, and what it says of policies on small guests."""

import dataclasses

import numpy as np
import pytest

from nova_enlightened.exception import PlanError
from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.guest_pages import PlacedProcess
from nova_enlightened.plan.fault_trace import ENTRY, FaultTrace
from nova_enlightened.plan.injector import Injector
from nova_enlightened.plan.policies import Heat, Process, Stock
from nova_enlightened.plan.simulator import Accesses, Link, Simulation
from nova_enlightened.plan.synthetic import KINDS, GuestShape, make_guest

SMALL = GuestShape(
    total=64, kernel=8, file=8, process=28, hot=6, freed=12, kernel_pages=40, seconds=3.0
)
LINK = Link(in_flight=64 * 1024)
PASS_THROUGH = dataclasses.replace(LINK, resequence=False)


def guest_of(kind, seed=3):
    return make_guest(dataclasses.replace(SMALL, kind=kind), np.random.default_rng(seed))


def replay(guest, policy, known="own", link=LINK, seconds=2.5):
    known = guest.known if known == "own" else known
    injector = Injector(policy.plan(known, guest.space), guest.space)
    dirty = np.ones(guest.space.pages, bool)
    return Simulation(injector, guest.accesses, link, dirty, guest.zero).run(seconds)


def limit(guest):
    return np.count_nonzero(guest.known.heat >= 48) * 4096 / LINK.bandwidth


def assert_all_sent(outcome):
    assert outcome.statistics.remaining == 0
    assert outcome.statistics.outstanding == 0
    assert outcome.finished is not None


@pytest.mark.parametrize("link", [LINK, PASS_THROUGH], ids=["resequenced", "passed through"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_page_crosses(kind, link):
    assert_all_sent(replay(guest_of(kind), Heat(), link=link))


def test_scattered_hot_pages_cross_near_the_limit_of_the_link():
    guest = guest_of("scattered")
    ours, stock = replay(guest, Heat()), replay(guest, Stock())
    assert ours.recovered < 3 * limit(guest)
    assert stock.recovered > 3 * ours.recovered
    assert ours.blocked < stock.blocked / 3


def test_contiguous_hot_pages_cross_as_fast_as_in_stock_order():
    guest = guest_of("contiguous")
    assert replay(guest, Heat()).recovered <= 1.1 * replay(guest, Stock()).recovered


def test_less_work_is_lost_under_a_zipf_load():
    guest = guest_of("zipf")
    ours, stock = replay(guest, Heat()), replay(guest, Stock())
    assert ours.blocked < stock.blocked
    assert ours.blocked <= 1.1 * replay(guest, Process()).blocked


def lies(guest, rng):
    """Hints that are wrong in every way a guest may choose."""
    pages = guest.space.pages
    known = guest.known
    yield (
        "random heat",
        dataclasses.replace(known, heat=rng.integers(0, 256, pages).astype(np.uint8)),
    )
    yield "inverted heat", dataclasses.replace(known, heat=255 - known.heat)
    yield "all hot", dataclasses.replace(known, heat=np.full(pages, 255, np.uint8))
    yield (
        "all page tables",
        dataclasses.replace(known, classes=np.full(pages, PageClass.PAGE_TABLE, np.uint8)),
    )
    yield (
        "all free",
        dataclasses.replace(
            known, classes=np.full(pages, PageClass.FREE, np.uint8), heat=np.zeros(pages, np.uint8)
        ),
    )
    shuffled = PlacedProcess("lie", 99.0, True, rng.integers(-9, 2 * pages, 2 * pages))
    yield "made-up process", dataclasses.replace(known, processes=(shuffled,))


@pytest.mark.parametrize("number", range(6))
def test_a_lie_costs_time_and_loses_nothing(number):
    guest = guest_of("scattered")
    name, known = list(lies(guest, np.random.default_rng(1)))[number]
    honest = replay(guest, Stock(), seconds=4)
    lied = replay(guest, Heat(), known, seconds=4)
    assert_all_sent(lied)
    assert lied.finished <= 1.15 * honest.finished, name
    assert lied.blocked <= 1.15 * honest.blocked, name


def test_knowing_nothing_is_stock():
    guest = guest_of("scattered")
    blind, stock = replay(guest, Heat(), None), replay(guest, Stock())
    assert blind.statistics.injected == 0
    assert (blind.recovered, blind.blocked) == (stock.recovered, stock.blocked)


def test_the_same_seed_makes_the_same_replay():
    first, second = (replay(guest_of("zipf", 9), Heat()) for _ in range(2))
    assert (first.recovered, first.blocked) == (second.recovered, second.blocked)


def test_a_faster_link_recovers_sooner():
    guest = guest_of("scattered")
    fast = dataclasses.replace(LINK, bandwidth=500e6)
    assert replay(guest, Heat(), link=fast).recovered < replay(guest, Heat()).recovered / 2


def test_pages_that_had_crossed_before_switchover_are_there():
    guest = guest_of("scattered")
    injector = Injector(Heat().plan(guest.known, guest.space), guest.space)
    nothing = np.zeros(guest.space.pages, bool)
    outcome = Simulation(injector, guest.accesses, LINK, nothing, guest.zero).run(1.0)
    assert outcome.faults == 0
    assert outcome.recovered == 0.0


def test_a_recorded_trace_is_replayed_without_its_waiting():
    entries = np.array([(0.1, 5, 0.02, 0), (0.2, 6, 0.03, 0), (0.3, 7, np.nan, 0)], ENTRY)
    trace = FaultTrace((("pc.ram", 4096 * 100),), "stock", 50e6, entries)
    accesses = Accesses.from_trace(trace)
    assert accesses.at.tolist() == pytest.approx([0.1, 0.18, 0.25])
    dirty = np.ones(100, bool)
    injector = Injector(Stock().plan(None, trace.space), trace.space)
    outcome = Simulation(injector, accesses, LINK, dirty, ~dirty).run(1.0)
    assert_all_sent(outcome)


def test_an_unknown_kind_of_guest_is_refused():
    with pytest.raises(PlanError):
        GuestShape(kind="imaginary")


def test_a_guest_larger_than_its_memory_is_refused():
    with pytest.raises(PlanError):
        GuestShape(total=100, process=99)
