# SPDX-License-Identifier: Apache-2.0
"""Any stream a source could write is understood however it is cut; any bytes are survived."""

import contextlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nova_enlightened.exception import StreamError
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
from nova_enlightened.stream.ram_records import PAGE_STRIDE, ZERO_STRIDE, run_offsets
from nova_enlightened.stream.wire import CommandKind, SectionType
from tests.unit.stream.stream_vectors import drain, feed, pieces, settled, vector, vector_names

PAGE = bytes(range(256)) * 16
BLOCKS = (
    RamBlock("pc.ram", 1 << 24, 4096),
    RamBlock("/rom@etc/acpi/tables", 1 << 17, 4096),
    RamBlock("x" * 255, 1 << 22, 2 << 20),
)

names = st.sampled_from([block.name for block in BLOCKS])
# Runs of pages and zero pages in one block: (name, [(zero, how many)]).
runs = st.tuples(
    names, st.lists(st.tuples(st.booleans(), st.integers(1, 40)), min_size=1, max_size=5)
)
cuts = st.lists(st.integers(0, 40_000), max_size=30)


class Source(RuleBasedStateMachine):
    """A source writes its stream; the parser reads it in pieces of any size."""

    def __init__(self):
        super().__init__()
        self.stream = MigrationStream()
        self.sent = 0
        self.expected = []
        self.reported = []
        self.block = None
        self.cursor = 0
        self.state = "header"
        self.last = False

    def write(self, data, sizes, *events):
        """Send ``data`` cut at these places; ``events`` must come of it."""
        self.expected += events
        for piece in pieces(data, sizes):
            self.stream.receive_data(piece)
            self.reported += drain(self.stream)
        self.sent += len(data)

    @initialize(machine=st.text(max_size=20), uuid=st.none() | st.binary(min_size=16, max_size=16),
                advised=st.booleans(), sizes=cuts)  # fmt: skip
    def begin(self, machine, uuid, advised, sizes):
        values = Configuration(machine, (), None, uuid)
        data = encode.header() + encode.configuration(values)
        self.advised = advised
        advise = encode.postcopy_advise(4096 | 2 << 20)
        command = [Command(CommandKind.POSTCOPY_ADVISE, advise[5:])] if advised else []
        data += advise if advised else encode.ping(1)
        ping = [] if advised else [Command(CommandKind.PING, b"\0\0\0\1")]
        self.write(data, sizes, Header(3), values, *command, *ping)
        self.state = "opened"

    @precondition(lambda self: self.state == "opened")
    @rule(section_id=st.integers(0, 2**32 - 1), sizes=cuts)
    def set_up_ram(self, section_id, sizes):
        self.section = section_id
        blocks = BLOCKS
        if not self.advised:
            blocks = tuple(block._replace(page_size=4096) for block in blocks)
        listed = encode.block_list(blocks, host_page_size=4096 if self.advised else None)
        data = encode.ram_start(section_id) + listed + encode.ram_end()
        start = SectionStart(SectionType.START, section_id)
        self.write(
            data + encode.footer(section_id),
            sizes,
            start,
            RamBlocks(blocks),
            SectionEnd(section_id),
        )
        self.state = "sections"

    @precondition(lambda self: self.state == "sections")
    @rule(last=st.booleans(), sizes=cuts)
    def begin_part(self, last, sizes):
        phase = SectionType.END if last else SectionType.PART
        self.write(encode.ram_part(self.section, last), sizes, SectionStart(phase, self.section))
        self.state, self.last = "ram", last

    @precondition(lambda self: self.state == "ram")
    @rule(where=runs, repeat_name=st.booleans(), sizes=cuts)
    def send_pages(self, where, repeat_name, sizes):
        name, kinds = where
        parts = []
        events = []
        length = next(block.length for block in BLOCKS if block.name == name)
        for zero, count in kinds:
            offsets = []
            for _ in range(count):
                self.cursor = (self.cursor + 4096) % length
                named = name if name != self.block or repeat_name else None
                self.block, repeat_name = name, False
                write = encode.zero_page if zero else encode.page_header
                parts += [write(self.cursor, named), b"" if zero else PAGE]
                offsets.append(self.cursor)
            events.append(RamPages(name, np.array(offsets, np.uint64), zero))
        self.write(b"".join(parts), sizes, *events)

    @precondition(lambda self: self.state == "ram")
    @rule(sizes=cuts)
    def end_part(self, sizes):
        data = encode.ram_end() + encode.footer(self.section)
        self.write(data, sizes, SectionEnd(self.section))
        self.state = "sections"

    @precondition(lambda self: self.state == "sections")
    @rule(name=names, spans=st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16)),
                                     min_size=1, max_size=12), sizes=cuts)  # fmt: skip
    def discard(self, name, spans, sizes):
        spans = tuple((start << 12, length << 12) for start, length in spans)
        self.write(encode.ram_discard(name, spans), sizes, RamDiscard(name, spans))

    @precondition(lambda self: self.state == "sections")
    @rule(device=st.binary(max_size=200), sizes=cuts)
    def switch(self, device, sizes):
        package = encode.postcopy_package(device)
        events = Packaged(len(package) - 9), PostcopyListen(), PostcopyRun()
        self.write(package, sizes, *events)

    @precondition(lambda self: self.state in ("opened", "sections"))
    @rule(value=st.integers(0, 2**32 - 1), sizes=cuts)
    def ping(self, value, sizes):
        data = encode.ping(value)
        self.write(data, sizes, Command(CommandKind.PING, data[5:]))

    @precondition(lambda self: self.state == "sections" and self.last)
    @rule(description=st.none() | st.binary(max_size=50), sizes=cuts)
    def end(self, description, sizes):
        data = encode.eof()
        data += b"" if description is None else encode.vm_description(description)
        self.write(data, sizes, EndOfStream())
        self.state = "ended"

    @precondition(lambda self: self.state == "ended")
    @rule()
    def say_no_more(self):
        self.stream.receive_data(b"")

    @invariant()
    def everything_was_reported(self):
        assert settled(self.reported) == settled(self.expected)
        assert self.stream.position == self.sent
        assert not self.stream.opaque

    @invariant()
    def only_a_finished_stream_may_end(self):
        with contextlib.suppress(StreamError):
            self.stream.end_of_data()
            assert self.state == "ended"


TestSource = Source.TestCase
TestSource.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def survive(stream, chunks):
    """Feed anything; only StreamError may come of it, and bytes are counted right."""
    with contextlib.suppress(StreamError):
        feed(stream, chunks)
    assert stream.position <= sum(len(chunk) for chunk in chunks)
    with contextlib.suppress(StreamError):
        stream.end_of_data()


@given(channel=st.sampled_from(Channel), data=st.binary(max_size=2000), sizes=cuts)
@settings(deadline=None)
def test_any_bytes_are_survived(channel, data, sizes):
    survive(MigrationStream(channel), list(pieces(data, sizes)))


@given(
    name=st.sampled_from(vector_names(back=False)),
    where=st.integers(0, 2000) | st.integers(0, 1 << 20),
    change=st.binary(min_size=1, max_size=16),
    insert=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_a_damaged_stream_is_survived(name, where, change, insert):
    data = vector(name)
    where %= len(data)
    data = data[:where] + change + data[where + (0 if insert else len(change)) :]
    survive(MigrationStream(Channel.MAIN), [data[:where], data[where:]])


@given(
    st.sampled_from([(PAGE_STRIDE, 0x28), (ZERO_STRIDE, 0x22)]),
    st.integers(0, 400),
    st.integers(0, 400),
    st.sampled_from([0x10, 0x22, 0x28, 0x2A, 0]),
    st.integers(0, 20),
)
@settings(deadline=None)
def test_a_run_ends_at_the_first_other_record(kind, same, more, other, shift):
    stride, flags = kind
    other = 0x10 if other == flags else other
    words = np.full(same + 1 + more, flags, ">u8")
    words += (np.arange(len(words)) << 12).astype(">u8")
    words[same] = 0x5000 | other
    raw = np.zeros((len(words), stride), np.uint8)
    raw[:, :8] = words.view(np.uint8).reshape(-1, 8)
    view = memoryview(bytes(shift) + raw.tobytes())
    found = run_offsets(view, shift, len(words), stride, flags, 1 << 40)
    assert found.tolist() == [i << 12 for i in range(same)]


@given(st.integers(0, 300), st.integers(1, 300))
def test_a_run_ends_at_the_bound(below, limit):
    words = (np.arange(limit) << 12 | 0x22).astype(">u8")
    raw = np.zeros((limit, ZERO_STRIDE), np.uint8)
    raw[:, :8] = words.view(np.uint8).reshape(-1, 8)
    found = run_offsets(memoryview(raw.tobytes()), 0, limit, ZERO_STRIDE, 0x22, below << 12)
    assert len(found) == min(below, limit)
