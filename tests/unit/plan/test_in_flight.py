# SPDX-License-Identifier: Apache-2.0
"""The in-flight limit, on simulated paths: little queue on a slow one, all of a fast one."""

from __future__ import annotations

import collections
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.plan.in_flight import CAP, FLOOR, QUEUE, InFlightLimit

SEGMENT = 64 * 1024


@dataclass
class Path:
    """A bottleneck with an endless buffer: bytes per second, and seconds there and back."""

    rate: float
    rtt: float
    busy_until: float = 0.0
    under_way: int = 0
    acks: collections.deque[tuple[float, float, int]] = field(default_factory=collections.deque)

    def send(self, now: float, jitter: float = 0.0) -> None:
        self.busy_until = max(self.busy_until, now) + SEGMENT / self.rate
        self.acks.append((self.busy_until + self.rtt + jitter, now, SEGMENT))
        self.under_way += SEGMENT


@dataclass
class Run:
    """What a run came to: bytes per second and the queue's delay, over the second half."""

    rate: float
    delay: float
    smallest_window: int


def run(limit: InFlightLimit, path: Path, seconds: float, noise: float = 0.0) -> Run:
    """Send as much as the limit allows for some seconds of simulated time."""
    dice = random.Random(1)
    now, delivered, delays, smallest = 0.0, 0, [], CAP
    while now < seconds:
        while path.under_way + SEGMENT <= limit.window:
            path.send(now, dice.random() * noise)
        arrival, sent_at, count = path.acks.popleft()
        now = max(now, arrival)
        limit.acknowledged(count, now - sent_at, path.under_way, now)
        path.under_way -= count
        if now > seconds / 2:
            delivered += count
            delays.append(now - sent_at - path.rtt)
            smallest = min(smallest, limit.window)
    return Run(delivered / (seconds / 2), sum(delays) / len(delays), smallest)


@pytest.mark.parametrize("rate", [50e6, 125e6, 1.25e9])
def test_a_path_is_filled_with_little_queue(rate: float) -> None:
    result = run(InFlightLimit(), Path(rate, rtt=0.0005), seconds=8)
    assert result.rate > 0.97 * rate
    assert result.delay < 0.008


def test_a_long_path_is_filled_up_to_the_cap() -> None:
    result = run(InFlightLimit(), Path(200e6, rtt=0.03), seconds=8)
    assert result.rate > 0.95 * 200e6
    assert result.delay < 0.010


def test_a_slow_path_is_left_with_the_floor() -> None:
    limit = InFlightLimit()
    result = run(limit, Path(2e6, rtt=0.001), seconds=8)
    assert limit.window < 2 * FLOOR
    assert result.delay < 2 * FLOOR / 2e6


def test_a_very_fast_path_is_filled_without_leaving_the_cache() -> None:
    limit = InFlightLimit()
    result = run(limit, Path(3e9, rtt=0.0001), seconds=1)
    assert result.rate > 0.95 * 3e9
    assert limit.window < QUEUE + 3 * 3e9 * 0.0001


def test_a_fast_path_holds_more_where_nobody_waits_behind_it() -> None:
    limit = InFlightLimit()
    limit.aim(0.05, 4 * QUEUE)
    run(limit, Path(1e9, 0.0001), 2.0)
    assert 3 * QUEUE < limit.window < 6 * QUEUE


def test_the_cap_holds_on_a_path_that_would_take_more() -> None:
    limit = InFlightLimit()
    run(limit, Path(2e9, rtt=0.02), seconds=4)
    assert limit.window == CAP


def test_late_acknowledgements_do_not_slow_a_fast_path() -> None:
    result = run(InFlightLimit(), Path(1.25e9, rtt=0.0002), seconds=2, noise=0.0005)
    assert result.rate > 0.9 * 1.25e9


def test_the_empty_path_is_measured_anew_and_queue_is_not_taken_for_it() -> None:
    """Without probing, the base would creep up with the queue that it allows."""
    limit = InFlightLimit()
    result = run(limit, Path(50e6, rtt=0.001), seconds=60)
    assert result.delay < 0.008
    assert limit.base_rtt is not None
    assert limit.base_rtt < 0.004
    assert result.rate > 0.97 * 50e6


def test_a_path_that_became_longer_is_filled_again() -> None:
    limit = InFlightLimit()
    path = Path(125e6, rtt=0.001)
    run(limit, path, seconds=3)
    path = Path(125e6, rtt=0.020)
    assert run(limit, path, seconds=40).rate > 0.9 * 125e6


def test_a_sender_that_has_little_to_send_does_not_raise_the_limit() -> None:
    limit = InFlightLimit()
    before = limit.window
    for number in range(1000):
        limit.acknowledged(4104, 0.0005, 4104, number * 0.01)
    assert limit.window <= before


def test_what_was_learnt_is_forgotten_with_the_connection() -> None:
    limit = InFlightLimit()
    run(limit, Path(10e6, rtt=0.001), seconds=3)
    limit.restart(3.0)
    assert limit.base_rtt is None
    assert limit.window == InFlightLimit().window


@pytest.mark.parametrize(
    "sizes", [{"floor": 0}, {"floor": 10, "cap": 5}, {"target": 0.0}, {"cap": -1}]
)
def test_limits_that_contradict_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="floor"):
        InFlightLimit(**sizes)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, CAP), st.floats(0, 100), st.integers(0, CAP), st.floats(0, 20)),
        max_size=50,
    )
)
def test_the_limit_stays_between_floor_and_cap(
    acknowledgements: list[tuple[int, float, int, float]],
) -> None:
    limit, now = InFlightLimit(), 0.0
    for count, rtt, in_flight, pause in acknowledgements:
        now += pause
        limit.acknowledged(count, rtt, in_flight, now)
        assert FLOOR <= limit.window <= CAP
