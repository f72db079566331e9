# SPDX-License-Identifier: Apache-2.0
"""The table of states: every state is reached, every pair is tried."""

import struct

import pytest

from nova_enlightened.stream import encode
from nova_enlightened.stream.events import NEED_DATA, Configuration, Header, SectionStart
from nova_enlightened.stream.migration import Channel, MigrationStream, recognise_channel
from nova_enlightened.stream.states import COMPLETE, FIRST_INPUT, TRANSITIONS, Input, State
from nova_enlightened.stream.wire import CommandKind
from tests.unit.stream.stream_elements import opened
from tests.unit.stream.stream_vectors import drain, feed

PATHS = {
    State.FIRST: b"",
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
# In these the first bytes decide, or the bytes are someone else's.
SKIPPING = {State.FIRST, State.PACKAGE, State.DESCRIPTION, State.BLOCK_LIST}


def state_of(stream):
    return stream._grammar.state


def at(state):
    """A stream that has come to this state."""
    stream = MigrationStream(Channel.MAIN if state is State.HEADER else None)
    feed(stream, [PATHS.get(state, b"")])
    return stream


@pytest.mark.parametrize("state", [*PATHS, State.HEADER])
def test_every_state_is_reached(state):
    stream = at(state)
    assert state_of(stream) is state
    assert stream.complete is (state in COMPLETE)


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("state", [State.HEADER, *(each for each in PATHS if each not in SKIPPING)])
def test_a_pair_out_of_the_table_makes_the_stream_opaque(state, given):
    stream = at(state)
    feed(stream, [INPUTS[given]])
    expected = TRANSITIONS.get((state, given))
    if expected is not None:
        assert state_of(stream) is expected
        return
    # What begins with a 0 byte is the end of the stream where one may be; then comes too much.
    feed(stream, [bytes(8)])
    assert stream.opaque


@pytest.mark.parametrize("channel", FIRST_INPUT)
def test_every_channel_begins_in_its_state(channel):
    stream = MigrationStream(channel)
    assert state_of(stream) is TRANSITIONS[State.FIRST, FIRST_INPUT[channel]]
    assert stream.channel is channel


@pytest.mark.parametrize(
    "first, channel",
    [
        (encode.header(), Channel.MAIN),
        (encode.recv_bitmap_request("pc.ram"), Channel.RESUMED),
        (encode.zero_page(1 << 40, "pc.ram"), Channel.PREEMPT),
        (b"LibvirtQemudSave", Channel.MAIN),
    ],
)
def test_a_channel_is_recognised_when_four_bytes_are_there(first, channel):
    stream = MigrationStream()
    feed(stream, [first[:3]])
    assert stream.channel is None
    assert recognise_channel(first[:3]) is None
    feed(stream, [first[3:]])
    assert stream.channel is channel is recognise_channel(first)


def test_the_table_names_every_input_and_leaves_opaque_for_good():
    assert {given for _, given in TRANSITIONS} == set(Input)
    assert {state for state, _ in TRANSITIONS} | {State.DONE, State.OPAQUE} == set(State)


def test_events_are_drained_in_order():
    stream = MigrationStream()
    stream.receive_data(opened())
    assert [type(event) for event in drain(stream)][:3] == [Header, Configuration, SectionStart]
    assert stream.next_event() is NEED_DATA
