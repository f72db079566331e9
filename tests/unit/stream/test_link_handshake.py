# SPDX-License-Identifier: Apache-2.0
"""The link's handshake: who may in, who may not, and what is said to those who may not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova_enlightened.exception import LinkError, LinkProtocolError, PeerRefused
from nova_enlightened.stream.link_buffers import BlockPool
from nova_enlightened.stream.link_frames import MAX_HANDSHAKE, Frame, FrameReader, encode_frame
from nova_enlightened.stream.link_handshake import Handshake, LinkIdentity, Offer
from nova_enlightened.stream.link_state import (
    CHANNEL_TRANSITIONS,
    CONNECTION_TRANSITIONS,
    ChannelState,
    ConnectionState,
    FrameType,
    Role,
    after_frame,
    after_unit,
)

MIGRATION = "5ca1ab1e-0000-4000-8000-000000000001"
SECRET = b"a secret of this one migration.."
OFFERS = {
    Role.SOURCE: Offer("source-process", 1 << 20, {0: 12, 1: 0}),
    Role.DESTINATION: Offer("destination-process", 1 << 21, {0: 2**40, 1: 7}),
}


def side(
    role: Role, *, migration: str = MIGRATION, secret: bytes = SECRET, nonce: int = 0
) -> Handshake:
    return Handshake(LinkIdentity(role, migration, secret), bytes([nonce or ord(role[0])]) * 32)


def frame_of(content: bytes) -> Frame:
    reader = FrameReader()
    reader.accept(BlockPool(1 << 17, 1))
    buffer = reader.get_buffer()
    assert buffer is not None
    buffer[: len(content)] = content
    reader.filled(len(content))
    frame = reader.next_frame()
    assert isinstance(frame, Frame)
    return frame


Change = Callable[[bytes], bytes]


def shake(source: Handshake, destination: Handshake, **changes: Change) -> None:
    """Run a handshake; a keyword names a frame's type and changes its payload on the way."""

    def carried(content: bytes) -> Frame:
        frame = frame_of(content)
        change = changes.get(frame.type.name.lower())
        return frame._replace(payload=change(frame.payload)) if change else frame

    challenge = destination.receive(carried(source.hello()))
    source.receive(carried(challenge))
    destination.receive(carried(source.prove(OFFERS[Role.SOURCE])))
    source.receive(carried(destination.welcome(OFFERS[Role.DESTINATION])))


def test_both_sides_learn_where_the_other_stands() -> None:
    source, destination = side(Role.SOURCE), side(Role.DESTINATION)
    shake(source, destination)
    assert source.state is destination.state is ConnectionState.READY
    assert source.peer == OFFERS[Role.DESTINATION]
    assert destination.peer == OFFERS[Role.SOURCE]


def test_the_destination_says_nothing_signed_before_the_source_has_proved_itself() -> None:
    source, destination = side(Role.SOURCE), side(Role.DESTINATION)
    challenge = json.loads(frame_of(destination.receive(frame_of(source.hello()))).payload)
    assert set(challenge) == {"version", "nonce"}


def test_the_secret_is_not_shown() -> None:
    source = side(Role.SOURCE)
    source.receive(frame_of(side(Role.DESTINATION).receive(frame_of(source.hello()))))
    said = source.prove(OFFERS[Role.SOURCE])
    assert SECRET not in said
    assert SECRET.hex().encode() not in said
    assert "secret" not in repr(LinkIdentity(Role.SOURCE, MIGRATION, SECRET))


def test_another_secret_is_refused_by_the_destination() -> None:
    with pytest.raises(PeerRefused, match="does not know this migration's secret"):
        shake(side(Role.SOURCE, secret=bytes(32)), side(Role.DESTINATION))


def test_a_destination_with_another_secret_is_refused_by_the_source() -> None:
    source, impostor = side(Role.SOURCE), side(Role.DESTINATION, secret=bytes(32))
    source.receive(frame_of(impostor.receive(frame_of(source.hello()))))
    source.prove(OFFERS[Role.SOURCE])
    with pytest.raises(PeerRefused, match="does not know"):
        source.receive(frame_of(impostor.welcome(OFFERS[Role.DESTINATION])))


def test_another_migration_is_refused() -> None:
    with pytest.raises(PeerRefused, match="no such migration"):
        shake(side(Role.SOURCE, migration="another"), side(Role.DESTINATION))


@pytest.mark.parametrize(
    ("oldest", "newest", "complaint"),
    [(2, 3, "protocol 2 to 3 offered, 1 to 1 spoken"), (0, 0, "protocol 0 to 0")],
)
def test_another_protocol_is_refused_by_name(oldest: int, newest: int, complaint: str) -> None:
    with pytest.raises(PeerRefused, match=complaint):
        shake(side(Role.SOURCE), side(Role.DESTINATION), hello=said(min=oldest, max=newest))


def test_a_protocol_that_was_not_offered_is_not_taken() -> None:
    with pytest.raises(PeerRefused, match="protocol 9 chosen"):
        shake(side(Role.SOURCE), side(Role.DESTINATION), challenge=said(version=9))


def test_a_destination_is_not_let_in_as_a_source() -> None:
    with pytest.raises(PeerRefused, match="only a source"):
        shake(side(Role.SOURCE), side(Role.DESTINATION), hello=said(role="destination"))


def said(**content: Any) -> Change:
    return lambda payload: json.dumps({**json.loads(payload), **content}).encode()


def test_a_newer_peer_that_speaks_our_protocol_too_reaches_the_proof() -> None:
    # The change on the way is noticed then, as any change is: the proof covers all of it.
    with pytest.raises(PeerRefused, match="does not know"):
        shake(side(Role.SOURCE), side(Role.DESTINATION), hello=said(max=7))


@pytest.mark.parametrize("frame", ["proof", "welcome"])
def test_an_offer_changed_on_the_way_is_refused(frame: str) -> None:
    def change(payload: bytes) -> bytes:
        return payload.replace(b'"0": ', b'"0": 1')

    with pytest.raises(PeerRefused, match="does not know"):
        shake(side(Role.SOURCE), side(Role.DESTINATION), **{frame: change})


def test_a_recorded_proof_is_worth_nothing_later() -> None:
    first, destination = side(Role.SOURCE), side(Role.DESTINATION, nonce=1)
    first.receive(frame_of(destination.receive(frame_of(first.hello()))))
    proof = first.prove(OFFERS[Role.SOURCE])
    replay, later = side(Role.SOURCE), side(Role.DESTINATION, nonce=2)
    later.receive(frame_of(replay.hello()))
    with pytest.raises(PeerRefused, match="does not know"):
        later.receive(frame_of(proof))


def test_a_proof_reflected_is_no_welcome() -> None:
    source, mirror = side(Role.SOURCE), side(Role.DESTINATION)
    source.receive(frame_of(mirror.receive(frame_of(source.hello()))))
    proof = frame_of(source.prove(OFFERS[Role.SOURCE]))
    with pytest.raises(PeerRefused, match="does not know"):
        source.receive(proof._replace(type=FrameType.WELCOME))


def test_a_refusal_tells_its_reason() -> None:
    source, destination = side(Role.SOURCE), side(Role.DESTINATION)
    source.hello()
    with pytest.raises(PeerRefused, match="the peer refuses: not today"):
        source.receive(frame_of(destination.refuse("not today")))
    assert source.state is ConnectionState.REFUSED


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b"[]",
        b"{}",
        b"[" * MAX_HANDSHAKE,
        b'{"min": true, "max": 1}',
        b'{"min": -1, "max": 1}',
        b'{"min": 1e400, "max": 1}',
        b'{"min": 1}',
    ],
)
def test_a_hello_that_makes_no_sense_is_an_error(payload: bytes) -> None:
    with pytest.raises(LinkProtocolError):
        side(Role.DESTINATION).receive(frame_of(encode_frame(FrameType.HELLO, payload=payload)))


@pytest.mark.parametrize(
    "offer",
    [
        Offer("", 1, {}),
        Offer("i" * 65, 1, {}),
        Offer("i", -1, {}),
        Offer("i", 2**41, {}),
        Offer("i", 1, {0: -1}),
        Offer("i", 1, {0: 2**64}),
        Offer("i", 1, {-1: 0}),
        Offer("i", 1, dict.fromkeys(range(17), 0)),
    ],
)
def test_an_offer_that_makes_no_sense_is_an_error_even_when_signed(offer: Offer) -> None:
    source, destination = side(Role.SOURCE), side(Role.DESTINATION)
    source.receive(frame_of(destination.receive(frame_of(source.hello()))))
    with pytest.raises(LinkProtocolError):
        destination.receive(frame_of(source.prove(offer)))


def test_a_short_secret_is_not_accepted_from_our_own_side() -> None:
    with pytest.raises(LinkProtocolError, match="at least 16"):
        LinkIdentity(Role.SOURCE, MIGRATION, b"short")


@given(st.sampled_from(Role), st.sampled_from(FrameType), st.binary(max_size=300))
def test_no_single_frame_gets_anywhere(role: Role, kind: FrameType, payload: bytes) -> None:
    handshake = side(role)
    before = handshake.state
    with pytest.raises(LinkError):
        handshake.receive(Frame(kind, 0, 0, payload))
    assert handshake.state in (before, ConnectionState.REFUSED)
    assert handshake.peer is None


@pytest.mark.parametrize("state", ConnectionState)
@pytest.mark.parametrize("kind", FrameType)
def test_what_the_connection_table_does_not_list_fails(
    state: ConnectionState, kind: FrameType
) -> None:
    if (state, kind) in CONNECTION_TRANSITIONS:
        assert after_frame(state, kind) is CONNECTION_TRANSITIONS[state, kind]
    else:
        with pytest.raises(LinkProtocolError, match=kind.name):
            after_frame(state, kind)


@pytest.mark.parametrize("state", ChannelState)
@pytest.mark.parametrize("kind", FrameType)
def test_what_the_channel_table_does_not_list_fails(state: ChannelState, kind: FrameType) -> None:
    if (state, kind) in CHANNEL_TRANSITIONS:
        assert after_unit(0, state, kind) is CHANNEL_TRANSITIONS[state, kind]
    else:
        with pytest.raises(LinkProtocolError, match=kind.name):
            after_unit(0, state, kind)


def test_data_is_nowhere_allowed_before_the_handshake_is_over() -> None:
    allowed = {state for state, kind in CONNECTION_TRANSITIONS if kind >= FrameType.OPEN}
    assert allowed == {ConnectionState.READY}
