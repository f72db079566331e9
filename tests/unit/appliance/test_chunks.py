# SPDX-License-Identifier: Apache-2.0
import dataclasses
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.appliance import chunks
from nova_enlightened.appliance.chunks import ABSENT, UNIT, ZERO, ChunkIndex
from nova_enlightened.exception import ApplianceError, ChunkError, ChunkIndexError
from tests.unit.appliance.appliances import Stored, random_contents, unit

PLACES = 200
STORED = Stored(PLACES, random_contents(PLACES, 1), pack_limit=8192)
INDEX = STORED.index
FILE = chunks.encode(INDEX)
MEMORY = 4 << 20
"""More than decoding any file of `PLACES` places may take."""


def same(one, other):
    return one.packs == other.packs and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in ("chunk_of", "slot_of", "pack", "offset", "length", "units", "digest")
    )


def refuses(data, places=PLACES):
    with pytest.raises(ChunkIndexError):
        chunks.decode(data, places)


def test_reads_what_it_wrote():
    assert len(INDEX.packs) > 1
    assert same(chunks.decode(FILE, PLACES), INDEX)


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(0, 30), st.integers(0, 12)),
    st.integers(1, 64),
    st.sampled_from([ZERO, ABSENT]),
    st.integers(4096, 20000),
)
def test_reads_whatever_it_wrote(contents, group, missing, pack_limit):
    index = Stored(31, contents, group=group, missing=missing, pack_limit=pack_limit).index
    assert same(chunks.decode(chunks.encode(index), 31), index)


def test_an_index_is_small():
    index = Stored(2000, dict.fromkeys(range(2000), 1)).index
    assert len(chunks.encode(index)) < 200


def test_every_place_is_found_again():
    for place, number in random_contents(PLACES, 1).items():
        chunk = int(INDEX.chunk_of[place])
        content = bytes(UNIT)
        if chunk != ZERO:
            at = int(INDEX.slot_of[place]) * UNIT
            content = chunks.unpack(INDEX, chunk, STORED.stored(chunk))[at : at + UNIT]
        assert content == (unit(number) if number else bytes(UNIT))


@given(st.integers(0, len(FILE) - 1))
def test_refuses_a_truncated_file(length):
    refuses(FILE[:length])


@settings(deadline=None)
@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_gives_an_index_that_holds_together(at, change):
    data = bytearray(FILE)
    data[at] ^= change
    tracemalloc.start()
    try:
        index = chunks.decode(data, PLACES)
    except ChunkIndexError:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY
    stored = index.stored
    assert (index.chunk_of[stored] < index.chunks).all()
    assert (index.slot_of[stored] < index.units[index.chunk_of[stored]]).all()
    assert (index.pack < len(index.packs)).all()
    assert (index.offset + index.length <= chunks.MAX_PACK).all()


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_refuses_anything_else(data):
    refuses(data)
    refuses(FILE[:20] + data)


def test_refuses_an_index_of_another_appliance():
    refuses(FILE, PLACES + 1)


def test_refuses_bytes_behind_the_file():
    refuses(FILE + b"x")


def test_refuses_more_places_than_there_may_be():
    refuses(FILE, chunks.MAX_PLACES + 1)


@pytest.mark.parametrize("at, field", [(6, "packs"), (12, "chunks"), (16, "stored")])
def test_refuses_a_header_that_promises_too_much(at, field):
    data = bytearray(FILE)
    struct.pack_into("<H" if field == "packs" else "<I", data, at, 0xFFFF)
    refuses(data)


def test_a_frame_that_unfolds_to_more_than_it_should_is_not_opened():
    bomb = zstandard.ZstdCompressor().compress(bytes(200 << 20))
    tracemalloc.start()
    refuses(FILE[:20] + bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY


def test_a_frame_that_does_not_tell_its_size_is_not_opened():
    opened = zstandard.ZstdDecompressor().decompress(FILE[20:])
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(opened)
    refuses(FILE[:20] + frame)


@pytest.mark.parametrize(
    "changes",
    [
        {"pack": np.full(INDEX.chunks, len(INDEX.packs), np.uint16)},
        {"units": np.zeros(INDEX.chunks, np.uint8)},
        {"units": np.full(INDEX.chunks, 65, np.uint8)},
        {"units": np.ones(INDEX.chunks, np.uint8)},
        {"length": np.zeros(INDEX.chunks, np.uint32)},
        {"length": np.full(INDEX.chunks, chunks.MAX_STORED + 1, np.uint32)},
        {"offset": np.full(INDEX.chunks, chunks.MAX_PACK, np.uint64)},
        {"offset": np.full(INDEX.chunks, 2**64 - 1, np.uint64)},
        {"packs": (INDEX.packs[0],) * len(INDEX.packs)},
        {"chunk_of": np.where(INDEX.stored, np.uint32(INDEX.chunks), INDEX.chunk_of)},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_refuses_numbers_that_point_nowhere(changes):
    refuses(chunks.encode(dataclasses.replace(INDEX, **changes)))


def refused(index, chunk, stored):
    with pytest.raises(ChunkError) as caught:
        chunks.unpack(index, chunk, stored)
    return caught.value


def test_a_changed_chunk_is_refused_by_name_and_place():
    stored = bytearray(STORED.stored(3))
    stored[5] ^= 1
    error = refused(INDEX, 3, stored)
    assert error.retryable
    assert (error.pack, error.offset) == (INDEX.packs[INDEX.pack[3]], INDEX.offset[3])
    assert error.pack in str(error)


def test_a_truncated_chunk_is_refused():
    refused(INDEX, 3, STORED.stored(3)[:-1])


def test_another_chunk_is_refused():
    refused(INDEX, 3, STORED.stored(4))


def with_stored(stored, units=4):
    """An index whose chunk 0 is `stored`, whatever that is."""
    digest = INDEX.digest.copy()
    digest[0] = np.frombuffer(chunks.digest_of(stored), np.uint8)
    length, count = INDEX.length.copy(), INDEX.units.copy()
    length[0], count[0] = len(stored), units
    return dataclasses.replace(INDEX, digest=digest, length=length, units=count)


def test_a_chunk_with_its_digest_that_unfolds_to_too_much_is_not_opened():
    bomb = zstandard.ZstdCompressor().compress(bytes(100 << 20))
    index = with_stored(bomb)
    tracemalloc.start()
    refused(index, 0, bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY


def test_a_chunk_with_its_digest_that_is_no_frame_is_refused():
    refused(with_stored(b"not zstd"), 0, b"not zstd")


def test_a_chunk_with_its_digest_and_too_few_units_is_refused():
    stored = zstandard.ZstdCompressor().compress(bytes(3 * UNIT))
    refused(with_stored(stored), 0, stored)


def test_a_thread_may_bring_its_own_decompressor():
    opener = zstandard.ZstdDecompressor()
    stored = STORED.stored(2)
    assert chunks.unpack(INDEX, 2, stored, opener) == chunks.unpack(INDEX, 2, stored)


def test_its_errors_are_the_appliances():
    assert issubclass(ChunkIndexError, ApplianceError)
    assert not ChunkIndexError.retryable


def test_an_appliance_without_a_place_has_an_index_too():
    empty = Stored(0, {}).index
    assert isinstance(chunks.decode(chunks.encode(empty), 0), ChunkIndex)
