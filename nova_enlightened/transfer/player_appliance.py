# SPDX-License-Identifier: Apache-2.0
"""Reads what a player has to know of an appliance, and believes none of it unverified.

The manifest is pinned by the digest the player was told, everything else by the manifest, the
prefetch plan by a digest the player was told, and its layer by the plan.
"""

import concurrent.futures
import dataclasses
import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened import exception
from nova_enlightened.appliance import chunks
from nova_enlightened.appliance.chunks import ChunkIndex
from nova_enlightened.appliance.manifest import MAX_MANIFEST, Manifest, Object
from nova_enlightened.appliance.places import ApplianceSpace
from nova_enlightened.appliance.prefetch import MAX_PLAN, PrefetchPlan
from nova_enlightened.knowledge.space import TARGET_PAGE
from nova_enlightened.stream.events import RamBlock
from nova_enlightened.transfer.chunk_cache import ChunkCache
from nova_enlightened.transfer.stores import Store, read_object

READERS: Final = 3
"""Objects read at once: each costs round trips, and a new connection begins slowly."""
_PAGE_SIZES: Final = frozenset({TARGET_PAGE})


@dataclasses.dataclass(frozen=True, eq=False)
class Appliance:
    """An appliance, ready to be played.

    :ivar layers: the plan's layer first, where there is a plan; the base layer last.
    :ivar kept: of each layer the chunks that hold nothing but parts of disks, and are in this
        host's cache: they need not be read before the guest wants them.
    :ivar zero: bool[places]: contents are zero.
    """

    manifest: Manifest
    digest: str
    space: ApplianceSpace
    layers: tuple[ChunkIndex, ...]
    plan: PrefetchPlan | None
    device_state: bytes
    kept: tuple[npt.NDArray[np.int64], ...]
    zero: npt.NDArray[np.bool_]

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """RAM blocks as captured."""
        sizes = zip(self.manifest.ram_blocks, self.manifest.page_sizes, strict=True)
        return tuple(RamBlock(name, length, page) for (name, length), page in sizes)

    def describe(self, place: int) -> str:
        """Where a place is, in words."""
        where = self.space.locate(place)
        if where.kind == "ram":
            return f"byte {where.offset:#x} of RAM block {where.name}"
        return f"byte {where.offset:#x} of disk {where.name}"


def read_manifest(store: Store, digest: str, cache: ChunkCache | None = None) -> Manifest:
    """The manifest with this digest.

    :raises StoreError: it cannot be had, or is not what its digest says.
    :raises ManifestError: it is none.
    """
    return Manifest.from_bytes(_object(store, cache, digest, MAX_MANIFEST, None))


def read_appliance(
    store: Store, cache: ChunkCache, digest: str, plan_digest: str | None, *, memory: bool = True
) -> Appliance:
    """All of an appliance but its chunks.

    :param memory: whether its RAM will be played; False leaves out the device state.
    :raises StoreError: an object cannot be had, or is not what its digest says.
    :raises ApplianceError: an object is malformed, or of another appliance.
    :raises PlayerError: it cannot be played at all.
    """
    with concurrent.futures.ThreadPoolExecutor(READERS, "read") as readers:
        read = readers.submit
        planned = plan_digest and read(_object, store, cache, plan_digest, MAX_PLAN, None)
        manifest = read_manifest(store, digest, cache)
        if not _PAGE_SIZES.issuperset(manifest.page_sizes):
            raise exception.PlayerError("an appliance with huge pages cannot be streamed")
        space = manifest.space()
        indexed = read(_index, store, cache, manifest.base_index, manifest.packs, space.places)
        devices = read(_known, store, cache, manifest.device_state) if memory else None
        plan = None
        layers = []
        if planned:
            plan = PrefetchPlan.decode(planned.result(), space.places)
            if plan.manifest != digest:
                raise exception.PrefetchPlanError(
                    f"plan {plan_digest} is for appliance {plan.manifest}, not {digest}"
                )
            layers.append(_index(store, cache, plan.layer, plan.packs, space.places))
        layers.append(base := indexed.result())
        state = devices.result() if devices else b""
    kept = tuple(_kept(cache, layer, space.memory_pages) for layer in layers)
    return Appliance(manifest, digest, space, tuple(layers), plan, state, kept, base.zero)


def _kept(cache: ChunkCache, layer: ChunkIndex, pages: int) -> npt.NDArray[np.int64]:
    of_disks = np.ones(layer.chunks, np.bool_)
    of_disks[layer.chunk_of[:pages][layer.stored[:pages]]] = False
    for number, pack in enumerate(layer.packs):
        wanted = np.flatnonzero(of_disks & (layer.pack == number))
        offsets, lengths = layer.offset[wanted].tolist(), layer.length[wanted].tolist()
        of_disks[wanted] = cache.holds(pack, zip(offsets, lengths, strict=True))
    return np.flatnonzero(of_disks)


def _index(
    store: Store, cache: ChunkCache, index: Object, packs: tuple[Object, ...], places: int
) -> ChunkIndex:
    found = chunks.decode(_known(store, cache, index), places)
    if found.packs != tuple(pack.sha256 for pack in packs):
        raise exception.ChunkIndexError(f"chunk index {index.sha256} names other packs")
    return found


def _known(store: Store, cache: ChunkCache, item: Object) -> bytes:
    return _object(store, cache, item.sha256, item.length, item.length)


def _object(
    store: Store, cache: ChunkCache | None, sha256: str, limit: int, length: int | None
) -> bytes:
    """An object from the cache, or else from the store; verified either way."""
    if cache is not None:
        kept = cache.object(sha256)
        if kept is not None and hashlib.sha256(kept).hexdigest() == sha256:
            return kept
    data = read_object(store, sha256, limit, length)
    if cache is not None:
        cache.keep_object(sha256, data)
    return data
