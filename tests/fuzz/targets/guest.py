# SPDX-License-Identifier: Apache-2.0
"""What a guest writes into its channel: frames, answers and snapshots."""

import contextlib
import zlib
from collections.abc import Iterable
from typing import Any

from nova_enlightened.exception import EnlightenedError, HintError
from nova_enlightened.host.guest import GuestSession
from nova_enlightened.knowledge import snapshot as snapshots
from nova_enlightened.knowledge.layout import MemoryLayout
from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.stream.events import NEED_DATA
from nova_enlightened.stream.guest_channel import (
    HEADER,
    MAGIC,
    ChannelLimits,
    GuestChannel,
    Message,
    MessageType,
)
from tests.fuzz.targets.pieces import pieces

# The same limits as a host's, scaled to inputs of some KB.
LIMITS = ChannelLimits(payload=2048, inflated=8192, small=256, hunted=2048)
PAGES = 4096
SNAPSHOT_LIMITS = snapshots.SnapshotLimits(
    payload=1 << 14, frames=2 * PAGES, process_pages=PAGES, processes=8, areas=64, name=32
)
LAYOUT = MemoryLayout("pc", ((0, 3072, 0), (1 << 20, 1024, 3072)), (("pc.ram", PAGES),))
SPACE = PageSpace((("pc.ram", PAGES << 12), ("pc.rom", 1 << 17)))


def channel(data: bytes) -> None:
    """The first byte tells whether checksums are put right, which no mutation would guess."""
    if not data:
        return
    rest = _with_checksums(data[1:], bool(data[0] & 2)) if data[0] & 1 else data[1:]
    whole = _messages((rest,))
    in_pieces = _messages(pieces(rest))
    assert whole == in_pieces, "pieces mean something else than the whole"


def _with_checksums(data: bytes, deflate: bool) -> bytes:
    """The frames in ``data`` with the checksums of their payloads, compressed where they say."""
    out = bytearray()
    at = 0
    while (begin := data.find(MAGIC, at)) >= 0 and begin + HEADER.size <= len(data):
        magic, kind, flags, zero, request, size, _ = HEADER.unpack_from(data, begin)
        out += data[at:begin]
        at = min(begin + HEADER.size + size, len(data))
        payload = data[begin + HEADER.size : at]
        if deflate and flags & 1:
            payload = zlib.compress(payload * 40)
            size = len(payload)
        out += HEADER.pack(magic, kind, flags, zero, request, size, zlib.crc32(payload)) + payload
    return bytes(out + data[at:])


def _messages(chunks: Iterable[bytes]) -> tuple[list[Message], bool]:
    """The messages, and whether nonsense followed: how much of it was there says how it is told."""
    found: list[Message] = []
    receiver = GuestChannel(LIMITS)
    try:
        for chunk in chunks:
            receiver.receive_data(chunk)
            while (event := receiver.next_event()) is not NEED_DATA:
                assert len(event.payload) <= LIMITS.of(event.type)[1]
                found.append(event)
            assert receiver.pending <= HEADER.size + LIMITS.payload
    except HintError:
        return found, True
    return found, False


class _Told(GuestSession):
    """A session whose guest answers everything with the same words."""

    def __init__(self, answer: Message) -> None:
        super().__init__("/nowhere", PAGES << 12)
        self._answer = answer

    def _send(self, frame: bytes) -> None:
        request = HEADER.unpack_from(frame)[4]
        self._take(Message(self._answer.type, request, self._answer.payload))


def answers(data: bytes) -> None:
    """What a guest says when it is asked; the first byte is what kind of message it says."""
    if not data:
        return
    kinds = tuple(MessageType)
    answer = Message(kinds[data[0] % len(kinds)], 0, data[1:])
    questions: tuple[Any, ...] = (
        lambda told: told.hello(1.0),
        lambda told: told.arm(1.0, 60.0, 0.1, 1.0),
        lambda told: told.status(1.0),
        lambda told: told.ask(1.0),
    )
    for question in questions:
        with contextlib.suppress(EnlightenedError):
            said = question(_Told(answer))
            assert len(repr(said)) < 1 << 16


def snapshot(data: bytes) -> None:
    """A snapshot that is taken has a meaning inside the guest's memory."""
    try:
        known = snapshots.decode_snapshot(data, SNAPSHOT_LIMITS)
    except HintError:
        return
    assert known.classes.shape == known.heat.shape == (known.frames,)
    assert known.source.isprintable()
    placed = known.place(LAYOUT, SPACE)
    assert placed.classes.shape == placed.heat.shape == (SPACE.pages,)
    for process in placed.processes:
        assert not process.pages.size or 0 <= process.pages.min() <= process.pages.max() < PAGES
        assert len(set(process.pages.tolist())) == process.pages.size
