# SPDX-License-Identifier: Apache-2.0
"""The link's session: whatever the network does, each channel's bytes arrive once, in order."""

from __future__ import annotations

import collections
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.exception import LinkProtocolError
from nova_enlightened.stream.link import (
    BLOCK_SIZE,
    MOST_ACK_DELAY_S,
    URGENT_RESERVE,
    Closed,
    Finished,
    Opened,
    Paced,
    Reset,
)
from nova_enlightened.stream.link_frames import (
    HEADER_SIZE,
    MAX_PAYLOAD,
)
from nova_enlightened.stream.link_handshake import Offer
from tests.unit.stream.link_pair import MAIN, PREEMPT, RETAIN, Pair, fill, opened

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["fill", "send", "put", "take", "deliver", "acks", "cut"]),
        st.booleans(),  # which side
        st.booleans(),  # which channel
        st.sampled_from([1, 3, HEADER_SIZE - 1, HEADER_SIZE, 100, 4104, 70_000, 300_000]),
    ),
    max_size=60,
)


class Story:
    """What a random run did, so that its end can be told from it."""

    def __init__(self, seed: int) -> None:
        self.pair = opened()
        self.now = 0.0
        self.sent: dict[tuple[bool, int], bytearray] = collections.defaultdict(bytearray)
        self._noise = random.Random(seed)

    def step(self, action: str, left: bool, channel: int, size: int) -> None:
        """Do one thing on one side."""
        self.now += 0.0005
        side = self.pair.sides[left]
        if action == "fill":
            content = self._noise.randbytes(size)
            count = fill(side, channel, content, self.now)
            self.sent[left, channel] += content[:count]
        elif action == "send" and size <= side.session.room(channel):
            content = self._noise.randbytes(size)
            side.session.send_data(channel, content, self.now)
            self.sent[left, channel] += content
        elif action == "put":
            self.pair.put(side, size)
        elif action == "take":
            side.take(size, self.now)
        elif action == "deliver":
            side.deliver(channel, size, self.now)
        elif action == "acks":
            side.session.flush_acks(self.now)
        elif action == "cut":
            self.pair.cut()
            self.pair.connect(self.now)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(0, 2**32))
def test_each_channel_arrives_once_and_in_order_whatever_is_cut(
    steps: list[tuple[str, bool, bool, int]], seed: int
) -> None:
    story = Story(seed)
    for action, left, urgent, size in steps:
        story.step(action, left, PREEMPT if urgent else MAIN, size)
    for side in story.pair.sides:
        side.session.send_fin(MAIN)
        side.session.send_fin(PREEMPT)
    story.pair.settle()
    for left in (False, True):
        for channel in (MAIN, PREEMPT):
            assert story.pair.sides[not left].arrived[channel] == story.sent[left, channel]
    for side in story.pair.sides:
        assert {Finished(MAIN), Finished(PREEMPT)} <= set(side.marks)
        assert side.session.finished
        assert side.session.under_way == 0
        assert side.session.receive_pool.taken <= 1


def test_open_reaches_the_peer_and_lets_it_answer() -> None:
    pair = opened()
    assert pair.destination.marks == [Opened(PREEMPT), Opened(MAIN)]
    pair.destination.session.send_data(MAIN, b"page request", 0.0)
    pair.settle()
    assert pair.source.arrived[MAIN] == b"page request"


def test_half_close_leaves_the_other_direction_open() -> None:
    pair = opened()
    pair.source.session.send_fin(MAIN)
    pair.settle()
    assert Finished(MAIN) in pair.destination.marks
    pair.destination.session.send_data(MAIN, b"shut", 0.0)
    pair.settle()
    assert pair.source.arrived[MAIN] == b"shut"
    assert not pair.source.session.finished


def test_fin_is_not_acknowledged_before_the_data_before_it_is_delivered() -> None:
    pair = opened()
    fill(pair.source, MAIN, b"x" * 10)
    pair.source.session.send_fin(MAIN)
    pair.put(pair.source, 1000)
    pair.destination.take(1000)
    pair.destination.deliver(MAIN, 9)
    pair.destination.session.flush_acks(9.0)
    pair.put(pair.destination, 1000)
    pair.source.take(1000)
    assert not pair.source.session.settled
    pair.settle()
    assert pair.source.session.settled


def test_nothing_can_be_sent_after_fin() -> None:
    pair = opened()
    pair.source.session.send_fin(MAIN)
    assert len(pair.source.session.buffer(MAIN)) == 0
    with pytest.raises(LinkProtocolError, match="FINISHED"):
        pair.source.session.send_data(MAIN, b"x", 0.0)


def test_reset_is_carried_and_ends_the_direction() -> None:
    pair = opened()
    pair.source.session.send_reset(PREEMPT)
    pair.source.session.send_reset(PREEMPT)
    pair.settle()
    assert pair.destination.marks[-1] == Reset(PREEMPT)


def test_bye_tells_its_reason() -> None:
    pair = opened()
    pair.source.session.send_bye("stopped by the operator\n\x1b[2J")
    pair.settle()
    assert pair.destination.marks[-1] == Closed("stopped by the operator??[2J")


def test_urgent_data_passes_what_waits() -> None:
    pair = opened()
    for _ in range(3):
        fill(pair.source, MAIN, bytes(MAX_PAYLOAD))
    fill(pair.source, PREEMPT, b"fault")
    pair.put(pair.source, HEADER_SIZE + 5)
    pair.destination.take(1000)
    pair.destination.deliver(PREEMPT, 5)
    assert pair.destination.arrived[PREEMPT] == b"fault"


def test_acknowledgements_pass_data() -> None:
    pair = opened()
    fill(pair.source, MAIN, b"x")
    pair.put(pair.source, 1000)
    pair.destination.take(1000)
    fill(pair.destination, MAIN, bytes(MAX_PAYLOAD))
    pair.destination.deliver(MAIN, 1)
    pair.destination.session.flush_acks(1.0)
    pair.put(pair.destination, HEADER_SIZE)
    pair.source.take(HEADER_SIZE)
    assert pair.source.session.under_way == 0


def test_a_full_main_channel_leaves_room_for_an_urgent_one() -> None:
    pair = opened()
    while fill(pair.source, MAIN, bytes(MAX_PAYLOAD)):
        pass
    assert pair.source.session.room(MAIN) == 0
    assert pair.source.session.room(PREEMPT) == URGENT_RESERVE


def test_a_main_channel_that_is_not_read_does_not_hold_up_the_urgent_one() -> None:
    pair = opened()
    while fill(pair.source, MAIN, bytes(MAX_PAYLOAD)):
        pass
    for _ in range(40):
        content = bytes(URGENT_RESERVE // 2)
        assert fill(pair.source, PREEMPT, content)
        while pair.put(pair.source, 1 << 30):
            pair.destination.take(1 << 30)
            pair.destination.deliver(PREEMPT, 1 << 30, 1.0)
            pair.destination.session.flush_acks(2.0)
            pair.put(pair.destination, 1 << 30)
            pair.source.take(1 << 30)
    assert len(pair.destination.arrived[PREEMPT]) == 40 * URGENT_RESERVE // 2


def test_nothing_is_accepted_beyond_what_may_be_retained() -> None:
    pair = opened()
    with pytest.raises(LinkProtocolError, match="no room"):
        pair.source.session.send_data(MAIN, bytes(RETAIN + 1), 0.0)


def test_the_peers_smaller_memory_bounds_what_is_sent() -> None:
    pair = opened(retain=4 * RETAIN, window=4 * RETAIN)
    pair.cut()
    pair.source.session.attach(Offer("i", RETAIN, pair.destination.session.offer("i").received), 0)
    assert pair.source.session.room(MAIN) == RETAIN - URGENT_RESERVE


def test_nothing_may_be_sent_without_a_connection() -> None:
    pair = opened()
    pair.cut()
    assert pair.source.session.room(MAIN) == 0
    assert not pair.source.session.output()


def test_a_channel_that_is_not_open_has_no_room() -> None:
    pair = opened()
    assert pair.source.session.room(7) == 0
    pair.source.session.send_fin(MAIN)
    assert pair.source.session.room(MAIN) == 0


def test_a_frame_cut_in_the_middle_goes_on_at_the_very_byte() -> None:
    pair = opened()
    fill(pair.source, MAIN, bytes(range(100)))
    pair.put(pair.source, HEADER_SIZE + 40)
    pair.destination.take(1000)
    pair.cut()
    pair.connect()
    assert pair.source.session.bytes_repeated == 60
    pair.settle()
    assert pair.destination.arrived[MAIN] == bytes(range(100))


def test_acknowledgements_lost_in_a_cut_are_sent_again() -> None:
    pair = opened()
    fill(pair.source, MAIN, b"abc")
    pair.put(pair.source, 1000)
    pair.destination.take(1000)
    pair.destination.deliver(MAIN, 3)
    pair.destination.session.flush_acks(1.0)
    pair.put(pair.destination, 1000)
    pair.cut()
    pair.connect()
    pair.settle()
    assert pair.source.session.under_way == 0


def test_the_round_trip_does_not_count_a_break() -> None:
    pair = opened()
    fill(pair.source, MAIN, b"abc", now=10.0)
    pair.cut()
    pair.connect(now=40.0)
    pair.settle()
    assert pair.source.limit.samples == []
    assert pair.source.limit.restarts == 2


def test_the_round_trip_is_measured_from_sending_to_delivery() -> None:
    pair = opened()
    fill(pair.source, MAIN, b"abc", now=10.0)
    pair.put(pair.source, 1000)
    pair.destination.take(1000, 10.1)
    pair.destination.deliver(MAIN, 3, 10.2)
    pair.destination.session.flush_acks(10.25)
    pair.put(pair.destination, 1000)
    pair.source.take(1000, 10.3)
    ((count, rtt),) = pair.source.limit.samples
    assert (count, round(rtt, 6)) == (3, 0.3)


def test_small_reads_behind_each_other_share_a_frame() -> None:
    pair = opened()
    for _ in range(100):
        fill(pair.source, MAIN, bytes(4104))
    assert pair.put(pair.source, 1 << 30) <= 100 * 4104 + 3 * HEADER_SIZE


def test_pieces_that_wait_together_share_a_frame() -> None:
    pair = opened()
    pieces = [bytes([number]) * 4104 for number in range(60)]
    for piece in pieces:
        pair.source.session.send_data(MAIN, piece, 0.0)
    pair.source.session.send_fin(MAIN)
    assert pair.put(pair.source, 1 << 30) == 60 * 4104 + 2 * HEADER_SIZE
    pair.settle()
    assert pair.destination.arrived[MAIN] == b"".join(pieces)
    assert pair.source.session.under_way == 0


def test_memory_is_used_again() -> None:
    pair = opened()
    for _ in range(100):
        while fill(pair.source, MAIN, bytes(MAX_PAYLOAD)):
            pass
        pair.settle()
    assert len(pair.destination.arrived[MAIN]) >= 100 * RETAIN // 2
    assert pair.source.session._send_pool.taken <= 1
    free = pair.source.session._send_pool._free
    assert len(free) <= 2 * RETAIN // BLOCK_SIZE


def paced(delay: float) -> Pair:
    """A pair whose source lets acknowledgements wait, and has sent what QEMU took at 1.0 s."""
    pair = opened()
    pair.source.session.pace(delay)
    fill(pair.source, MAIN, b"x" * 100, 1.0)
    pair.put(pair.source, 1 << 20)
    pair.destination.take(1 << 20, 1.0)
    pair.destination.deliver(MAIN, 100, 1.0)
    return pair


def test_acknowledgements_wait_for_as_long_as_the_peer_asked() -> None:
    assert paced(0.004).destination.session.ack_due == pytest.approx(1.004)


def test_a_peer_cannot_have_acknowledgements_wait_for_long() -> None:
    assert paced(60.0).destination.session.ack_due == pytest.approx(1.0 + MOST_ACK_DELAY_S)


def test_the_pace_is_asked_for_again_on_a_new_connection() -> None:
    pair = opened()
    pair.source.session.pace(0.004)
    pair.cut()
    pair.connect()
    pair.settle()
    assert Paced(0.004) in pair.destination.marks
