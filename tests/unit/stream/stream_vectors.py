# SPDX-License-Identifier: Apache-2.0
"""Recorded streams, and a form of events that does not depend on how the bytes were cut."""

import functools
import hashlib
import itertools
import json
import lzma
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from nova_enlightened.stream.events import RamPages
from nova_enlightened.stream.migration import NEED_DATA, MigrationStream, recognise_channel
from nova_enlightened.stream.return_path import ReturnPath

RECORDED = pathlib.Path(__file__).parents[2] / "data" / "streams"
RELEASES = ("qemu-7.2", "qemu-10.0")


def manifest(release: str) -> dict[str, Any]:
    """What was recorded of one release."""
    listing: dict[str, Any] = json.loads((RECORDED / release / "manifest.json").read_text())
    return listing


def vector_names(back: bool) -> list[str]:
    """``RELEASE/SCENARIO.CHANNEL`` of every forward stream, or of every return path."""
    return [
        f"{release}/{name}"
        for release in RELEASES
        for name in manifest(release)["streams"]
        if name.endswith("-back") is back
    ]


@functools.cache
def vector(name: str) -> bytes:
    """The bytes of one recorded stream."""
    release, stream = name.split("/")
    data = lzma.decompress((RECORDED / release / f"{stream}.xz").read_bytes())
    entry = manifest(release)["streams"][stream]
    assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    return data


def parser_for(name: str) -> MigrationStream | ReturnPath:
    """A parser of the right kind for a recorded stream."""
    if name.endswith("-back"):
        return ReturnPath()
    channel = recognise_channel(vector(name)[:4])
    assert channel is not None
    return MigrationStream(channel)


def drain(parser: MigrationStream | ReturnPath) -> Iterator[Any]:
    """Every event that is ready."""
    while (event := parser.next_event()) is not NEED_DATA:
        yield event


def feed(parser: MigrationStream | ReturnPath, chunks: Iterable[bytes | memoryview]) -> list[Any]:
    """Give a parser these chunks; all events."""
    events: list[Any] = []
    for chunk in chunks:
        parser.receive_data(chunk)
        events.extend(drain(parser))
    return events


def settled(events: Iterable[Any]) -> list[Any]:
    """The same events with the pages between two others put together.

    Where a buffer ends decides how pages are batched; what they are together is decided by the
    stream: for each block and kind the offsets in order.
    """
    result: list[Any] = []
    pages: dict[tuple[str, bool], list[int]] = {}
    for event in events:
        if isinstance(event, RamPages):
            pages.setdefault((event.block, event.zero), []).extend(event.offsets.tolist())
            continue
        if pages:
            result.append(pages)
            pages = {}
        result.append(event)
    if pages:
        result.append(pages)
    return result


def pieces(data: bytes, cuts: Iterable[int]) -> Iterator[memoryview]:
    """``data`` cut at these positions."""
    view = memoryview(data)
    marks = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    for begin, end in itertools.pairwise(marks):
        yield view[begin:end]
