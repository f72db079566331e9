# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.plan.neighbours import STREAM_AGE, Neighbours
from nova_enlightened.plan.transfer_plan import TransferPlan, concatenate_virtual, empty_plan

PAGES = 20_000


def neighbours_of(virtual, pages=PAGES, blocks=None):
    space = PageSpace(blocks or [("ram", pages * 4096)])
    flat, position = concatenate_virtual([np.asarray(virtual, np.int64)], space.pages)
    order = np.arange(1, dtype=np.int64)
    return Neighbours(space, TransferPlan("test", space.pages, order, 0, flat, position))


def near(neighbours, page, now=0.0):
    return neighbours.around(page, now)[0].tolist()


def test_more_ahead_than_behind_and_nearest_first():
    scattered = [5 * i % PAGES for i in range(4000)]
    found = near(neighbours_of(scattered), scattered[100])
    assert found == [*scattered[101:105], scattered[99]]


def test_a_page_no_process_maps_has_physical_neighbours():
    found = near(neighbours_of([]), 1000)
    assert found[:3] == [1001, 1002, 1003]
    assert 999 in found


def test_physical_neighbours_stay_in_their_block():
    neighbours = neighbours_of([], blocks=[("a", 10 * 4096), ("b", 10 * 4096)])
    assert near(neighbours, 8) == [9, 7, 6, 5, 4, 3, 2, 1, 0]


def test_a_walk_through_memory_gets_larger_and_larger_clusters():
    neighbours = neighbours_of(range(PAGES))
    at, sizes = 0, []
    for _ in range(8):
        found = near(neighbours, at)
        sizes.append(len(found))
        at = max(found) + 1
    assert sizes[-1] > 10 * sizes[0]
    assert neighbours.around(at, 0.0)[1]


def test_random_faults_get_smaller_clusters():
    neighbours = neighbours_of(range(PAGES))
    first = len(near(neighbours, 0))
    for page in range(1000, PAGES, 500):
        last = len(near(neighbours, page))
    assert last < first


def test_a_stream_is_over_when_it_was_not_continued_for_long():
    neighbours = neighbours_of(range(PAGES))
    first = near(neighbours, 100)
    late = near(neighbours, max(first) + 1, STREAM_AGE + 1.0)
    assert len(late) <= len(first) + 1


def test_knowing_nothing_it_names_nobody():
    space = PageSpace([("ram", 4096 * 10)])
    found, certain = Neighbours(space, empty_plan("stock", 10)).around(3, 0.0)
    assert not found.size
    assert not certain


@given(
    st.lists(st.integers(-5, 60), max_size=100),
    st.lists(st.integers(0, 49), max_size=100),
)
def test_neighbours_are_pages_of_the_space_and_not_the_fault_itself(virtual, faults):
    neighbours = neighbours_of(virtual, pages=50)
    for now, page in enumerate(faults):
        found = near(neighbours, page, now / 10)
        assert all(0 <= other < 50 for other in found)
        if page not in virtual:
            assert page not in found
