# SPDX-License-Identifier: Apache-2.0
"""TLS on one connection: what it took it owes, and what came is read in any amount."""

from __future__ import annotations

import collections
import os
import pathlib
import socket
import ssl
from collections.abc import Iterator

import pytest

from nova_enlightened.stream.link_state import Role
from nova_enlightened.transfer.tls import TlsTransport, tls_context
from tests.functional.link_hosts import certificates, files

Pair = tuple[TlsTransport, TlsTransport]


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return certificates(tmp_path_factory.mktemp("ca"))


def transports(ca: pathlib.Path) -> Pair:
    """(source's, destination's), connected, before their handshake."""
    ours, theirs = socket.socketpair()
    for one in (ours, theirs):
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    source = tls_context(files(ca, "host1", "host2"), Role.SOURCE)
    destination = tls_context(files(ca, "host2", "host1"), Role.DESTINATION)
    return (
        TlsTransport(ours, source, Role.SOURCE, "host2"),
        TlsTransport(theirs, destination, Role.DESTINATION, "host1"),
    )


@pytest.fixture
def strangers(ca: pathlib.Path) -> Iterator[Pair]:
    both = transports(ca)
    yield both
    for one in both:
        one.close()


@pytest.fixture
def pair(strangers: Pair) -> Pair:
    source, destination = strangers
    while source.handshake() | destination.handshake():
        pass
    return strangers


def queue(*parts: bytes) -> collections.deque[memoryview]:
    return collections.deque(memoryview(part) for part in parts)


def read(transport: TlsTransport, room: int) -> bytes:
    """What comes in one reading, nothing where nothing has come."""
    buffer = bytearray(room)
    return bytes(buffer[: transport.read_into(memoryview(buffer)) or 0])


def test_what_a_full_socket_did_not_take_goes_on_with_the_next_write(pair: Pair) -> None:
    source, destination = pair
    content = os.urandom(100_000)
    assert source.write(queue(content)) == len(content)
    assert source.owes
    assert source.write(queue(b"not before that")) == 0
    arrived = b""
    while len(arrived) < len(content):
        arrived += read(destination, 1 << 20)
        source.write(queue())
    assert arrived == content
    assert not source.owes


def test_what_finds_no_room_is_unread_until_it_is_read(pair: Pair) -> None:
    source, destination = pair
    content = os.urandom(3000)
    source.write(queue(content))
    arrived = read(destination, 1000)
    while destination.unread:
        arrived += read(destination, 1000)
    assert arrived == content
    assert destination.read_into(memoryview(bytearray(10))) is None


@pytest.mark.parametrize("sizes", [(1, 2, 3), (10, 20_000, 10), (16_384, 1), (9000, 9000, 9000)])
def test_buffers_arrive_in_their_order(pair: Pair, sizes: tuple[int, ...]) -> None:
    source, destination = pair
    parts = [os.urandom(size) for size in sizes]
    goal = b"".join(parts)
    assert source.write(queue(*parts)) == len(goal)
    arrived = b""
    while len(arrived) < len(goal):
        arrived += read(destination, 1 << 20)
        source.write(queue())
    assert arrived == goal


def test_the_end_comes_after_the_last_byte(pair: Pair) -> None:
    source, destination = pair
    source.write(queue(b"the last word"))
    source.shut()
    assert read(destination, 100) == b"the last word"
    assert destination.read_into(memoryview(bytearray(10))) == 0


def test_a_peer_that_goes_during_the_handshake_is_an_error(strangers: Pair) -> None:
    source, destination = strangers
    source.handshake()
    source.shut()
    with pytest.raises(ssl.SSLError):
        destination.handshake()


def test_a_record_that_was_changed_is_an_error(pair: Pair) -> None:
    source, destination = pair
    with socket.socket(fileno=os.dup(source.fileno())) as beneath:
        beneath.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError):
        destination.read_into(memoryview(bytearray(100)))
