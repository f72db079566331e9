# SPDX-License-Identifier: Apache-2.0
"""QEMU's end of a channel, played by a socket pair."""

import socket
from collections.abc import Iterator

import pytest

from nova_enlightened.transfer.qemu_socket import QemuSocket

LARGE = bytes(range(256)) * 16384


@pytest.fixture
def ends() -> Iterator[tuple[QemuSocket, socket.socket]]:
    ours, qemu = socket.socketpair()
    channel = QemuSocket.adopt(0, ours)
    yield channel, qemu
    channel.close()
    qemu.close()


def test_what_qemu_does_not_take_is_kept_in_order(ends: tuple[QemuSocket, socket.socket]) -> None:
    channel, qemu = ends
    taken = channel.write(LARGE)
    assert taken + channel.backlog == len(LARGE)
    assert channel.backlog > 0
    received = b""
    while channel.backlog:
        received += qemu.recv(1 << 20)
        channel.flush()
    qemu.setblocking(False)
    while len(received) < len(LARGE):
        received += qemu.recv(1 << 20)
    assert received == LARGE


def test_the_half_close_follows_the_backlog(ends: tuple[QemuSocket, socket.socket]) -> None:
    channel, qemu = ends
    channel.write(LARGE)
    channel.finish()
    size = 0
    while chunk := qemu.recv(1 << 20):
        size += len(chunk)
        channel.flush()
    assert size == len(LARGE)


def test_reading_goes_on_after_a_half_close(ends: tuple[QemuSocket, socket.socket]) -> None:
    channel, qemu = ends
    channel.finish()
    qemu.sendall(b"late")
    buffer = bytearray(16)
    assert channel.read_into(memoryview(buffer)) == 4


def test_nothing_to_read_is_not_the_end(ends: tuple[QemuSocket, socket.socket]) -> None:
    channel, _ = ends
    assert channel.read_into(memoryview(bytearray(16))) is None
    assert channel.read_open


def test_the_end_is_reported_once_qemu_has_closed(ends: tuple[QemuSocket, socket.socket]) -> None:
    channel, qemu = ends
    qemu.close()
    assert channel.read_into(memoryview(bytearray(16))) == 0
    assert not channel.read_open


def test_data_for_a_qemu_that_is_gone_is_dropped(ends: tuple[QemuSocket, socket.socket]) -> None:
    channel, qemu = ends
    qemu.close()
    assert channel.write(b"to nobody") + channel.write(b"at all") == 15
    assert channel.backlog == 0
