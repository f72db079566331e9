# SPDX-License-Identifier: Apache-2.0
"""The NBD server: negotiation, requests and answers, in pieces, and what a client may not do."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova_enlightened.exception import StreamError
from nova_enlightened.stream import nbd_wire as wire
from nova_enlightened.stream.nbd import (
    NEED_DATA,
    BlockStatus,
    Disconnect,
    Extent,
    NbdServer,
    Phase,
    Read,
)

SIZE = 10 * 4096
FLAGS = wire.CLIENT_FLAGS.pack(3)


def option(number, data=b""):
    return wire.OPTION.pack(wire.OPTION_MAGIC, number, len(data)) + data


def counted(name):
    return struct.pack(">I", len(name)) + name.encode()


def go(name="vda", number=wire.Option.GO):
    return option(number, counted(name) + struct.pack(">HH", 1, wire.Info.BLOCK_SIZE))


def contexts(number, name, *queries):
    listed = b"".join(counted(query) for query in queries)
    return option(number, counted(name) + struct.pack(">I", len(queries)) + listed)


def request(kind, offset=0, length=4096, handle=7, flags=0):
    return wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, kind, handle, offset, length)


STRUCTURED = (
    FLAGS
    + option(wire.Option.STRUCTURED_REPLY)
    + contexts(wire.Option.SET_META_CONTEXT, "vda", wire.BASE_ALLOCATION)
    + go()
)
SIMPLE = FLAGS + go()


def server():
    made = NbdServer({"vda": SIZE})
    made.data_to_send()
    return made


def feed(made, pieces):
    events = []
    for piece in pieces:
        made.receive_data(piece)
        while (event := made.next_event()) is not NEED_DATA:
            events.append(event)
    return events


def ready(negotiation):
    made = server()
    assert feed(made, [negotiation]) == []
    made.data_to_send()
    return made


def replies(data):
    """(option, kind, data) of each option reply."""
    found = []
    while data:
        magic, number, kind, length = wire.OPTION_REPLY.unpack_from(data)
        assert magic == wire.OPTION_REPLY_MAGIC
        end = wire.OPTION_REPLY.size + length
        found.append((number, kind, data[wire.OPTION_REPLY.size : end]))
        data = data[end:]
    return found


def refusal(data):
    made = server()
    with pytest.raises(StreamError) as caught:
        feed(made, [data])
    with pytest.raises(StreamError):
        made.next_event()
    return caught.value


def test_it_greets_first():
    greeting = NbdServer({"vda": SIZE}).data_to_send()
    assert greeting == b"NBDMAGICIHAVEOPT\0\3"


def test_go_tells_size_and_that_it_is_read_only():
    made = server()
    feed(made, [SIMPLE])
    export, sizes, ack = replies(made.data_to_send())
    _, size, flags = struct.unpack(">HQH", export[2])
    assert size == SIZE
    assert flags & wire.TransmissionFlag.READ_ONLY
    assert struct.unpack(">HIII", sizes[2]) == (3, 1, 4096, 32 << 20)
    assert ack[:2] == (wire.Option.GO, wire.OptionReply.ACK)
    assert made.export == "vda"
    assert made.phase is Phase.TRANSMISSION


def test_info_tells_the_same_and_goes_on_negotiating():
    made = server()
    feed(made, [FLAGS + go(number=wire.Option.INFO)])
    assert len(replies(made.data_to_send())) == 3
    assert made.phase is Phase.OPTIONS


def test_an_unknown_export_is_refused_and_negotiation_goes_on():
    made = server()
    feed(made, [FLAGS + go("vdb")])
    assert [kind for _, kind, _ in replies(made.data_to_send())] == [wire.OptionReply.ERR_UNKNOWN]
    feed(made, [go()])
    assert made.phase is Phase.TRANSMISSION


def test_the_old_way_to_choose_an_export_answers_without_padding():
    made = server()
    feed(made, [FLAGS + option(wire.Option.EXPORT_NAME, b"vda")])
    assert struct.unpack(">QH", made.data_to_send())[0] == SIZE


def test_the_old_way_answers_with_padding_where_the_client_wants_it():
    made = server()
    feed(made, [wire.CLIENT_FLAGS.pack(1) + option(wire.Option.EXPORT_NAME, b"vda")])
    assert len(made.data_to_send()) == 10 + 124


def test_the_old_way_hangs_up_on_an_unknown_export():
    assert "vdz" in str(refusal(FLAGS + option(wire.Option.EXPORT_NAME, b"vdz")))


def test_exports_are_listed():
    made = server()
    feed(made, [FLAGS + option(wire.Option.LIST)])
    first, last = replies(made.data_to_send())
    assert first[2] == counted("vda")
    assert last[1] == wire.OptionReply.ACK


def test_an_option_nobody_knows_is_answered_as_unsupported():
    made = server()
    feed(made, [FLAGS + option(99, b"what?")])
    assert replies(made.data_to_send()) == [(99, wire.OptionReply.ERR_UNSUP, b"")]


def test_abort_is_acknowledged_and_ends():
    made = server()
    assert feed(made, [FLAGS + option(wire.Option.ABORT)]) == [Disconnect()]
    assert made.phase is Phase.CLOSED
    assert len(replies(made.data_to_send())) == 1


def test_allocation_context_is_offered_to_who_asks_for_all():
    made = server()
    listing = contexts(wire.Option.LIST_META_CONTEXT, "vda")
    feed(made, [FLAGS + option(wire.Option.STRUCTURED_REPLY) + listing])
    _, context, _ = replies(made.data_to_send())
    assert context[2][4:] == b"base:allocation"


def test_contexts_need_structured_replies():
    made = server()
    feed(made, [FLAGS + contexts(wire.Option.SET_META_CONTEXT, "vda", wire.BASE_ALLOCATION)])
    assert replies(made.data_to_send())[0][1] == wire.OptionReply.ERR_INVALID


def test_a_read_arrives_as_an_event():
    made = ready(SIMPLE)
    assert feed(made, [request(wire.Command.READ, 4096, 8192)]) == [Read(7, 4096, 8192)]


def test_a_simple_reply_carries_zeros_as_bytes():
    made = ready(SIMPLE)
    answer = b"".join(made.read_reply(Read(7, 0, 8), [b"abcd", 4]))
    assert answer == wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, 7) + b"abcd\0\0\0\0"


def test_a_structured_reply_carries_zeros_as_holes():
    made = ready(STRUCTURED)
    answer = b"".join(made.read_reply(Read(7, 100, 8), [b"abcd", 4]))
    data = wire.STRUCTURED_REPLY.pack(wire.STRUCTURED_REPLY_MAGIC, 0, 1, 7, 12)
    hole = wire.STRUCTURED_REPLY.pack(wire.STRUCTURED_REPLY_MAGIC, 1, 2, 7, 12)
    assert answer == (data + struct.pack(">Q", 100) + b"abcd" + hole + struct.pack(">QI", 104, 4))


def test_block_status_is_answered_with_extents():
    made = ready(STRUCTURED)
    (asked,) = feed(made, [request(wire.Command.BLOCK_STATUS, 0, SIZE)])
    assert asked == BlockStatus(7, 0, SIZE, one=False)
    answer = made.status_reply(asked, [Extent(4096, zero=True), Extent(8192, zero=False)])
    assert struct.unpack(">IIIII", answer[wire.STRUCTURED_REPLY.size :]) == (1, 4096, 3, 8192, 0)


def test_a_single_extent_is_given_to_who_wants_one():
    made = ready(STRUCTURED)
    (asked,) = feed(made, [request(wire.Command.BLOCK_STATUS, flags=wire.CommandFlag.REQ_ONE)])
    answer = made.status_reply(asked, [Extent(4096, zero=True), Extent(8192, zero=False)])
    assert len(answer) == wire.STRUCTURED_REPLY.size + 4 + 8


def errno_of(made):
    magic, error, handle = wire.SIMPLE_REPLY.unpack(made.data_to_send())
    assert (magic, handle) == (wire.SIMPLE_REPLY_MAGIC, 7)
    return error


def test_block_status_without_context_is_refused():
    made = ready(SIMPLE)
    assert feed(made, [request(wire.Command.BLOCK_STATUS)]) == []
    assert errno_of(made) == wire.NbdErrno.INVAL


def test_a_write_is_refused_and_its_payload_passed_over():
    made = ready(SIMPLE)
    assert feed(made, [request(wire.Command.WRITE, 0, 4096)]) == []
    assert errno_of(made) == wire.NbdErrno.PERM
    assert feed(made, [bytes(4096) + request(wire.Command.READ)]) == [Read(7, 0, 4096)]


def test_a_read_beyond_the_end_is_refused():
    made = ready(SIMPLE)
    assert feed(made, [request(wire.Command.READ, SIZE - 4096, 4097)]) == []
    assert errno_of(made) == wire.NbdErrno.INVAL


def test_a_read_of_nothing_is_refused():
    made = ready(SIMPLE)
    assert feed(made, [request(wire.Command.READ, 0, 0)]) == []
    assert errno_of(made) == wire.NbdErrno.INVAL


def test_a_structured_error_is_a_chunk():
    made = ready(STRUCTURED)
    answer = made.error_reply(7, wire.NbdErrno.IO)
    assert answer.endswith(struct.pack(">IH", 5, 0))


def test_disconnect_ends_and_nothing_after_it_counts():
    made = ready(SIMPLE)
    done = request(wire.Command.DISC) + request(wire.Command.READ)
    assert feed(made, [done, request(wire.Command.READ)]) == [Disconnect()]


@pytest.mark.parametrize("negotiation", [SIMPLE, STRUCTURED])
def test_byte_by_byte_is_the_same_as_whole(negotiation):
    data = negotiation + request(wire.Command.WRITE, 0, 64) + bytes(64)
    data += request(wire.Command.READ, 4096, 100) + request(wire.Command.DISC)
    whole, pieces = server(), server()
    assert feed(whole, [data]) == feed(pieces, [data[i : i + 1] for i in range(len(data))])
    assert whole.data_to_send() == pieces.data_to_send()


@pytest.mark.parametrize("cut", range(len(STRUCTURED + request(0))))
def test_what_is_cut_off_is_no_event_and_no_error(cut):
    assert feed(server(), [(STRUCTURED + request(0))[:cut]]) == []


def test_a_read_larger_than_the_limit_is_fatal():
    failure = refusal(SIMPLE + request(wire.Command.READ, 0, wire.MAX_REQUEST_BYTES + 1))
    assert failure.offset == len(SIMPLE)


def test_an_option_larger_than_the_limit_is_fatal_before_it_is_kept():
    head = wire.OPTION.pack(wire.OPTION_MAGIC, 3, wire.MAX_OPTION_BYTES + 1)
    assert "16385 bytes" in str(refusal(FLAGS + head))


def test_a_client_that_negotiates_for_ever_is_cut_off():
    refusal(FLAGS + option(wire.Option.LIST) * (wire.MAX_OPTIONS + 1))


def test_wrong_option_magic_is_fatal():
    refusal(FLAGS + bytes(wire.OPTION.size))


def test_wrong_request_magic_is_fatal():
    refusal(SIMPLE + bytes(wire.REQUEST.size))


def test_unknown_client_flags_are_fatal():
    refusal(wire.CLIENT_FLAGS.pack(4))


def test_a_name_longer_than_its_option_is_answered_as_invalid():
    made = server()
    feed(made, [FLAGS + option(wire.Option.GO, struct.pack(">I", 1000) + b"vda")])
    assert replies(made.data_to_send())[0][1] == wire.OptionReply.ERR_INVALID


def test_too_many_queries_are_answered_as_invalid():
    made = server()
    many = contexts(wire.Option.SET_META_CONTEXT, "vda", *["x"] * (wire.MAX_QUERIES + 1))
    feed(made, [FLAGS + option(wire.Option.STRUCTURED_REPLY) + many])
    assert replies(made.data_to_send())[1][1] == wire.OptionReply.ERR_INVALID


@given(st.lists(st.binary(max_size=64), max_size=20))
def test_noise_is_refused_or_waited_for(pieces):
    with contextlib.suppress(StreamError):
        feed(server(), pieces)


@given(
    st.integers(0, len(STRUCTURED) + 27),
    st.integers(0, 255),
    st.lists(st.integers(1, 100), max_size=8),
)
def test_one_changed_byte_never_brings_a_request_outside_the_export(place, value, cuts):
    data = bytearray(STRUCTURED + request(wire.Command.READ, 4096, 4096))
    data[place % len(data)] = value
    pieces, begin = [], 0
    for cut in cuts:
        pieces.append(bytes(data[begin : begin + cut]))
        begin += cut
    with contextlib.suppress(StreamError):
        for event in feed(server(), [*pieces, bytes(data[begin:])]):
            if isinstance(event, Read | BlockStatus):
                assert 0 < event.length <= SIZE - event.offset
