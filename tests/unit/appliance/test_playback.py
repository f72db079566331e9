# SPDX-License-Identifier: Apache-2.0
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.appliance import synthetic
from nova_enlightened.appliance.building import LayerBuilder
from nova_enlightened.appliance.chunks import ABSENT, UNIT, ZERO
from nova_enlightened.appliance.fetch_window import LEAST_FETCH, START
from nova_enlightened.appliance.manifest import Object
from nova_enlightened.appliance.places import ApplianceSpace
from nova_enlightened.appliance.playback import Playback
from nova_enlightened.appliance.prefetch import PrefetchPlan
from nova_enlightened.appliance.prefetch_order import Tail
from nova_enlightened.exception import ApplianceError, ChunkIndexError
from nova_enlightened.knowledge.space import PageSpace
from tests.unit.appliance.appliances import Stored, random_contents

PLACES = 400
MEMORY = 300
SPACE = ApplianceSpace(PageSpace([("pc.ram", MEMORY * UNIT)]), (("vda", 100 * UNIT),))
OBJECT = Object("ab" * 32, 1 << 20)

PLAIN = {place: place + 1 for place in range(PLACES)}
"""No unit is zero, none is there twice: chunk n holds the places 4n to 4n + 3."""
BASE = Stored(PLACES, PLAIN).index
ORDER = list(range(200, 0, -2))
"""Every second of the places up to 200, backwards."""
LAYER = Stored(PLACES, {place: PLAIN[place] for place in ORDER}, group=5, missing=ABSENT).index


def plan_of(order=ORDER, clusters=(0,), wanted_ms=None, stored_bytes=LAYER.stored_bytes):
    order = np.array(order, np.uint32)
    wanted = np.zeros(order.size) if wanted_ms is None else wanted_ms
    return PrefetchPlan(
        "ab" * 32,
        PLACES,
        3,
        order,
        np.array(wanted, np.uint32),
        np.array(clusters if order.size else (), np.uint32),
        stored_bytes,
        OBJECT,
        (OBJECT,),
    )


def planned(**options):
    return Playback(SPACE, [LAYER, BASE], plan_of(**options))


class Clock:
    """A time that goes on by a millisecond at each look."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 0.001
        return self.now


def drain(playback, clock=None):
    """Ask and answer at once until nothing is left. :returns: the fetches."""
    clock = clock or Clock()
    fetches = []
    while (fetch := playback.next(clock())) is not None:
        fetches.append(fetch)
        playback.arrived(fetch, clock())
    return fetches


def places_in(index, fetch):
    return np.flatnonzero(np.isin(index.chunk_of, fetch.chunks)).tolist()


# -- what comes first -----------------------------------------------------------------------------


def test_a_zero_place_is_here_from_the_start_and_never_fetched():
    playback = Playback(SPACE, [Stored(PLACES, dict.fromkeys(range(PLACES), 0) | {7: 1}).index])
    assert np.flatnonzero(~playback.present).tolist() == [7]
    assert not playback.fault(8)
    assert len(drain(playback)) == 1


def test_what_a_guest_waits_for_comes_first():
    playback = planned()
    assert playback.fault(301)
    fetch = playback.next(0.0)
    assert fetch.urgent
    assert places_in(BASE, fetch) == [300, 301, 302, 303]


def test_what_is_on_its_way_already_is_told_so_that_it_can_overtake():
    playback = planned()
    ahead = [playback.next(0.0) for _ in range(2)]
    for fetch in ahead:
        place = places_in(LAYER, fetch)[-1]
        assert playback.fault(place)
        assert playback.under_way(place) is fetch
    assert playback.under_way(301) is None


def test_then_its_cluster_then_the_plan_then_the_rest_front_to_back():
    playback = planned(clusters=(0, 50, 60))
    playback.fault(ORDER[55])
    clock = Clock()
    demanded, cluster, first = (playback.next(clock()) for _ in range(3))
    assert demanded.urgent
    assert sorted(places_in(LAYER, demanded)) == sorted(ORDER[55:60])
    assert not cluster.urgent
    assert sorted(places_in(LAYER, cluster)) == sorted(ORDER[50:55])
    assert ORDER[0] in places_in(LAYER, first)
    for fetch in (demanded, cluster, first):
        playback.arrived(fetch, clock())
    fetches = drain(playback, clock)
    layers = [fetch.layer for fetch in fetches]
    assert layers == sorted(layers)
    assert [fetch.offset for fetch in fetches if fetch.layer == 1] == sorted(
        fetch.offset for fetch in fetches if fetch.layer == 1
    )


def test_the_plan_is_fetched_in_its_order():
    playback = planned()
    fetched = [place for fetch in drain(playback) if fetch.layer == 0 for place in fetch.chunks]
    assert fetched == sorted(fetched)
    assert len(fetched) == LAYER.chunks


def test_a_plan_without_a_layer_orders_the_base():
    playback = Playback(SPACE, [BASE], plan_of([399, 0, 200]))
    clock = Clock()
    fetched = [places_in(BASE, playback.next(clock())) for _ in range(3)]
    assert fetched[0] == [396, 397, 398, 399]
    assert fetched[1] == [0, 1, 2, 3]
    assert fetched[2] == [200, 201, 202, 203]


def test_the_tail_leaves_out_what_the_plan_brought():
    # 40 to 43 are all in the plan's layer.
    order = [40, 41, 42, 43]
    layer = Stored(PLACES, {place: PLAIN[place] for place in order}, missing=ABSENT).index
    fetches = drain(Playback(SPACE, [layer, BASE], plan_of(order)))
    assert all(40 not in places_in(BASE, fetch) for fetch in fetches if fetch.layer == 1)


def test_without_a_tail_nothing_is_fetched_that_is_in_no_plan():
    playback = Playback(SPACE, [LAYER, BASE], plan_of(), tail=Tail.NONE)
    drain(playback)
    assert np.flatnonzero(playback.present).tolist() == sorted(ORDER)


def test_the_plan_comes_before_any_tail():
    playback, clock = planned(), Clock()
    playback.fault(301)
    fetches = drain(playback, clock)
    layers = [fetch.layer for fetch in fetches if not fetch.urgent]
    assert layers == sorted(layers)


def test_a_learning_run_fetches_what_is_demanded_and_nothing_else():
    playback = Playback(SPACE, [BASE], tail=Tail.NONE)
    assert playback.next(0.0) is None
    playback.fault(17)
    assert places_in(BASE, playback.next(0.0)) == [16, 17, 18, 19]
    assert playback.next(0.0) is None


def test_demands_side_by_side_are_one_fetch():
    playback = Playback(SPACE, [BASE])
    assert playback.faults(range(16, 40)) == 24
    assert places_in(BASE, playback.next(0.0)) == list(range(16, 40))


def test_a_connection_kept_for_demands_gets_nothing_else():
    playback = planned()
    assert playback.next(0.0, urgent_only=True) is None
    playback.fault(5)
    assert playback.next(0.0, urgent_only=True).urgent


# -- the window -----------------------------------------------------------------------------------


def noise():
    """A base layer that does not compress."""
    builder = LayerBuilder(PLACES)
    raw = np.random.default_rng(1).integers(0, 256, PLACES * UNIT, np.uint8).tobytes()
    builder.add(range(PLACES), raw)
    return builder.finish(ZERO)


NOISE = noise()


def fill(playback, now=0.0):
    fetches = []
    while (fetch := playback.next(now)) is not None:
        fetches.append(fetch)
    return fetches


def test_many_fetches_are_under_way_at_once_until_the_window_is_full():
    playback = Playback(SPACE, [NOISE])
    fetches = fill(playback)
    assert len(fetches) >= START // (2 * LEAST_FETCH)
    assert START <= playback.outstanding < 2 * START
    assert playback.progress().outstanding == sum(fetch.length for fetch in fetches)


def test_what_a_guest_waits_for_passes_a_full_window():
    playback = Playback(SPACE, [NOISE])
    fill(playback)
    playback.fault(PLACES - 1)
    assert playback.next(0.0).urgent


def test_prefetching_goes_on_while_a_guest_waits():
    playback = Playback(SPACE, [NOISE])
    playback.fault(PLACES - 1)
    assert playback.next(0.0).urgent
    assert not playback.next(0.0).urgent


def test_the_window_grows_where_the_link_takes_more():
    playback = Playback(SPACE, [NOISE])
    before = playback.progress().window
    for step in range(1, 4):
        for fetch in fill(playback, step * 0.1):
            playback.arrived(fetch, step * 0.1 + 0.01)
    assert playback.progress().window > before


def test_what_came_from_the_cache_teaches_nothing_of_the_store():
    playback = Playback(SPACE, [NOISE])
    for fetch in fill(playback, 0.0):
        playback.arrived(fetch, 0.05)
    learnt = playback.progress()
    for number in range(3):
        playback.arrived(playback.next(1.0 + number), 1.0001 + number, cached=True)
    fetch = playback.next(5.0)
    playback.arrived(playback.next(5.0), 5.2)
    now = playback.progress()
    assert (now.rtt, now.bandwidth) == (learnt.rtt, learnt.bandwidth)
    assert now.outstanding == fetch.length


def test_a_host_with_everything_in_its_cache_is_not_held_back_by_the_store():
    playback = Playback(SPACE, [NOISE])
    playback.arrived(playback.next(0.0), 2.0)
    slow = playback.progress().bandwidth
    for number in range(3):
        playback.arrived(playback.next(2.0), 2.001 + number / 1000, cached=True)
    assert playback.progress().bandwidth > 10 * slow


# -- never twice ----------------------------------------------------------------------------------


def test_what_is_under_way_is_not_demanded_again():
    playback = Playback(SPACE, [BASE])
    fetch = playback.next(0.0)
    assert playback.fault(places_in(BASE, fetch)[0])
    assert playback.next(0.0, urgent_only=True) is None


def test_a_place_under_way_in_another_layer_is_not_demanded_again():
    playback = planned()
    playback.fault(1)  # in the base layer; its chunk brings 2 as well, which the plan has
    assert 2 in places_in(BASE, playback.next(0.0))
    assert playback.fault(2)
    assert playback.next(0.0, urgent_only=True) is None


def test_a_place_demanded_twice_is_asked_for_once():
    playback = Playback(SPACE, [BASE], tail=Tail.NONE)
    playback.fault(5)
    playback.fault(5)
    assert playback.next(0.0) is not None
    assert playback.next(0.0) is None
    assert playback.progress().faults == 2


def test_what_is_here_is_not_waited_for():
    playback = Playback(SPACE, [BASE])
    drain(playback)
    assert not playback.fault(5)
    assert playback.complete


# -- what arrived ---------------------------------------------------------------------------------


def test_tells_the_places_that_are_newly_here():
    playback = planned()
    playback.fault(1)
    assert playback.arrived(playback.next(0.0), 0.1).tolist() == [0, 1, 2, 3]
    layer = next(f for f in iter(lambda: playback.next(0.1), None) if 2 in places_in(LAYER, f))
    assert 2 not in playback.arrived(layer, 0.2)


def test_a_unit_that_several_places_share_arrives_at_all_of_them():
    index = Stored(PLACES, dict.fromkeys(range(PLACES), 1)).index
    playback = Playback(SPACE, [index])
    playback.fault(9)
    assert playback.arrived(playback.next(0.0), 0.1).size == PLACES
    assert playback.complete


def test_knows_when_memory_is_complete_and_when_all_is():
    playback = Playback(SPACE, [NOISE])
    clock = Clock()
    while not playback.memory_complete:
        assert not playback.present[:MEMORY].all()
        playback.arrived(playback.next(clock()), clock())
    assert playback.present[:MEMORY].all()
    assert not playback.complete
    drain(playback, clock)
    assert playback.complete
    progress = playback.progress()
    assert progress.present == progress.places == PLACES
    assert progress.memory_present == progress.memory == MEMORY
    assert progress.fetched_bytes == progress.stored_bytes == NOISE.stored_bytes


# -- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", [-1, PLACES])
def test_refuses_a_place_outside(place):
    with pytest.raises(ApplianceError):
        planned().fault(place)


def test_refuses_a_last_layer_that_leaves_places_out():
    with pytest.raises(ChunkIndexError):
        Playback(SPACE, [BASE, LAYER])


def test_refuses_layers_of_another_appliance():
    with pytest.raises(ApplianceError):
        Playback(ApplianceSpace(PageSpace([("pc.ram", UNIT)])), [BASE])


def test_refuses_no_layers():
    with pytest.raises(ApplianceError):
        Playback(SPACE, [])


# -- whatever happens -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.booleans(), st.integers(1, 12))
def test_whatever_happens_nothing_is_asked_for_twice_and_everything_arrives(seed, layered, most):
    chance = random.Random(seed)
    contents = random_contents(PLACES, seed % 7)
    order = chance.sample(range(PLACES), chance.randrange(1, 120))
    layers = [Stored(PLACES, contents).index]
    if layered:
        group = chance.randrange(1, 17)
        planned_units = {place: contents[place] for place in order}
        layers.insert(0, Stored(PLACES, planned_units, group=group, missing=ABSENT).index)
    starts = [0, *sorted(chance.sample(range(1, len(order)), min(3, len(order) - 1)))]
    playback = Playback(SPACE, layers, plan_of(order, starts, stored_bytes=1))
    clock, under_way, told = Clock(), [], np.zeros(PLACES, np.bool_)
    told[playback.present] = True
    for _ in range(100_000):
        act = chance.random()
        if act < 0.2:
            place = chance.randrange(PLACES)
            assert playback.fault(place) == (not told[place])
        elif act < 0.6 and len(under_way) < most:
            fetch = playback.next(clock())
            if fetch is not None:
                for other in under_way:
                    assert other.layer != fetch.layer or not set(other.chunks) & set(fetch.chunks)
                missing = np.isin(layers[fetch.layer].chunk_of, fetch.chunks) & ~told
                assert missing.any(), "nothing in it was missing"
                under_way.append(fetch)
        elif under_way:
            fetch = under_way.pop(chance.randrange(len(under_way)))
            if chance.random() < 0.2:
                playback.failed(fetch, clock())
            else:
                new = playback.arrived(fetch, clock())
                assert not told[new].any()
                assert np.isin(layers[fetch.layer].chunk_of[new], fetch.chunks).all()
                told[new] = True
        if playback.complete and not under_way:
            break
    assert told.all()
    assert playback.present.all()
    assert playback.outstanding == 0
    assert playback.next(clock()) is None


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, PLACES - 1), min_size=1, max_size=30))
def test_all_that_guests_wait_for_comes_before_anything_else(places):
    playback = planned()
    playback.faults(places)
    clock, missing = Clock(), set(places)
    while missing:
        fetch = playback.next(clock())
        assert fetch.urgent
        missing -= set(playback.arrived(fetch, clock()).tolist())


def test_deciding_takes_microseconds_for_a_large_appliance():
    # Not a benchmark: a loop over all places or chunks would take a hundred times what this allows.
    space = ApplianceSpace(PageSpace([("pc.ram", UNIT << 20)]))
    sizes = np.full(space.places, 1500.0)
    base = synthetic.index_of((np.arange(space.places),), (4,), sizes)
    playback = Playback(space, [base])
    clock, count = Clock(), 2000
    began = time.process_time()
    for number in range(count):
        playback.fault(space.places - 1 - 400 * number)
        fetch = playback.next(clock())
        playback.arrived(fetch, clock())
    assert (time.process_time() - began) / count < 0.005
