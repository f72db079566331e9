# SPDX-License-Identifier: Apache-2.0
"""Sends a destination what it lacks, from the memory of a source that has given its migration up.

QEMU from 8.2 on does so where its stream breaks after the last page was sent, and before the
destination said that it had come: the pages that a relay held are missing at the destination then,
which waits for them, paused, as for any recovery. At the source QEMU will not resume; but the VM
stands still there, and its memory is whole. So this speaks with the destination in its place,
through fresh relays, and QEMU at the source is only read from.
"""

import contextlib
import logging
import select
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.host import ram_places, resuming
from nova_enlightened.host.ram_places import ReadMemory
from nova_enlightened.stream.events import RamBlock
from nova_enlightened.stream.stopped_source import STEP, StoppedSource
from nova_enlightened.stream.wire import TARGET_PAGE_SIZE

LOG = logging.getLogger(__name__)

_READ: Final = 64 << 10
Read = Callable[[str, int, int], bytes]


def resend(domain: Any, path: str, ram: Mapping[str, Any], read_memory: ReadMemory) -> None:
    """Give the destination all that it lacks; comes back when it has said that it has it all.

    :param domain: at the source, ``libvirt.virDomain``, which stands still.
    :param path: the unix socket of a relay whose peer is connected to QEMU at the destination.
    :param ram: what a relay that carried the stream's beginning told of it.
    :param read_memory: as :func:`.process_memory.read`.
    :raises LibvirtError: the memory cannot be read, or the destination does not take it; it may be
        tried again through other relays.
    """
    try:
        source = _stopped(ram)
        read = ram_places.reader(domain, read_memory)
        with contextlib.ExitStack() as stack:
            main = stack.enter_context(_connected(path))
            _say(main, source, source.ask(), lambda: source.told)
            LOG.info("The destination lacks %d pages, and is given them", source.lacking)
            if resuming.preempts(domain):
                stack.enter_context(_connected(path))  # it waits for its second channel
            _say(main, source, source.resume(), lambda: source.resumed)
            _send(main, source, read)
            _say(main, source, source.end(), lambda: source.status is not None)
    except (OSError, exception.StreamError) as error:
        raise exception.LibvirtError(f"what is missing is not taken: {error}") from error
    if source.status:
        raise exception.LibvirtError(f"the destination ends with error {source.status}")


def _stopped(ram: Mapping[str, Any]) -> StoppedSource:
    try:
        blocks = [RamBlock(*block) for block in ram["blocks"]]
        return StoppedSource(int(ram["section"]), [block for block in blocks if block.length])
    except (KeyError, TypeError, ValueError) as error:
        raise exception.StreamError(f"record of the stream's RAM: {error!r}") from error


def _connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _say(
    peer: socket.socket, source: StoppedSource, words: bytes, heard: Callable[[], bool]
) -> None:
    """Say it, and listen until the answer is there."""
    peer.sendall(words)
    while not heard():
        _listen(peer, source)


def _send(peer: socket.socket, source: StoppedSource, read: Read) -> None:
    while (run := source.next_pages()) is not None:
        block, first, count = run
        for page in range(first, first + count, STEP):
            length = min(STEP, first + count - page) * TARGET_PAGE_SIZE
            contents = read(block, page * TARGET_PAGE_SIZE, length)
            peer.sendall(source.records(block, page, contents))
        while select.select([peer], [], [], 0)[0]:
            _listen(peer, source)


def _listen(peer: socket.socket, source: StoppedSource) -> None:
    data = peer.recv(_READ)
    if not data:
        raise ConnectionResetError("the relay has closed its connection")
    source.receive_data(data)
