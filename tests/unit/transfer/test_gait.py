# SPDX-License-Identifier: Apache-2.0
from nova_enlightened.transfer.gait import BULK, CALM, FAULTS, URGENT, WITHIN_S, Gait, next_gait

NOW = 100.0
OFTEN = [NOW - WITHIN_S / 2] * FAULTS
SELDOM = [NOW - 2 * WITHIN_S] + [NOW] * (FAULTS - 1)


def after(
    gait: Gait,
    *,
    switched: bool = True,
    urgent_done: bool = False,
    faults: list[float] | None = None,
) -> Gait:
    return next_gait(gait, switched=switched, urgent_done=urgent_done, faults=faults or [], now=NOW)


def test_nobody_waits_before_the_switch() -> None:
    assert after(BULK, switched=False) is BULK


def test_the_guest_waits_from_the_switch_on() -> None:
    assert after(BULK) is URGENT


def test_it_is_calm_once_the_guest_has_what_it_needs_most() -> None:
    assert after(URGENT, urgent_done=True) is CALM


def test_a_guest_that_still_waits_often_is_hurried_for() -> None:
    assert after(CALM, urgent_done=True, faults=OFTEN) is URGENT


def test_a_page_now_and_then_disturbs_no_calm() -> None:
    assert after(CALM, urgent_done=True, faults=SELDOM) is CALM
