# SPDX-License-Identifier: Apache-2.0
"""Small captures for tests of publishing: a saved file and a disk, made without QEMU."""

import pathlib

import numpy as np

from nova_enlightened.appliance import chunks
from nova_enlightened.appliance.chunks import UNIT
from nova_enlightened.appliance.trace import Trace
from nova_enlightened.host import publishing, save_image
from nova_enlightened.host.capture import Capture
from nova_enlightened.stream import stored
from nova_enlightened.stream.events import RamBlock
from nova_enlightened.transfer.stores import Store, object_name
from nova_enlightened.transfer.stores.writing import WritableStore
from tests.unit.stream import stored_streams as made

PAGES = 1024
CREATED = "2030-01-02T03:04:05+00:00"
XML = """<domain type='qemu'><name>one</name><memory unit='KiB'>16384</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
<cpu mode='custom'><model>qemu64</model></cpu><devices>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/nowhere'/>
<target dev='vda' bus='virtio'/></disk></devices></domain>"""


def capture(at: pathlib.Path, seed: int = 1, changed: int = 0) -> Capture:
    """Memory of `PAGES` pages, every fourth of them zero, and a disk of 4 MiB and a half unit.

    The same seed gives the same contents; `changed` pages differ from the others of that seed.
    """
    at.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pages = rng.integers(0, 256, (PAGES, UNIT), np.uint8)
    pages[::4] = 0
    if changed:
        other = np.random.default_rng([seed, changed])
        pages[1 : 1 + changed] = other.integers(0, 256, (changed, UNIT), np.uint8)
    block = RamBlock("pc.ram", PAGES * UNIT, UNIT)
    records = [
        made.record(None if number else "pc.ram", number, page.tobytes() if page.any() else None)
        for number, page in enumerate(pages)
    ]
    stream = made.start([block]) + made.part(records, last=True) + made.ending()
    memory = at / "memory.save"
    memory.write_bytes(made.saved(stream, XML))
    disk = at / "vda.raw"
    with disk.open("wb") as file:
        file.seek(1 << 20)
        file.write(rng.integers(0, 256, 300_000, np.uint8).tobytes())
        file.truncate((4 << 20) + UNIT // 2)
    return Capture(str(memory), {"vda": str(disk)}, CREATED)


def expected(of: Capture) -> bytes:
    """All places of the appliance it becomes."""
    with save_image.opened(of.memory, str(pathlib.Path(of.memory).parent)) as image:
        parts = [stored.gather(image.stream, image.parts.positions)]
    for path in of.disks.values():
        disk = pathlib.Path(path).read_bytes()
        parts += [disk, bytes(-len(disk) % UNIT)]
    return b"".join(parts)


def contents(store: WritableStore, published: publishing.Published) -> bytes:
    """The same from the store alone."""
    index = publishing.read_index(store, published.manifest)
    return laid_out(store, index)


def laid_out(store: Store, index: chunks.ChunkIndex) -> bytes:
    """Every place of a layer; what it does not have is zeros."""
    whole = np.zeros((index.places, UNIT), np.uint8)
    for chunk in range(index.chunks):
        name = object_name(index.packs[int(index.pack[chunk])])
        data = store.read(name, int(index.offset[chunk]), int(index.length[chunk]))
        units = np.frombuffer(chunks.unpack(index, chunk, data), np.uint8).reshape(-1, UNIT)
        places = np.flatnonzero(index.chunk_of == chunk)
        whole[places] = units[index.slot_of[places]]
    return whole.tobytes()


def trace(digest: str, places: int, touched: list[int]) -> bytes:
    """The file of a learning run that touched these, one a millisecond."""
    times = np.arange(len(touched), dtype=np.uint64) * 1000
    order = np.array(touched, np.uint32)
    return Trace(digest, places, 10**6, True, times, order).encode()
