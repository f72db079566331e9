# SPDX-License-Identifier: Apache-2.0
"""What the link tells its relay, and what an operator may change of it."""

from __future__ import annotations

from dataclasses import dataclass

from nova_enlightened.plan.in_flight import FLOOR, TARGET_S
from nova_enlightened.stream.link import DEFAULT_RETAIN, SessionEvent


@dataclass(frozen=True)
class PeerReady:
    """A connection stands and the peer has proved itself; ``resumed``: not for the first time."""

    resumed: bool


@dataclass(frozen=True)
class Lost:
    """The connection broke; QEMU need not know. The source's side is making it again."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """Source: the very first connection was refused. Nothing is tried any more."""

    reason: str


@dataclass(frozen=True)
class PeerAbsent:
    """Source: nobody listens any more where the peer did. It is tried on."""

    reason: str


@dataclass(frozen=True)
class PeerTurnedAway:
    """Destination: somebody did not prove to be our peer; nothing else changed."""

    address: str
    reason: str


@dataclass(frozen=True)
class Broken:
    """The peer is ours, but what was under way is lost with its former process.

    This link cannot go on: the relay has to end its channels, and the migration is for QEMU's
    own recovery.
    """

    reason: str


LinkEvent = SessionEvent | PeerReady | Lost | Refused | PeerAbsent | PeerTurnedAway | Broken


@dataclass(frozen=True)
class LinkOptions:
    """What each side may choose for itself. Seconds and bytes.

    :param retain: kept for the peer at most, and held from it.
    :param floor: under way at least, however slow the path.
    :param target_delay: queueing aimed at on a full path.
    :param ping: silence after which the peer is asked.
    :param dead: silence after which the connection is given up.
    :param handshake: time to connect and to prove oneself.
    :param farewell: time a peer is waited for that is missing only when all is over: its last
        acknowledgement may have been lost with the connection.
    :param backoff: first pause before connecting again; doubled each time up to ``max_backoff``.
    """

    retain: int = DEFAULT_RETAIN
    floor: int = FLOOR
    target_delay: float = TARGET_S
    ping: float = 1.0
    dead: float = 5.0
    handshake: float = 5.0
    farewell: float = 600.0
    backoff: float = 0.05
    max_backoff: float = 2.0
