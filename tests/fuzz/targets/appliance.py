# SPDX-License-Identifier: Apache-2.0
"""What a store of appliances gives: the manifest, and files of numbers behind a zstd frame.

The first byte of those says whether the rest, behind the file's header, is to be compressed first:
no mutation makes a frame of its own.
"""

import contextlib

from nova_enlightened.appliance import chunks, frames, prefetch, trace, unit_table
from nova_enlightened.appliance.manifest import Manifest
from nova_enlightened.exception import ApplianceError, ChunkError, ManifestError
from tests.unit.appliance.appliances import Stored

PLACES = 64
STORED = Stored(PLACES, {place: place % 9 for place in range(40)})


def _file(data: bytes, header: int) -> bytes:
    """The file that an input stands for."""
    rest = data[1:]
    if not data or not data[0] & 1 or len(rest) < header:
        return rest
    return rest[:header] + frames.compress(rest[header:], 1)


def manifest(data: bytes) -> None:
    """What is taken is in the only form that has its digest."""
    with contextlib.suppress(ManifestError):
        taken = Manifest.from_bytes(data)
        assert taken.to_bytes() == data
        assert taken.space().places >= taken.space().memory_pages


def chunk_index(data: bytes) -> None:
    """Everything that an index points at is there, and no chunk passes for another's."""
    with contextlib.suppress(ApplianceError):
        index = chunks.decode(_file(data, chunks.HEADER.size + 4), PLACES)
        again = chunks.decode(chunks.encode(index), PLACES)
        assert (again.chunk_of == index.chunk_of).all()
        for chunk in range(index.chunks):
            with contextlib.suppress(ChunkError):
                chunks.unpack(index, chunk, data[-int(index.length[chunk]) :])


def table_of_units(data: bytes) -> None:
    """A unit is in a chunk that exists."""
    with contextlib.suppress(ApplianceError):
        found = unit_table.UnitTable.decode(_file(data, unit_table.HEADER.size), STORED.index)
        assert not found.chunk.size or int(found.chunk.max()) < STORED.index.chunks


def prefetch_plan(data: bytes) -> None:
    """A plan orders places of this appliance, each once."""
    with contextlib.suppress(ApplianceError):
        found = prefetch.PrefetchPlan.decode(_file(data, prefetch.HEADER.size), PLACES)
        assert len(set(found.order.tolist())) == found.order.size <= PLACES
        again = prefetch.PrefetchPlan.decode(found.encode(), PLACES)
        assert again.order.tolist() == found.order.tolist()


def appliance_trace(data: bytes) -> None:
    """A trace is of this appliance, and in order."""
    with contextlib.suppress(ApplianceError):
        found = trace.Trace.decode(_file(data, trace.HEADER.size), PLACES)
        assert trace.Trace.decode(found.encode(), PLACES).places.tolist() == found.places.tolist()
