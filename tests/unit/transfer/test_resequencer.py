# SPDX-License-Identifier: Apache-2.0
"""Page records given another order: each once, none lost, none behind the end."""

import collections
import itertools
from collections.abc import Set

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened import exception
from nova_enlightened.knowledge.space import TARGET_PAGE, PageSpace
from nova_enlightened.plan.injector import Worth
from nova_enlightened.stream import encode
from nova_enlightened.stream import events as ev
from nova_enlightened.stream.migration import MigrationStream
from nova_enlightened.transfer.resequencer import Resequencer

RAM = 3
SPACE = PageSpace([("pc.ram", 256 * TARGET_PAGE), ("vga", 16 * TARGET_PAGE)])
BETWEEN = encode.ram_end() + encode.footer(RAM)
END = BETWEEN + encode.ram_part(RAM, last=True) + BETWEEN + encode.eof()


def record(page: int, block: str | None = None, zero: bool = False) -> bytes:
    name, offset = SPACE.locate(page)
    assert block in (None, name)
    if zero:
        return encode.zero_page(offset, block)
    return encode.page_header(offset, block) + page.to_bytes(4, "big") * 1024


class Worths:
    """Pages named in the constructor are urgent."""

    def __init__(self, demanded: Set[int] = frozenset(), planned: Set[int] = frozenset()) -> None:
        self._demanded, self._planned = demanded, planned

    def __call__(self, pages: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        def worth(page: int) -> int:
            if page in self._demanded:
                return Worth.DEMANDED
            return Worth.PLANNED if page in self._planned else Worth.BACKGROUND

        return np.array([worth(page) for page in pages.tolist()], np.uint8)


def fed(sequencer: Resequencer, data: bytes, cuts: list[int] | None = None) -> None:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts or ())})
    for first, last in itertools.pairwise(edges):
        while first < last:
            buffer = sequencer.buffer()
            count = min(len(buffer), last - first)
            buffer[:count] = data[first : first + count]
            assert bytes(sequencer.receive(count)) == data[first : first + count]
            first += count


def taken(sequencer: Resequencer, background: bool = True, room: int = 1 << 30) -> bytes:
    return sequencer.take(room, Worth.BACKGROUND if background else Worth.PLANNED)[0]


def promoted(sequencer: Resequencer, page: int) -> None:
    sequencer.promote(np.array([page], np.int64), Worth.DEMANDED)


def pages_of(raw: bytes, tail: bytes = b"") -> list[int]:
    """Page numbers in order, read by the parser that reads QEMU's own streams."""
    opening = b"".join((
        encode.header(),
        encode.configuration(ev.Configuration("pc")),
        encode.ram_start(RAM),
        encode.block_list([ev.RamBlock(n, s, TARGET_PAGE) for n, s in SPACE.blocks()]),
        BETWEEN,
        encode.ram_part(RAM),
        encode.page_header(255 * TARGET_PAGE, "pc.ram") + bytes(TARGET_PAGE),
    ))  # fmt: skip
    stream = MigrationStream()
    stream.receive_data(opening)
    while stream.next_event() is not ev.NEED_DATA:
        pass
    pages: list[int] = []
    # One record at a time, because a batch does not keep the order of kinds.
    for at in range(len(raw + tail)):
        stream.receive_data((raw + tail)[at : at + 1])
        while (event := stream.next_event()) is not ev.NEED_DATA:
            assert not isinstance(event, ev.Opaque), event
            if isinstance(event, ev.RamPages):
                base = SPACE.base(event.block)
                pages += [base + int(o) // TARGET_PAGE for o in event.offsets]
    return pages


def sequencer_with(worth: Worths | None = None) -> Resequencer:
    return Resequencer(SPACE, RAM, "pc.ram", worth or Worths())


def test_demanded_pages_cross_before_planned_before_others() -> None:
    sequencer = sequencer_with(Worths(demanded={7}, planned={5, 6}))
    fed(sequencer, b"".join(record(page) for page in (1, 5, 2, 6, 7, 3)))
    assert pages_of(taken(sequencer)) == [7, 5, 6, 1, 2, 3]


def test_pages_nobody_asked_for_wait_until_they_may_go() -> None:
    sequencer = sequencer_with(Worths(planned={5}))
    fed(sequencer, record(1) + record(5))
    assert pages_of(taken(sequencer, background=False)) == [5]
    assert taken(sequencer, background=False) == b""
    assert pages_of(taken(sequencer)) == [1]


def test_a_held_page_the_guest_waits_for_goes_first_and_only_once() -> None:
    sequencer = sequencer_with()
    fed(sequencer, b"".join(record(page) for page in range(10)))
    promoted(sequencer, 4)
    assert pages_of(taken(sequencer, background=False)) == [4]
    assert pages_of(taken(sequencer)) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_neighbours_that_are_held_go_before_the_plan() -> None:
    sequencer = sequencer_with(Worths(planned={2}))
    fed(sequencer, b"".join(record(page) for page in range(8)))
    sequencer.promote(np.array([5, 6, 99], np.int64), Worth.NEAR)
    assert pages_of(taken(sequencer)) == [5, 6, 2, 0, 1, 3, 4, 7]


def test_a_page_of_another_block_names_it() -> None:
    sequencer = sequencer_with(Worths(demanded={258}))
    fed(sequencer, record(1) + record(257, "vga") + record(258) + record(2, "pc.ram"))
    assert pages_of(taken(sequencer)) == [258, 1, 257, 2]


def test_sections_in_between_are_left_out() -> None:
    sequencer = sequencer_with()
    fed(sequencer, record(1) + BETWEEN + encode.ram_part(RAM) + record(2))
    assert taken(sequencer) == record(1) + record(2)


def test_the_end_crosses_as_it_is_after_everything() -> None:
    sequencer = sequencer_with(Worths(planned={2}))
    rest = encode.ram_part(RAM, last=True) + record(3) + BETWEEN + encode.eof()
    fed(sequencer, record(1) + BETWEEN + rest)
    assert not sequencer.finished
    out = taken(sequencer, background=False)
    assert out.endswith(END)
    assert pages_of(out) == [1, 3]
    assert sequencer.finished


def test_something_unknown_waits_for_what_came_before_it() -> None:
    sequencer = sequencer_with()
    command = encode.ping(9)
    fed(sequencer, record(1) + BETWEEN + command + encode.ram_part(RAM) + record(2))
    out = taken(sequencer, background=False)
    assert out == record(1) + BETWEEN + command + encode.ram_part(RAM) + record(2)


def test_records_behind_a_barrier_continue_the_block_they_continued() -> None:
    sequencer = sequencer_with(Worths(demanded={2}))
    fed(sequencer, record(2) + record(257, "vga"))
    assert pages_of(taken(sequencer, background=False)) == [2]
    fed(sequencer, BETWEEN + encode.ping(9) + encode.ram_part(RAM) + record(258))
    assert pages_of(taken(sequencer)) == [257, 258]


def test_an_order_that_would_confuse_blocks_is_refused() -> None:
    sequencer = sequencer_with(Worths(demanded={257}))
    fed(sequencer, record(1) + record(257, "vga"))
    assert pages_of(taken(sequencer, background=False)) == [257]
    taken(sequencer)
    with pytest.raises(exception.StreamError, match="vga"):
        fed(sequencer, BETWEEN + encode.ping(1))


def test_a_record_outside_its_block_is_refused() -> None:
    sequencer = sequencer_with()
    with pytest.raises(exception.StreamError, match="outside"):
        fed(sequencer, encode.page_header(256 * TARGET_PAGE) + bytes(TARGET_PAGE))


def test_flags_it_does_not_know_are_refused_by_value() -> None:
    sequencer = sequencer_with()
    with pytest.raises(exception.StreamError, match="0x60"):
        fed(sequencer, (0x1060).to_bytes(8, "big") + bytes(64))


def test_what_is_left_of_a_record_crosses_when_qemu_ends() -> None:
    sequencer = sequencer_with()
    whole = record(1) + record(2)
    fed(sequencer, whole[:-100])
    sequencer.end()
    assert taken(sequencer) == whole[:-100]
    assert sequencer.finished


def test_little_is_given_out_at_once_when_there_is_little_room() -> None:
    sequencer = sequencer_with()
    fed(sequencer, b"".join(record(page) for page in range(200)))
    assert len(taken(sequencer, room=1)) < 80 * 1024


RECORDS = st.lists(
    st.tuples(st.integers(0, 271), st.booleans(), st.booleans()), unique_by=lambda r: r[0],
    max_size=60,
)  # fmt: skip


@settings(deadline=None)
@given(RECORDS, st.lists(st.integers(0, 1 << 20), max_size=12), st.data())
def test_every_page_crosses_exactly_once(
    records: list[tuple[int, bool, bool]], cuts: list[int], data: st.DataObject
) -> None:
    raw, block = b"", "pc.ram"
    for page, zero, section in records:
        name, _ = SPACE.locate(page)
        raw += record(page, None if name == block else name, zero)
        block = name
        raw += BETWEEN + encode.ram_part(RAM) if section else b""
    numbers = [page for page, _, _ in records]
    some = st.sets(st.sampled_from(numbers)) if numbers else st.just(set())
    sequencer = sequencer_with(Worths(data.draw(some), data.draw(some)))
    out = b""
    edges = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    for first, last in itertools.pairwise(edges):
        fed(sequencer, raw[first:last])
        for page in data.draw(some):
            promoted(sequencer, page)
        out += taken(sequencer, data.draw(st.booleans()), data.draw(st.integers(1, 1 << 18)))
    fed(sequencer, END)
    while sequencer.held:
        out += taken(sequencer)
    assert out.endswith(END)
    counted = collections.Counter(pages_of(out))
    assert counted == collections.Counter(numbers)
