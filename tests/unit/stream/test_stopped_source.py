# SPDX-License-Identifier: Apache-2.0
"""A source that stands still, whose pages another sends; these tests are its destination."""

import numpy as np
import pytest

from nova_enlightened import exception
from nova_enlightened.stream import encode
from nova_enlightened.stream import events as ev
from nova_enlightened.stream.migration import MigrationStream
from nova_enlightened.stream.states import Channel
from nova_enlightened.stream.stopped_source import STEP, StoppedSource
from nova_enlightened.stream.wire import CommandKind

RAM = ev.RamBlock("pc.ram", 2000 * 4096, 4096)
ROM = ev.RamBlock("pc.rom", 70 * 4096, 4096)
LENGTHS = {RAM.name: RAM.length, ROM.name: ROM.length}
SECTION = 2


def bitmap(block, *lacking):
    """Of a destination that lacks these pages."""
    arrived = np.ones(-(-block.length // 4096 // 64) * 64, np.uint8)
    arrived[list(lacking)] = 0
    return encode.recv_bitmap(block.name, np.packbits(arrived, bitorder="little").tobytes())


def told(ram=(), rom=(), blocks=(RAM, ROM)):
    source = StoppedSource(SECTION, blocks)
    source.receive_data(bitmap(blocks[0], *ram))
    source.receive_data(bitmap(blocks[1], *rom))
    assert source.told
    return source


def everything(source):
    """What it would have sent next, to the end."""
    runs = []
    while (run := source.next_pages()) is not None:
        runs.append(run)
    return runs


def heard(data):
    """What a destination reads in it."""
    stream = MigrationStream(Channel.RESUMED, ram_section_id=SECTION, blocks=LENGTHS)
    stream.receive_data(data)
    found = []
    while (event := stream.next_event()) is not ev.NEED_DATA:
        found.append(event)
    return found


def test_it_asks_what_has_arrived_and_has_the_destination_go_on():
    source = StoppedSource(SECTION, [RAM, ROM])
    asked = [(one.kind, one.data) for one in heard(source.ask() + source.resume())]
    assert asked == [
        (CommandKind.RECV_BITMAP, encode.counted("pc.ram")),
        (CommandKind.RECV_BITMAP, encode.counted("pc.rom")),
        (CommandKind.POSTCOPY_RESUME, b""),
    ]


def test_it_is_told_only_once_every_block_is():
    source = StoppedSource(SECTION, [RAM, ROM])
    source.receive_data(bitmap(RAM, 3))
    assert not source.told
    source.receive_data(bitmap(ROM))
    assert source.told
    assert source.lacking == 1


def test_what_has_arrived_is_not_sent_again():
    source = told(ram=[5, 6, 7, 1999], rom=[0, 69])
    runs = [("pc.ram", 5, 3), ("pc.ram", 1999, 1), ("pc.rom", 0, 1), ("pc.rom", 69, 1)]
    assert everything(source) == runs
    assert source.lacking == 0


def test_many_pages_are_sent_by_the_step():
    assert everything(told(ram=range(100, 1100))) == [
        ("pc.ram", 100, STEP - 100),
        ("pc.ram", STEP, STEP),
        ("pc.ram", 2 * STEP, 1100 - 2 * STEP),
    ]


def test_what_the_guest_waits_for_is_sent_first_and_once():
    source = told(ram=[10, 1500], rom=[33])
    source.receive_data(encode.request_pages(33 * 4096, 4096, "pc.rom"))
    source.receive_data(encode.request_pages(33 * 4096, 4096))
    source.receive_data(encode.request_pages(1500 * 4096, 4096, "pc.ram"))
    assert everything(source) == [("pc.rom", 33, 1), ("pc.ram", 1500, 1), ("pc.ram", 10, 1)]


def test_nothing_comes_between_the_parts_of_a_huge_page():
    huge = ev.RamBlock("huge", 4 << 20, 4 << 20)
    source = told(ram=range(1024), rom=[1], blocks=(huge, ROM))
    assert source.next_pages() == ("huge", 0, 1024)


def test_its_pages_are_read_as_they_were_and_where_they_were():
    source = told(ram=[8, 9, 10], rom=[4])
    contents = b"".join(bytes([number]) * 4096 for number in (1, 2, 3))
    sent = source.records("pc.ram", 8, contents) + source.records("pc.rom", 4, bytes(4096))
    sent += source.end()
    pages = [
        (one.block, one.offsets.tolist()) for one in heard(sent) if isinstance(one, ev.RamPages)
    ]
    assert pages == [("pc.ram", [8 * 4096, 9 * 4096, 10 * 4096]), ("pc.rom", [4 * 4096])]
    for number in (1, 2, 3):
        assert bytes([number]) * 4096 in sent
    assert isinstance(heard(sent)[-1], ev.EndOfStream)


def test_a_destination_that_lacks_nothing_is_told_the_end():
    source = told()
    assert everything(source) == []
    assert [type(one) for one in heard(source.end())] == [
        ev.SectionStart,
        ev.SectionEnd,
        ev.EndOfStream,
    ]


def test_the_last_word_of_the_destination_is_known():
    source = told()
    source.receive_data(encode.resume_ack())
    assert source.resumed
    assert source.status is None
    source.receive_data(encode.pong(4) + encode.shut(1))
    assert source.status == 1


@pytest.mark.parametrize(
    "said",
    [
        bitmap(ev.RamBlock("mem7", 4096, 4096)),
        bitmap(RAM) + bitmap(RAM),
        encode.recv_bitmap("pc.ram", bytes(8)),
        bitmap(RAM) + encode.request_pages(RAM.length, 4096, "pc.ram"),
        encode.request_pages(0, 4096, "pc.ram"),
        b"\x00\x63\x00\x00",
    ],
    ids=["unknown block", "told twice", "too short", "beyond", "before its bitmap", "unknown"],
)
def test_a_destination_that_says_what_it_cannot_know_is_refused(said):
    with pytest.raises(exception.StreamError):
        StoppedSource(SECTION, [RAM, ROM]).receive_data(said)
