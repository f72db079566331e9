# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from nova_enlightened.exception import PlanError
from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.guest_pages import GuestPages, PlacedProcess
from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.plan import expected_use
from nova_enlightened.plan.policies import Heat, Physical, Process, Stock
from nova_enlightened.plan.transfer_plan import TransferPlan

POLICIES = (Stock(), Heat(), Process(), Physical())


def space_of(pages):
    return PageSpace([("pc.ram", pages * 4096)])


def known_of(classes, heat=None, processes=(), samples=6):
    classes = np.array(classes, np.uint8)
    heat = np.zeros(classes.size, np.uint8) if heat is None else np.array(heat, np.uint8)
    placed = tuple(
        PlacedProcess(f"p{i}", cpu, running, np.array(pages, np.int64))
        for i, (cpu, running, pages) in enumerate(processes)
    )
    return GuestPages("test", classes, heat, placed, samples)


def plan(policy, known):
    return policy.plan(known, space_of(known.classes.size))


@st.composite
def guests(draw):
    """Anything a guest can say, true or not."""
    pages = draw(st.integers(1, 60))
    classes = draw(nps.arrays(np.uint8, pages, elements=st.integers(0, 20)))
    heat = draw(nps.arrays(np.uint8, pages))
    frames = st.lists(st.integers(-3, pages + 3), max_size=80)
    processes = draw(st.lists(st.tuples(st.floats(0, 64), st.booleans(), frames), max_size=4))
    return known_of(classes, heat, processes, draw(st.integers(0, 12)))


@settings(max_examples=300, deadline=None)
@given(guests(), st.sampled_from(POLICIES))
def test_every_plan_names_pages_of_the_space_once(known, policy):
    made = plan(policy, known)
    assert np.unique(made.order).size == made.order.size
    assert 0 <= made.urgent <= made.order.size
    if made.order.size:
        assert 0 <= made.order.min() <= made.order.max() < known.classes.size
    if made.virtual.size:
        mentioned = np.unique(made.virtual)
        assert (made.virtual[made.position[mentioned]] == mentioned).all()


@settings(deadline=None)
@given(guests(), st.sampled_from(POLICIES))
def test_free_pages_nobody_uses_are_left_to_the_source(known, policy):
    free = np.flatnonzero((known.classes == PageClass.FREE) & (known.heat == 0))
    assert not np.isin(free, plan(policy, known).order).any()


@settings(deadline=None)
@given(guests())
def test_the_heat_order_leaves_out_nothing_else(known):
    left_out = np.setdiff1d(np.arange(known.classes.size), plan(Heat(), known).order)
    assert (known.classes[left_out] == PageClass.FREE).all()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_without_knowledge_there_is_no_plan(policy):
    assert policy.plan(None, space_of(10)).empty


@pytest.mark.parametrize("policy", POLICIES[1:], ids=lambda p: p.name)
def test_knowledge_of_another_guest_is_refused(policy):
    with pytest.raises(PlanError):
        policy.plan(known_of([PageClass.ANON] * 9), space_of(10))


@pytest.mark.parametrize("policy", POLICIES[1:], ids=lambda p: p.name)
def test_where_all_pages_are_free_nothing_is_asked_for(policy):
    made = plan(policy, known_of([PageClass.FREE] * 10, processes=[(1.0, True, range(10))]))
    assert not made.order.size


def test_hot_pages_by_heat_and_of_one_heat_by_address():
    heat = [0, 255, 100, 255, 101, 250]
    made = plan(Heat(), known_of([PageClass.ANON] * 6, heat))
    assert made.order[:5].tolist() == [1, 3, 5, 2, 4]
    assert made.urgent == 5


def test_pages_hardly_ever_used_are_not_urgent():
    hot, kernel = [PageClass.ANON] * 1000, [PageClass.KERNEL] * 1000
    made = plan(Heat(), known_of(hot + kernel, [255] * 1000 + [0] * 1000))
    assert made.urgent == 1000
    assert made.order.size == 2000


def test_pages_hardly_ever_used_are_urgent_where_they_are_so_many_that_they_matter():
    hot, kernel = [PageClass.ANON] * 100, [PageClass.KERNEL] * 2000
    made = plan(Heat(), known_of(hot + kernel, [255] * 100 + [0] * 2000))
    assert made.urgent == 2100


def test_page_tables_first_while_they_are_few():
    classes = [PageClass.ANON, PageClass.ANON, PageClass.PAGE_TABLE]
    assert plan(Heat(), known_of(classes, [255, 255, 0])).order[0] == 2


def test_page_tables_after_the_hot_pages_when_they_are_many():
    tables = expected_use.FEW_PAGE_TABLES + 1
    classes = [PageClass.PAGE_TABLE] * tables + [PageClass.ANON]
    made = plan(Heat(), known_of(classes, [0] * tables + [60]))
    assert made.order[0] == tables
    assert made.urgent == tables + 1


def test_memory_that_cannot_be_watched_before_memory_found_unused():
    classes = [PageClass.ANON] * 4 + [PageClass.SLAB, PageClass.FILE, PageClass.ANON]
    heat = [255, 255, 255, 0, 0, 0, 0]
    made = plan(Heat(), known_of(classes, heat, [(1.0, True, [0, 1, 2, 3])]))
    assert made.order[:4].tolist() == [0, 1, 2, 4]
    assert made.urgent == 4


def test_pages_samples_missed_count_more_where_samples_keep_finding_new_ones():
    once = int(expected_use.heat.from_samples(np.array([128], np.uint8), 6, 0, 1)[0])
    classes = [PageClass.ANON] * 20 + [PageClass.SLAB]
    sharp = known_of(classes, [255] * 10 + [0] * 11, [(1.0, True, range(20))])
    broad = known_of(classes, [once] * 10 + [0] * 11, [(1.0, True, range(20))])
    assert plan(Heat(), sharp).order[10] == 20
    assert plan(Heat(), broad).order[10] == 10


def test_a_sharp_set_of_which_each_sample_sees_a_part_leaves_few_pages_unseen():
    draw = np.random.default_rng(3)
    histories = np.zeros(20_000, np.uint8)
    for sample in range(4):
        seen = draw.random(5_000) < 0.6
        histories[:5_000] |= (seen << (7 - sample)).astype(np.uint8)
    likelihood = expected_use.unseen_likelihood(
        expected_use.heat.from_samples(histories, 4, 0, histories.size), 4
    )
    missed = int((histories[:5_000] == 0).sum())
    assert likelihood * (histories == 0).sum() == pytest.approx(missed, rel=0.5)


def test_one_sample_says_nothing_of_the_pages_it_missed():
    assert expected_use.unseen_likelihood(np.array([255] * 10 + [0] * 10, np.uint8), 1) == 0.0


def test_without_samples_the_busiest_process_comes_first_and_marked_pages_of_it():
    mark = 16
    classes = [PageClass.ANON] * 6
    known = known_of(classes, [0, 0, mark, 0, 0, 0], [(0.1, True, [0]), (0.9, True, [1, 2])], 0)
    made = plan(Heat(), known)
    assert made.order[:3].tolist() == [2, 1, 0]
    assert made.urgent == 3


def test_the_process_order_is_virtual():
    known = known_of(
        [PageClass.ANON] * 6 + [PageClass.PAGE_TABLE],
        processes=[(0.0, False, [1]), (0.5, True, [5, 0, 3]), (0.9, True, [4, 5])],
    )
    made = plan(Process(), known)
    assert made.order[:5].tolist() == [6, 4, 5, 0, 3]
    assert made.urgent == 5


def test_a_frame_freed_since_it_was_mapped_is_not_lifted():
    known = known_of([PageClass.FREE, PageClass.ANON], processes=[(1.0, True, [0, 1])])
    assert plan(Heat(), known).order.tolist() == [1]
    assert plan(Process(), known).order.tolist() == [1]


def test_a_plan_that_repeats_a_page_is_refused():
    with pytest.raises(PlanError):
        TransferPlan("bad", 10, np.array([1, 2, 1]))


def test_a_plan_that_leaves_the_space_is_refused():
    with pytest.raises(PlanError):
        TransferPlan("bad", 10, np.array([1, 10]))


def test_a_plan_with_too_many_urgent_pages_is_refused():
    with pytest.raises(PlanError):
        TransferPlan("bad", 10, np.array([1, 2]), urgent=3)
