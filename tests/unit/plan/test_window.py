# SPDX-License-Identifier: Apache-2.0
import pytest

from nova_enlightened.exception import PlanError
from nova_enlightened.plan.window import InjectionWindow, WindowLimits

KIB = 1024


def turn(window, requested, unrequested, outstanding=100, urgent_left=True):
    window.seen(requested, unrequested, outstanding=outstanding, urgent_left=urgent_left)


def test_starts_where_it_is_told():
    assert InjectionWindow(WindowLimits(64 * KIB, 96 * KIB, 512 * KIB)).size == 96 * KIB


def test_grows_by_the_hole_that_was_found_in_the_queue():
    window = InjectionWindow()
    turn(window, 16, 16)
    assert window.size == 128 * KIB + 16 * 4 * KIB


def test_at_most_doubles():
    window = InjectionWindow()
    turn(window, 0, 1000)
    assert window.size == 256 * KIB


def test_waits_for_a_growth_to_show_before_the_next():
    window = InjectionWindow()
    turn(window, 16, 16)
    grown = window.size
    turn(window, 24, 24)
    assert window.size == grown
    turn(window, 24, 24)
    assert window.size > grown


def test_grows_when_the_source_had_nothing_left_to_serve():
    window = InjectionWindow()
    turn(window, 32, 0, outstanding=0)
    assert window.size == 144 * KIB


def test_remembers_the_lowest_point_of_a_round():
    window = InjectionWindow()
    turn(window, 16, 0, outstanding=0)
    turn(window, 16, 0, outstanding=30)
    assert window.size == 144 * KIB


def test_shrinks_slowly_to_its_floor_while_everything_seen_was_requested():
    window = InjectionWindow()
    turn(window, 32, 0)
    assert 112 * KIB < window.size < 128 * KIB
    for _ in range(100):
        turn(window, 64, 0)
    assert window.size == 64 * KIB


def test_a_stray_page_in_a_hundred_is_tolerated():
    window = InjectionWindow()
    turn(window, 99, 1)
    assert window.size <= 128 * KIB


def test_never_exceeds_its_cap():
    window = InjectionWindow()
    for _ in range(50):
        turn(window, 0, 1000, outstanding=0)
    assert window.size == 512 * KIB


def test_unrequested_pages_are_as_they_should_be_when_no_urgent_page_is_left():
    window = InjectionWindow()
    for _ in range(50):
        turn(window, 10, 1000, urgent_left=False)
    assert window.size == 64 * KIB


@pytest.mark.parametrize("limits", [(0, 1, 2), (8192, 4096, 16384), (8192, 16384, 12288)])
def test_limits_out_of_order_are_refused(limits):
    with pytest.raises(PlanError):
        WindowLimits(*limits)
