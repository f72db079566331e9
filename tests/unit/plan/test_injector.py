# SPDX-License-Identifier: Apache-2.0
"""The injector against a small model of the source."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.exception import PlanError
from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.plan.injector import Injector, Worth
from nova_enlightened.plan.requests import MAX_RUN
from nova_enlightened.plan.transfer_plan import (
    TransferPlan,
    concatenate_virtual,
    empty_plan,
)
from nova_enlightened.plan.window import RESEQUENCED, InjectionWindow, WindowLimits

PAGE = 4096


def space_of(*sizes):
    return PageSpace([(f"block{i}", pages * PAGE) for i, pages in enumerate(sizes)])


def plan_of(order, pages, urgent=None, virtual=()):
    order = np.asarray(order, np.int64)
    flat, position = concatenate_virtual([np.asarray(virtual, np.int64)], pages)
    urgent = order.size if urgent is None else urgent
    return TransferPlan("test", pages, order, urgent, flat, position)


def started(plan, space, limits=None, **kw):
    injector = Injector(plan, space, InjectionWindow(limits), **kw)
    injector.start()
    return injector


class Source:
    """FIFO of requests first, else the scan onwards from the last page sent."""

    def __init__(self, pages, already=()):
        self.dirty = np.ones(pages, bool)
        self.dirty[list(already)] = False
        self.queue = deque()
        self.at = 0
        self.requested = 0

    def ask(self, requests):
        for first, count in requests:
            self.queue.extend(range(first, first + count))

    def send(self, limit):
        batch = []
        while len(batch) < limit:
            while self.queue and not self.dirty[self.queue[0]]:
                self.queue.popleft()
            if self.queue:
                self.at = self.queue.popleft()
            else:
                ahead = np.flatnonzero(self.dirty[self.at :])
                if ahead.size:
                    self.at += int(ahead[0])
                elif self.dirty.any():
                    self.at = int(np.flatnonzero(self.dirty)[0])
                else:
                    break
            self.dirty[self.at] = False
            batch.append(self.at)
        return np.array(batch, np.int64)


def check_requests(injector_space, requests, seen, asked):
    for first, count in requests:
        assert 1 <= count <= MAX_RUN
        assert injector_space.split(first, count) == [(first, count)]
        pages = set(range(first, first + count))
        assert not pages & seen
        assert not pages & asked
        asked |= pages


@st.composite
def migrations(draw):
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=3))
    pages = sum(sizes)
    order = draw(st.permutations(range(pages)))
    order = order[: draw(st.integers(0, pages))]
    urgent = draw(st.integers(0, len(order)))
    virtual = draw(st.lists(st.integers(-2, pages + 2), max_size=80))
    already = draw(st.sets(st.integers(0, pages - 1), max_size=pages // 2))
    script = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(-1, pages - 1)), max_size=60))
    return sizes, order, urgent, virtual, already, script


@settings(max_examples=200, deadline=None)
@given(migrations())
def test_every_page_crosses_and_nothing_is_asked_for_twice(migration):
    sizes, order, urgent, virtual, already, script = migration
    space = space_of(*sizes)
    injector = started(
        plan_of(order, space.pages, urgent, virtual),
        space,
        WindowLimits(floor=PAGE, start=4 * PAGE, cap=16 * PAGE),
    )
    source = Source(space.pages, already)
    seen, asked = set(), set()
    steps = [*script, *[(7, -1)] * (2 * space.pages + 10)]
    for now, (take, fault) in enumerate(steps):
        if fault >= 0:
            injector.fault(fault, 1, float(now))
            source.ask([(fault, 1)])
            asked.add(fault)
        requests = injector.next_requests(float(now))
        check_requests(space, requests, seen, asked)
        source.ask(requests)
        batch = source.send(take)
        injector.sent(batch)
        seen |= set(batch.tolist())
        assert injector.remaining == space.pages - len(seen)
        assert injector.outstanding <= len(asked - seen)
    assert not source.dirty.any()


def test_follows_the_plan_and_merges_neighbours():
    space = space_of(100)
    injector = started(plan_of([50, 51, 52, 7, 9, 8], 100), space)
    assert injector.next_requests(0.0) == [(50, 3), (7, 1), (9, 1), (8, 1)]


def test_asks_for_nothing_before_it_is_started():
    space = space_of(10)
    injector = Injector(plan_of([1], 10), space)
    assert injector.next_requests(0.0) == []


def test_a_run_is_cut_at_64_kib():
    space = space_of(100)
    injector = started(plan_of(range(40), 100), space)
    assert injector.next_requests(0.0) == [(0, 16), (16, 16)]


def test_a_run_is_cut_at_the_edge_of_a_block():
    space = space_of(5, 5)
    injector = started(plan_of(range(10), 10), space)
    assert injector.next_requests(0.0) == [(0, 5), (5, 5)]


def test_keeps_to_the_window():
    space = space_of(1000)
    injector = started(plan_of(range(1000), 1000), space)
    asked = sum(count for _, count in injector.next_requests(0.0))
    assert asked == 32
    assert injector.next_requests(0.0) == []


def test_knowing_nothing_it_leaves_everything_to_the_source():
    space = space_of(100)
    injector = started(empty_plan("stock", 100), space)
    for page in (3, 4, 5, 60):
        injector.fault(page, 1, 0.0)
        assert injector.next_requests(0.0) == []


def test_neighbours_of_a_fault_in_virtual_order_go_ahead_of_the_plan():
    space = space_of(1000)
    virtual = [900, 100, 500, 300, 700, 200]
    injector = started(plan_of(range(400, 480), 1000, virtual=virtual), space)
    injector.fault(500, 1, 0.0)
    first = injector.next_requests(0.0)[:4]
    assert {page for page, _ in first} >= {300, 700, 200}


def test_neighbours_have_half_as_much_room_as_the_plan_and_leave_it_its_own():
    space = space_of(4000)
    injector = started(plan_of(range(3000, 4000), 4000, virtual=range(2000)), space)
    for page in range(0, 2000, 50):
        injector.fault(page, 1, 0.0)
    injector.sent(np.arange(0, 2000, 50))
    requests = injector.next_requests(0.0)
    window = injector.window_bytes // PAGE
    assert sum(count for page, count in requests if page >= 3000) == window
    assert sum(count for page, count in requests if page < 3000) == window // 2


def test_neighbours_that_were_sent_already_are_promoted_once():
    space = space_of(4000)
    injector = started(plan_of([3000], 4000, virtual=range(2000)), space)
    injector.sent(np.array([99, 102, 104, 200]))
    injector.fault(100, 1, 0.0)
    assert sorted(injector.promotions().tolist()) == [99, 102, 104]
    assert not injector.promotions().size
    assert (101, 1) in injector.next_requests(0.0)


def test_promotions_nobody_asks_for_do_not_pile_up():
    space = space_of(4000)
    injector = started(plan_of([3000], 4000, virtual=range(2000)), space)
    injector.sent(np.arange(2000))
    for page in range(2000):
        injector.fault(page, 1, 0.0)
    assert injector.promotions().size < 70 * 1300


def test_the_plan_waits_while_the_link_is_behind_and_neighbours_do_not():
    space = space_of(4000)
    injector = started(plan_of(range(3000, 4000), 4000, virtual=range(2000)), space)
    injector.fault(100, 1, 0.0)
    assert injector.next_requests(0.0, planned=False) == [(99, 1), (101, 4)]
    assert injector.next_requests(0.0, planned=False) == []
    assert injector.next_requests(0.0)


def test_neighbours_do_not_wait_for_room_in_the_window():
    space = space_of(4000)
    injector = started(plan_of(range(3000, 4000), 4000, virtual=range(2000)), space)
    injector.next_requests(0.0)
    injector.fault(100, 1, 0.0)
    assert injector.next_requests(0.0) == [(99, 1), (101, 4)]


def test_pages_the_source_had_already_sent_do_not_stay_outstanding():
    space = space_of(8000)
    injector = started(plan_of(range(32), 8000), space)
    assert injector.next_requests(0.0)
    for first in range(1000, 7000, 50):
        injector.sent(np.arange(first, first + 50))
        injector.next_requests(0.0)
    assert injector.outstanding == 0
    assert injector.statistics().presumed_sent == 32


def test_a_page_presumed_sent_is_counted_when_it_comes_after_all():
    space = space_of(8000)
    injector = started(plan_of(range(32), 8000), space)
    injector.next_requests(0.0)
    for first in range(1000, 7000, 50):
        injector.sent(np.arange(first, first + 50))
        injector.next_requests(0.0)
    injector.sent(np.arange(32))
    assert injector.outstanding == 0
    assert injector.remaining == 8000 - 6032


def test_a_page_presumed_sent_that_the_guest_waits_for_goes_first_when_it_comes():
    space = space_of(8000)
    injector = started(plan_of(range(32), 8000), space)
    injector.fault(5, 1, 0.0)
    for first in range(1000, 7000, 50):
        injector.sent(np.arange(first, first + 50))
        injector.next_requests(0.0)
    assert injector.awaited == 0
    assert injector.worth(np.array([5, 6])).tolist() == [Worth.DEMANDED, Worth.PLANNED]


def test_what_the_guest_waits_for_is_counted_until_it_is_seen():
    space = space_of(100)
    injector = started(plan_of(range(32), 100), space)
    injector.fault(5, 1, 0.0)
    injector.fault(5, 1, 0.0)
    assert injector.awaited == 1
    injector.sent(np.array([5]))
    assert injector.awaited == 0


def test_pages_are_worth_what_their_place_in_the_plan_is():
    space = space_of(20_000)
    injector = started(plan_of(range(10_000), 20_000, virtual=range(15_000, 16_000)), space)
    injector.fault(15_500, 1, 0.0)
    injector.next_requests(0.0)
    worths = injector.worth(np.array([15_500, 15_501, 0, 9_999, 12_000])).tolist()
    assert worths[:3] == [Worth.DEMANDED, Worth.NEAR, Worth.PLANNED]
    assert injector.horizon < worths[3] < worths[4] == Worth.BACKGROUND


def test_a_kernel_that_clears_a_huge_page_from_both_ends_faults_a_few_times():
    space = space_of(2048)
    injector = started(plan_of([2000], 2048), space, RESEQUENCED)
    faults, present = 0, set()
    for step in range(256):
        for page in (512 + step, 1023 - step):
            if page not in present:
                faults += 1
                injector.fault(page, 1, faults / 100)
                present.add(page)
                for first, count in injector.next_requests(faults / 100):
                    present |= set(range(first, first + count))
                injector.sent(np.array(sorted(present)))
    assert faults < 20


def test_discarded_pages_are_planned_again():
    space = space_of(100)
    injector = Injector(plan_of(range(20), 100), space)
    injector.sent(np.arange(20))
    injector.discarded(5, 8)
    assert injector.remaining == 83
    injector.start()
    assert injector.next_requests(0.0) == [(5, 3)]


def test_a_page_listed_twice_in_a_batch_is_one_page():
    space = space_of(100)
    injector = started(plan_of(range(20), 100), space)
    injector.next_requests(0.0)
    injector.sent(np.array([3, 3, 1, 1]))
    assert injector.outstanding == 18
    assert injector.remaining == 98


def test_pages_outside_the_space_are_ignored():
    space = space_of(10)
    injector = started(plan_of([], 10), space)
    injector.sent(np.array([-1, 4, 10, 1 << 50]))
    assert injector.remaining == 9


def test_huge_host_pages_are_asked_for_whole():
    space = space_of(2048, 16)
    injector = started(plan_of([700, 5, 2050], 2064), space, host_pages={"block0": 512})
    assert injector.next_requests(0.0) == [(512, 512)]
    injector.sent(np.arange(512, 1024))
    assert injector.next_requests(0.0) == [(0, 512)]
    injector.sent(np.arange(512))
    assert injector.next_requests(0.0) == [(2050, 1)]


def test_replan_goes_on_without_repeating():
    space = space_of(100)
    injector = started(plan_of(range(10), 100), space)
    injector.next_requests(0.0)
    injector.replan(plan_of(range(5, 15), 100))
    assert injector.next_requests(0.0) == [(10, 5)]


def test_a_plan_for_another_guest_is_refused():
    with pytest.raises(PlanError):
        Injector(empty_plan("stock", 11), space_of(10))


def test_a_fault_outside_the_space_is_refused():
    injector = started(empty_plan("stock", 10), space_of(10))
    with pytest.raises(PlanError):
        injector.fault(9, 2, 0.0)
