# SPDX-License-Identifier: Apache-2.0
"""The forward stream element by element: what is refused by name, and what is impossible."""

import struct

import pytest

from nova_enlightened.exception import StreamError
from nova_enlightened.stream import encode, limits
from nova_enlightened.stream.events import (
    NEED_DATA,
    Configuration,
    Opaque,
    OpaqueReason,
)
from nova_enlightened.stream.migration import Channel, MigrationStream, recognise_channel
from nova_enlightened.stream.wire import CommandKind, RamFlag
from tests.unit.stream.stream_elements import PAGE, RAM, ROM, opened, parse
from tests.unit.stream.stream_vectors import feed


def last_opaque(data, channel="main", **known):
    event = parse(data, channel, **known)[-1]
    assert isinstance(event, Opaque)
    return event


def failure(data):
    stream = MigrationStream()
    with pytest.raises(StreamError) as caught:
        feed(stream, [data])
    with pytest.raises(StreamError):
        stream.next_event()
    with pytest.raises(StreamError):
        stream.end_of_data()
    return caught.value


# What is refused by name.


@pytest.mark.parametrize(
    "first, reason",
    [
        (b"\x16\x03\x01\x02\0\1\0", OpaqueReason.TLS),
        (b"LibvirtQemudSave", OpaqueReason.NOT_A_MIGRATION_STREAM),
        (struct.pack(">II", 0x5145564D, 2), OpaqueReason.VERSION),
    ],
)
def test_what_is_no_migration_stream(first, reason):
    assert last_opaque(first).reason is reason


@pytest.mark.parametrize(
    "flags, reason",
    [
        (RamFlag.XBZRLE, OpaqueReason.XBZRLE),
        (RamFlag.XBZRLE | RamFlag.CONTINUE, OpaqueReason.XBZRLE),
        (RamFlag.COMPRESS_PAGE, OpaqueReason.COMPRESSED),
        (RamFlag.HOOK, OpaqueReason.RDMA_HOOK),
        (RamFlag.MULTIFD_FLUSH, OpaqueReason.MULTIFD),
        (RamFlag.FULL, OpaqueReason.RAM_FLAGS),
        (0, OpaqueReason.RAM_FLAGS),
        (0x400, OpaqueReason.RAM_FLAGS),
        (RamFlag.PAGE | RamFlag.ZERO, OpaqueReason.RAM_FLAGS),
    ],
)
def test_ram_flags_that_are_refused(flags, reason):
    data = opened() + encode.ram_part(2)
    opaque = last_opaque(data + struct.pack(">Q", 0x1000 | flags) + bytes(100))
    assert (opaque.reason, opaque.position) == (reason, len(data))


@pytest.mark.parametrize(
    "element, reason",
    [
        (b"\x04" + bytes(4) + encode.counted("timer"), OpaqueReason.DEVICE_SECTION),
        (b"\x01" + bytes(4) + encode.counted("vfio") + bytes(8), OpaqueReason.DEVICE_SECTION),
        (encode.ram_part(9), OpaqueReason.DEVICE_SECTION),
        (encode.command(12, b"new"), OpaqueReason.COMMAND),
        (encode.command(0), OpaqueReason.COMMAND),
        (encode.command(CommandKind.ENABLE_COLO), OpaqueReason.COLO),
        (encode.command(CommandKind.POSTCOPY_ADVISE, struct.pack(">QQ", 65536, 65536)),
         OpaqueReason.PAGE_SIZE),
        (encode.footer(2), OpaqueReason.OUT_OF_PLACE),
        (b"\x05" + encode.counted("configuration/uuid"), OpaqueReason.OUT_OF_PLACE),
        (b"\x2a", OpaqueReason.OUT_OF_PLACE),
    ],
)  # fmt: skip
def test_elements_that_are_refused(element, reason):
    opaque = last_opaque(opened() + element)
    assert (opaque.reason, opaque.position) == (reason, len(opened()))


def test_an_unknown_version_of_the_ram_section():
    element = encode.ram_start(2)[:-4] + struct.pack(">I", 5)
    assert last_opaque(encode.header() + element).reason is OpaqueReason.VERSION


def test_a_footer_of_another_section():
    data = opened() + encode.ram_part(2) + encode.ram_end() + encode.footer(3)
    assert last_opaque(data).reason is OpaqueReason.OUT_OF_PLACE


@pytest.mark.parametrize(
    "subsection",
    [encode.counted("configuration/new") + struct.pack(">I", 1),
     encode.counted("configuration/uuid") + struct.pack(">I", 2)],
)  # fmt: skip
def test_an_unknown_configuration_subsection(subsection):
    data = encode.header() + encode.configuration(Configuration("pc")) + b"\x05" + subsection
    opaque = last_opaque(data + bytes(16))
    assert opaque.reason is OpaqueReason.CONFIGURATION


@pytest.mark.parametrize(
    "values, reason",
    [
        (Configuration("pc", ("mapped-ram",)), OpaqueReason.MAPPED_RAM),
        (Configuration("virt", (), 16), OpaqueReason.PAGE_SIZE),
    ],
)
def test_configurations_that_are_refused(values, reason):
    events = parse(encode.header() + encode.configuration(values) + encode.ping(1))
    assert events[1] == values
    assert events[2].reason is reason


def test_a_page_continued_from_no_block():
    data = opened() + encode.ram_part(2)
    opaque = last_opaque(data + encode.page_header(0) + PAGE)
    assert (opaque.reason, opaque.position) == (OpaqueReason.NO_BLOCK, len(data))


def test_a_page_of_an_unlisted_block():
    data = opened() + encode.ram_part(2) + encode.page_header(0, "vga.vram") + PAGE
    assert last_opaque(data).reason is OpaqueReason.UNKNOWN_BLOCK


@pytest.mark.parametrize(
    "block, span, reason",
    [
        ("vga.vram", (0, 4096), OpaqueReason.UNKNOWN_BLOCK),
        ("pc.rom", (0, ROM.length + 4096), OpaqueReason.OUTSIDE_BLOCK),
        ("pc.rom", (ROM.length, 4096), OpaqueReason.OUTSIDE_BLOCK),
    ],
)
def test_a_discard_outside_ram(block, span, reason):
    assert last_opaque(opened() + encode.ram_discard(block, [span])).reason is reason


@pytest.mark.parametrize("before", [0, 1, 5, 40])
@pytest.mark.parametrize("record", [encode.zero_page, lambda at: encode.page_header(at) + PAGE])
def test_a_page_outside_its_block(before, record):
    data = opened() + encode.ram_part(2) + encode.zero_page(0, "pc.rom")
    inside = b"".join(record(i << 12 & ROM.length - 1) for i in range(before))
    opaque = last_opaque(data + inside + record(ROM.length) + record(0))
    assert opaque.reason is OpaqueReason.OUTSIDE_BLOCK
    assert opaque.position == len(data + inside)


def test_without_a_block_list_any_page_is_reported():
    data = encode.page_header(1 << 50, "anything") + PAGE
    assert parse(data, "preempt") == [{("anything", False): [1 << 50]}]


def test_a_multifd_channel_is_opaque_at_once():
    assert recognise_channel(struct.pack(">I", 0x11223344)) is Channel.MULTIFD
    stream = MigrationStream(Channel.MULTIFD)
    assert stream.opaque
    assert stream.next_event() == Opaque(OpaqueReason.MULTIFD, "a multifd channel", 0)
    assert feed(stream, [bytes(1000)]) == []
    assert stream.position == 1000
    stream.end_of_data()


def test_opaque_streams_only_count():
    stream = MigrationStream()
    feed(stream, [b"not a stream at all"])
    assert feed(stream, [opened(), b"", bytes(77)]) == []
    assert stream.position == 19 + len(opened()) + 77
    assert stream.next_event() is NEED_DATA


# What is impossible.


@pytest.mark.parametrize(
    "data, section",
    [
        (encode.header() + b"\x07" + struct.pack(">I", limits.MAX_MACHINE_NAME + 1), "header"),
        (encode.header() + encode.configuration(Configuration("pc"))
         + b"\x05" + encode.counted("configuration/capabilities")
         + struct.pack(">II", 1, limits.MAX_CAPABILITIES + 1), "configuration"),
        (opened() + struct.pack(">BHH", 8, CommandKind.PING, 5), "between sections"),
        (opened() + struct.pack(">BHH", 8, CommandKind.POSTCOPY_ADVISE, 8), "between sections"),
        (opened() + encode.command(CommandKind.RECV_BITMAP, b"\x09pc.ram"), "between sections"),
        (opened() + encode.command(CommandKind.RECV_BITMAP, b"\x00"), "between sections"),
        (opened() + encode.command(CommandKind.POSTCOPY_RAM_DISCARD, b"\0\x06pc"), "sections"),
        (opened() + encode.ram_discard("pc.ram", []), "between sections"),
        (opened() + encode.ram_discard("pc.ram", [(0, 4095)]), "between sections"),
        (opened() + encode.ram_discard("pc.ram", [(1, 4096)]), "between sections"),
        (opened() + encode.ram_discard("pc.ram", [(4096, 1 << 63)]), "between sections"),
        (encode.header() + encode.ram_start(2)
         + struct.pack(">Q", limits.MAX_RAM_BYTES + 4096 | RamFlag.MEM_SIZE), "RAM"),
        (encode.header() + encode.ram_start(2) + struct.pack(">Q", 8192 | RamFlag.MEM_SIZE)
         + encode.counted("a") + struct.pack(">Q", 12288), "RAM block list"),
        (encode.header() + encode.ram_start(2) + struct.pack(">Q", 8192 | RamFlag.MEM_SIZE)
         + encode.counted("") + struct.pack(">Q", 8192), "RAM block list"),
        (encode.header() + encode.ram_start(2) + struct.pack(">Q", 8192 | RamFlag.MEM_SIZE)
         + encode.counted("a") + struct.pack(">Q", 8000), "RAM block list"),
        (encode.header() + encode.ram_start(2) + encode.block_list(
            [RAM._replace(name=f"b{i}") for i in range(limits.MAX_RAM_BLOCKS + 1)],
            host_page_size=None), "RAM block list"),
    ],
)  # fmt: skip
def test_impossible_lengths_name_their_place(data, section):
    error = failure(data)
    assert section.lower() in error.section.lower()
    assert 0 <= error.offset < len(data)
    assert f"byte {error.offset}" in str(error)


def test_a_length_is_refused_before_its_bytes_arrive():
    assert failure(encode.header() + b"\x07\xff\xff\xff\xff").offset == 8


def test_events_before_an_impossible_length_are_still_reported():
    stream = MigrationStream()
    stream.receive_data(opened() + struct.pack(">BHH", 8, CommandKind.PING, 5))
    events = []
    with pytest.raises(StreamError):
        events.extend(event for event in iter(stream.next_event, NEED_DATA))
    stream.receive_data(b"ignored")


def test_a_stream_that_never_came_is_cut_off():
    with pytest.raises(StreamError, match=r"cut off .*byte 0"):
        MigrationStream().end_of_data()


def test_a_cut_off_payload_names_the_ram_section():
    data = opened() + encode.ram_part(2) + encode.page_header(0, "pc.ram") + PAGE[:-1]
    stream = MigrationStream()
    feed(stream, [data])
    with pytest.raises(StreamError) as caught:
        stream.end_of_data()
    assert (caught.value.offset, caught.value.section) == (len(data), "ram")


def test_an_empty_preempt_channel_is_complete():
    MigrationStream(Channel.PREEMPT).end_of_data()


def test_a_preempt_channel_cut_off_in_a_page():
    stream = MigrationStream(Channel.PREEMPT)
    feed(stream, [encode.page_header(0, "pc.ram") + PAGE[:5]])
    with pytest.raises(StreamError):
        stream.end_of_data()
