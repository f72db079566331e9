# SPDX-License-Identifier: Apache-2.0
"""Real streams of QEMU 7.2 and 10.0: whole, in pieces, cut off, with something behind them."""

import random

import pytest

from nova_enlightened.exception import StreamError
from nova_enlightened.stream.events import (
    Command,
    Configuration,
    EndOfStream,
    Opaque,
    OpaqueReason,
    PostcopyListen,
    PostcopyRun,
    RamBlocks,
    RamDiscard,
    RamPages,
    SectionEnd,
)
from nova_enlightened.stream.migration import Channel, MigrationStream, recognise_channel
from nova_enlightened.stream.wire import CommandKind
from tests.unit.stream.stream_vectors import (
    RELEASES,
    drain,
    feed,
    parser_for,
    pieces,
    settled,
    vector,
    vector_names,
)

FORWARD = vector_names(back=False)
BACK = vector_names(back=True)
# Byte by byte where elements begin and end; payload between takes larger steps.
BYTEWISE = 12_000

every_stream = pytest.mark.parametrize("name", FORWARD + BACK)
every_forward_stream = pytest.mark.parametrize("name", FORWARD)
each_release = pytest.mark.parametrize("release", RELEASES)


def whole(name):
    return settled(feed(parser_for(name), [vector(name)]))


def outcome(parser):
    try:
        parser.end_of_data()
    except StreamError as error:
        return error.offset
    return None


def events_of(name, kind):
    return [event for event in feed(parser_for(name), [vector(name)]) if isinstance(event, kind)]


@every_stream
def test_single_bytes_give_the_events_of_the_whole(name):
    data = vector(name)
    middle = len(data) // 2
    cuts = {
        *range(min(len(data), BYTEWISE)),
        *range(middle, min(len(data), middle + BYTEWISE)),
        *range(max(0, len(data) - BYTEWISE), len(data)),
    }
    parser, at_once = parser_for(name), parser_for(name)
    assert settled(feed(parser, pieces(data, cuts))) == settled(feed(at_once, [data]))
    assert parser.position == at_once.position


@every_stream
@pytest.mark.parametrize("seed", range(6))
def test_random_pieces_give_the_events_of_the_whole(name, seed):
    data = vector(name)
    choose = random.Random(f"{name} {seed}")
    cuts = choose.sample(range(len(data)), min(len(data), 4 ** choose.randrange(1, 6)))
    assert settled(feed(parser_for(name), pieces(data, cuts))) == whole(name)


@every_stream
@pytest.mark.parametrize("seed", range(6))
def test_a_cut_off_stream_gives_a_prefix_and_says_where_it_ends(name, seed):
    data = vector(name)
    cut = random.Random(f"{name} {seed}").randrange(1, len(data))
    parser = parser_for(name)
    events = settled(feed(parser, [data[:cut]]))
    expected = whole(name)
    common = events[:-1]
    assert common == expected[: len(common)]
    if outcome(parser) is None:
        assert getattr(parser, "opaque", False) or parser.position == cut
    else:
        assert outcome(parser) == cut


@every_forward_stream
def test_bytes_behind_the_end_are_opaque(name):
    data = vector(name)
    parser = parser_for(name)
    ended = EndOfStream() in feed(parser, [data])
    behind = feed(parser, [b"\x2a trailing bytes"])
    if ended:
        assert behind == [Opaque(OpaqueReason.OUT_OF_PLACE, behind[0].detail, len(data))]
    else:
        # Such a stream is opaque already, or was recorded to the middle of an element.
        assert all(isinstance(event, Opaque) for event in behind[-1:])


@pytest.mark.parametrize("name", BACK)
def test_the_return_path_is_all_in_the_events(name):
    events = feed(parser_for(name), [vector(name)])
    assert b"".join(event.raw for event in events) == vector(name)


@each_release
@pytest.mark.parametrize("scenario", ["postcopy", "postcopy-preempt"])
def test_postcopy_is_reported_in_order(release, scenario):
    name = f"{release}/{scenario}.main"
    parser = parser_for(name)
    events = feed(parser, [vector(name)])
    kinds = [type(event) for event in events]
    assert kinds.count(RamBlocks) == kinds.count(PostcopyListen) == kinds.count(PostcopyRun) == 1
    assert kinds.index(RamDiscard) < kinds.index(PostcopyListen) < kinds.index(PostcopyRun)
    assert events[-1] == EndOfStream()
    parser.end_of_data()
    assert not parser.opaque


@each_release
@pytest.mark.parametrize(
    "scenario", ["postcopy", "postcopy-preempt", "recovery", "recovery-preempt"]
)
def test_every_page_crosses_once_postcopy_starts(release, scenario):
    """What was not discarded, and every channel together, is each page of each block."""
    blocks = {}
    crossed = set()
    for channel in ("main", "preempt", "resumed", "preempt-again"):
        name = f"{release}/{scenario}.{channel}"
        if name not in FORWARD:
            continue
        for event in feed(parser_for(name), [vector(name)]):
            match event:
                case RamBlocks():
                    blocks = {block.name: block.length for block in event.blocks}
                case RamDiscard():
                    for start, length in event.ranges:
                        crossed -= {
                            (event.block, offset) for offset in range(start, start + length, 4096)
                        }
                case RamPages():
                    crossed |= {(event.block, offset) for offset in event.offsets.tolist()}
    assert crossed == {
        (name, offset) for name, length in blocks.items() for offset in range(0, length, 4096)
    }


@each_release
def test_a_resumed_stream_asks_for_bitmaps_then_resumes(release):
    commands = events_of(f"{release}/recovery.resumed", Command)
    kinds = [command.kind for command in commands]
    blocks = [command.data[1:].decode() for command in commands[:-1]]
    listed = events_of(f"{release}/recovery.main", RamBlocks)[0].blocks
    assert kinds == [CommandKind.RECV_BITMAP] * len(listed) + [CommandKind.POSTCOPY_RESUME]
    assert blocks == [block.name for block in listed]


@each_release
def test_a_resumed_stream_takes_its_section_and_blocks_from_the_first(release):
    first = parser_for(f"{release}/recovery.main")
    feed(first, [vector(f"{release}/recovery.main")])
    resumed = MigrationStream(
        Channel.RESUMED, ram_section_id=first.ram_section_id, blocks=first.blocks
    )
    events = feed(resumed, [vector(f"{release}/recovery.resumed")])
    assert events[-1] == EndOfStream()
    assert not resumed.opaque


@each_release
def test_a_preempt_channel_is_checked_against_the_main_streams_blocks(release):
    main = parser_for(f"{release}/postcopy-preempt.main")
    feed(main, [vector(f"{release}/postcopy-preempt.main")])
    preempt = MigrationStream("preempt", blocks=main.blocks)
    assert any(
        isinstance(event, RamPages)
        for event in feed(preempt, [vector(f"{release}/postcopy-preempt.preempt")])
    )
    assert not preempt.opaque
    preempt.end_of_data()


def test_only_older_sources_close_the_preempt_channel_with_an_end_mark():
    assert events_of("qemu-7.2/postcopy-preempt.preempt", SectionEnd) == [SectionEnd(None)]
    assert events_of("qemu-10.0/postcopy-preempt.preempt", SectionEnd) == []


@each_release
def test_the_configuration_names_what_the_destination_must_share(release):
    (found,) = events_of(f"{release}/precopy-shared.main", Configuration)
    assert found.machine.startswith("pc-i440fx-")
    assert found.capabilities == ("x-ignore-shared",)
    assert found.uuid == bytes.fromhex("5b5f3c246ad74c3e9f5c6e0d40a2c6ff")


@each_release
def test_shared_ram_is_listed_and_not_sent(release):
    (listed,) = events_of(f"{release}/precopy-shared.main", RamBlocks)
    assert ("ram0", 8 << 20, 4096) in listed.blocks
    sent = {event.block for event in events_of(f"{release}/precopy-shared.main", RamPages)}
    assert "ram0" not in sent
    assert "pc.bios" in sent


@pytest.mark.parametrize(
    "name, reason",
    [
        ("qemu-7.2/precopy.main", OpaqueReason.DEVICE_SECTION),
        ("qemu-10.0/precopy.main", OpaqueReason.DEVICE_SECTION),
        ("qemu-7.2/xbzrle.main", OpaqueReason.XBZRLE),
        ("qemu-10.0/xbzrle.main", OpaqueReason.XBZRLE),
        ("qemu-7.2/compress.main", OpaqueReason.COMPRESSED),
        ("qemu-7.2/multifd.multifd", OpaqueReason.MULTIFD),
        ("qemu-10.0/multifd.multifd", OpaqueReason.MULTIFD),
        ("qemu-10.0/multifd.main", OpaqueReason.MULTIFD),
        ("qemu-10.0/mapped-ram.main", OpaqueReason.MAPPED_RAM),
    ],
)
def test_what_is_not_understood_is_named_once(name, reason):
    parser = parser_for(name)
    opaque = [event for event in feed(parser, [vector(name)]) if isinstance(event, Opaque)]
    assert [event.reason for event in opaque] == [reason]
    assert parser.position == len(vector(name))
    parser.end_of_data()


@pytest.mark.parametrize(
    "name, channel",
    [
        ("qemu-7.2/postcopy-preempt.main", Channel.MAIN),
        ("qemu-10.0/postcopy-preempt.preempt", Channel.PREEMPT),
        ("qemu-7.2/recovery-preempt.preempt-again", Channel.PREEMPT),
        ("qemu-10.0/recovery.resumed", Channel.RESUMED),
        ("qemu-7.2/multifd.multifd", Channel.MULTIFD),
    ],
)
def test_a_channel_is_recognised_by_its_first_bytes(name, channel):
    assert recognise_channel(vector(name)[:3]) is None
    assert recognise_channel(vector(name)[:4]) is channel


@each_release
def test_buffers_may_be_reused_at_once(release):
    data = vector(f"{release}/postcopy.main")
    buffer = bytearray(65536)
    parser = parser_for(f"{release}/postcopy.main")
    events = []
    for begin in range(0, len(data), len(buffer)):
        length = min(len(buffer), len(data) - begin)
        buffer[:length] = data[begin : begin + length]
        parser.receive_data(memoryview(buffer)[:length])
        buffer[:] = b"\xff" * len(buffer)
        buffer.append(0)  # fails while anything still refers to the buffer
        del buffer[-1]
        events.extend(drain(parser))
    assert settled(events) == whole(f"{release}/postcopy.main")
