# SPDX-License-Identifier: Apache-2.0
"""The chunk index: where in the store the contents of an appliance's places are.

A *unit* is the 4096 bytes of a place. Up to 64 units stored together as one zstd frame are a
*chunk*; chunks back to back are a *pack*, an object of the store. Places may share a unit.
A chunk is known by the digest of its stored bytes, so nothing is decompressed that was not
verified. File format, little endian:

    header   4s magic 'NECI', u16 version, u16 packs, u32 places, u32 chunks
    body     a zstd frame of columns (see `frames.column`):
             places whose content is stored, and places that are zero: a bit each, first place in
             the highest bit of the first byte; for each stored place, in order: u32 chunk as
             the difference to the one before, u8 slot in the chunk; for each chunk: u8 units,
             u16 pack, u64 offset as the difference to the end of the chunk before, u32 length,
             16 bytes of BLAKE2b-128; for each pack its SHA-256
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard

from nova_enlightened.appliance import frames
from nova_enlightened.appliance.places import MAX_PLACES
from nova_enlightened.appliance.places import UNIT as UNIT
from nova_enlightened.exception import ApplianceError, ChunkError, ChunkIndexError

MAX_UNITS: Final = 64
"""Units in a chunk."""
MAX_STORED: Final = MAX_UNITS * UNIT + 4096
"""Stored bytes of a chunk; incompressible content grows by less than 1 in 256."""
MAX_PACK: Final = 64 << 20
"""Bytes of a pack."""
MAX_PACKS: Final = 1 << 14
"""Packs an index may name: 1 TiB of them."""
DIGEST: Final = 16

ZERO: Final = 0xFFFFFFFF
"""In `ChunkIndex.chunk_of`: all bytes of the place are zero, and nothing is stored."""
ABSENT: Final = 0xFFFFFFFE
"""In `ChunkIndex.chunk_of`: this index does not know the place; another layer does."""

MAGIC: Final = b"NECI"
VERSION: Final = 1
HEADER: Final = struct.Struct("<4sHHII")
MAX_INDEX: Final = 1 << 30
"""Bytes of the file."""
CHUNK_BYTES: Final = 1 + 2 + 8 + 4 + DIGEST


@dataclass(frozen=True, eq=False)
class ChunkIndex:
    """For some or all places of an appliance, where their contents are. Not to be written to.

    :ivar chunk_of: u32[places]: the chunk, or `ZERO` or `ABSENT`.
    :ivar slot_of: u8[places]: which of the chunk's units; 0 where there is no chunk.
    :ivar pack: u16[chunks]: index in `packs`.
    :ivar offset: u64[chunks]: bytes from the beginning of the pack.
    :ivar length: u32[chunks]: stored bytes.
    :ivar units: u8[chunks]: units in the chunk, 1 to `MAX_UNITS`.
    :ivar digest: u8[chunks, 16]: BLAKE2b-128 of the stored bytes.
    :ivar packs: SHA-256 of each pack in hexadecimal, which is its name in the store.
    """

    chunk_of: npt.NDArray[np.uint32]
    slot_of: npt.NDArray[np.uint8]
    pack: npt.NDArray[np.uint16]
    offset: npt.NDArray[np.uint64]
    length: npt.NDArray[np.uint32]
    units: npt.NDArray[np.uint8]
    digest: npt.NDArray[np.uint8]
    packs: tuple[str, ...]

    @property
    def places(self) -> int:
        """Places of the appliance, known to this index or not."""
        return self.chunk_of.size

    @property
    def chunks(self) -> int:
        """Chunks of this index."""
        return self.length.size

    @property
    def stored(self) -> npt.NDArray[np.bool_]:
        """Which places have a chunk."""
        return np.asarray(self.chunk_of < ABSENT, np.bool_)

    @property
    def zero(self) -> npt.NDArray[np.bool_]:
        """Which places are zero."""
        return np.asarray(self.chunk_of == ZERO, np.bool_)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all chunks together."""
        return int(self.length.sum(dtype=np.uint64))


def encode(index: ChunkIndex) -> bytes:
    """The file of an index."""
    stored = index.stored
    ends = index.offset + index.length
    gaps = index.offset.copy()
    gaps[1:] -= ends[:-1]
    body = b"".join(
        (
            np.packbits(stored).tobytes(),
            np.packbits(index.zero).tobytes(),
            frames.column(frames.delta(index.chunk_of[stored], "<u4"), "<u4"),
            frames.column(index.slot_of[stored], "u1"),
            frames.column(index.units, "u1"),
            frames.column(index.pack, "<u2"),
            frames.column(gaps, "<u8"),
            frames.column(index.length, "<u4"),
            index.digest.tobytes(),
            *(bytes.fromhex(name) for name in index.packs),
        )
    )
    header = HEADER.pack(MAGIC, VERSION, len(index.packs), index.places, index.chunks)
    return header + struct.pack("<I", int(stored.sum())) + frames.compress(body, 9)


def decode(data: bytes | memoryview, places: int) -> ChunkIndex:
    """The index in a file of an appliance of `places` places.

    :raises ChunkIndexError: not such a file, of another appliance, damaged, or past a limit.
    """
    view = memoryview(data)
    prefix = HEADER.size + 4
    if not prefix < len(view) <= MAX_INDEX or places > MAX_PLACES:
        raise ChunkIndexError(f"a chunk index of {len(view)} bytes for {places} places")
    magic, version, packs, told, chunks = HEADER.unpack_from(view)
    (stored,) = struct.unpack_from("<I", view, HEADER.size)
    if magic != MAGIC or version != VERSION:
        raise ChunkIndexError(f"not a chunk index of version {VERSION}: {magic!r} {version}")
    if told != places:
        raise ChunkIndexError(f"the chunk index is for {told} places, the appliance has {places}")
    # A chunk no place is in, and a pack no chunk is in, have no business in an index.
    if stored > places or chunks > stored or packs > min(chunks, MAX_PACKS):
        raise ChunkIndexError(f"{packs} packs, {chunks} chunks, {stored} of {places} places")
    bits = -(-places // 8)
    size = 2 * bits + 5 * stored + CHUNK_BYTES * chunks + 32 * packs
    try:
        body = frames.decompress(view[prefix:], size)
    except ApplianceError as error:
        raise ChunkIndexError(f"chunk index: {error}") from error
    return _checked(_parsed(frames.Columns(body), places, stored, chunks, packs))


def _parsed(
    columns: frames.Columns, places: int, stored: int, chunks: int, packs: int
) -> ChunkIndex:
    bits = -(-places // 8)
    where = np.unpackbits(columns.next(bits, "u1"), count=places).view(np.bool_)
    zero = np.unpackbits(columns.next(bits, "u1"), count=places).view(np.bool_)
    if np.count_nonzero(where) != stored or bool((where & zero).any()):
        raise ChunkIndexError("chunk index: the places that are stored and zero are at odds")
    chunk_of = np.full(places, ABSENT, np.uint32)
    chunk_of[zero] = ZERO
    chunk_of[where] = frames.undelta(columns.next(stored, "<u4"))
    slot_of = np.zeros(places, np.uint8)
    slot_of[where] = columns.next(stored, "u1")
    if stored and int(chunk_of[where].max()) >= chunks:
        raise ChunkIndexError("chunk index: a place is in a chunk that does not exist")
    units, pack = columns.next(chunks, "u1"), columns.next(chunks, "<u2")
    gaps, length = columns.next(chunks, "<u8"), columns.next(chunks, "<u4")
    # Wraps when the numbers are hostile; `_checked` looks at what comes of it.
    steps = gaps.copy()
    steps[1:] += length[:-1]
    offset = frames.undelta(steps)
    digest = columns.next(chunks * DIGEST, "u1").reshape(chunks, DIGEST)
    names = columns.next(packs * 32, "u1").tobytes()
    return ChunkIndex(
        chunk_of,
        slot_of,
        pack.astype(np.uint16),
        offset.astype(np.uint64),
        length.astype(np.uint32),
        units.astype(np.uint8),
        digest,
        tuple(names[at : at + 32].hex() for at in range(0, len(names), 32)),
    )


def _checked(index: ChunkIndex) -> ChunkIndex:
    """:raises ChunkIndexError: a number points nowhere."""
    if len(set(index.packs)) != len(index.packs):
        raise ChunkIndexError("chunk index: a pack is listed twice")
    if not index.chunks:
        return index
    if int(index.pack.max()) >= len(index.packs):
        raise ChunkIndexError("chunk index: a chunk is in a pack that does not exist")
    if int(index.units.min()) < 1 or int(index.units.max()) > MAX_UNITS:
        raise ChunkIndexError(f"chunk index: a chunk has not 1 to {MAX_UNITS} units")
    if int(index.length.min()) < 1 or int(index.length.max()) > MAX_STORED:
        raise ChunkIndexError(f"chunk index: a chunk has not 1 to {MAX_STORED} bytes")
    if int(index.offset.max()) > MAX_PACK or int((index.offset + index.length).max()) > MAX_PACK:
        raise ChunkIndexError(f"chunk index: a chunk lies past the {MAX_PACK} bytes of a pack")
    stored = index.stored
    if bool((index.slot_of[stored] >= index.units[index.chunk_of[stored]]).any()):
        raise ChunkIndexError("chunk index: a place is in a slot its chunk does not have")
    return index


def unpack(
    index: ChunkIndex,
    chunk: int,
    stored: bytes | memoryview,
    decompressor: zstandard.ZstdDecompressor | None = None,
) -> bytes:
    """The units of a chunk, back to back, from the bytes that the store answered.

    :param decompressor: one of the calling thread's own; making one costs more than its use.
    :returns: ``units * UNIT`` bytes; the unit of a place is number ``index.slot_of[place]``.
    :raises ChunkError: these are not the chunk's bytes.
    """
    pack = index.packs[int(index.pack[chunk])]
    offset = int(index.offset[chunk])
    if len(stored) != int(index.length[chunk]):
        message = f"chunk {chunk} of {int(index.length[chunk])} bytes came as {len(stored)}"
        raise ChunkError(message, pack=pack, offset=offset)
    if digest_of(stored) != index.digest[chunk].tobytes():
        raise ChunkError(f"chunk {chunk} does not have its digest", pack=pack, offset=offset)
    try:
        return frames.decompress(stored, int(index.units[chunk]) * UNIT, decompressor)
    except ApplianceError as error:
        raise ChunkError(f"chunk {chunk}: {error}", pack=pack, offset=offset) from error


def digest_of(content: bytes | memoryview) -> bytes:
    """BLAKE2b-128, which chunks and units are known by."""
    return hashlib.blake2b(content, digest_size=DIGEST).digest()
