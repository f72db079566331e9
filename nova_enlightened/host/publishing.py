# SPDX-License-Identifier: Apache-2.0
"""Publishes a capture: units into chunks, chunks into packs, packs into a store.

Packs are uploaded while the next are made. The same capture makes the same packs, so an upload that
broke off finds those that are there by their names and goes on behind them. The last thing
stored is the listing of the appliance: what is not listed is not published.
"""

import concurrent.futures
import dataclasses
import json
import os
import threading
from typing import Final

from nova_enlightened import exception
from nova_enlightened.appliance import chunks
from nova_enlightened.appliance.building import DISK_GROUP, RAM_GROUP, LayerBuilder, name_of
from nova_enlightened.appliance.chunks import UNIT, ZERO, ChunkIndex
from nova_enlightened.appliance.manifest import Manifest, Object
from nova_enlightened.appliance.places import ApplianceSpace
from nova_enlightened.appliance.unit_table import UnitTable
from nova_enlightened.host import captured_disk, captured_xml, save_image
from nova_enlightened.host.capture import Capture
from nova_enlightened.knowledge.space import TARGET_PAGE, PageSpace
from nova_enlightened.stream import stored
from nova_enlightened.stream.wire import RamFlag
from nova_enlightened.transfer.player_appliance import read_manifest
from nova_enlightened.transfer.stores import read_object
from nova_enlightened.transfer.stores.writing import WritableStore, put_object

APPLIANCES: Final = "appliances"
"""Below the store's URL: one small file for each published appliance."""
UPLOADS: Final = 3
"""Packs under way to the store at once; each is up to 64 MiB of memory."""
PAGES: Final = 1024
"""Pages of RAM read at once."""


class Progress:
    """Told how far it is; the default says nothing. Called by several threads."""

    def phase(self, what: str, total: int) -> None:
        """Reading of something of `total` bytes begins."""

    def read(self, count: int) -> None:
        """So many more bytes of it were read."""

    def to_send(self, count: int) -> None:
        """So many more bytes have to be in the store."""

    def sent(self, count: int) -> None:
        """So many more of them are; negative where they have to be sent again."""


@dataclasses.dataclass(frozen=True)
class Published:
    """What came of it.

    :ivar places_bytes: of RAM and disks, as the guest has them.
    :ivar stored_bytes: of the packs this appliance needs, its parents' among them.
    :ivar new_bytes: of packs that are only this appliance's.
    """

    digest: str
    manifest: Manifest
    places_bytes: int
    stored_bytes: int
    new_bytes: int


class Uploads:
    """Puts objects into a store, a few at a time; raises in the caller's thread what failed."""

    def __init__(self, store: WritableStore, progress: Progress, workers: int = UPLOADS) -> None:
        self._store = store
        self._progress = progress
        self._pool = concurrent.futures.ThreadPoolExecutor(workers, "upload")
        self._room = threading.Semaphore(workers)
        self._pending: list[concurrent.futures.Future[str]] = []
        self._given_up = False

    def put(self, content: bytes) -> Object:
        """Store an object some time; waits while enough are under way.

        :raises StoreError: an earlier one could not be stored.
        """
        self._raise_failed()
        self._room.acquire()
        self._progress.to_send(len(content))
        future = self._pool.submit(put_object, self._store, content, self._sent)
        future.add_done_callback(lambda _: self._room.release())
        self._pending.append(future)
        return Object(name_of(content), len(content))

    def finish(self) -> None:
        """Wait for all. :raises StoreError: one could not be stored."""
        concurrent.futures.wait(self._pending)
        self._raise_failed()

    def close(self) -> None:
        """Begin no more, and give up what is under way."""
        self._given_up = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _sent(self, count: int) -> None:
        if self._given_up and count > 0:
            raise exception.StoreRefused("the upload was given up")
        self._progress.sent(count)

    def _raise_failed(self) -> None:
        for future in self._pending:
            if future.done():
                future.result()
        self._pending = [future for future in self._pending if not future.done()]


@dataclasses.dataclass(frozen=True, eq=False)
class Parent:
    """An appliance whose chunks are used again."""

    digest: str
    manifest: Manifest
    index: ChunkIndex
    table: UnitTable


def reach(store: WritableStore) -> None:
    """See that there is a store, before anything is done for it. :raises StoreError: there is none.

    Whether it can be written to only an upload shows.
    """
    store.exists(f"{APPLIANCES}/{'0' * 64}.json")


def read_index(store: WritableStore, manifest: Manifest) -> ChunkIndex:
    """The base index. :raises StoreError, ApplianceError: it cannot be had, or is damaged."""
    item = manifest.base_index
    data = read_object(store, item.sha256, item.length, item.length)
    return chunks.decode(data, manifest.space().places)


def read_parent(store: WritableStore, digest: str) -> Parent:
    """What has to be known of a parent.

    :raises ApplianceError: it was published without what a child needs to know.
    :raises StoreError: it is not in this store.
    """
    manifest = read_manifest(store, digest)
    item = manifest.unit_table
    if item is None:
        raise exception.ApplianceError(f"appliance {digest} cannot be a parent: no table of units")
    index = read_index(store, manifest)
    table = UnitTable.decode(read_object(store, item.sha256, item.length, item.length), index)
    return Parent(digest, manifest, index, table)


def publish(
    capture: Capture,
    store: WritableStore,
    name: str,
    parent: Parent | None = None,
    progress: Progress | None = None,
    level: int = 3,
) -> Published:
    """Store a capture as an appliance; doing it again changes nothing.

    :param name: for people.
    :param level: of zstd, 1 to 19.
    :raises CaptureError, StreamError: the capture cannot be read, or is damaged.
    :raises StoreError: the store does not take it; what it took stays for the next attempt.
    """
    told = progress or Progress()
    uploads = Uploads(store, told)
    try:
        directory = os.path.dirname(capture.memory)
        with save_image.opened(capture.memory, directory) as image:
            return _publish(capture, image, _Layer(store, uploads, parent, told, level), name)
    finally:
        uploads.close()


class _Layer:
    """The base layer while it is made."""

    def __init__(
        self,
        store: WritableStore,
        uploads: Uploads,
        parent: Parent | None,
        progress: Progress,
        level: int,
    ) -> None:
        self.store = store
        self.uploads = uploads
        self.parent = parent
        self.progress = progress
        self._level = level
        self._packs: dict[str, Object] = {}

    def build(
        self, space: ApplianceSpace, image: save_image.SaveImage, disks: dict[str, str]
    ) -> tuple[ChunkIndex, UnitTable]:
        """Read everything, store all packs."""
        known = [(self.parent.index, self.parent.table)] if self.parent else []
        builder = LayerBuilder(space.places, level=self._level, known=known)
        self.progress.phase("memory", space.memory_pages * UNIT)
        for first in range(0, space.memory_pages, PAGES):
            positions = image.parts.positions[first : first + PAGES]
            content = stored.gather(image.stream, positions)
            builder.add(range(first, first + len(positions)), content, RAM_GROUP)
            self._take(builder, len(content))
        for target, path in disks.items():
            places = space.disk_range(target)
            self.progress.phase(f"disk {target}", len(places) * UNIT)
            reached = 0
            for offset, content in captured_disk.filled_parts(path, UNIT):
                first = offset // UNIT
                builder.add(places[first : first + len(content) // UNIT], content, DISK_GROUP)
                self._take(builder, offset + len(content) - reached)
                reached = offset + len(content)
            self.progress.read(len(places) * UNIT - reached)
        index = builder.finish(missing=ZERO)
        self._take(builder, 0)
        return index, builder.unit_table()

    def packs(self, index: ChunkIndex) -> tuple[Object, ...]:
        """Every pack the index names: new ones, and the parent's."""
        theirs = self.parent.manifest.packs if self.parent else ()
        known = {pack.sha256: pack for pack in theirs} | self._packs
        return tuple(known[pack] for pack in index.packs)

    @property
    def new_bytes(self) -> int:
        """Bytes of the packs that were made."""
        return sum(pack.length for pack in self._packs.values())

    def _take(self, builder: LayerBuilder, count: int) -> None:
        self.progress.read(count)
        for pack in builder.take():
            item = self.uploads.put(pack)
            self._packs[item.sha256] = item


def _publish(capture: Capture, image: save_image.SaveImage, layer: _Layer, name: str) -> Published:
    xml = image.header.xml
    captured_xml.refuse(xml)
    parts = image.parts
    blocks = tuple((block.name, block.length) for block in parts.blocks)
    disks = tuple((target, captured_disk.size_of(path)) for target, path in capture.disks.items())
    space = ApplianceSpace(PageSpace(blocks), disks)
    index, table = layer.build(space, image, dict(capture.disks))
    put = layer.uploads.put
    device_state = put(bytes(image.stream[slice(*parts.device_state)]))
    manifest = Manifest(
        name=name,
        created=capture.created,
        machine=parts.configuration.machine,
        qemu_version=capture.qemu_version or "unknown",
        cpu=captured_xml.cpu_of(image.header.cookie, xml),
        domain_xml=captured_xml.sanitised(xml),
        ram_blocks=blocks,
        # A saved stream does not tell of huge pages, and what is played in pages of 4 KiB
        # is the same to the guest.
        page_sizes=(TARGET_PAGE,) * len(blocks),
        ram_section_id=parts.ram_section_id,
        ram_setup_flags=int(RamFlag.MEM_SIZE),
        configuration=bytes(image.stream[slice(*parts.configuration_span)]),
        vm_description=bytes(image.stream[slice(*parts.description)]).decode(),
        device_state=device_state,
        base_index=put(chunks.encode(index)),
        disks=disks,
        packs=layer.packs(index),
        unit_table=put(table.encode()),
        parent=layer.parent.digest if layer.parent else None,
    )
    put(manifest.to_bytes())
    layer.uploads.finish()
    _list(layer.store, manifest)
    return Published(
        manifest.digest,
        manifest,
        space.places * UNIT,
        sum(pack.length for pack in manifest.packs),
        layer.new_bytes,
    )


def _list(store: WritableStore, manifest: Manifest) -> None:
    """Say in the store that there is this appliance."""
    name = f"{APPLIANCES}/{manifest.digest}.json"
    if store.exists(name) is None:
        line = {"name": manifest.name, "created": manifest.created, "parent": manifest.parent}
        store.put(name, json.dumps(line).encode(), lambda _: None)
