# SPDX-License-Identifier: Apache-2.0
"""What a stored source says, read back by the parser that reads QEMU's."""

import numpy as np
import pytest

from nova_enlightened.stream import encode, playing
from nova_enlightened.stream import events as ev
from nova_enlightened.stream.migration import NEED_DATA, MigrationStream
from nova_enlightened.stream.wire import CommandKind

BLOCKS = (ev.RamBlock("pc.ram", 40 * 4096, 4096), ev.RamBlock("vga", 4 * 4096, 4096))
CONFIGURATION = encode.configuration(ev.Configuration("pc-i440fx-7.2"))


def read(data, channel=None, **options):
    stream = MigrationStream(channel, **options)
    stream.receive_data(data)
    events = []
    while (event := stream.next_event()) is not NEED_DATA:
        events.append(event)
    return stream, events


def opening():
    return playing.opening(CONFIGURATION, 2, BLOCKS, b"\x04device state")


def test_the_opening_says_everything_in_order():
    stream, events = read(opening())
    assert not stream.opaque
    kinds = [e.kind if isinstance(e, ev.Command) else type(e) for e in events]
    assert kinds == [
        ev.Header,
        ev.Configuration,
        CommandKind.OPEN_RETURN_PATH,
        CommandKind.POSTCOPY_ADVISE,
        ev.SectionStart,
        ev.RamBlocks,
        ev.SectionEnd,
        CommandKind.PING,
        ev.RamDiscard,
        ev.RamDiscard,
        ev.Packaged,
        ev.PostcopyListen,
        ev.PostcopyRun,
        ev.SectionStart,
    ]
    assert stream.in_ram


def test_every_block_is_discarded_whole():
    _, events = read(opening())
    discards = {e.block: e.ranges for e in events if isinstance(e, ev.RamDiscard)}
    assert discards == {"pc.ram": ((0, 40 * 4096),), "vga": ((0, 4 * 4096),)}


def test_the_closing_completes_the_stream():
    stream, _ = read(opening() + playing.closing(2))
    assert stream.complete


def test_a_resumed_stream_asks_for_bitmaps_and_resumes():
    data = playing.bitmap_requests(BLOCKS) + playing.resumption() + encode.ram_part(2)
    stream, events = read(data + playing.closing(2), "resumed", ram_section_id=2)
    kinds = [e.kind for e in events if isinstance(e, ev.Command)]
    assert kinds == [CommandKind.RECV_BITMAP, CommandKind.RECV_BITMAP, CommandKind.POSTCOPY_RESUME]
    assert stream.complete


@pytest.mark.parametrize("count", [1, 2, 64])
def test_page_records_are_those_of_the_encoder(count):
    dice = np.random.default_rng(count)
    pages = dice.integers(0, 256, (count, 4096)).astype(np.uint8)
    offsets = dice.permutation(64)[:count].astype(np.uint64) * np.uint64(4096)
    expected = b"".join(
        encode.page_header(int(offset), None if number else "pc.ram") + pages[number].tobytes()
        for number, offset in enumerate(offsets)
    )
    assert bytes(playing.page_records("pc.ram", offsets, pages)) == expected


def test_zero_records_carry_no_page():
    data = opening() + playing.zero_records("vga", np.array([4096, 0], np.uint64))
    _, events = read(data)
    (pages,) = [event for event in events if isinstance(event, ev.RamPages)]
    assert (pages.block, pages.zero, pages.offsets.tolist()) == ("vga", True, [4096, 0])
