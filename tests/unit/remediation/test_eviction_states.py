# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest

from nova_enlightened.remediation.eviction_states import (
    BEFORE_REQUEST,
    FINAL,
    MIGRATION_STATUS,
    TRANSITIONS,
    Input,
    State,
    advance,
)
from tests.unit.remediation.fakes import record


def test_every_pair_leads_somewhere_that_is_listed_or_ends_the_eviction() -> None:
    for state, happened in itertools.product(State, Input):
        after = advance(state, happened)
        if state in FINAL:
            assert after is state
        else:
            assert after is TRANSITIONS.get((state, happened), State.GAVE_UP)


def test_every_state_that_is_not_final_has_a_way_to_an_end() -> None:
    for state in set(State) - FINAL:
        reached, edge = {state}, {state}
        while edge:
            edge = {to for (start, _), to in TRANSITIONS.items() if start in edge} - reached
            reached |= edge
        assert reached & FINAL, state


def test_the_state_in_which_nova_is_asked_is_entered_once_and_never_again() -> None:
    into = [start for (start, _), to in TRANSITIONS.items() if to is State.REQUESTING]
    assert into == [State.ORDERED]
    beyond, edge = set(), {State.REQUESTING}
    while edge:
        edge = {to for (start, _), to in TRANSITIONS.items() if start in edge} - beyond
        beyond |= edge
    assert State.REQUESTING not in beyond
    assert not beyond & BEFORE_REQUEST


def test_final_states_have_no_way_out() -> None:
    assert not [start for start, _ in TRANSITIONS if start in FINAL]


@pytest.mark.parametrize("state", sorted(set(State) - FINAL - {State.VERIFYING}))
def test_a_server_that_is_gone_ends_an_eviction(state: State) -> None:
    assert advance(state, Input.SERVER_GONE) in FINAL


def test_what_is_not_foreseen_says_so() -> None:
    after = record(state=State.VERIFYING).after(Input.CHECKED, 101.0)
    assert after.state is State.GAVE_UP
    assert "checked while verifying is not foreseen" in after.reason


def test_all_of_novas_words_for_a_live_migration_are_known() -> None:
    words = {"accepted", "queued", "preparing", "running", "running (post-copy)", "completed",
             "failed", "error", "cancelled"}  # fmt: skip
    assert words <= MIGRATION_STATUS.keys()
