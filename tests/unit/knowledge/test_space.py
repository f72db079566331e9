# SPDX-License-Identifier: Apache-2.0
"""Page numbers over RAM blocks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.exception import PlanError
from nova_enlightened.knowledge.space import TARGET_PAGE, PageSpace

BLOCKS = [("pc.ram", 8 * TARGET_PAGE), ("vga.vram", 2 * TARGET_PAGE), ("bios", TARGET_PAGE)]

some_blocks = st.lists(
    st.tuples(st.text(max_size=8), st.integers(1, 1000).map(lambda n: n * TARGET_PAGE)),
    min_size=1,
    max_size=8,
    unique_by=lambda block: block[0],
)


def test_blocks_lie_end_to_end() -> None:
    space = PageSpace(BLOCKS)

    assert space.pages == 11
    assert space.names == ("pc.ram", "vga.vram", "bios")
    assert space.base("vga.vram") == 8
    assert space.block_range("bios") == range(10, 11)
    assert "bios" in space
    assert "rom" not in space


@settings(deadline=None)
@given(some_blocks, st.data())
def test_number_and_locate_are_inverse(blocks: list[tuple[str, int]], data: st.DataObject) -> None:
    space = PageSpace(blocks)
    page = data.draw(st.integers(0, space.pages - 1))

    assert space.number(*space.locate(page)) == page


@settings(deadline=None)
@given(some_blocks, st.data())
def test_split_cuts_at_block_edges_only(blocks: list[tuple[str, int]], data: st.DataObject) -> None:
    space = PageSpace(blocks)
    first = data.draw(st.integers(0, space.pages))
    count = data.draw(st.integers(0, space.pages - first))

    pieces = space.split(first, count)

    assert [page for a, n in pieces for page in range(a, a + n)] == list(
        range(first, first + count)
    )
    for a, n in pieces:
        assert n > 0
        assert space.locate(a)[0] == space.locate(a + n - 1)[0]


def test_equal_blocks_make_equal_spaces() -> None:
    assert PageSpace(BLOCKS) == PageSpace(list(BLOCKS))
    assert hash(PageSpace(BLOCKS)) == hash(PageSpace(BLOCKS))
    assert PageSpace(BLOCKS) != PageSpace(BLOCKS[:1])


@pytest.mark.parametrize("size", [0, -TARGET_PAGE, 100, TARGET_PAGE + 1])
def test_a_block_of_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(PlanError, match=r"pc\.ram"):
        PageSpace([("pc.ram", size)])


def test_a_repeated_block_is_refused() -> None:
    with pytest.raises(PlanError, match="twice"):
        PageSpace([("a", TARGET_PAGE), ("a", TARGET_PAGE)])


def test_an_absurd_sum_is_refused() -> None:
    with pytest.raises(PlanError, match="limit"):
        PageSpace([("a", 1 << 60)])


@pytest.mark.parametrize(
    ("name", "offset"),
    [("rom", 0), ("pc.ram", 1), ("pc.ram", -TARGET_PAGE), ("pc.ram", 8 * TARGET_PAGE)],
)
def test_a_place_that_is_none_has_no_number(name: str, offset: int) -> None:
    with pytest.raises(PlanError, match=name):
        PageSpace(BLOCKS).number(name, offset)


@pytest.mark.parametrize("page", [-1, 11])
def test_a_page_that_is_none_is_nowhere(page: int) -> None:
    with pytest.raises(PlanError, match="outside"):
        PageSpace(BLOCKS).locate(page)


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, -1), (10, 2)])
def test_a_range_that_leaves_the_space_is_not_split(first: int, count: int) -> None:
    with pytest.raises(PlanError, match="leave"):
        PageSpace(BLOCKS).split(first, count)
