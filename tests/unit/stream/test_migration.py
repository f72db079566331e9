# SPDX-License-Identifier: Apache-2.0
"""The forward stream element by element: what is reported, what is refused, what is impossible."""

import struct

import pytest

from nova_enlightened.exception import StreamError
from nova_enlightened.stream import encode, limits
from nova_enlightened.stream.events import (
    NEED_DATA,
    Command,
    Configuration,
    EndOfStream,
    Header,
    Opaque,
    OpaqueReason,
    Packaged,
    PostcopyListen,
    PostcopyRun,
    RamBlock,
    RamBlocks,
    RamDiscard,
    RamPages,
    SectionEnd,
    SectionStart,
)
from nova_enlightened.stream.migration import Channel, MigrationStream, recognise_channel
from nova_enlightened.stream.states import COMPLETE, INITIAL, TRANSITIONS, Input, State
from nova_enlightened.stream.wire import CommandKind, RamFlag, SectionType
from tests.unit.stream.stream_vectors import drain, feed, settled

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


def last_opaque(data, channel="main", **known):
    event = parse(data, channel, **known)[-1]
    assert isinstance(event, Opaque)
    return event


def failure(data, channel="main"):
    stream = MigrationStream(channel)
    with pytest.raises(StreamError) as caught:
        feed(stream, [data])
    with pytest.raises(StreamError):
        stream.next_event()
    with pytest.raises(StreamError):
        stream.end_of_data()
    return caught.value


# What is reported.


def test_header_and_configuration():
    values = Configuration("pc-q35-9.2", ("x-ignore-shared",), 12, bytes(range(16)))
    data = encode.header() + encode.configuration(values) + encode.ping(1)
    assert parse(data) == [Header(3), values, Command(CommandKind.PING, b"\0\0\0\1")]


def test_a_configuration_is_reported_when_something_follows():
    data = encode.header() + encode.configuration(Configuration("pc"))
    assert parse(data) == [Header(3)]
    assert parse(data + encode.eof())[1:] == [Configuration("pc"), EndOfStream()]


def test_old_machine_types_have_no_configuration_and_no_footers():
    data = encode.header() + encode.ram_start(2) + encode.block_list([RAM], host_page_size=None)
    data += encode.ram_end() + encode.ram_part(2) + encode.ram_end() + encode.eof()
    assert parse(data) == [
        Header(3),
        SectionStart(SectionType.START, 2),
        RamBlocks((RAM,)),
        SectionEnd(2),
        SectionStart(SectionType.PART, 2),
        SectionEnd(2),
        EndOfStream(),
    ]


def test_pages_are_continued_over_sections():
    data = opened() + encode.ram_part(2) + encode.page_header(0x1000, "pc.ram") + PAGE
    data += encode.ram_end() + encode.footer(2)
    data += encode.ram_part(2, last=True) + encode.page_header(0x5000) + PAGE
    data += encode.zero_page(0x6000)
    events = parse(data)
    assert events[6] == {("pc.ram", False): [0x1000]}
    assert events[-1] == {("pc.ram", False): [0x5000], ("pc.ram", True): [0x6000]}


def test_a_page_is_reported_once_its_payload_is_complete():
    stream = MigrationStream()
    data = opened() + encode.ram_part(2) + encode.page_header(0x1000, "pc.ram") + PAGE
    assert not any(isinstance(event, RamPages) for event in feed(stream, [data[:-1]]))
    (event,) = feed(stream, [data[-1:]])
    assert event.offsets.tolist() == [0x1000]
    assert event.offsets.dtype == "uint64"


def test_a_long_run_is_one_batch():
    pages = b"".join(encode.page_header(i << 12) + PAGE for i in range(1, 300))
    zeros = b"".join(encode.zero_page(i << 12) for i in range(300, 3000))
    data = opened() + encode.ram_part(2) + encode.page_header(0, "pc.ram") + PAGE + pages + zeros
    batches = [event for event in feed(MigrationStream(), [data]) if isinstance(event, RamPages)]
    assert [(batch.zero, len(batch.offsets)) for batch in batches] == [(False, 300), (True, 2700)]


def test_several_discards_of_one_block():
    spans = [((i << 16, 4096), (i << 20, 8192)) for i in range(3)]
    data = opened() + b"".join(encode.ram_discard("pc.ram", span) for span in spans)
    assert parse(data)[-3:] == [RamDiscard("pc.ram", span) for span in spans]


def test_a_package_is_passed_over_but_for_listen_and_run():
    device = b"\x04" + bytes(range(256)) * 40
    events = parse(opened() + encode.postcopy_package(device) + encode.ping(4))
    size = len(device) + 5 + 9 + 5
    ping = Command(CommandKind.PING, b"\0\0\0\4")
    assert events[-4:] == [Packaged(size), PostcopyListen(), PostcopyRun(), ping]


@pytest.mark.parametrize("blob", [b"", b"\x08", b"\x04device", encode.ping(1)])
def test_a_package_without_listen_and_run_reports_neither(blob):
    events = parse(opened() + encode.packaged(blob) + encode.ping(4))
    assert events[-2] == Packaged(len(blob))


def test_a_listen_alone_is_not_a_run():
    events = parse(opened() + encode.packaged(encode.command(CommandKind.POSTCOPY_LISTEN)))
    assert events[-2:] == [Packaged(5), PostcopyListen()]


def test_listen_and_run_outside_a_package():
    data = encode.command(CommandKind.POSTCOPY_LISTEN) + encode.command(CommandKind.POSTCOPY_RUN)
    assert parse(opened() + data)[-2:] == [PostcopyListen(), PostcopyRun()]


def test_switchover_start_of_qemu_10():
    data = opened() + encode.command(CommandKind.SWITCHOVER_START)
    assert parse(data)[-1] == Command(CommandKind.SWITCHOVER_START, b"")


def test_the_description_behind_the_end_is_passed_over():
    data = opened() + encode.eof() + encode.vm_description(b'{"page_size": 4096}')
    stream = MigrationStream()
    assert feed(stream, [data])[-1] == EndOfStream()
    assert stream.position == len(data)
    stream.end_of_data()


def test_an_empty_description():
    parse(opened() + encode.eof() + encode.vm_description(b""))


def test_a_preempt_channel_is_bare_records():
    data = encode.page_header(0x1000, "pc.ram") + PAGE + encode.zero_page(0x2000)
    data += encode.zero_page(0, "pc.rom") + encode.ram_end()
    assert parse(data, "preempt") == [
        {("pc.ram", False): [0x1000], ("pc.ram", True): [0x2000], ("pc.rom", True): [0]},
        EndOfStream(),
    ]


def test_a_resumed_stream_without_an_id_takes_the_first_part_for_ram():
    data = encode.recv_bitmap_request("pc.ram") + encode.command(CommandKind.POSTCOPY_RESUME)
    data += encode.ram_part(7) + encode.zero_page(0, "pc.ram") + encode.ram_end()
    events = parse(data, Channel.RESUMED)
    assert events[2:] == [
        SectionStart(SectionType.PART, 7),
        {("pc.ram", True): [0]},
        SectionEnd(7),
    ]


# Which optional fields a RAM block has is not on the wire.


@pytest.mark.parametrize("blocks", [(RAM, HUGE), (HUGE, RAM), (HUGE, HUGE), (RAM, HUGE, ROM)])
def test_huge_page_blocks_carry_their_page_size_after_an_advise(blocks):
    blocks = tuple(block._replace(name=f"{i}{block.name}") for i, block in enumerate(blocks))
    data = encode.header() + encode.postcopy_advise(4096 | 2 << 20)
    data += setup(*blocks, host_page_size=4096)
    assert parse(data)[3] == RamBlocks(blocks)


@pytest.mark.parametrize("gib", [0, 1, 4])
@pytest.mark.parametrize("advise", [b"", encode.postcopy_advise(4096 | 2 << 20)])
@pytest.mark.parametrize("blocks", [(RAM, ROM), (RAM, HUGE), (HUGE, RAM)])
def test_shared_blocks_carry_their_address(blocks, advise, gib):
    addresses = [gib << 30, 0xFEC00000, 0][: len(blocks)]
    if not advise:
        blocks = tuple(block._replace(page_size=4096) for block in blocks)
    configuration = encode.configuration(Configuration("pc", ("x-ignore-shared",)))
    data = encode.header() + configuration + advise
    data += setup(*blocks, host_page_size=4096 if advise else None, addresses=addresses)
    assert RamBlocks(blocks) in parse(data)
    assert parse(data)[-1] == SectionEnd(2)


def test_a_host_of_larger_pages_gives_its_page_size():
    data = encode.header() + encode.postcopy_advise(65536)
    block = RAM._replace(page_size=65536)
    assert RamBlocks((block,)) in parse(data + setup(block, host_page_size=65536))


def test_a_ram_setup_of_nothing():
    assert RamBlocks(()) in parse(encode.header() + setup_of_nothing())


def setup_of_nothing():
    return encode.ram_start(2) + encode.block_list([]) + encode.ram_end() + encode.footer(2)


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


# The table of states.

PATHS = {
    State.HEADER: b"",
    State.HEADED: encode.header(),
    State.CONFIGURATION: encode.header() + encode.configuration(Configuration("pc")),
    State.SECTIONS: opened(),
    State.RAM_SETUP: encode.header() + encode.ram_start(2),
    State.BLOCK_LIST: encode.header() + encode.ram_start(2) + struct.pack(">Q", 4096 | 4),
    State.RAM: opened() + encode.ram_part(2),
    State.RAM_ENDED: opened() + encode.ram_part(2) + encode.ram_end(),
    State.PACKAGE: opened() + encode.command(CommandKind.PACKAGED, struct.pack(">I", 4096)),
    State.ENDED: opened() + encode.eof(),
    State.DESCRIPTION: opened() + encode.eof() + struct.pack(">BI", 6, 4096),
    State.DONE: opened() + encode.eof() + encode.vm_description(b""),
}
INPUTS = {
    Input.MAGIC: encode.header(),
    Input.CONFIGURATION: encode.configuration(Configuration("pc")),
    Input.SUBSECTION: encode.configuration(Configuration("", (), 12))[5:],
    Input.RAM_START: encode.ram_start(2),
    Input.RAM_PART: encode.ram_part(2),
    Input.FOOTER: encode.footer(2),
    Input.COMMAND: encode.ping(1),
    Input.PACKAGE: encode.command(CommandKind.PACKAGED, struct.pack(">I", 4096)),
    Input.BLOCK_LIST: struct.pack(">Q", 4096 | 4),
    Input.PAGE: encode.zero_page(0, "pc.ram"),
    Input.RAM_END: encode.ram_end(),
    Input.EOF: encode.eof(),
    Input.DESCRIPTION: struct.pack(">BI", 6, 4096),
}
# In these the bytes are someone else's and mean nothing here.
SKIPPING = {State.PACKAGE, State.DESCRIPTION, State.BLOCK_LIST}


def state_of(stream):
    return stream._grammar.state


@pytest.mark.parametrize("state", PATHS)
def test_every_state_is_reached(state):
    stream = MigrationStream()
    feed(stream, [PATHS[state]])
    assert state_of(stream) is state
    assert stream.complete is (state in COMPLETE)


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("state", [state for state in PATHS if state not in SKIPPING])
def test_a_pair_out_of_the_table_makes_the_stream_opaque(state, given):
    stream = MigrationStream()
    feed(stream, [PATHS[state], INPUTS[given]])
    expected = TRANSITIONS.get((state, given))
    if expected is not None:
        assert state_of(stream) is expected
        return
    # What begins with a 0 byte is the end of the stream where one may be; then comes too much.
    feed(stream, [bytes(8)])
    assert stream.opaque


@pytest.mark.parametrize("channel", Channel)
def test_every_channel_begins_in_its_state(channel):
    assert state_of(MigrationStream(channel)) is INITIAL[channel]


def test_the_table_names_every_input_and_leaves_opaque_for_good():
    assert {given for _, given in TRANSITIONS} == set(Input)
    assert {state for state, _ in TRANSITIONS} | {State.DONE, State.OPAQUE} == set(State)


def test_events_are_drained_in_order():
    stream = MigrationStream()
    stream.receive_data(opened())
    assert [type(event) for event in drain(stream)][:3] == [Header, Configuration, SectionStart]
    assert stream.next_event() is NEED_DATA
