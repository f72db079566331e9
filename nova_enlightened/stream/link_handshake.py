# SPDX-License-Identifier: Apache-2.0
"""How two relays prove to each other, by a secret of this one migration, that they belong together.

The source speaks first; the destination shows nothing before the source has proved itself::

    HELLO      protocols, migration, role, a random number
    CHALLENGE  the protocol chosen, a random number
    PROOF      HMAC, what the source has received so far
    WELCOME    HMAC, what the destination has received so far

Each HMAC-SHA256 (RFC 2104) is over the signer's role and all handshake payloads up to and
including its own, so neither a replay, nor a reflection, nor a changed offer passes. It does not
encrypt: that is TLS's work, below.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nova_enlightened.exception import LinkProtocolError, PeerRefused
from nova_enlightened.stream.link_frames import (
    MAX_HANDSHAKE,
    Frame,
    decode_reason,
    encode_frame,
    encode_reason,
)
from nova_enlightened.stream.link_state import (
    INITIAL_STATE,
    ConnectionState,
    FrameType,
    Role,
    after_frame,
)

#: Protocols spoken here, oldest and newest. HELLO itself stays the same in all of them.
PROTOCOLS = (1, 1)
MIN_SECRET = 16
NONCE_SIZE = 32
MAX_CHANNELS = 16
_MAC_SIZE = hashlib.sha256().digest_size
_MAX_SEQUENCE = 2**63


@dataclass(frozen=True)
class LinkIdentity:
    """What both relays of one migration were told.

    :param role: which of the two this is.
    :param migration: the migration's id, at most 64 characters.
    :param secret: at least 16 random bytes, used for this migration only.
    :raises LinkProtocolError: the secret is too short or the id too long.
    """

    role: Role
    migration: str
    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) < MIN_SECRET:
            raise LinkProtocolError(f"a link secret has at least {MIN_SECRET} bytes")
        if not 0 < len(self.migration) <= 64:
            raise LinkProtocolError("a migration's id has 1 to 64 characters")

    def __repr__(self) -> str:  # the secret stays out of logs
        return f"LinkIdentity({self.role}, {self.migration})"


@dataclass(frozen=True)
class Offer:
    """Where a side stands when a connection is made.

    :param instance: a random name of this process; what it has received dies with it.
    :param window: bytes it will hold for its QEMU sockets at most.
    :param received: channel number -> first sequence number it has not received.
    """

    instance: str
    window: int
    received: Mapping[int, int]


class Handshake:
    """One side of one connection's handshake; frames in, frames out.

    :param nonce: ``NONCE_SIZE`` fresh random bytes.
    """

    def __init__(self, identity: LinkIdentity, nonce: bytes) -> None:
        if len(nonce) != NONCE_SIZE:
            raise ValueError("wrong nonce size")
        self.state = INITIAL_STATE[identity.role]
        self.peer: Offer | None = None
        self._identity = identity
        self._nonce = nonce
        self._version = PROTOCOLS[1]
        self._transcript = hashlib.sha256(b"nova-enlightened link 1")

    def hello(self) -> bytes:
        """Return the source's first frame."""
        who = self._identity
        return self._say(
            FrameType.HELLO,
            {
                "min": PROTOCOLS[0],
                "max": PROTOCOLS[1],
                "migration": who.migration,
                "role": who.role.value,
                "nonce": self._nonce.hex(),
            },
        )

    def prove(self, offer: Offer) -> bytes:
        """Return the source's answer to CHALLENGE."""
        return self._sign(FrameType.PROOF, offer)

    def welcome(self, offer: Offer) -> bytes:
        """Return the destination's answer to PROOF, once it has found nothing to refuse."""
        return self._sign(FrameType.WELCOME, offer)

    def refuse(self, reason: str) -> bytes:
        """Return the frame that ends this connection."""
        self.state = ConnectionState.REFUSED
        return encode_reason(FrameType.REFUSE, reason)

    def receive(self, frame: Frame) -> bytes:
        """Take a frame of the peer; return what answers it at once (a CHALLENGE, or nothing).

        When ``state`` becomes READY the peer has proved itself and ``peer`` is its offer. The
        source answers a CHALLENGE with :meth:`prove`, the destination a PROOF with
        :meth:`welcome` or :meth:`refuse`.

        :raises PeerRefused: the peer refused us, or is to be refused for the reason given.
        :raises LinkProtocolError: the frame makes no sense here.
        """
        following = after_frame(self.state, frame.type)
        answer = b""
        if frame.type is FrameType.REFUSE:
            self.state = following
            raise PeerRefused(f"the peer refuses: {decode_reason(frame.payload)}")
        if frame.type is FrameType.HELLO:
            self._check_hello(_decode(frame.payload))
        elif frame.type is FrameType.CHALLENGE:
            _check_version(_decode(frame.payload))
        else:
            self.peer = self._verify(frame)
        self._transcribe(frame.type, frame.payload)
        self.state = following
        if frame.type is FrameType.HELLO:
            answer = self._say(
                FrameType.CHALLENGE, {"version": self._version, "nonce": self._nonce.hex()}
            )
        return answer

    def _check_hello(self, said: dict[str, Any]) -> None:
        oldest, newest = _number(said, "min", 2**16), _number(said, "max", 2**16)
        if oldest > PROTOCOLS[1] or newest < PROTOCOLS[0]:
            raise PeerRefused(
                f"link protocol {oldest} to {newest} offered, "
                f"{PROTOCOLS[0]} to {PROTOCOLS[1]} spoken here"
            )
        self._version = min(newest, PROTOCOLS[1])
        if said.get("role") != Role.SOURCE.value:
            raise PeerRefused("only a source may connect")
        if said.get("migration") != self._identity.migration:
            raise PeerRefused("no such migration here")

    def _verify(self, frame: Frame) -> Offer:
        signer = Role.SOURCE if frame.type is FrameType.PROOF else Role.DESTINATION
        body = frame.payload[_MAC_SIZE:]
        if not hmac.compare_digest(frame.payload[:_MAC_SIZE], self._mac(signer, body)):
            raise PeerRefused("the peer does not know this migration's secret")
        return _decode_offer(body)

    def _sign(self, kind: FrameType, offer: Offer) -> bytes:
        received = {str(channel): number for channel, number in offer.received.items()}
        body = json.dumps(
            {"instance": offer.instance, "window": offer.window, "received": received}
        ).encode()
        payload = self._mac(self._identity.role, body) + body
        self._transcribe(kind, payload)
        return encode_frame(kind, payload=payload)

    def _mac(self, signer: Role, body: bytes) -> bytes:
        message = b"\0".join((signer.value.encode(), self._transcript.digest(), body))
        return hmac.digest(self._identity.secret, message, "sha256")

    def _say(self, kind: FrameType, content: dict[str, Any]) -> bytes:
        payload = json.dumps(content).encode()
        self._transcribe(kind, payload)
        return encode_frame(kind, payload=payload)

    def _transcribe(self, kind: FrameType, payload: bytes) -> None:
        self._transcript.update(bytes((kind,)) + len(payload).to_bytes(4, "big") + payload)


def _decode(payload: bytes) -> dict[str, Any]:
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise LinkProtocolError(f"handshake that is not JSON: {error}") from None
    if not isinstance(content, dict) or len(payload) > MAX_HANDSHAKE:
        raise LinkProtocolError("handshake that is not a JSON object")
    return content


def _number(content: Mapping[str, Any], key: str, below: int) -> int:
    value = content.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise LinkProtocolError(f"handshake without a sensible {key!r}")
    return value


def _check_version(said: dict[str, Any]) -> None:
    version = _number(said, "version", 2**16)
    if not PROTOCOLS[0] <= version <= PROTOCOLS[1]:
        raise PeerRefused(f"link protocol {version} chosen, which is not spoken here")


def _decode_offer(body: bytes) -> Offer:
    content = _decode(body)
    instance, received = content.get("instance"), content.get("received")
    if not isinstance(instance, str) or not 0 < len(instance) <= 64:
        raise LinkProtocolError("handshake without an instance")
    if not isinstance(received, dict) or len(received) > MAX_CHANNELS:
        raise LinkProtocolError("handshake without a sensible 'received'")
    numbers: dict[int, int] = {}
    for name in received:
        if not name.isdecimal() or len(name) > 10:
            raise LinkProtocolError("handshake that names no channel")
        numbers[int(name)] = _number(received, name, _MAX_SEQUENCE)
    return Offer(instance, _number(content, "window", 2**40), numbers)
