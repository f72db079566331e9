# SPDX-License-Identifier: Apache-2.0
"""What QEMU writes: the forward stream and the return path."""

from collections.abc import Iterable
from typing import Any

from nova_enlightened.exception import ReturnPathError, StreamError
from nova_enlightened.stream.events import NEED_DATA, RamPages
from nova_enlightened.stream.limits import MAX_CAPABILITIES, MAX_COMMAND_BYTES
from nova_enlightened.stream.migration import Channel, MigrationStream
from nova_enlightened.stream.return_path import ReturnPath, Unknown
from tests.fuzz.targets.pieces import pieces

LONGEST_ELEMENT = MAX_CAPABILITIES * 256 + MAX_COMMAND_BYTES
"""Bytes that the parser may keep until an element is complete, at the very most."""
BLOCKS = {"pc.ram": 1 << 30, "ram": 1 << 20}
_OPENINGS: tuple[dict[str, Any], ...] = (
    {"channel": None},
    {"channel": Channel.MAIN},
    {"channel": Channel.PREEMPT, "blocks": BLOCKS},
    {"channel": Channel.RESUMED, "blocks": BLOCKS, "ram_section_id": 2},
    {"channel": Channel.PREEMPT},
    {"channel": Channel.RESUMED},
)


def migration(data: bytes) -> None:
    """The first byte says which connection of a migration the rest came over."""
    if not data:
        return
    opening, rest = _OPENINGS[data[0] % len(_OPENINGS)], data[1:]
    whole = _observed(MigrationStream(**opening), (rest,))
    in_pieces = _observed(MigrationStream(**opening), pieces(rest))
    assert whole == in_pieces, "pieces mean something else than the whole"


def _observed(stream: MigrationStream, chunks: Iterable[bytes]) -> tuple[Any, ...]:
    """Everything a parser says of these bytes, however they are cut."""
    events: list[Any] = []
    pages: dict[tuple[str, bool], list[int]] = {}
    error = ending = None
    received = 0
    try:
        for chunk in chunks:
            stream.receive_data(chunk)
            received += len(chunk)
            while (event := stream.next_event()) is not NEED_DATA:
                if isinstance(event, RamPages):
                    pages.setdefault((event.block, event.zero), []).extend(event.offsets.tolist())
                else:
                    events += [pages, event] if pages else [event]
                    pages = {}
            assert 0 <= received - stream.position <= LONGEST_ELEMENT
    except StreamError as refused:
        error = str(refused)
    try:
        stream.end_of_data()
    except StreamError as cut_off:
        ending = str(cut_off)
    return events, pages, error, ending, stream.position, stream.opaque


def return_path(data: bytes) -> None:
    """All of it is in the events, or in what the parser holds."""
    whole = _messages(ReturnPath(), (data,), data)
    in_pieces = _messages(ReturnPath(), pieces(data), data)
    assert whole == in_pieces, "pieces mean something else than the whole"


def _messages(parser: ReturnPath, chunks: Iterable[bytes], data: bytes) -> tuple[Any, ...]:
    events: list[Any] = []
    unknown = raw = b""
    error = ending = None
    try:
        for chunk in chunks:
            parser.receive_data(chunk)
            while (event := parser.next_event()) is not NEED_DATA:
                raw += event.raw
                if isinstance(event, Unknown):
                    unknown += event.raw
                else:
                    events.append(event)
    except ReturnPathError as refused:
        error = str(refused)
    try:
        parser.end_of_data()
    except ReturnPathError as cut_off:
        ending = str(cut_off)
    held = raw + parser.unparsed()
    assert data.startswith(held), "bytes were made up"
    assert error or held == data, "bytes were lost"
    return events, unknown, error, error or ending, parser.position, parser.last_block
