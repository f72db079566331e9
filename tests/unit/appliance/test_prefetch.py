# SPDX-License-Identifier: Apache-2.0
import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.appliance.clusters import Clusters
from nova_enlightened.appliance.manifest import Object
from nova_enlightened.appliance.places import ApplianceSpace
from nova_enlightened.appliance.prefetch import UNLIKELY, PrefetchPlan, make
from nova_enlightened.appliance.prefetch_policies import FirstTouch
from nova_enlightened.appliance.trace import merge
from nova_enlightened.exception import PrefetchPlanError
from nova_enlightened.knowledge.space import PageSpace
from tests.unit.appliance.test_clusters import RUNS, burst
from tests.unit.appliance.test_trace import MANIFEST, trace_of

PLACES = 1000
SPACE = ApplianceSpace(PageSpace([("pc.ram", PLACES * 4096)]))
LAYER = Object("12" * 32, 5000)
PACKS = (Object("34" * 32, 64 << 20), Object("56" * 32, 7))


def plan_of(order, wanted_ms=None, starts=(0,), stored_bytes=100_000, **fields):
    order = np.array(order, np.uint32)
    wanted = np.zeros(order.size) if wanted_ms is None else wanted_ms
    values = {
        "manifest": MANIFEST,
        "space_places": PLACES,
        "runs": 3,
        "order": order,
        "wanted_ms": np.array(wanted, np.uint32),
        "cluster_starts": np.array(starts if order.size else (), np.uint32),
        "stored_bytes": stored_bytes,
        "layer": LAYER,
        "packs": PACKS,
    }
    return PrefetchPlan(**{**values, **fields})


def order_of(runs):
    return make(merge([trace_of(sorted(run)) for run in runs]), SPACE)


def same(one, other):
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in dataclasses.fields(PrefetchPlan)
    )


PLAN = plan_of(range(5, 305), range(300), (0, 7, 100))
FILE = PLAN.encode()


# -- making ---------------------------------------------------------------------------------------


def test_what_is_wanted_first_comes_first():
    made = order_of([burst(5.0, [1, 2]) + burst(1.0, [8, 9]) + burst(3.0, [4])])
    assert made.order.tolist() == [8, 9, 4, 1, 2]
    assert made.cluster_starts.tolist() == [0, 2, 3]
    assert made.wanted_ms.tolist() == [1000, 1001, 3000, 5000, 5001]


def test_of_two_things_wanted_at_once_the_one_more_runs_want_comes_first():
    every, once = burst(2.0, [5, 6]), burst(2.0, [1])
    made = order_of([every + once, every, every])
    assert made.order.tolist() == [5, 6, 1]


def test_what_few_runs_want_is_in_the_plan_and_nobody_waits_for_it():
    made = order_of([burst(1.0, [5]) + burst(2.0, [9]), burst(1.0, [5]), burst(1.0, [5])])
    assert made.order.tolist() == [5, 9]
    assert made.wanted_ms.tolist() == [1000, UNLIKELY]


def test_by_first_touch_every_place_stands_for_itself():
    runs = [burst(5.0, [1, 2]) + burst(1.0, [8, 9]) + burst(3.0, [4])]
    made = make(merge([trace_of(sorted(run)) for run in runs]), SPACE, FirstTouch())
    assert made.order.tolist() == [8, 9, 4, 1, 2]
    assert made.cluster_starts.tolist() == [0, 1, 2, 3, 4]


def test_a_policy_that_leaves_a_place_out_is_refused():
    class Forgetful(FirstTouch):
        name = "forgetful"

        def ordered(self, merged):
            whole = super().ordered(merged)
            return Clusters(whole.members[1:], whole.starts[1:] - 1)

    with pytest.raises(PrefetchPlanError, match="forgetful"):
        make(merge([trace_of(burst(1.0, [8, 9]))]), SPACE, Forgetful())


@settings(deadline=None)
@given(RUNS)
def test_a_plan_has_every_place_of_every_run_once(runs):
    made = order_of(runs)
    assert sorted(made.order.tolist()) == sorted({place for run in runs for _, place in run})
    plan = plan_of(made.order, made.wanted_ms, made.cluster_starts)
    assert same(PrefetchPlan.decode(plan.encode(), PLACES), plan)


@settings(deadline=None)
@given(RUNS)
def test_the_same_runs_make_the_same_plan(runs):
    one, other = order_of(runs), order_of(runs)
    assert one.order.tolist() == other.order.tolist()
    assert one.cluster_starts.tolist() == other.cluster_starts.tolist()


def test_refuses_runs_of_another_appliance():
    with pytest.raises(PrefetchPlanError):
        make(merge([trace_of([(1, 1)], places=50)]), SPACE)


# -- how long to buffer ---------------------------------------------------------------------------


def test_a_fast_link_needs_no_buffer():
    plan = plan_of(range(100), [1000 + n for n in range(100)])
    assert plan.buffer_s(1e9, 0.001) == 0.0
    assert plan.before(1e9, 0.001) == 0


def test_a_slow_link_has_what_is_wanted_at_once_before_it_starts():
    # 100 places of 1000 bytes, all wanted at the start, at 10,000 bytes a second.
    plan = plan_of(range(100))
    assert plan.buffer_s(10_000, 0.5) == pytest.approx(10.5)
    assert plan.before(10_000, 0.5) == 100


def test_what_can_come_while_the_guest_runs_is_not_waited_for():
    # The second half is wanted when it can be there.
    plan = plan_of(range(100), [0] * 50 + [5000 + 100 * n for n in range(1, 51)])
    assert plan.buffer_s(10_000, 0.0) == pytest.approx(5.0)
    assert plan.before(10_000, 0.0) == 50


def test_nobody_waits_for_what_is_unlikely():
    assert plan_of(range(100), [UNLIKELY] * 100).before(1, 1) == 0


def test_a_tolerated_stall_shortens_the_buffer():
    plan = plan_of(range(100))
    assert plan.buffer_s(10_000, 0.5, stall_s=2.0) == pytest.approx(8.5)


LINKS = st.tuples(st.floats(1e3, 1e9), st.floats(0, 1))


@given(LINKS, LINKS, st.lists(st.integers(0, 60_000), min_size=1, max_size=40))
def test_the_buffer_is_never_longer_on_a_better_link(one, other, wanted):
    plan = plan_of(range(len(wanted)), wanted)
    better = max(one[0], other[0]), min(one[1], other[1])
    for link in (one, other):
        assert plan.buffer_s(*better) <= plan.buffer_s(*link)
        assert plan.before(link[0], link[1]) <= len(wanted)
    assert plan.before(better[0], one[1]) <= plan.before(min(one[0], other[0]), one[1])


@pytest.mark.parametrize("bandwidth, rtt", [(0, 0), (-1, 0), (float("nan"), 0), (1, -1)])
def test_refuses_a_link_that_is_none(bandwidth, rtt):
    with pytest.raises(PrefetchPlanError):
        PLAN.buffer_s(bandwidth, rtt)


# -- the file -------------------------------------------------------------------------------------


def test_reads_what_it_wrote():
    assert same(PrefetchPlan.decode(FILE, PLACES), PLAN)


def test_an_empty_plan_is_one():
    empty = plan_of([], stored_bytes=0, packs=())
    assert same(PrefetchPlan.decode(empty.encode(), PLACES), empty)
    assert empty.before(1, 1) == 0


@given(st.integers(0, len(FILE) - 1))
def test_refuses_a_truncated_file(length):
    with pytest.raises(PrefetchPlanError):
        PrefetchPlan.decode(FILE[:length], PLACES)


@settings(deadline=None)
@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_gives_a_plan_that_holds_together(at, change):
    data = bytearray(FILE)
    data[at] ^= change
    tracemalloc.start()
    try:
        read = PrefetchPlan.decode(data, PLACES)
    except PrefetchPlanError:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20
    assert len(set(read.order.tolist())) == read.order.size
    assert (read.order < PLACES).all()


@given(st.binary(max_size=200))
def test_refuses_anything_else(data):
    with pytest.raises(PrefetchPlanError):
        PrefetchPlan.decode(data, PLACES)


def test_refuses_a_plan_of_another_appliance():
    with pytest.raises(PrefetchPlanError):
        PrefetchPlan.decode(FILE, PLACES + 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"order": np.array([1, 1], np.uint32), "wanted_ms": np.zeros(2, np.uint32)},
        {"order": np.array([PLACES], np.uint32), "wanted_ms": np.zeros(1, np.uint32)},
        {"wanted_ms": np.zeros(2, np.uint32)},
        {"cluster_starts": np.array([1], np.uint32)},
        {"cluster_starts": np.array([0, 0], np.uint32)},
        {"cluster_starts": np.array([0, 3], np.uint32)},
        {"cluster_starts": np.empty(0, np.uint32)},
        {"runs": 0},
        {"stored_bytes": 1 << 40},
        {"layer": Object("12" * 32, 0)},
        {"packs": (Object("zz" * 32, 5),)},
        {"packs": (Object("12" * 32, (64 << 20) + 1),)},
    ],
    ids=str,
)
def test_refuses_a_plan_that_cannot_be(fields):
    with pytest.raises(PrefetchPlanError):
        plan_of(**{"order": [1, 2, 3], **fields})
