# SPDX-License-Identifier: Apache-2.0
"""The table of units: what the chunks of an index hold, by content. For publishers only."""

import struct
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from nova_enlightened.appliance import frames
from nova_enlightened.appliance.chunks import DIGEST, MAX_UNITS, ChunkIndex
from nova_enlightened.appliance.places import MAX_PLACES
from nova_enlightened.exception import ApplianceError, ChunkIndexError

MAGIC: Final = b"NEUT"
VERSION: Final = 1
HEADER: Final = struct.Struct("<4sHHI")


@dataclass(frozen=True, eq=False)
class UnitTable:
    """What distinct units the chunks of an index hold: for publishers only, who look there for
    units they need not store again. File format, little endian:

        header   4s magic 'NEUT', u16 version, u16 zero, u32 units
        body     a zstd frame of columns: u32 chunk (difference to the one before), u8 slot,
                 16 bytes of BLAKE2b-128 of the unit

    :ivar chunk: u32[units]; slot: u8[units]; digest: u8[units, 16].
    """

    chunk: npt.NDArray[np.uint32]
    slot: npt.NDArray[np.uint8]
    digest: npt.NDArray[np.uint8]

    def encode(self) -> bytes:
        """The file."""
        body = b"".join(
            (
                frames.column(frames.delta(self.chunk, "<u4"), "<u4"),
                frames.column(self.slot, "u1"),
                self.digest.tobytes(),
            )
        )
        return HEADER.pack(MAGIC, VERSION, 0, self.chunk.size) + frames.compress(body)

    @classmethod
    def decode(cls, data: bytes | memoryview, index: ChunkIndex) -> Self:
        """The table that was stored beside `index`.

        :raises ChunkIndexError: damaged, past a limit, or not of this index.
        """
        view = memoryview(data)
        if len(view) <= HEADER.size:
            raise ChunkIndexError(f"a table of units of {len(view)} bytes")
        magic, version, _, count = HEADER.unpack_from(view)
        if magic != MAGIC or version != VERSION:
            raise ChunkIndexError(f"not a table of units of version {VERSION}: {magic!r}")
        if count > MAX_PLACES or count > index.chunks * MAX_UNITS:
            raise ChunkIndexError(f"a table of {count} units for {index.chunks} chunks")
        try:
            body = frames.decompress(view[HEADER.size :], count * (5 + DIGEST))
        except ApplianceError as error:
            raise ChunkIndexError(f"table of units: {error}") from error
        columns = frames.Columns(body)
        chunk = frames.undelta(columns.next(count, "<u4")).astype(np.uint32)
        slot = columns.next(count, "u1")
        if count and (int(chunk.max()) >= index.chunks or bool((slot >= index.units[chunk]).any())):
            raise ChunkIndexError("table of units: a unit is in no chunk of the index")
        return cls(chunk, slot, columns.next(count * DIGEST, "u1").reshape(count, DIGEST))
