# SPDX-License-Identifier: Apache-2.0
"""Small streams made of encoded elements, for tests to add one thing to."""

from nova_enlightened.stream import encode
from nova_enlightened.stream.events import Configuration, RamBlock
from nova_enlightened.stream.migration import MigrationStream
from tests.unit.stream.stream_vectors import feed, settled

PAGE = bytes(range(256)) * 16
RAM = RamBlock("pc.ram", 1 << 30, 4096)
ROM = RamBlock("pc.rom", 1 << 17, 4096)
HUGE = RamBlock("huge", 1 << 30, 2 << 20)


def setup(*blocks, **shape):
    shape.setdefault("host_page_size", None)
    listed = encode.block_list(blocks or (RAM, ROM), **shape)
    return encode.ram_start(2) + listed + encode.ram_end() + encode.footer(2)


def opened(*blocks, **shape):
    return encode.header() + encode.configuration(Configuration("pc")) + setup(*blocks, **shape)


def parse(data, channel="main", **known):
    """Whole, and again byte by byte; both must say the same."""
    stream, slow = MigrationStream(channel, **known), MigrationStream(channel, **known)
    events = settled(feed(stream, [data]))
    assert settled(feed(slow, [data[i : i + 1] for i in range(len(data))])) == events
    assert slow.position == stream.position
    return events
