# SPDX-License-Identifier: Apache-2.0
import itertools
import struct
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova_enlightened.exception import StreamError
from nova_enlightened.stream import encode, limits, save_file, stored
from nova_enlightened.stream.events import Configuration, RamBlock
from nova_enlightened.stream.wire import CommandKind
from tests.unit.stream import stored_streams as made
from tests.unit.stream.stored_streams import page, part, record

TOTAL = 68


def pages_of(stream: bytes) -> list[bytes]:
    """Contents of every page, by the reader under test."""
    found = stored.read(stream)
    data = stored.gather(stream, found.positions)
    return [data[at : at + 4096] for at in range(0, len(data), 4096)]


def test_every_page_is_found_where_the_stream_has_it() -> None:
    first = [record("pc.ram", 0, page(0)), record(None, 5, page(5)), record(None, 6, None)]
    stream = made.whole(first, [record("pc.rom", 3, page(67)), record("pc.ram", 63, page(63))])
    pages = pages_of(stream)
    assert len(pages) == TOTAL
    there = {0: page(0), 5: page(5), 63: page(63), 67: page(67)}
    assert [there.get(number, bytes(4096)) for number in range(TOTAL)] == pages


@pytest.mark.parametrize("last", [page(99), None])
def test_the_last_contents_of_a_page_count(last: bytes | None) -> None:
    stream = made.whole([record("pc.ram", 7, page(7))], [record(None, 7, last)])
    assert pages_of(stream)[7] == (last or bytes(4096))


@given(
    st.lists(
        st.tuples(st.integers(0, 63), st.booleans(), st.integers(1, 30)), min_size=1, max_size=20
    )
)
def test_runs_give_what_records_one_by_one_would(runs: list[tuple[int, bool, int]]) -> None:
    expected, records = [bytes(4096)] * TOTAL, []
    for serial, (first, zero, count) in enumerate(runs):
        for number in range(first, min(first + count, 64)):
            content = None if zero else page(serial * 100 + number)
            records.append(record(None if records else "pc.ram", number, content))
            expected[number] = content or bytes(4096)
    assert pages_of(made.whole(records)) == expected


def test_device_state_and_description_are_what_the_stream_ends_with() -> None:
    # The same two bytes that end device state are in it too.
    device = made.DEVICE + bytes((0, 6)) + struct.pack(">I", 4) + b"{}  more"
    stream = made.start() + part([record("pc.ram", 0, page(0))], True) + made.ending(device)
    found = stored.read(stream)
    assert stream[slice(*found.device_state)] == device
    assert stream[slice(*found.description)] == made.DESCRIPTION
    assert stream[slice(*found.configuration_span)] == encode.configuration(made.MACHINE)
    assert found.blocks == made.BLOCKS
    assert found.ram_section_id == 3


def test_device_state_full_of_what_looks_like_its_end_is_passed_over_at_once() -> None:
    # Each mark has the length that would be right for it, and begins what might be JSON.
    count = limits.MAX_DESCRIPTION // 7 - 1
    behind = (np.arange(count, 0, -1) * 7 - 6).astype(">u4")
    marks = np.zeros((count, 7), np.uint8)
    marks[:, 1], marks[:, 6] = 6, ord("{")
    marks[:, 2:6] = behind.view(np.uint8).reshape(-1, 4)
    stream = made.start() + part([record("pc.ram", 0, page(0))], True) + made.DEVICE
    began = time.process_time()
    with pytest.raises(StreamError, match="no description"):
        stored.read(stream + marks.tobytes())
    assert time.process_time() - began < 5.0  # each of them copied: minutes


def test_a_description_too_deep_to_be_read_is_none() -> None:
    stream = made.start() + part([record("pc.ram", 0, page(0))], True)
    with pytest.raises(StreamError, match="no description"):
        stored.read(stream + made.ending(description=b'{"a":' + b"[" * 200_000))


def test_where_the_guest_was_stopped_may_be_marked() -> None:
    mark = encode.command(CommandKind.SWITCHOVER_START)
    parts = [part([record("pc.ram", 3, page(3))]), mark, part([record(None, 4, page(4))], True)]
    stream = made.start() + b"".join(parts) + mark + made.ending()
    pages = pages_of(stream)
    assert (pages[3], pages[4]) == (page(3), page(4))
    found = stored.read(stream)
    assert stream[slice(*found.device_state)] == made.DEVICE


def test_a_stream_cut_off_anywhere_is_refused() -> None:
    stream = made.whole([record("pc.ram", 1, page(1)), record(None, 2, None)])
    for length in itertools.chain(range(300), range(300, len(stream), 97)):
        with pytest.raises(StreamError):
            stored.read(stream[:length])


@given(st.data())
def test_damage_gives_an_error_or_another_reading_never_a_crash(data: st.DataObject) -> None:
    stream = bytearray(made.whole([record("pc.ram", 1, page(1)), record(None, 2, None)]))
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] ^= data.draw(st.integers(1, 255))
    try:
        found = stored.read(bytes(stream))
    except StreamError:
        return
    assert len(stored.gather(bytes(stream), found.positions)) == len(found.positions) * 4096


@pytest.mark.parametrize(
    "stream, words",
    [
        (made.start(machine=Configuration("pc", ("mapped-ram",))), "mapped-ram"),
        (made.start(machine=Configuration("pc", page_bits=16)), "16 bits"),
        (made.start() + part([record("pc.rom", 4, None)]), "outside"),
        (made.start() + part([record("other", 0, None)]), "not listed"),
        (made.start() + part([encode.zero_page(0, "pc.ram")[:-1] + b"\7"]), "not zero"),
        (made.start() + part([struct.pack(">Q", 0x40 | 0x1000)]), "flags 0x40"),
        (made.start() + made.start()[26:], "second RAM"),
        (made.start([RamBlock("pc.ram", 1 << 45, 4096)]) + made.ending(), "bytes of RAM"),
        (encode.header() + made.DEVICE, "configuration"),
        (encode.header() + encode.configuration(made.MACHINE) + made.ending(), "before any RAM"),
        (made.start() + encode.postcopy_advise(), "command 3"),
        (b"\x11\x22\x33\x44" + bytes(64), "not a migration stream"),
    ],
)
def test_what_cannot_be_stored_is_named(stream: bytes, words: str) -> None:
    with pytest.raises(StreamError, match=words):
        stored.read(stream)


def test_pages_in_another_order_than_the_streams_are_gathered() -> None:
    stream = made.whole([record("pc.ram", number, page(number)) for number in range(40)])
    positions = stored.read(stream).positions[[39, 0, 1, 2, 60, 20]]
    expected = [page(39), page(0), page(1), page(2), bytes(4096), page(20)]
    assert stored.gather(stream, positions) == b"".join(expected)
    assert stored.gather(stream, np.empty(0, np.int64)) == b""


def test_what_libvirt_wrote_in_front_is_told() -> None:
    file = made.saved(b"stream", cookie="<cookie/>", compression=5)
    header = save_file.parse(file[: save_file.header_length(file[:92])])
    assert (header.xml, header.cookie, header.format) == (made.XML, "<cookie/>", "zstd")
    assert header.running
    assert file[header.stream_begin :] == b"stream"


def test_a_file_of_a_host_with_the_other_byte_order_is_read() -> None:
    file = bytearray(made.saved(b"stream"))
    file[16:36] = struct.pack(">5I", *struct.unpack("<5I", file[16:36]))
    header = save_file.parse(bytes(file[: save_file.header_length(bytes(file[:92]))]))
    assert header.xml == made.XML


@pytest.mark.parametrize(
    "change, words",
    [
        ({"at": 0, "to": b"LibvirtQemudPart"}, "not finished"),
        ({"at": 0, "to": b"x"}, "not a file that libvirt"),
        ({"at": 16, "to": b"\3\0\0\0"}, "version"),
        ({"at": 20, "to": b"\xff\xff\xff\x7f"}, "bytes of domain XML"),
        ({"at": 28, "to": b"\x40"}, "unknown compression 64"),
        ({"at": 32, "to": b"\xff\xff\xff\x7f"}, "a cookie at"),
    ],
)
def test_a_damaged_header_is_refused(change: dict[str, bytes | int], words: str) -> None:
    file = bytearray(made.saved(b""))
    at, to = int(change["at"]), change["to"]
    assert isinstance(to, bytes)
    file[at : at + len(to)] = to
    with pytest.raises(StreamError, match=words):
        save_file.parse(bytes(file[: save_file.header_length(bytes(file[:92]))]))


def test_a_header_that_is_cut_off_is_refused() -> None:
    file = made.saved(b"")
    with pytest.raises(StreamError, match="cut off"):
        save_file.parse(file[:120])


def test_a_stream_is_read_much_faster_than_a_store_is_written() -> None:
    # Loose: fifty times slower than measured, so only a loop gone wrong is below.
    ram = RamBlock("pc.ram", 8192 * 4096, 4096)
    records = [record(None if number else "pc.ram", number, page(number)) for number in range(8192)]
    stream = made.start([ram]) + part(records, last=True) + made.ending()
    began = time.process_time()
    found = stored.read(stream)
    for first in range(0, len(found.positions), 1024):
        stored.gather(stream, found.positions[first : first + 1024])
    assert len(stream) / (time.process_time() - began) > 50e6
