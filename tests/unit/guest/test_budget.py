# SPDX-License-Identifier: Apache-2.0
"""The agent's CPU budget."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.guest.budget import Budget


@settings(deadline=None)
@given(
    st.floats(0.001, 0.5),
    st.floats(0, 200),
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 3)), min_size=1, max_size=50),
)
def test_work_that_waits_for_its_budget_stays_within_it(
    share: float, ahead_s: float, steps: list[tuple[float, float]]
) -> None:
    budget = Budget(share, ahead_s, 0.0)
    now = spent = 0.0
    for pause, work in steps:
        now += pause + budget.wait(now + pause)
        # Work begins only while what was spent is allowed for.
        assert spent <= share * (now + ahead_s) + 1e-6
        budget.spend(work, now)
        spent += work

    assert budget.spent == pytest.approx(spent)


def test_what_is_not_used_is_not_saved_beyond_the_advance() -> None:
    budget = Budget(0.1, 10.0, 0.0)

    budget.spend(2.0, 1000.0)

    assert budget.wait(1000.0) == pytest.approx(10.0)


def test_a_larger_share_is_earned_from_then_on() -> None:
    budget = Budget(0.1, 0.0, 0.0)
    budget.spend(1.0, 0.0)
    assert budget.wait(0.0) == pytest.approx(10.0)

    budget.allow(0.5, 0.0)

    assert budget.wait(0.0) == pytest.approx(2.0)


def test_a_changed_share_changes_the_advance_and_nothing_is_won_by_changing_back() -> None:
    budget = Budget(0.1, 10.0, 0.0)

    budget.allow(0.2, 0.0)
    budget.spend(2.0, 0.0)
    assert budget.wait(0.0) == 0
    budget.allow(0.1, 0.0)

    assert budget.wait(0.0) == pytest.approx(10.0)
