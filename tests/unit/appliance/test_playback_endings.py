# SPDX-License-Identifier: Apache-2.0
"""Playback where fetches fail, where a buffer fills, and where a cache has things."""

import numpy as np
import pytest

from nova_enlightened.appliance.playback import LAYER_FAILURES, Playback
from nova_enlightened.exception import ApplianceError
from tests.unit.appliance.test_playback import (
    BASE,
    LAYER,
    ORDER,
    SPACE,
    Clock,
    drain,
    places_in,
    planned,
)

# -- failures -------------------------------------------------------------------------------------


def test_a_failed_demand_comes_again_at_once():
    playback = Playback(SPACE, [BASE])
    playback.fault(5)
    fetch = playback.next(0.0)
    playback.failed(fetch, 0.1)
    again = playback.next(0.1)
    assert again == fetch
    assert again.urgent


def test_a_failed_prefetch_comes_again():
    playback = Playback(SPACE, [BASE])
    failed = playback.next(0.0)
    playback.failed(failed, 0.1)
    drain(playback)
    assert playback.complete
    assert playback.progress().failed == 1


def test_a_demand_for_what_then_fails_is_urgent_when_it_comes_again():
    playback = Playback(SPACE, [BASE])
    fetch = playback.next(0.0)
    playback.fault(places_in(BASE, fetch)[0])
    playback.failed(fetch, 0.1)
    assert playback.next(0.1).urgent


def test_a_chunk_of_the_plan_that_keeps_failing_is_replaced_by_the_base():
    playback = planned()
    playback.fault(ORDER[0])
    for _ in range(LAYER_FAILURES):
        fetch = playback.next(0.0)
        assert fetch.layer == 0
        playback.failed(fetch, 0.1)
    fetch = playback.next(0.2)
    assert fetch.layer == 1
    assert fetch.urgent
    assert ORDER[0] in places_in(BASE, fetch)


def test_without_the_packs_of_the_plan_everything_still_arrives():
    playback = planned()
    clock = Clock()
    while (fetch := playback.next(clock())) is not None:
        if fetch.layer == 0:
            playback.failed(fetch, clock())
        else:
            playback.arrived(fetch, clock())
    assert playback.complete


@pytest.mark.parametrize("end", ["arrived", "failed"])
def test_refuses_the_end_of_a_fetch_that_is_not_under_way(end):
    playback = Playback(SPACE, [BASE])
    fetch = playback.next(0.0)
    playback.arrived(fetch, 0.1)
    with pytest.raises(ApplianceError):
        getattr(playback, end)(fetch, 0.2)


# -- the buffer before the start ------------------------------------------------------------------


def test_without_a_plan_there_is_nothing_to_wait_for():
    assert Playback(SPACE, [BASE]).before_done


def test_waits_until_what_the_plan_wants_before_is_here():
    playback = planned()  # all of it is wanted in the very moment of the start
    clock = Clock()
    assert not playback.before_done
    assert playback.buffer_left_s() is None
    playback.arrived(playback.next(clock()), clock())
    assert playback.buffer_left_s() > 0
    while not playback.before_done:
        playback.arrived(playback.next(clock()), clock())
    assert playback.present[ORDER].all()
    assert not playback.complete
    assert playback.buffer_left_s() == 0.0


def test_does_not_wait_for_what_is_wanted_late_enough():
    playback = planned(wanted_ms=[60_000] * len(ORDER))
    playback.arrived(playback.next(0.0), 0.01)
    assert playback.before_done
    assert playback.ready < len(ORDER)


# -- the cache ------------------------------------------------------------------------------------


def test_what_the_cache_has_is_not_fetched():
    playback = planned()
    assert sorted(playback.have(0, np.arange(LAYER.chunks)).tolist()) == sorted(ORDER)
    assert playback.ready == len(ORDER)
    assert all(fetch.layer == 1 for fetch in drain(playback))


def test_a_cache_with_everything_leaves_nothing_to_ask():
    playback = planned()
    playback.have(1, np.arange(BASE.chunks))
    assert playback.complete
    assert playback.next(0.0) is None


def test_chunks_named_twice_by_the_cache_are_one():
    playback = Playback(SPACE, [BASE])
    assert playback.have(0, np.array([3, 3])).tolist() == [12, 13, 14, 15]


def test_a_chunk_the_cache_lost_is_fetched():
    playback = Playback(SPACE, [BASE])
    playback.have(0, np.arange(BASE.chunks))
    assert playback.lost(0, 3).tolist() == [12, 13, 14, 15]
    assert not playback.complete
    assert not playback.memory_complete
    playback.fault(13)
    assert playback.next(0.0).chunks == (3,)


def test_a_place_the_cache_has_in_another_chunk_is_not_lost():
    playback = planned()
    playback.have(0, np.arange(LAYER.chunks))
    playback.have(1, np.array([0]))
    assert playback.lost(1, 0).tolist() == [0, 1, 3]
    drain(playback)
    assert playback.complete


@pytest.mark.parametrize("chunk", [-1, 3, LAYER.chunks + BASE.chunks])
def test_refuses_to_lose_what_is_not_here(chunk):
    with pytest.raises(ApplianceError):
        planned().lost(0, chunk)


@pytest.mark.parametrize("chunks", [[-1], [LAYER.chunks]])
def test_refuses_chunks_from_the_cache_that_do_not_exist(chunks):
    with pytest.raises(ApplianceError):
        planned().have(0, np.array(chunks))
