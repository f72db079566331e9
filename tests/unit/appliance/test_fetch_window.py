# SPDX-License-Identifier: Apache-2.0
import heapq

import pytest

from nova_enlightened.appliance.fetch_window import CAP, FLOOR, START, FetchWindow

KIB = 1024


class Pipe:
    """A store without end behind a link, first come first served; the window decides."""

    def __init__(self, bandwidth, rtt):
        self.window = FetchWindow()
        self.bandwidth, self.rtt = bandwidth, rtt
        self.now = self.free = 0.0
        self.delivered = 0
        self.waits = []
        self._under_way = []
        self._count = 0

    def _send(self, length, *, urgent, spare=False):
        sent = self.window.sent(length, self.now, urgent=urgent, spare=spare)
        self.free = max(self.free, self.now + self.rtt / 2) + length / self.bandwidth
        self._count += 1
        heapq.heappush(self._under_way, (self.free + self.rtt / 2, self._count, length, sent))

    def run(self, seconds, *, spare=False):
        """:returns: bytes a second that came."""
        began, before = self.now, self.delivered
        while self.now < began + seconds:
            while (self.window.spare if spare else self.window.room) > 0:
                self._send(self.window.fetch_limit, urgent=False, spare=spare)
            self.now, _, length, sent = heapq.heappop(self._under_way)
            self.window.arrived(length, sent, self.now)
            self.delivered += length
            # What a fetch asked for now would have to wait for.
            self.waits.append(self.free - self.now)
        return (self.delivered - before) / (self.now - began)


LINKS = [(12.5e6, 0.01), (2.5e6, 0.03), (125e6, 0.02), (125e6, 0.0005), (250e3, 0.1)]


@pytest.mark.parametrize("bandwidth, rtt", LINKS)
def test_fills_the_link_there_is(bandwidth, rtt):
    pipe = Pipe(bandwidth, rtt)
    pipe.run(4)
    assert pipe.run(4) > 0.97 * bandwidth
    assert pipe.window.bandwidth == pytest.approx(bandwidth, rel=0.05)


@pytest.mark.parametrize("bandwidth, rtt", LINKS[:3])
def test_what_nobody_is_known_to_want_leaves_hardly_a_queue_and_most_of_the_link_busy(
    bandwidth, rtt
):
    pipe = Pipe(bandwidth, rtt)
    pipe.run(4)
    pipe.waits.clear()
    assert pipe.run(60, spare=True) > 0.6 * bandwidth
    waits = sorted(pipe.waits)
    assert waits[len(waits) // 2] < 0.6 * rtt  # of which a half is its way to the store


def test_a_link_that_became_slower_is_seen_while_nobody_wants_anything():
    pipe = Pipe(12.5e6, 0.01)
    pipe.run(4)
    pipe.bandwidth /= 4
    pipe.run(20, spare=True)
    assert pipe.window.bandwidth == pytest.approx(pipe.bandwidth, rel=0.1)


@pytest.mark.parametrize("bandwidth, rtt", LINKS[:3])
def test_what_is_asked_for_waits_little_behind_what_was(bandwidth, rtt):
    pipe = Pipe(bandwidth, rtt)
    pipe.run(4)
    pipe.waits.clear()
    pipe.run(4)
    waits = sorted(pipe.waits)
    assert waits[len(waits) // 2] < rtt + 3 * pipe.window.fetch_limit / bandwidth


def test_notices_that_the_link_became_slower():
    pipe = Pipe(12.5e6, 0.01)
    pipe.run(4)
    pipe.bandwidth = 2.5e6
    pipe.run(20)
    assert pipe.window.bandwidth == pytest.approx(2.5e6, rel=0.2)


def test_notices_that_the_link_became_faster():
    pipe = Pipe(2.5e6, 0.01)
    pipe.run(4)
    pipe.bandwidth = 12.5e6
    pipe.run(20)
    assert pipe.window.bandwidth > 11e6


def test_demands_alone_do_not_say_what_the_link_could_carry():
    pipe = Pipe(12.5e6, 0.01)
    pipe.run(4)
    size = pipe.window.size
    for _ in range(300):
        pipe._send(4096, urgent=True)
        pipe.now, _, length, sent = heapq.heappop(pipe._under_way)
        pipe.window.arrived(length, sent, pipe.now)
    assert pipe.window.size >= size / 2


def test_stays_within_its_bounds_on_the_strangest_links():
    for bandwidth, rtt in ((1e3, 2.0), (1e10, 1.0), (1e10, 0.0)):
        pipe = Pipe(bandwidth, rtt)
        pipe.run(5 * rtt + 0.01)
        assert FLOOR <= pipe.window.size <= CAP


def test_a_failure_frees_its_room_and_teaches_nothing():
    window = FetchWindow()
    window.sent(100 * KIB, 0.0, urgent=False)
    window.untold(100 * KIB)
    assert window.outstanding == 0
    assert window.room == START
    assert window.bandwidth is None


def test_a_clock_that_stands_still_divides_nothing_by_zero():
    window = FetchWindow()
    sent = window.sent(4096, 5.0, urgent=False)
    window.arrived(4096, sent, 5.0)
    assert window.bandwidth > 0
