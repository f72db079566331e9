# SPDX-License-Identifier: Apache-2.0
"""What is fetched of that which no plan names, and in which order."""

import functools

import numpy as np

from nova_enlightened.appliance import synthetic
from nova_enlightened.appliance.chunks import UNIT, ZERO
from nova_enlightened.appliance.places import ApplianceSpace
from nova_enlightened.appliance.playback import Playback
from nova_enlightened.appliance.prefetch_order import STRETCH, Tail
from nova_enlightened.knowledge.space import PageSpace
from tests.unit.appliance.test_playback import Clock, drain

WIDE = 3 * STRETCH * 4
"""Places of three stretches: each chunk has four."""
ROOMY = ApplianceSpace(PageSpace([("pc.ram", WIDE * UNIT)]))


@functools.cache
def wide():
    sizes = np.full(WIDE, 1000.0)
    return synthetic.index_of((np.arange(WIDE),), (4,), sizes, missing=ZERO)


def fetched_chunks(playback, clock, count):
    """The chunks of the next so many fetches, one after the other."""
    chunks = []
    for _ in range(count):
        fetch = playback.next(clock())
        chunks += fetch.chunks
        playback.arrived(fetch, clock())
    return chunks


def test_the_tail_goes_on_behind_a_fault_and_then_through_its_stretch():
    playback, clock = Playback(ROOMY, [wide()]), Clock()
    strayed = STRETCH + 100
    playback.fault(strayed * 4)
    fetched = [chunk for fetch in drain(playback, clock) for chunk in fetch.chunks]
    assert fetched[:STRETCH] == [*range(strayed, 2 * STRETCH), *range(STRETCH, strayed)]
    assert fetched[STRETCH:] == [*range(STRETCH), *range(2 * STRETCH, 3 * STRETCH)]


def test_where_there_are_more_faults_the_tail_is_first():
    playback, clock = Playback(ROOMY, [wide()]), Clock()
    for chunk in (STRETCH + 1, 2 * STRETCH + 1, 2 * STRETCH + 9):
        playback.fault(chunk * 4)
    fetched_chunks(playback, clock, 3)  # what is waited for
    assert fetched_chunks(playback, clock, 1)[0] == 2 * STRETCH + 10


def test_a_linear_tail_does_not_mind_faults():
    playback, clock = Playback(ROOMY, [wide()], tail=Tail.LINEAR), Clock()
    playback.fault((STRETCH + 100) * 4)
    fetched_chunks(playback, clock, 1)
    assert fetched_chunks(playback, clock, 1)[0] == 0
