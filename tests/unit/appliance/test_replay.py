# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from nova_enlightened.appliance import synthetic
from nova_enlightened.appliance.chunks import ZERO
from nova_enlightened.appliance.manifest import Object
from nova_enlightened.appliance.places import ApplianceSpace
from nova_enlightened.appliance.playback import Playback
from nova_enlightened.appliance.prefetch import make
from nova_enlightened.appliance.prefetch_order import Tail
from nova_enlightened.appliance.replay import (
    START_AT_ONCE,
    START_BUFFERED,
    START_COMPLETE,
    Replay,
    StoreLink,
)
from nova_enlightened.appliance.synthetic import ApplianceShape, make_appliance
from nova_enlightened.appliance.trace import Trace, merge
from nova_enlightened.exception import ApplianceError
from nova_enlightened.knowledge.space import PageSpace

PLACES = 1000
SPACE = ApplianceSpace(PageSpace([("pc.ram", PLACES * 4096)]))
BASE = synthetic.index_of((np.arange(PLACES),), (4,), np.full(PLACES, 1000.0), missing=ZERO)
LINK = StoreLink(bandwidth=1e6, rtt=0.1, service=0.0)


def run_of(touches, duration=10.0):
    times = np.array([at * 1e6 for at, _ in touches], np.uint64)
    places = np.array([place for _, place in touches], np.uint32)
    return Trace("00" * 32, PLACES, int(duration * 1e6), True, times, places)


def replay(touches, *, start=START_AT_ONCE, tail=Tail.NONE, seconds=20.0, link=LINK):
    playback = Playback(SPACE, [BASE], tail=tail)
    return Replay(playback, run_of(touches), link, start).run(seconds)


def test_a_fault_costs_a_round_trip_and_its_bytes():
    outcome = replay([(1.0, 5)])
    assert outcome.faults == 1
    assert outcome.stall == pytest.approx(0.1 + 4000 / 1e6 + LINK.fault_cost, abs=1e-4)
    assert outcome.fetched_bytes == 4000


def test_what_came_with_another_place_costs_nothing():
    assert replay([(1.0, 4), (2.0, 5), (3.0, 7)]).faults == 1


def test_the_guests_clock_stands_while_it_waits():
    outcome = replay([(1.0, 0), (1.0, 100), (1.0, 200)])
    assert outcome.faults == 3
    assert outcome.stall == pytest.approx(3 * (0.104 + LINK.fault_cost), abs=1e-3)


def test_the_whole_image_first_takes_as_long_as_its_bytes():
    outcome = replay([(0.5, 5)], start=START_COMPLETE, tail=Tail.LINEAR)
    assert outcome.started == outcome.complete
    assert outcome.complete == pytest.approx(1.0 + 0.1, abs=0.1)
    assert outcome.faults == 0
    assert outcome.recovered == pytest.approx(outcome.started, abs=0.2)


def test_a_guest_that_is_never_started_never_recovers():
    outcome = replay([(0.5, 5)], start=START_COMPLETE, tail=Tail.NONE)
    assert outcome.started is None
    assert outcome.recovered is None


def test_a_slow_store_is_slow():
    fast = replay([(0.0, n * 8) for n in range(50)])
    slow = replay([(0.0, n * 8) for n in range(50)], link=StoreLink(1e6, 0.1, service=0.05))
    assert slow.stall == pytest.approx(fast.stall + 50 * 0.05, rel=0.05)


def planned(appliance, runs):
    made = make(merge(runs), appliance.space)
    layer = synthetic.index_of((made.order,), (16,), synthetic.sizes_of(appliance.base))
    packs = tuple(Object(name, 64 << 20) for name in layer.packs)
    plan = made.with_layer(Object("ab" * 32, 1000), layer, packs)
    return Playback(appliance.space, [layer, appliance.base], plan)


APPLIANCE = make_appliance(
    ApplianceShape(memory=128, disk=64, used=18, seconds=12), 4, np.random.default_rng(5)
)
SLOW = StoreLink(bandwidth=2.5e6, rtt=0.03)


def test_a_plan_of_other_runs_beats_the_order_of_the_image_by_far():
    linear = Replay(Playback(APPLIANCE.space, [APPLIANCE.base]), APPLIANCE.runs[3], SLOW).run(90)
    plan = Replay(planned(APPLIANCE, APPLIANCE.runs[:3]), APPLIANCE.runs[3], SLOW).run(90)
    assert plan.stall < linear.stall / 3
    assert plan.recovered is not None
    assert linear.recovered is None or plan.recovered < linear.recovered / 2


def test_more_runs_make_a_better_plan():
    one, three = (
        Replay(planned(APPLIANCE, APPLIANCE.runs[:n]), APPLIANCE.runs[3], SLOW).run(60)
        for n in (1, 3)
    )
    assert three.stall < one.stall


def test_a_buffer_before_the_start_leaves_little_to_wait_for_after_it():
    run = APPLIANCE.runs[0]
    at_once, buffered = (
        Replay(planned(APPLIANCE, [run]), run, SLOW, start).run(60)
        for start in (START_AT_ONCE, START_BUFFERED)
    )
    assert buffered.started > 0.1
    assert buffered.stall < at_once.stall / 4


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_made_up_runs_of_an_appliance_are_alike_but_not_the_same(kind):
    shape = ApplianceShape(kind=kind, memory=128, disk=64, used=18, seconds=12)
    appliance = make_appliance(shape, 2, np.random.default_rng(1))
    one, other = (set(run.places.tolist()) for run in appliance.runs)
    assert 0.6 < len(one & other) / len(one) < 0.98
    assert not appliance.base.zero[list(one)].any()


def test_the_same_seed_makes_the_same_appliance():
    shape = ApplianceShape(memory=64, disk=0, used=8)
    one, other = (make_appliance(shape, 1, np.random.default_rng(3)) for _ in range(2))
    assert (one.base.length == other.base.length).all()
    assert (one.runs[0].places == other.runs[0].places).all()


@pytest.mark.parametrize("fields", [{"kind": "imaginary"}, {"used": 0}, {"used": 10_000}])
def test_refuses_an_appliance_that_cannot_be(fields):
    with pytest.raises(ApplianceError):
        ApplianceShape(**fields)


def test_an_index_made_up_has_the_sizes_it_was_given():
    sizes = np.array([100.0, 0.0, 200.0, 300.0, 400.0])
    index = synthetic.index_of((np.array([4, 2, 1, 0]),), (2,), sizes)
    assert index.length.tolist() == [600, 100]
    assert index.zero.tolist() == [False, True, False, False, False]
    assert index.chunk_of[[4, 2, 0]].tolist() == [0, 0, 1]
    assert synthetic.sizes_of(index).tolist() == [100, 0, 300, 0, 300]
