# SPDX-License-Identifier: Apache-2.0
"""Makes prefetch plans: traces in, a plan and its layer into the store.

The layer has the planned places again, in the order they will be wanted, so that prefetching is
reading a few packs from front to back.
"""

import dataclasses
import hashlib
import json
import pathlib
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard

from nova_enlightened import exception, plugins
from nova_enlightened.appliance import chunks, prefetch
from nova_enlightened.appliance.building import PLAN_GROUP, PLAN_LEVEL, LayerBuilder
from nova_enlightened.appliance.chunks import UNIT, ChunkIndex
from nova_enlightened.appliance.manifest import Object
from nova_enlightened.appliance.prefetch import PrefetchPlan
from nova_enlightened.appliance.prefetch_policies import PrefetchPolicy, Together
from nova_enlightened.appliance.trace import HEADER, MAX_TRACE, Trace, merge
from nova_enlightened.host.publishing import Progress, Uploads, read_index
from nova_enlightened.transfer.player_appliance import read_manifest
from nova_enlightened.transfer.stores import Store, object_name
from nova_enlightened.transfer.stores.writing import WritableStore

NAMESPACE: Final = "nova_enlightened.prefetch_policies"
DEFAULT_POLICY: Final = Together.name
TRACES: Final = "traces"
"""Below the store's URL, then the manifest's SHA-256: traces of runs, new names only."""
PLANS: Final = "plans"
"""Below the store's URL, then the manifest's SHA-256: one small file for each plan."""
READ: Final = 4 << 20
"""Bytes of a pack that are read at once."""
GAP: Final = 64 << 10
"""Bytes nobody wants that are read along, rather than asking twice."""
PLACES: Final = 4096
"""Places given to the builder at once."""


@dataclasses.dataclass(frozen=True)
class Learned:
    """What came of it.

    :ivar digest: of the plan.
    :ivar layer_bytes: of the packs of its layer.
    :ivar skipped: traces that were of no use, and why.
    """

    digest: str
    plan: PrefetchPlan
    layer_bytes: int
    skipped: tuple[str, ...]


def learn(
    store: WritableStore,
    digest: str,
    files: Iterable[pathlib.Path],
    progress: Progress | None = None,
    stored: bool = True,
    policy: str = DEFAULT_POLICY,
) -> Learned:
    """Merge traces of an appliance and store the plan they make.

    :param files: traces; those of other appliances are skipped.
    :param stored: whether to take those in the store, too.
    :param policy: name of an installed prefetch policy.
    :raises ConfigError: no such policy is installed.
    :raises TraceError: there is no trace of this appliance.
    :raises StoreError, ApplianceError: the appliance cannot be read, or the plan not be stored.
    """
    told = progress or Progress()
    ordering = load_policy(policy)
    manifest = read_manifest(store, digest)
    skipped: list[str] = []
    traces = [
        *_from_files(files, digest, manifest.space().places, skipped.append),
        *(_from_store(store, digest, manifest.space().places, skipped.append) if stored else ()),
    ]
    if not traces:
        raise exception.TraceError(
            f"there is no trace of appliance {digest}: let servers of it run with traces "
            "allowed (image property enlightened_appliance_traces = yes), and give their files"
        )
    order = prefetch.make(merge(traces), manifest.space(), ordering)
    base = read_index(store, manifest)
    uploads = Uploads(store, told)
    try:
        index, packs = _layer(store, base, order.order, uploads, told)
        plan = order.with_layer(uploads.put(chunks.encode(index)), index, packs)
        item = uploads.put(plan.encode())
        uploads.finish()
    finally:
        uploads.close()
    name = f"{PLANS}/{digest}/{item.sha256}.json"
    if store.exists(name) is None:
        line = {"runs": plan.runs, "places": int(plan.order.size)}
        store.put(name, json.dumps(line).encode(), lambda _: None)
    return Learned(item.sha256, plan, sum(pack.length for pack in packs), tuple(skipped))


def load_policy(name: str) -> PrefetchPolicy:
    """An installed prefetch policy. :raises ConfigError: there is none of that name."""
    wrong = f"no prefetch policy {name!r} is installed"
    policy: PrefetchPolicy = plugins.load(NAMESPACE, name, wrong)()
    return policy


def share(store: WritableStore, digest: str, files: Iterable[pathlib.Path]) -> list[str]:
    """Store traces beside the appliance, for everybody who learns from it; their names.

    Whoever calls this has the consent of the servers' owners.

    :raises TraceError: a file is no trace of this appliance; none is stored then.
    """
    places = read_manifest(store, digest).space().places
    whole = []
    for path in files:
        data = _read(path)
        trace = Trace.decode(data, places)
        if trace.manifest != digest:
            raise exception.TraceError(f"{path} is a trace of appliance {trace.manifest}")
        # The same run has the same name, however often it is given.
        name = uuid.UUID(bytes=hashlib.sha256(data).digest()[:16])
        whole.append((f"{TRACES}/{digest}/{name}.trace", data))
    for name_, data in whole:
        if store.exists(name_) is None:
            store.put(name_, data, lambda _: None)
    return [name_ for name_, _ in whole]


def _from_files(
    files: Iterable[pathlib.Path], digest: str, places: int, skip: Callable[[str], None]
) -> Iterator[Trace]:
    for path in files:
        try:
            data = _read(path)
            # Directories hold traces of many appliances.
            if manifest_of(data) != digest:
                skip(f"{path}: of another appliance")
                continue
            yield Trace.decode(data, places)
        except exception.TraceError as error:
            skip(f"{path}: {error}")


def _from_store(
    store: WritableStore, digest: str, places: int, skip: Callable[[str], None]
) -> Iterator[Trace]:
    try:
        for entry in store.entries(f"{TRACES}/{digest}/"):
            if not 0 < entry.size <= MAX_TRACE:
                skip(f"{entry.name}: {entry.size} bytes")
                continue
            try:
                trace = Trace.decode(store.read(entry.name, 0, entry.size), places)
            except exception.TraceError as error:
                skip(f"{entry.name}: {error}")
                continue
            if trace.manifest == digest:
                yield trace
            else:
                skip(f"{entry.name}: of another appliance")
    except exception.StoreRefused as error:
        skip(str(error))


def _read(path: pathlib.Path) -> bytes:
    try:
        if path.stat().st_size > MAX_TRACE:
            raise exception.TraceError(f"{path} is larger than a trace can be")
        return path.read_bytes()
    except OSError as error:
        raise exception.TraceError(f"{path}: {error.strerror}") from error


def manifest_of(data: bytes) -> str:
    """SHA-256 of the appliance that a trace says it is of. :raises TraceError: it is none."""
    if len(data) < HEADER.size:
        raise exception.TraceError(f"a trace of {len(data)} bytes")
    return bytes(HEADER.unpack_from(data)[-1]).hex()


def is_of(path: pathlib.Path, manifest: str) -> bool:
    """Whether a file says that it is a trace of this appliance."""
    try:
        with path.open("rb") as file:
            return manifest_of(file.read(HEADER.size)) == manifest
    except (OSError, exception.TraceError):
        return False


def _layer(
    store: Store,
    base: ChunkIndex,
    order: npt.NDArray[np.uint32],
    uploads: Uploads,
    progress: Progress,
) -> tuple[ChunkIndex, tuple[Object, ...]]:
    """The planned places that are not zero, stored again in their order."""
    wanted = order[base.stored[order]].astype(np.int64)
    builder = LayerBuilder(base.places, PLAN_LEVEL)
    packs: list[Object] = []
    progress.phase("planned places", wanted.size * UNIT)
    with tempfile.TemporaryFile() as file:
        # Chunks are read in the store's order, and wanted in the plan's.
        if wanted.size:
            file.truncate(wanted.size * UNIT)
            units = np.memmap(file, np.uint8, "r+", shape=(wanted.size, UNIT))
            _fetch(store, base, wanted, units, progress)
            for first in range(0, wanted.size, PLACES):
                part = wanted[first : first + PLACES]
                builder.add(part, units[first : first + PLACES].tobytes(), PLAN_GROUP)
                packs += [uploads.put(pack) for pack in builder.take()]
    index = builder.finish()
    packs += [uploads.put(pack) for pack in builder.take()]
    known = {pack.sha256: pack for pack in packs}
    return index, tuple(known[name] for name in index.packs)


def _fetch(
    store: Store,
    index: ChunkIndex,
    places: npt.NDArray[np.int64],
    units: npt.NDArray[np.uint8],
    progress: Progress,
) -> None:
    """Put the unit of each place into its row; every chunk is read and unpacked once."""
    chunk_of = index.chunk_of[places].astype(np.int64)
    by_chunk = np.argsort(chunk_of, kind="stable")
    needed, firsts = np.unique(chunk_of[by_chunk], return_index=True)
    rows = dict(zip(needed.tolist(), np.split(by_chunk, firsts[1:]), strict=True))
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    for run in runs_of(index, needed):
        first, last = run[0], run[-1]
        begin = int(index.offset[first])
        length = int(index.offset[last]) + int(index.length[last]) - begin
        name = object_name(index.packs[int(index.pack[first])])
        data = memoryview(store.read(name, begin, length))
        for chunk in run:
            at = int(index.offset[chunk]) - begin
            piece = data[at : at + int(index.length[chunk])]
            content = np.frombuffer(chunks.unpack(index, chunk, piece, decompressor), np.uint8)
            slots = index.slot_of[places[rows[chunk]]]
            units[rows[chunk]] = content.reshape(-1, UNIT)[slots]
            progress.read(rows[chunk].size * UNIT)


def runs_of(index: ChunkIndex, wanted: npt.NDArray[np.int64]) -> Iterator[Sequence[int]]:
    """Chunks to read with one request each time: of one pack, close to each other."""
    order = np.lexsort((index.offset[wanted], index.pack[wanted]))
    run: list[int] = []
    begin = end = 0
    for chunk in wanted[order].tolist():
        offset, length = int(index.offset[chunk]), int(index.length[chunk])
        near = run and index.pack[chunk] == index.pack[run[-1]] and offset - end <= GAP
        if run and not (near and offset + length - begin <= READ):
            yield run
            run = []
        if not run:
            begin = offset
        run.append(chunk)
        end = offset + length
    if run:
        yield run
