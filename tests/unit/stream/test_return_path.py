# SPDX-License-Identifier: Apache-2.0
"""The return path: every message, in pieces, and what QEMU's source would refuse."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova_enlightened.exception import ReturnPathError, StreamError
from nova_enlightened.stream import encode, limits
from nova_enlightened.stream.return_path import (
    Pong,
    RecvBitmap,
    RequestPages,
    ResumeAck,
    ReturnPath,
    Shut,
    SwitchoverAck,
    Unknown,
    encode_request_pages,
)
from tests.unit.stream.stream_vectors import feed, pieces, vector, vector_names

BITMAP = bytes(range(64))

blocks = st.text(min_size=1, max_size=60)
messages = st.one_of(
    st.integers(0, 2**32 - 1).map(encode.shut),
    st.integers(0, 2**32 - 1).map(encode.pong),
    st.builds(
        encode.request_pages,
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
        st.none() | blocks,
    ),
    st.builds(encode.recv_bitmap, blocks, st.integers(0, 20).map(lambda n: b"\x5a" * (8 * n))),
    st.builds(encode.resume_ack),
    st.builds(encode.switchover_ack),
)


def one(data):
    (event,) = feed(ReturnPath(), [data])
    assert event.raw == data
    return event


def failure(data):
    path = ReturnPath()
    with pytest.raises(ReturnPathError) as caught:
        feed(path, [data])
    with pytest.raises(ReturnPathError):
        path.end_of_data()
    return caught.value


def test_shut():
    assert one(encode.shut(5)) == Shut(5, encode.shut(5))


def test_pong():
    assert one(encode.pong(4)) == Pong(4, encode.pong(4))


def test_resume_ack():
    assert one(encode.resume_ack()) == ResumeAck(1, encode.resume_ack())


def test_switchover_ack():
    assert one(encode.switchover_ack()) == SwitchoverAck(encode.switchover_ack())


def test_a_named_request():
    data = encode.request_pages(0x5000, 4096, "pc.ram")
    assert one(data) == RequestPages("pc.ram", 0x5000, 4096, True, data)


def test_a_short_request_means_the_block_last_named():
    path = ReturnPath()
    feed(path, [encode.request_pages(0, 4096, "pc.ram"), encode.request_pages(0, 4096, "pc.bios")])
    (event,) = feed(path, [encode.request_pages(0x3000, 4096)])
    assert (event.block, event.start, event.named) == ("pc.bios", 0x3000, False)
    assert path.last_block == "pc.bios"


def test_a_short_request_before_any_name_has_no_block():
    assert one(encode.request_pages(0x3000, 4096)).block is None


def test_a_received_bitmap_comes_with_its_body():
    data = encode.recv_bitmap("pc.ram", BITMAP)
    event = one(data)
    assert isinstance(event, RecvBitmap)
    assert (event.block, bytes(event.bitmap)) == ("pc.ram", BITMAP)


def test_a_bitmap_does_not_name_a_block_for_requests():
    path = ReturnPath()
    feed(path, [encode.recv_bitmap("pc.ram", BITMAP)])
    (event,) = feed(path, [encode.request_pages(0, 4096)])
    assert event.block is None


def test_the_bitmap_of_a_block_of_1_tib():
    bitmap = bytes(limits.MAX_BITMAP_BYTES)
    data = encode.recv_bitmap("pc.ram", bitmap)
    events = feed(ReturnPath(), pieces(data, range(0, len(data), 1 << 20)))
    assert [len(event.bitmap) for event in events] == [32 << 20]


def test_a_recorded_recovery_has_a_bitmap_for_every_block():
    for name in vector_names(back=True):
        if "resumed" not in name:
            continue
        events = feed(ReturnPath(), [vector(name)])
        bitmaps = [event for event in events if isinstance(event, RecvBitmap)]
        assert {event.block for event in bitmaps} >= {"pc.ram", "pc.bios"}
        assert all(len(event.bitmap) % 8 == 0 for event in bitmaps)
        assert ResumeAck(1, encode.resume_ack()) in events
        assert events[-1] == Shut(0, encode.shut())


@given(st.lists(messages, max_size=8), st.lists(st.integers(0, 400), max_size=20))
def test_any_messages_in_any_pieces(sent, cuts):
    path = ReturnPath()
    data = b"".join(sent)
    events = feed(path, pieces(data, cuts))
    assert [event.raw for event in events] == sent
    assert path.position == len(data)
    path.end_of_data()


@given(messages, st.data())
def test_a_message_cut_off(message, data):
    cut = data.draw(st.integers(1, len(message) - 1))
    path = ReturnPath()
    before = feed(path, [encode.pong(1), message[:cut]])
    assert [event.raw for event in before] == [encode.pong(1)]
    assert path.unparsed() == message[:cut]
    with pytest.raises(ReturnPathError) as caught:
        path.end_of_data()
    assert caught.value.offset == 8 + cut


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=10))
def test_any_bytes_are_survived(data, cuts):
    path = ReturnPath()
    with contextlib.suppress(ReturnPathError):
        events = feed(path, pieces(data, cuts))
        assert b"".join(event.raw for event in events) + path.unparsed() == data
    assert path.position <= len(data)


@pytest.mark.parametrize("type_", [0, 8, 0x7FFF])
def test_an_unknown_type_makes_everything_unknown(type_):
    path = ReturnPath()
    first = struct.pack(">HH", type_, 4) + b"body" + encode.pong(1)
    events = feed(path, [encode.pong(1) + first, encode.pong(2)])
    assert events == [
        Pong(1, encode.pong(1)),
        Unknown(type_, first),
        Unknown(None, encode.pong(2)),
    ]
    assert path.opaque
    path.end_of_data()


@pytest.mark.parametrize(
    "type_, length",
    [(1, 3), (1, 5), (2, 0), (3, 12), (3, 269), (4, 11), (4, 13), (5, 0), (5, 257), (6, 8), (7, 1)],
)
def test_a_message_of_an_impossible_length(type_, length):
    error = failure(encode.pong(1) + struct.pack(">HH", type_, length))
    assert error.offset == 8
    assert isinstance(error, StreamError)


def test_a_request_whose_name_does_not_fill_it():
    data = bytearray(encode.request_pages(0, 4096, "pc.ram"))
    data[16] -= 1
    assert failure(bytes(data)).section == "REQ_PAGES_ID"


def test_a_bitmap_whose_name_does_not_fill_it():
    data = bytearray(encode.recv_bitmap("pc.ram", BITMAP))
    data[4] += 1
    assert failure(bytes(data)).section == "RECV_BITMAP"


def test_a_bitmap_too_large_is_refused_before_it_arrives():
    head = encode.recv_bitmap("pc.ram", b"")[:-16]
    error = failure(head + struct.pack(">Q", limits.MAX_BITMAP_BYTES + 8))
    assert "received-bitmap" in str(error)


def test_a_bitmap_of_a_ragged_length():
    head = encode.recv_bitmap("pc.ram", b"")[:-16]
    failure(head + struct.pack(">Q", 7))


def test_a_bitmap_without_its_end_mark():
    failure(encode.recv_bitmap("pc.ram", BITMAP)[:-1] + b"\0")


def test_events_before_an_impossible_length_are_still_reported():
    path = ReturnPath()
    path.receive_data(encode.pong(1) + b"\0\1\0\0")
    assert path.next_event() == Pong(1, encode.pong(1))
    with pytest.raises(ReturnPathError):
        path.next_event()
    path.receive_data(b"ignored")
    assert path.unparsed() == b"\0\1\0\0"


@given(
    blocks.filter(lambda name: len(name.encode()) <= 255),
    st.integers(0, 2**40),
    st.integers(1, 2**19),
)
def test_what_is_injected_reads_back(block, page, pages):
    data = encode_request_pages(block, page << 12, pages << 12)
    assert one(data) == RequestPages(block, page << 12, pages << 12, True, data)
    assert data == encode.request_pages(page << 12, pages << 12, block)


def test_names_that_are_not_utf_8_survive():
    data = encode.request_pages(0, 4096, b"\xff\xfe".decode("utf-8", "surrogateescape"))
    assert encode_request_pages(one(data).block, 0, 4096) == data


@pytest.mark.parametrize(
    "block, start, length",
    [
        ("", 0, 4096),
        ("x" * 256, 0, 4096),
        ("pc.ram", 1, 4096),
        ("pc.ram", -4096, 4096),
        ("pc.ram", 1 << 63, 4096),
        ("pc.ram", 0, 0),
        ("pc.ram", 0, 4095),
        ("pc.ram", 0, -4096),
        ("pc.ram", 0, 1 << 32),
    ],
)
def test_requests_qemu_would_not_take_are_not_written(block, start, length):
    with pytest.raises(ReturnPathError):
        encode_request_pages(block, start, length)
