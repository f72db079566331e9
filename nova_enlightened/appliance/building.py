# SPDX-License-Identifier: Apache-2.0
"""Making a layer: units in, packs and a chunk index out.

Equal units are stored once, within the layer and against those of parents. A layer made twice
of the same units by the same zstd comes out the same, so that an upload that was interrupted finds
the packs it has already sent under their names.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from nova_enlightened.appliance.chunks import (
    ABSENT,
    DIGEST,
    MAX_PACK,
    MAX_PACKS,
    MAX_UNITS,
    UNIT,
    ZERO,
    ChunkIndex,
    digest_of,
)
from nova_enlightened.appliance.places import MAX_PLACES
from nova_enlightened.appliance.unit_table import UnitTable
from nova_enlightened.exception import ApplianceError

RAM_GROUP: Final = 4
"""Units in a chunk of a base layer's RAM: what a fault fetches, so it is small."""
DISK_GROUP: Final = 16
PLAN_GROUP: Final = 64
PLAN_LEVEL: Final = 15
"""A plan's layer is read from front to back, once, while somebody waits for all of it: what makes
it smaller is worth more there than short chunks and quick packing.
"""

SLOT_BITS: Final = 6
"""`MAX_UNITS` is 1 << SLOT_BITS."""
NO_UNIT: Final = -1


class Row(NamedTuple):
    """A chunk of the index to be; see `ChunkIndex` for the fields."""

    pack: int
    offset: int
    length: int
    units: int
    digest: bytes


NO_ROW: Final = Row(0, 0, 0, 0, b"")
"""In place of a chunk that is being filled."""


class LayerBuilder:
    """Collects units; forms chunks, packs and the index of them.

    Keeps about 150 bytes for each distinct unit, and up to two packs.

    :param places: of the appliance.
    :param level: of zstd, 1 to 19.
    :param pack_limit: bytes of a pack.
    :param known: indexes of parents and what units they hold, whose chunks may be used again.
    :raises ApplianceError: a value is out of its range.
    """

    def __init__(
        self,
        places: int,
        level: int = 3,
        pack_limit: int = MAX_PACK,
        known: Iterable[tuple[ChunkIndex, UnitTable]] = (),
    ) -> None:
        if not 0 <= places <= MAX_PLACES or not UNIT <= pack_limit <= MAX_PACK:
            raise ApplianceError(f"a layer of {places} places in packs of {pack_limit} bytes")
        self._zstd = zstandard.ZstdCompressor(level=level, write_content_size=True)
        self._limit = pack_limit
        # By content: (chunk << SLOT_BITS) + slot; negative where only a parent has the unit.
        self._units: dict[bytes, int] = {}
        self._known: list[tuple[int, ChunkIndex]] = []
        self._adopted: dict[int, int] = {}
        self._unit_of = np.full(places, NO_UNIT, np.int64)
        self._missing = np.ones(places, np.bool_)
        self._rows: list[Row] = []
        self._group: list[bytes | memoryview] = []
        self._open = 0
        self._packs: list[str] = []
        self._pack_numbers: dict[str, int] = {}
        self._pack = bytearray()
        self._pack_number = 0
        self._full: list[bytes] = []
        self._finished: ChunkIndex | None = None
        first = 0
        for index, table in known:
            self._learn(index, table, first)
            first += index.chunks

    def _learn(self, index: ChunkIndex, table: UnitTable, first: int) -> None:
        self._known.append((first, index))
        codes = -1 - (((table.chunk.astype(np.int64) + first) << SLOT_BITS) + table.slot)
        raw = table.digest.tobytes()
        names = (raw[at : at + DIGEST] for at in range(0, len(raw), DIGEST))
        for name, code in zip(names, codes.tolist(), strict=True):
            self._units.setdefault(name, code)

    def add(
        self,
        places: Sequence[int] | npt.NDArray[np.integer],
        units: bytes | memoryview,
        group: int = RAM_GROUP,
    ) -> None:
        """Contents of places, in the order in which they are to be stored.

        :param units: ``len(places) * UNIT`` bytes.
        :param group: units to put in a chunk, 1 to `MAX_UNITS`.
        :raises ApplianceError: lengths disagree, a place does not exist or was there already.
        """
        where = np.asarray(places, np.int64).reshape(-1)
        if len(units) != where.size * UNIT or not 1 <= group <= MAX_UNITS or self._finished:
            raise ApplianceError(f"{where.size} places, {len(units)} bytes, groups of {group}")
        if not where.size:
            return
        if int(where.min()) < 0 or int(where.max()) >= self._missing.size:
            raise ApplianceError(f"a place is outside the layer's {self._missing.size}")
        if not self._missing[where].all() or np.unique(where).size != where.size:
            raise ApplianceError("a place was added twice")
        self._missing[where] = False
        view = memoryview(units)
        rows = np.frombuffer(view, np.uint64).reshape(where.size, UNIT // 8)
        filled = np.flatnonzero(rows.any(axis=1))
        self._unit_of[where[filled]] = [
            self._unit(view[at : at + UNIT], group) for at in (filled * UNIT).tolist()
        ]
        # What waits for its chunk must not keep the caller's memory, nor change with it.
        self._group = [bytes(unit) for unit in self._group]

    def take(self) -> list[bytes]:
        """Packs that have become full since the last call, to be stored; in order."""
        full, self._full = self._full, []
        return full

    def finish(self, missing: int = ABSENT) -> ChunkIndex:
        """The index; the last packs are there to be taken.

        :param missing: what places are that were never added: `ABSENT`, or `ZERO`.
        """
        if self._finished is None:
            self._close_chunk()
            self._close_pack()
            self._finished = self._index(missing)
        return self._finished

    def unit_table(self) -> UnitTable:
        """What the finished index holds. :raises ApplianceError: it is not finished."""
        if self._finished is None:
            raise ApplianceError("the layer is not finished")
        found = []
        for name, code in self._units.items():
            chunk, slot = divmod(code if code >= 0 else -1 - code, MAX_UNITS)
            if code >= 0:
                found.append((chunk, slot, name))
            elif chunk in self._adopted:
                found.append((self._adopted[chunk], slot, name))
        found.sort()
        digest = np.frombuffer(b"".join(name for _, _, name in found), np.uint8)
        return UnitTable(
            np.array([chunk for chunk, _, _ in found], np.uint32),
            np.array([slot for _, slot, _ in found], np.uint8),
            digest.reshape(-1, DIGEST),
        )

    def _unit(self, content: memoryview, group: int) -> int:
        """The code of a unit, stored now if it was not before."""
        name = digest_of(content)
        code = self._units.get(name)
        if code is None:
            if not self._group:
                self._rows.append(NO_ROW)
                self._open = len(self._rows) - 1
            self._units[name] = code = (self._open << SLOT_BITS) + len(self._group)
            self._group.append(content)
            if len(self._group) >= group:
                self._close_chunk()
        elif code < 0:
            chunk, slot = divmod(-1 - code, MAX_UNITS)
            code = (self._adopt(chunk) << SLOT_BITS) + slot
        return code

    def _adopt(self, known: int) -> int:
        """The number in this layer of a parents' chunk."""
        chunk = self._adopted.get(known)
        if chunk is None:
            first, index = next(pair for pair in reversed(self._known) if pair[0] <= known)
            at = known - first
            self._adopted[known] = chunk = len(self._rows)
            self._rows.append(
                Row(
                    self._pack_of(index.packs[int(index.pack[at])]),
                    int(index.offset[at]),
                    int(index.length[at]),
                    int(index.units[at]),
                    index.digest[at].tobytes(),
                )
            )
        return chunk

    def _pack_of(self, name: str) -> int:
        """The number in this layer of a pack."""
        if name not in self._pack_numbers:
            self._pack_numbers[name] = self._reserve_pack()
            self._packs[self._pack_numbers[name]] = name
        return self._pack_numbers[name]

    def _reserve_pack(self) -> int:
        if len(self._packs) >= MAX_PACKS:
            raise ApplianceError(f"the layer needs more than {MAX_PACKS} packs")
        self._packs.append("")
        return len(self._packs) - 1

    def _close_chunk(self) -> None:
        if not self._group:
            return
        stored = self._zstd.compress(b"".join(self._group))
        if len(self._pack) + len(stored) > self._limit:
            self._close_pack()
        if not self._pack:
            self._pack_number = self._reserve_pack()
        self._rows[self._open] = Row(
            self._pack_number, len(self._pack), len(stored), len(self._group), digest_of(stored)
        )
        self._pack += stored
        self._group = []

    def _close_pack(self) -> None:
        if self._pack:
            pack = bytes(self._pack)
            self._packs[self._pack_number] = name_of(pack)
            self._full.append(pack)
            self._pack = bytearray()

    def _index(self, missing: int) -> ChunkIndex:
        chunk_of = np.full(self._unit_of.size, ZERO, np.uint32)
        chunk_of[self._missing] = missing
        slot_of = np.zeros(self._unit_of.size, np.uint8)
        stored = self._unit_of != NO_UNIT
        chunk_of[stored] = self._unit_of[stored] >> SLOT_BITS
        slot_of[stored] = self._unit_of[stored] % MAX_UNITS
        pack, offset, length, units, digest = (
            zip(*self._rows, strict=True) if self._rows else [()] * 5
        )
        return ChunkIndex(
            chunk_of,
            slot_of,
            np.array(pack, np.uint16),
            np.array(offset, np.uint64),
            np.array(length, np.uint32),
            np.array(units, np.uint8),
            np.frombuffer(b"".join(digest), np.uint8).reshape(-1, DIGEST),
            tuple(self._packs),
        )


def name_of(pack: bytes) -> str:
    """The name of a pack in the store: its SHA-256 in hexadecimal."""
    return hashlib.sha256(pack).hexdigest()
