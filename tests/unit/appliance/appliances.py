# SPDX-License-Identifier: Apache-2.0
"""Small appliances for the tests."""

import functools

import numpy as np

from nova_enlightened.appliance.building import LayerBuilder, name_of
from nova_enlightened.appliance.chunks import UNIT, ZERO
from nova_enlightened.appliance.manifest import Manifest, Object

OBJECT = Object("ab" * 32, 1000)


@functools.cache
def unit(number):
    """4096 bytes, other ones for each number, that compress to about 512."""
    return np.random.default_rng(number).bytes(512) * (UNIT // 512)


def units(numbers):
    return b"".join(unit(number) for number in numbers)


class Stored:
    """A layer and the packs it is in.

    :param contents: place -> number of its unit; 0 is the zero unit.
    """

    def __init__(self, places, contents, *, group=4, missing=ZERO, pack_limit=1 << 20, known=()):
        builder = LayerBuilder(places, pack_limit=pack_limit, known=known)
        order = list(contents)
        raw = b"".join(unit(contents[p]) if contents[p] else bytes(UNIT) for p in order)
        builder.add(order, raw, group)
        self.index = builder.finish(missing)
        self.packs = {name_of(pack): pack for pack in builder.take()}
        self.table = builder.unit_table()

    def stored(self, chunk):
        """The stored bytes of a chunk."""
        index = self.index
        start = int(index.offset[chunk])
        pack = self.packs[index.packs[int(index.pack[chunk])]]
        return pack[start : start + int(index.length[chunk])]


def manifest(**changes):
    fields = {
        "name": "redis",
        "created": "2026-01-01T00:00:00Z",
        "machine": "pc-i440fx-7.2",
        "qemu_version": "7.2.22",
        "cpu": "<cpu mode='custom'/>",
        "domain_xml": "<domain type='kvm'/>",
        "ram_blocks": (("pc.ram", 1 << 20), ("vga.vram", 8192)),
        "page_sizes": (4096, 4096),
        "ram_section_id": 2,
        "ram_setup_flags": 4,
        "configuration": b"\x07\x00\x00\x00\x0dpc-i440fx-7.2",
        "vm_description": '{"devices": []}',
        "device_state": OBJECT,
        "base_index": OBJECT,
        "disks": (("vda", 10000),),
        "packs": (OBJECT, Object("cd" * 32, 64 << 20)),
    }
    return Manifest(**{**fields, **changes})


def random_contents(places, seed, *, zero=0.2, alike=0.2):
    """Units of an appliance: some zero, some alike."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(1, places + 1)
    same = rng.random(places) < alike
    numbers[same] = rng.integers(1, 5, int(same.sum()))
    numbers[rng.random(places) < zero] = 0
    return dict(enumerate(numbers.tolist()))
