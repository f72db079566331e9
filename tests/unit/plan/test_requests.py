# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova_enlightened.exception import PlanError
from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.plan.requests import MAX_RUN, RequestShape


def space_of(*sizes):
    return PageSpace([(f"block{i}", pages * 4096) for i, pages in enumerate(sizes)])


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=4).flatmap(
        lambda sizes: st.tuples(
            st.just(sizes), st.lists(st.integers(0, sum(sizes) - 1), unique=True)
        )
    )
)
def test_runs_hold_the_same_pages_in_the_same_order_each_in_one_block(case):
    sizes, pages = case
    space = space_of(*sizes)
    runs = RequestShape(space).runs(np.array(pages, np.int64))
    assert [page for first, count in runs for page in range(first, first + count)] == pages
    for first, count in runs:
        assert 1 <= count <= MAX_RUN
        assert space.split(first, count) == [(first, count)]


def test_a_host_page_is_aligned_to_its_block_and_not_to_the_space():
    shape = RequestShape(space_of(3, 1024), {"block1": 512})
    assert shape.host_page(3 + 511) == (3, 512)
    assert shape.host_page(3 + 512) == (3 + 512, 512)


def test_a_host_page_ends_with_its_block():
    assert RequestShape(space_of(700), {"block0": 512}).host_page(600) == (512, 188)


@pytest.mark.parametrize("size", [0, 3, -512, 1 << 19])
def test_a_host_page_size_that_cannot_be_is_refused(size):
    with pytest.raises(PlanError):
        RequestShape(space_of(1024), {"block0": size})


def test_a_block_that_is_not_there_is_refused():
    with pytest.raises(PlanError):
        RequestShape(space_of(1024), {"elsewhere": 512})
