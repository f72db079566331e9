# SPDX-License-Identifier: Apache-2.0
"""What another host's relay writes: frames, the handshake, and the session after it."""

import contextlib
import hashlib
import hmac
from collections.abc import Iterable
from typing import Any
from unittest import mock

from nova_enlightened.exception import LinkError, LinkProtocolError
from nova_enlightened.stream import link
from nova_enlightened.stream.link_buffers import BlockPool
from nova_enlightened.stream.link_frames import (
    HEADER,
    HEADER_SIZE,
    MAX_UNKNOWN_PEER,
    Frame,
    FrameReader,
    decode_reason,
)
from nova_enlightened.stream.link_handshake import NONCE_SIZE, Handshake, LinkIdentity, Offer
from nova_enlightened.stream.link_state import ConnectionState, FrameType, Role
from tests.fuzz.targets.pieces import pieces
from tests.unit.stream.link_pair import MAIN, PREEMPT, RETAIN, Side

# Smaller than a relay's: an input of some KB must reach the end of one.
BLOCK_SIZE = 128 * 1024
SECRET = bytes(range(32))
MIGRATION = "6fa3bd3a-4b5d-4c7a-8f5b-0d8a7a3c2f10"
KINDS = tuple(FrameType)


def frames(data: bytes) -> None:
    """An unknown peer, or a known one, by the first byte."""
    if not data:
        return
    known, rest = bool(data[0] & 1), data[1:]
    whole = _frames(known, (rest,))
    in_pieces = _frames(known, pieces(rest))
    assert whole == in_pieces, "pieces mean something else than the whole"


def _frames(known: bool, chunks: Iterable[bytes]) -> tuple[Any, ...]:
    reader = FrameReader()
    pool = BlockPool(BLOCK_SIZE, 2) if known else None
    if pool is not None:
        reader.accept(pool)
    found: list[Any] = []
    error = None
    try:
        for chunk in chunks:
            left = memoryview(chunk)
            while left:
                buffer = reader.get_buffer()
                assert buffer is not None, "everything is released, and still there is no room"
                assert known or len(buffer) <= MAX_UNKNOWN_PEER
                count = min(len(left), len(buffer))
                buffer[:count] = left[:count]
                reader.filled(count)
                left = left[count:]
                _take(reader, pool, found)
    except LinkProtocolError as refused:
        error = str(refused)
    return found, error


def _take(reader: FrameReader, pool: BlockPool | None, found: list[Any]) -> None:
    """Read what is there; parts of one DATA frame are put together."""
    while (frame := reader.next_frame()) is not None:
        if isinstance(frame, Frame):
            found.append(frame)
            if frame.type in (FrameType.REFUSE, FrameType.BYE):
                assert decode_reason(frame.payload).isprintable()
            continue
        last = found[-1] if found else None
        content = bytes(frame.view)
        if isinstance(last, list) and last[:2] == [frame.channel, frame.sequence]:
            last[1] += len(content)
            last[2] += content
        else:
            found.append([frame.channel, frame.sequence + len(content), content])
        if pool is not None:
            pool.release(frame.block, len(frame.view))


def handshake(data: bytes) -> None:
    """A peer that may know the secret: it signs what it says, where the first byte tells it to.

    The input is the role, then frames as (type, length of 2 bytes, payload).
    """
    if not data:
        return
    role = (Role.SOURCE, Role.DESTINATION)[data[0] & 1]
    signs = bool(data[0] & 2)
    side = Handshake(LinkIdentity(role, MIGRATION, SECRET), bytes(NONCE_SIZE))
    transcript = hashlib.sha256(b"nova-enlightened link 1")
    if role is Role.SOURCE:
        _transcribe(transcript, side.hello())
    signer = Role.DESTINATION if role is Role.SOURCE else Role.SOURCE
    at = 1
    with contextlib.suppress(LinkError):
        while at + 3 <= len(data):
            kind = KINDS[data[at] % len(KINDS)]
            end = at + 3 + int.from_bytes(data[at + 1 : at + 3], "big")
            payload, at = data[at + 3 : end], end
            if signs and kind in (FrameType.PROOF, FrameType.WELCOME):
                message = b"\0".join((signer.value.encode(), transcript.digest(), payload))
                payload = hmac.digest(SECRET, message, "sha256") + payload
            _transcribe(transcript, HEADER.pack(0, 0, kind, 0, len(payload), 0) + payload)
            answer = side.receive(Frame(kind, 0, 0, payload))
            if answer:
                _transcribe(transcript, answer)
            if role is Role.SOURCE and kind is FrameType.CHALLENGE:
                _transcribe(transcript, side.prove(Offer("i", RETAIN, {0: 1})))
    ready = side.state is ConnectionState.READY
    assert not ready or (signs and side.peer is not None), "a peer got in without the secret"


def _transcribe(transcript: Any, frame: bytes) -> None:
    payload = frame[HEADER_SIZE:]
    transcript.update(bytes((frame[3],)) + len(payload).to_bytes(4, "big") + payload)


def session(data: bytes) -> None:
    """A peer that proved itself and then sends anything, to either role."""
    if not data:
        return
    role = (Role.SOURCE, Role.DESTINATION)[data[0] & 1]
    whole = _session(role, (data[1:],))
    in_pieces = _session(role, pieces(data[1:]))
    assert whole == in_pieces, "pieces mean something else than the whole"


def _session(role: Role, chunks: Iterable[bytes]) -> tuple[Any, ...]:
    with mock.patch.object(link, "BLOCK_SIZE", BLOCK_SIZE):
        side = Side(role)
    side.begin(Offer("peer", RETAIN, {}))
    if role is Role.SOURCE:
        side.session.send_open(MAIN)
        side.session.send_open(PREEMPT, urgent=True)
        for channel in (MAIN, PREEMPT):
            side.session.send_data(channel, bytes(300), 0.0)
        while pending := side.session.output():
            side.session.written(len(pending[0]))
    error = None
    try:
        for chunk in chunks:
            side.wire += chunk
            while side.take(len(chunk)):
                pass
            for channel in list(side.views):
                side.deliver(channel, len(chunk))
            side.session.flush_acks(1e9)
            assert len(side.views) <= link.MAX_CHANNELS
            assert 0 <= side.session.under_way <= 600
    except LinkProtocolError as refused:
        error = str(refused)
    arrived = {channel: bytes(got) for channel, got in side.arrived.items() if got}
    for channel, views in side.views.items():
        arrived[channel] = arrived.get(channel, b"") + b"".join(views)
    arrived = {channel: got for channel, got in arrived.items() if got}
    return arrived, side.marks, error, side.session.under_way, side.session.bytes_received
