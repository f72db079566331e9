# SPDX-License-Identifier: Apache-2.0
"""What is in a store: listed, verified, and what nothing refers to any more deleted."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Final

import numpy as np
import zstandard

from nova_enlightened import exception
from nova_enlightened.appliance import chunks
from nova_enlightened.appliance.chunks import ChunkIndex
from nova_enlightened.appliance.manifest import Manifest, Object
from nova_enlightened.appliance.prefetch import MAX_PLAN, PrefetchPlan
from nova_enlightened.host.learning import PLANS, TRACES
from nova_enlightened.host.publishing import APPLIANCES, Progress, read_index
from nova_enlightened.transfer.player_appliance import read_manifest
from nova_enlightened.transfer.stores import OBJECTS, object_name, read_object
from nova_enlightened.transfer.stores.writing import Entry, WritableStore

_LISTED: Final = re.compile(rf"{APPLIANCES}/([0-9a-f]{{64}})\.json")
_PLAN: Final = re.compile(rf"{PLANS}/([0-9a-f]{{64}})/([0-9a-f]{{64}})\.json")
_OBJECT: Final = re.compile(rf"{OBJECTS}/[0-9a-f]{{2}}/([0-9a-f]{{64}})")
_MAX_LINE: Final = 1 << 16
READ: Final = 8 << 20


@dataclasses.dataclass(frozen=True)
class Listed:
    """An appliance in the listing."""

    digest: str
    name: str
    created: str
    parent: str | None


def appliances(store: WritableStore) -> list[Listed]:
    """Every published appliance, oldest first. :raises StoreError: the store does not say."""
    found = []
    for entry in store.entries(f"{APPLIANCES}/"):
        match = _LISTED.fullmatch(entry.name)
        if match is None or not 0 < entry.size <= _MAX_LINE:
            continue
        try:
            line = json.loads(store.read(entry.name, 0, entry.size))
            parent = line.get("parent")
            found.append(
                Listed(match[1], str(line["name"]), str(line["created"]), parent and str(parent))
            )
        except (ValueError, KeyError, AttributeError):
            found.append(Listed(match[1], "?", "?", None))
    return sorted(found, key=lambda one: (one.created, one.digest))


def plans(store: WritableStore, digest: str) -> list[Entry]:
    """Plans of an appliance, the newest last; the name ends in the plan's SHA-256.json."""
    found = [entry for entry in store.entries(f"{PLANS}/{digest}/") if _PLAN.fullmatch(entry.name)]
    return sorted(found, key=lambda entry: entry.modified)


def plan_digest(entry: Entry) -> str:
    """SHA-256 of the plan that an entry of :func:`plans` is of."""
    return entry.name.rpartition("/")[2].removesuffix(".json")


def traces(store: WritableStore, digest: str) -> list[Entry]:
    """Traces of an appliance that are in the store."""
    return list(store.entries(f"{TRACES}/{digest}/"))


# Verifying.


def verify(
    store: WritableStore, digest: str, plan: str | None, progress: Progress
) -> Iterator[str]:
    """Read all of an appliance and see that it is what its manifest says; what is wrong.

    :param plan: SHA-256 of a plan, to verify that as well.
    """
    try:
        manifest = read_manifest(store, digest)
        index = read_index(store, manifest)
    except exception.EnlightenedError as error:
        yield str(error)
        return
    yield from _object(store, manifest.device_state)
    if manifest.unit_table is not None:
        yield from _object(store, manifest.unit_table)
    yield from _packs(store, index, manifest.packs, progress)
    if plan is not None:
        yield from _plan(store, manifest, plan, progress)


def _plan(store: WritableStore, manifest: Manifest, plan: str, progress: Progress) -> Iterator[str]:
    try:
        found, layer = read_plan(store, manifest, plan)
    except exception.EnlightenedError as error:
        yield f"plan {plan}: {error}"
        return
    yield from _packs(store, layer, found.packs, progress)


def read_plan(
    store: WritableStore, manifest: Manifest, plan: str
) -> tuple[PrefetchPlan, ChunkIndex]:
    """A plan and the index of its layer.

    :raises StoreError, ApplianceError: it cannot be had, is damaged, or of another appliance.
    """
    places = manifest.space().places
    found = PrefetchPlan.decode(read_object(store, plan, MAX_PLAN), places)
    if found.manifest != manifest.digest:
        raise exception.PrefetchPlanError(f"it is of appliance {found.manifest}")
    layer = read_object(store, found.layer.sha256, found.layer.length, found.layer.length)
    return found, chunks.decode(layer, places)


def _object(store: WritableStore, item: Object) -> Iterator[str]:
    try:
        read_object(store, item.sha256, item.length, item.length)
    except exception.StoreError as error:
        yield str(error)


def _packs(
    store: WritableStore, index: ChunkIndex, packs: tuple[Object, ...], progress: Progress
) -> Iterator[str]:
    if index.packs != tuple(pack.sha256 for pack in packs):
        yield "the chunk index names other packs than the manifest"
        return
    progress.phase("packs", sum(pack.length for pack in packs))
    for number, pack in enumerate(packs):
        try:
            content = _whole(store, pack, progress)
        except exception.StoreError as error:
            yield str(error)
            continue
        if hashlib.sha256(content).hexdigest() != pack.sha256:
            yield f"pack {pack.sha256} is not what its digest says"
        yield from _chunks(index, number, content)


def _whole(store: WritableStore, pack: Object, progress: Progress) -> bytes:
    content = bytearray()
    while len(content) < pack.length:
        length = min(READ, pack.length - len(content))
        content += store.read(object_name(pack.sha256), len(content), length)
        progress.read(length)
    return bytes(content)


def _chunks(index: ChunkIndex, pack: int, content: bytes) -> Iterator[str]:
    view = memoryview(content)
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    for chunk in np.flatnonzero(index.pack == pack).tolist():
        begin = int(index.offset[chunk])
        try:
            chunks.unpack(
                index, chunk, view[begin : begin + int(index.length[chunk])], decompressor
            )
        except exception.ApplianceError as error:
            yield str(error)


# Deleting.


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What was, or would be, deleted."""

    objects: tuple[str, ...]
    size: int
    kept: int


def unlist(store: WritableStore, digest: str) -> None:
    """Take an appliance, its plans and its traces out of the listings; objects stay.

    :raises StoreObjectMissing: it is not listed.
    """
    name = f"{APPLIANCES}/{digest}.json"
    if store.exists(name) is None:
        raise exception.StoreObjectMissing(f"appliance {digest} is not listed in the store")
    for entry in (*plans(store, digest), *traces(store, digest)):
        store.delete(entry.name)
    store.delete(name)


def prune(
    store: WritableStore, before: float, dry: bool, without: frozenset[str] = frozenset()
) -> Pruned:
    """Delete objects that no listed appliance and no plan of one refers to.

    :param before: seconds since the epoch; what is younger may be of an upload under way.
    :param dry: only say what would be deleted.
    :param without: appliances to take for not listed.
    :raises StoreError, ApplianceError: something listed cannot be read: then nothing is deleted,
        as what it refers to is not known.
    """
    needed = set(_needed(store, without))
    gone: list[str] = []
    size = kept = 0
    for entry in store.entries(f"{OBJECTS}/"):
        match = _OBJECT.fullmatch(entry.name)
        if match is None or match[1] in needed or entry.modified >= before:
            kept += 1
            continue
        if not dry:
            store.delete(entry.name)
        gone.append(match[1])
        size += entry.size
    return Pruned(tuple(gone), size, kept)


def _needed(store: WritableStore, without: frozenset[str]) -> Iterator[str]:
    for one in appliances(store):
        if one.digest in without:
            continue
        manifest = read_manifest(store, one.digest)
        yield one.digest
        items = (manifest.device_state, manifest.base_index, *manifest.packs)
        yield from (item.sha256 for item in items)
        if manifest.unit_table is not None:
            yield manifest.unit_table.sha256
        for entry in plans(store, one.digest):
            digest = plan_digest(entry)
            yield digest
            plan, _ = read_plan(store, manifest, digest)
            yield plan.layer.sha256
            yield from (pack.sha256 for pack in plan.packs)
