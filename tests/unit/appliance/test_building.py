# SPDX-License-Identifier: Apache-2.0
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.appliance import chunks
from nova_enlightened.appliance.building import LayerBuilder, name_of
from nova_enlightened.appliance.chunks import ABSENT, MAX_PACK, UNIT, ZERO
from nova_enlightened.appliance.unit_table import UnitTable
from nova_enlightened.exception import ApplianceError, ChunkIndexError
from tests.unit.appliance.appliances import Stored, random_contents, unit, units


def test_groups_units_into_chunks_in_the_order_they_were_added():
    index = Stored(10, {7: 1, 3: 2, 5: 3, 1: 4, 0: 5}, group=2, missing=ABSENT).index
    assert index.chunks == 3
    assert index.units.tolist() == [2, 2, 1]
    assert index.chunk_of[[7, 3, 5, 1, 0]].tolist() == [0, 0, 1, 1, 2]
    assert index.slot_of[[7, 3, 5, 1, 0]].tolist() == [0, 1, 0, 1, 0]


def test_a_zero_unit_is_not_stored():
    stored = Stored(4, {0: 0, 1: 1, 2: 0, 3: 0})
    assert stored.index.chunks == 1
    assert stored.index.zero.tolist() == [True, False, True, True]


def test_equal_units_are_stored_once():
    stored = Stored(100, dict.fromkeys(range(100), 7))
    assert stored.index.units.tolist() == [1]
    assert (stored.index.chunk_of == 0).all()


@pytest.mark.parametrize("missing", [ZERO, ABSENT])
def test_what_was_never_added_is_what_its_caller_says(missing):
    assert Stored(4, {1: 1}, missing=missing).index.chunk_of.tolist() == [
        missing,
        0,
        missing,
        missing,
    ]


def test_packs_are_named_by_content_and_hold_the_chunks_back_to_back():
    stored = Stored(300, random_contents(300, 2), pack_limit=4096)
    index = stored.index
    assert len(index.packs) > 3
    for number, name in enumerate(index.packs):
        mine = index.pack == number
        assert hashlib.sha256(stored.packs[name]).hexdigest() == name
        assert index.length[mine].sum() == len(stored.packs[name]) <= 4096
        assert (np.cumsum(index.length[mine])[:-1] == index.offset[mine][1:]).all()


def test_a_full_pack_can_be_taken_before_the_end():
    builder = LayerBuilder(1000, pack_limit=4096)
    taken = []
    for first in range(0, 1000, 100):
        builder.add(range(first, first + 100), units(range(first + 1, first + 101)))
        taken += builder.take()
    assert len(taken) > 5
    assert builder.take() == []
    index = builder.finish()
    assert [name_of(pack) for pack in taken + builder.take()] == list(index.packs)


def test_the_same_units_make_the_same_layer_however_they_are_handed_over():
    contents = random_contents(64, 3)
    builder = LayerBuilder(64, pack_limit=1 << 20)
    for place, number in contents.items():
        raw = bytearray(unit(number) if number else bytes(UNIT))
        builder.add([place], raw)
        raw[:] = b"\xff" * UNIT  # the caller may use its memory again
    assert chunks.encode(builder.finish(ZERO)) == chunks.encode(Stored(64, contents).index)


def test_units_of_a_parent_are_not_stored_again():
    parent = Stored(100, random_contents(100, 1))
    contents = random_contents(100, 1) | {5: 1001, 6: 1002}
    child = Stored(100, contents, known=[(parent.index, parent.table)])
    assert len(child.packs) == 1
    assert sum(map(len, child.packs.values())) < 1500
    assert set(child.index.packs) <= parent.packs.keys() | child.packs.keys()
    child.packs |= parent.packs
    for place, number in contents.items():
        chunk = int(child.index.chunk_of[place])
        if number:
            at = int(child.index.slot_of[place]) * UNIT
            content = chunks.unpack(child.index, chunk, child.stored(chunk))[at : at + UNIT]
            assert content == unit(number)
        else:
            assert chunk == ZERO


def test_a_grandchild_finds_the_units_of_its_grandparent_in_its_parent():
    first = Stored(50, random_contents(50, 1, zero=0))
    second = Stored(50, random_contents(50, 1, zero=0), known=[(first.index, first.table)])
    third = Stored(50, random_contents(50, 1, zero=0), known=[(second.index, second.table)])
    assert not second.packs
    assert not third.packs


def test_several_parents_can_lend():
    one, other = Stored(4, {0: 1, 1: 2}), Stored(4, {0: 3, 1: 4})
    known = [(one.index, one.table), (other.index, other.table)]
    child = Stored(4, {0: 4, 1: 1, 2: 2, 3: 3}, known=known)
    assert not child.packs
    assert set(child.index.packs) == one.packs.keys() | other.packs.keys()
    chunks.decode(chunks.encode(child.index), 4)


def test_chunks_of_a_parent_nobody_needs_are_left_out():
    parent = Stored(100, {place: place + 1 for place in range(100)})
    child = Stored(100, {0: 50}, known=[(parent.index, parent.table)])
    assert child.index.chunks == 1


def test_the_table_of_units_comes_back_from_its_file():
    stored = Stored(100, random_contents(100, 1))
    table = UnitTable.decode(stored.table.encode(), stored.index)
    assert (table.chunk == stored.table.chunk).all()
    assert (table.slot == stored.table.slot).all()
    assert (table.digest == stored.table.digest).all()


TABLE = Stored(40, random_contents(40, 1))
FILE = TABLE.table.encode()


@given(st.integers(0, len(FILE) - 1))
def test_a_truncated_table_of_units_is_refused(length):
    with pytest.raises(ChunkIndexError):
        UnitTable.decode(FILE[:length], TABLE.index)


@settings(deadline=None)
@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_a_changed_table_of_units_is_refused_or_points_into_its_index(at, change):
    data = bytearray(FILE)
    data[at] ^= change
    try:
        table = UnitTable.decode(data, TABLE.index)
    except ChunkIndexError:
        return
    assert (table.chunk < TABLE.index.chunks).all()
    assert (table.slot < TABLE.index.units[table.chunk]).all()


def test_a_table_of_units_of_another_index_is_refused():
    with pytest.raises(ChunkIndexError):
        UnitTable.decode(FILE, Stored(4, {0: 1}).index)


@pytest.mark.parametrize(
    "places, length, group",
    [([0], UNIT - 1, 4), ([0, 1], UNIT, 4), ([4], UNIT, 4), ([-1], UNIT, 4), ([0], UNIT, 0),
     ([0], UNIT, 65), ([1, 1], 2 * UNIT, 4), ([2], UNIT, 4)],
)  # fmt: skip
def test_refuses_units_it_cannot_place(places, length, group):
    builder = LayerBuilder(4)
    builder.add([2], bytes(UNIT))
    with pytest.raises(ApplianceError):
        builder.add(places, bytes(length), group)


def test_refuses_units_after_the_end():
    builder = LayerBuilder(4)
    builder.finish()
    with pytest.raises(ApplianceError):
        builder.add([0], bytes(UNIT))


def test_the_table_of_units_waits_for_the_end():
    with pytest.raises(ApplianceError):
        LayerBuilder(4).unit_table()


@pytest.mark.parametrize("places, limit", [(-1, MAX_PACK), (4, MAX_PACK + 1), (4, UNIT - 1)])
def test_refuses_a_layer_past_its_limits(places, limit):
    with pytest.raises(ApplianceError):
        LayerBuilder(places, pack_limit=limit)
