# SPDX-License-Identifier: Apache-2.0
"""The forward stream element by element: what is reported."""

import pytest

from nova_enlightened.stream import encode
from nova_enlightened.stream.events import (
    Command,
    Configuration,
    EndOfStream,
    Header,
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
from nova_enlightened.stream.migration import Channel, MigrationStream
from nova_enlightened.stream.wire import CommandKind, SectionType
from tests.unit.stream.stream_elements import PAGE, RAM, ROM, opened, parse, setup
from tests.unit.stream.stream_vectors import feed

HUGE = RamBlock("huge", 1 << 30, 2 << 20)


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
        SectionEnd(None),
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
