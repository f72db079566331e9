# SPDX-License-Identifier: Apache-2.0
"""The memory of a played VM, towards a QEMU that is one end of a socket pair."""

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from nova_enlightened.knowledge.space import TARGET_PAGE, PageSpace
from nova_enlightened.stream import encode
from nova_enlightened.stream.events import RamBlock
from nova_enlightened.transfer.player_memory import Memory, Step
from nova_enlightened.transfer.qemu_socket import QemuSocket

PAGES = 4096
SPACE = PageSpace([("pc.ram", PAGES * TARGET_PAGE)])
BLOCK = RamBlock("pc.ram", PAGES * TARGET_PAGE, TARGET_PAGE)
WAIT_S = 10.0


@pytest.fixture
def pair() -> Iterator[tuple[Memory, socket.socket]]:
    """A VM that executes, and its QEMU."""
    ours, qemu = socket.socketpair()
    memory = Memory(SPACE, [BLOCK], 1, np.zeros(PAGES, np.bool_), lambda places: None)
    memory.socket, memory.step = QemuSocket.adopt(0, ours), Step.EXECUTING
    qemu.settimeout(WAIT_S)
    with qemu:
        yield memory, qemu
        memory.close()


def put(memory: Memory, places: range) -> None:
    memory.put(
        np.array(places, np.uint32), np.ones((len(places), TARGET_PAGE), np.uint8), urgent=False
    )


def test_what_was_stuck_is_followed_at_once_by_what_the_guest_waits_for(
    pair: tuple[Memory, socket.socket],
) -> None:
    memory, qemu = pair
    put(memory, range(PAGES - 1))
    memory.flush()
    assert memory.socket is not None
    assert memory.socket.backlog
    qemu.sendall(encode.request_pages((PAGES - 1) * TARGET_PAGE, TARGET_PAGE, "pc.ram"))
    memory.read()
    put(memory, range(PAGES - 1, PAGES))
    while memory.waiting and memory.socket.backlog:
        qemu.recv(4 << 20)  # so much that all that was stuck fits
        memory.flush()
    assert not memory.waiting
