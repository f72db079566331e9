# SPDX-License-Identifier: Apache-2.0
"""The link's frame types and its two state machines. Everything that affects states is here.

A *connection* lives from one TCP connection being made to its end; a *channel* lives as long as
the migration and has one state in each direction. A pair that is not listed fails closed.
"""

from __future__ import annotations

import enum

from nova_enlightened.exception import LinkProtocolError


class FrameType(enum.IntEnum):
    """What a frame is; the number on the wire."""

    HELLO = 1  # source to destination: who I am, which protocols I speak
    CHALLENGE = 2  # back: the protocol chosen, a number to sign
    PROOF = 3  # source to destination: signed, with what I have received
    WELCOME = 4  # back: signed, with what I have received
    REFUSE = 5  # instead of CHALLENGE or WELCOME: the reason as text
    OPEN = 16  # a channel begins
    DATA = 17
    FIN = 18  # half-close: this direction of the channel ends here
    RESET = 19  # this direction of the channel broke here
    ACK = 20  # delivered up to here
    PING = 21
    PONG = 22
    BYE = 23  # the link ends for good
    PACE = 24  # acknowledgements may wait for so long


class Role(enum.StrEnum):
    """Which side of the migration; the source connects, the destination listens."""

    SOURCE = "source"
    DESTINATION = "destination"


class ConnectionState(enum.Enum):
    """One TCP connection, from the first byte on."""

    EXPECT_HELLO = enum.auto()
    EXPECT_CHALLENGE = enum.auto()
    EXPECT_PROOF = enum.auto()
    EXPECT_WELCOME = enum.auto()
    READY = enum.auto()
    REFUSED = enum.auto()
    CLOSED = enum.auto()


class ChannelState(enum.Enum):
    """One direction of one channel."""

    IDLE = enum.auto()
    OPEN = enum.auto()
    FINISHED = enum.auto()
    RESET = enum.auto()


INITIAL_STATE = {
    Role.SOURCE: ConnectionState.EXPECT_CHALLENGE,
    Role.DESTINATION: ConnectionState.EXPECT_HELLO,
}

#: A frame received in a state, and the state after it *if what it says is accepted*.
CONNECTION_TRANSITIONS: dict[tuple[ConnectionState, FrameType], ConnectionState] = {
    (ConnectionState.EXPECT_HELLO, FrameType.HELLO): ConnectionState.EXPECT_PROOF,
    (ConnectionState.EXPECT_PROOF, FrameType.PROOF): ConnectionState.READY,
    (ConnectionState.EXPECT_CHALLENGE, FrameType.CHALLENGE): ConnectionState.EXPECT_WELCOME,
    (ConnectionState.EXPECT_CHALLENGE, FrameType.REFUSE): ConnectionState.REFUSED,
    (ConnectionState.EXPECT_WELCOME, FrameType.WELCOME): ConnectionState.READY,
    (ConnectionState.EXPECT_WELCOME, FrameType.REFUSE): ConnectionState.REFUSED,
    (ConnectionState.READY, FrameType.OPEN): ConnectionState.READY,
    (ConnectionState.READY, FrameType.DATA): ConnectionState.READY,
    (ConnectionState.READY, FrameType.FIN): ConnectionState.READY,
    (ConnectionState.READY, FrameType.RESET): ConnectionState.READY,
    (ConnectionState.READY, FrameType.ACK): ConnectionState.READY,
    (ConnectionState.READY, FrameType.PING): ConnectionState.READY,
    (ConnectionState.READY, FrameType.PONG): ConnectionState.READY,
    (ConnectionState.READY, FrameType.BYE): ConnectionState.CLOSED,
    (ConnectionState.READY, FrameType.PACE): ConnectionState.READY,
}

#: The same table for both ends of a direction: what may be sent is what may be received.
CHANNEL_TRANSITIONS: dict[tuple[ChannelState, FrameType], ChannelState] = {
    (ChannelState.IDLE, FrameType.OPEN): ChannelState.OPEN,
    (ChannelState.OPEN, FrameType.DATA): ChannelState.OPEN,
    (ChannelState.OPEN, FrameType.FIN): ChannelState.FINISHED,
    (ChannelState.OPEN, FrameType.RESET): ChannelState.RESET,
    (ChannelState.FINISHED, FrameType.RESET): ChannelState.RESET,
}


def after_frame(state: ConnectionState, received: FrameType) -> ConnectionState:
    """Return the state of a connection after a frame.

    :raises LinkProtocolError: the frame has no place in this state.
    """
    try:
        return CONNECTION_TRANSITIONS[state, received]
    except KeyError:
        raise LinkProtocolError(f"{received.name} frame while {state.name}") from None


def after_unit(channel: int, state: ChannelState, unit: FrameType) -> ChannelState:
    """Return the state of one direction of ``channel`` after a unit was sent or received.

    :raises LinkProtocolError: the unit has no place in this state.
    """
    try:
        return CHANNEL_TRANSITIONS[state, unit]
    except KeyError:
        raise LinkProtocolError(
            f"{unit.name} on channel {channel}, which is {state.name}"
        ) from None
