# SPDX-License-Identifier: Apache-2.0
"""Pages that wait between QEMU and the link: each leaves once, in the order of what it is worth."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nova_enlightened.plan.worth import Worth
from nova_enlightened.stream.wire import RamFlag
from nova_enlightened.transfer.held_pages import EMIT_PAGES, STRIDES, HeldPages, Run

PAGES = 64
STRIDE = STRIDES[int(RamFlag.PAGE)]
WORTHS = st.sampled_from([Worth.NEAR, Worth.ASKED, Worth.PLANNED, Worth.PLANNED + 1,
                          Worth.BACKGROUND])  # fmt: skip
ALL = range(PAGES)


def run_of(pages: list[int]) -> Run:
    """A run whose records say which page they are: the first byte behind each header."""
    records = b"".join(bytes(8) + bytes((page,)) * (STRIDE - 8) for page in pages)
    numbers = np.array(pages, np.int64)
    return Run("pc.ram", int(RamFlag.PAGE), numbers, memoryview(records)[8:])


def held(pages: list[int], worths: list[int]) -> HeldPages:
    made = HeldPages(PAGES)
    made.add(run_of(pages), np.array(worths, np.uint8))
    return made


def drained(held: HeldPages, horizon: int = Worth.BACKGROUND, room: int = STRIDE) -> list[int]:
    """Pages in the order in which they are taken; each with the record it came with."""
    pages: list[int] = []
    while runs := held.take(room, horizon):
        for run in runs:
            assert bytes(run.body[::STRIDE]) == bytes(run.pages.tolist())
            pages += run.pages.tolist()
    return pages


@given(st.permutations(ALL), st.lists(WORTHS, min_size=PAGES, max_size=PAGES))
def test_pages_leave_by_worth_and_then_by_age(pages: list[int], worths: list[int]) -> None:
    order = sorted(range(PAGES), key=lambda at: worths[at])  # a stable sort
    assert drained(held(pages, worths)) == [pages[at] for at in order]


@given(st.permutations(ALL), st.lists(WORTHS, min_size=PAGES, max_size=PAGES),
       st.lists(st.lists(st.sampled_from(ALL), min_size=1, max_size=5), max_size=6))  # fmt: skip
def test_promoted_pages_leave_first_and_each_page_once(
    pages: list[int], worths: list[int], promoted: list[list[int]]
) -> None:
    some = held(pages, worths)
    size = some.size
    for few in promoted:
        some.promote(np.array(few, np.int64), Worth.DEMANDED)
    assert some.size == size == some.ready(Worth.BACKGROUND)
    wanted = {page for few in promoted for page in few}
    order = drained(some)
    assert set(order[: len(wanted)]) == wanted
    assert sorted(order) == list(ALL)
    assert not some.size
    rest = [page for page in order if page not in wanted]
    by_worth = dict(zip(pages, worths, strict=True))
    assert [by_worth[page] for page in rest] == sorted(by_worth[page] for page in rest)


def test_a_page_is_not_worth_less_by_being_promoted() -> None:
    some = held([1, 2], [Worth.DEMANDED, Worth.BACKGROUND])
    some.promote(np.array([1]), Worth.NEAR)
    assert drained(some, horizon=Worth.DEMANDED) == [1]


def test_a_page_that_is_not_held_is_not_promoted() -> None:
    some = held([1, 2], [Worth.BACKGROUND] * 2)
    some.promote(np.array([3]), Worth.DEMANDED)
    assert drained(some, horizon=Worth.NEAR) == []


def test_what_was_taken_is_not_promoted_any_more() -> None:
    some = held([1, 2], [Worth.ASKED, Worth.BACKGROUND])
    assert drained(some, horizon=Worth.ASKED) == [1]
    some.promote(np.array([1, 2]), Worth.DEMANDED)
    assert drained(some) == [2]


def test_what_is_worth_too_little_stays() -> None:
    some = held([1, 2, 3], [Worth.ASKED, Worth.BACKGROUND, Worth.ASKED])
    assert drained(some, horizon=Worth.ASKED) == [1, 3]
    assert some.size == STRIDE


def test_a_long_run_leaves_in_parts_that_others_can_pass() -> None:
    some = held(list(ALL), [Worth.PLANNED] * PAGES)
    (first,) = some.take(1, Worth.BACKGROUND)
    assert first.pages.tolist() == list(range(EMIT_PAGES))
    some.promote(np.array([50]), Worth.DEMANDED)
    assert drained(some)[:2] == [50, EMIT_PAGES]


def test_a_fixed_order_holds_against_promotion() -> None:
    some = held([1, 2, 3], [Worth.ASKED, Worth.BACKGROUND, Worth.ASKED])
    some.fix_order(reversed(some.runs()))
    some.promote(np.array([1]), Worth.DEMANDED)
    assert drained(some) == [2, 3, 1]


def test_nothing_held_has_an_order_too() -> None:
    some = HeldPages(PAGES)
    some.fix_order([])
    assert drained(some) == []
