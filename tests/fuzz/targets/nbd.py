# SPDX-License-Identifier: Apache-2.0
"""What an NBD client writes, and what QEMU and libvirt wrote into a saved file."""

import contextlib
from collections.abc import Iterable
from typing import Any

from nova_enlightened.exception import StreamError
from nova_enlightened.stream import nbd_wire, save_file, stored
from nova_enlightened.stream.nbd import NEED_DATA, BlockStatus, Extent, NbdServer, Read
from tests.fuzz.targets.pieces import pieces

EXPORTS = {"": 1 << 20, "vda": 10000}


def server(data: bytes) -> None:
    """Whatever a client asks, it gets at most answers about bytes of the export."""
    whole = _served((data,))
    in_pieces = _served(pieces(data))
    assert whole == in_pieces, "pieces mean something else than the whole"


def _served(chunks: Iterable[bytes]) -> tuple[Any, ...]:
    connection = NbdServer(EXPORTS)
    events: list[Any] = []
    said = bytearray(connection.data_to_send())
    error = None
    try:
        for chunk in chunks:
            connection.receive_data(chunk)
            while (event := connection.next_event()) is not NEED_DATA:
                events.append(event)
                if not isinstance(event, Read | BlockStatus):
                    continue
                assert connection.export is not None
                assert event.offset + event.length <= EXPORTS[connection.export]
                assert 0 < event.length <= nbd_wire.MAX_REQUEST_BYTES or event is not Read
                if isinstance(event, BlockStatus):
                    connection.status_reply(event, [Extent(event.length, True)])
                else:
                    connection.read_reply(event, [event.length])
            said += connection.data_to_send()
    except StreamError as refused:
        error = str(refused)
    return events, bytes(said + connection.data_to_send()), error, connection.phase


def save_header(data: bytes) -> None:
    """What libvirt put in front of a saved stream."""
    with contextlib.suppress(StreamError):
        length = save_file.header_length(data[: save_file.HEADER_LENGTH])
        header = save_file.parse(data[:length])
        assert header.stream_begin == length
        assert header.format in save_file.FORMATS


def stored_stream(data: bytes) -> None:
    """A saved stream; where it says that pages are, there they are."""
    with contextlib.suppress(StreamError):
        found = stored.read(data)
        assert 0 < found.device_state[0] <= found.device_state[1] <= len(data)
        assert found.positions.size == sum(block.length for block in found.blocks) >> 12
        there = found.positions[found.positions != stored.ZERO]
        assert not there.size or 0 < int(there.min()) <= int(there.max()) <= len(data) - 4096
