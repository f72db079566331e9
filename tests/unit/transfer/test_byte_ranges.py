# SPDX-License-Identifier: Apache-2.0
"""Sets of byte positions, against sets of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from nova_enlightened.transfer.byte_ranges import ByteRanges

SIZE = 40
changes = st.lists(
    st.tuples(st.booleans(), st.integers(0, SIZE), st.integers(0, SIZE)), max_size=30
)


def after(changes):
    ranges, plain = ByteRanges(), set()
    for is_added, start, end in changes:
        if is_added:
            ranges.add(start, end)
            plain |= set(range(start, end))
        else:
            ranges.remove(start, end)
            plain -= set(range(start, end))
    return ranges, plain


@given(changes)
def test_it_is_the_same_as_a_set_of_numbers(changes):
    ranges, plain = after(changes)
    assert ranges.total == len(plain)
    for start in range(SIZE):
        assert ranges.covers(start, start + 1) is (start in plain)


@given(changes, st.integers(0, SIZE), st.integers(1, SIZE))
def test_it_covers_what_has_no_gap(changes, start, length):
    ranges, plain = after(changes)
    assert ranges.covers(start, start + length) is (set(range(start, start + length)) <= plain)


@given(changes)
def test_ranges_that_touch_are_one(changes):
    ranges, plain = after(changes)
    edges = sum(1 for position in plain if position - 1 not in plain)
    assert len(ranges) == edges
