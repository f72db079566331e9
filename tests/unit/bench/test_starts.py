# SPDX-License-Identifier: Apache-2.0
"""The flow of a start's measurement, on a stage without a lab."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from bench import measures, starts
from bench.rounds import StageError
from bench.starts import Begun, Link, SessionRun, StartWay

RATE = 1000.0
LINK = Link(100.0, 10.0)
EXECUTES_S = {StartWay.WHOLE: 20.0, StartWay.LINEAR: 0.5, StartWay.PLANNED: 1.0}
FULL_S = {StartWay.WHOLE: 21.0, StartWay.LINEAR: 12.0, StartWay.PLANNED: 2.0}
BYTES_S = 12e6


class FakeStage:
    """Executes, answers a tenth of a second later, works at half rate, then at full rate."""

    full_rate = RATE
    bin_s = measures.BIN_S

    def __init__(self, broken: StartWay | None = None, full_s: float | None = None) -> None:
        self.broken = broken
        self.full_s = full_s
        self.clock = 100.0
        self.ordered = 0.0
        self.way = StartWay.WHOLE
        self.ended = 0
        self.seeds: list[int] = []

    def now(self) -> float:
        return self.clock

    def wait(self, seconds: float) -> None:
        self.clock += seconds

    def begin(self, way: StartWay, link: Link, seed: int) -> Begun:
        if way is self.broken:
            raise StageError("it broke")
        self.way, self.ordered = way, self.clock
        self.seeds.append(seed)
        self.clock += EXECUTES_S[way]
        return Begun(self.ordered, self.clock, {"executing": self.clock})

    def first_answer(self) -> float | None:
        at = self.ordered + EXECUTES_S[self.way] + 0.1
        return at if at <= self.clock else None

    def rates(self, first: float, last: float, edge: float, bin_s: float) -> measures.RateSeries:
        bins = int((last - first) / bin_s + 1e-9)
        middles = first + bin_s * (np.arange(bins) + 0.5) - self.ordered
        full = FULL_S[self.way] if self.full_s is None else self.full_s
        rates = np.where(middles < EXECUTES_S[self.way] + 0.1, 0.0, RATE / 2)
        return measures.RateSeries(first, bin_s, np.where(middles >= full, RATE, rates))

    def fetched(self, at: float) -> float:
        return BYTES_S * (at - self.ordered)

    def told(self) -> Mapping[str, Any]:
        return {}

    def end(self) -> None:
        self.ended += 1


def test_a_start_lasts_until_nine_tenths_of_the_full_rate() -> None:
    stage = FakeStage()
    found = starts.one_start(stage, StartWay.PLANNED, LINK, "redis", 1, 1001, 60.0)
    assert found.time_s == pytest.approx(2.0, abs=2 * measures.BIN_S)
    assert found.first_answer_s == pytest.approx(1.1)
    assert found.fetched == pytest.approx(BYTES_S * found.time_s)
    assert not found.lower_bound
    assert stage.ended == 1


def test_a_start_that_does_not_get_there_is_a_lower_bound() -> None:
    found = starts.one_start(FakeStage(full_s=99.0), StartWay.LINEAR, LINK, "redis", 1, 1001, 10.0)
    assert found.lower_bound
    assert found.time_s >= 10.0


def test_half_of_the_full_rate_is_not_a_start() -> None:
    found = starts.one_start(FakeStage(), StartWay.LINEAR, LINK, "redis", 1, 1001, 60.0)
    assert found.time_s > FULL_S[StartWay.LINEAR] - 2 * measures.BIN_S


def test_what_fails_is_told_and_the_others_go_on() -> None:
    stage = FakeStage(broken=StartWay.LINEAR)
    ways = (StartWay.WHOLE, StartWay.LINEAR, StartWay.PLANNED)
    done, failures = starts.in_turn(stage, ways, LINK, "redis", 2, 1002, 60.0, lambda text: None)
    assert set(done) == {StartWay.WHOLE, StartWay.PLANNED}
    assert len(failures) == 1
    assert "it broke" in failures[0]
    assert stage.ended == 3


def test_the_round_turns_the_order_and_all_ways_have_its_input() -> None:
    told: list[str] = []
    stage = FakeStage()
    ways = (StartWay.WHOLE, StartWay.PLANNED)
    starts.in_turn(stage, ways, LINK, "redis", 2, 1002, 60.0, told.append)
    assert [StartWay.PLANNED.words in text for text in told] == [True, False]
    assert stage.seeds == [1002, 1002]


def test_ratios_are_stock_over_ours() -> None:
    stage = FakeStage()
    ways = (StartWay.WHOLE, StartWay.LINEAR, StartWay.PLANNED)
    done, _ = starts.in_turn(stage, ways, LINK, "redis", 1, 1001, 60.0, lambda text: None)
    assert starts.ratio(done, StartWay.WHOLE, StartWay.PLANNED) == pytest.approx(10.5, rel=0.05)
    assert starts.first_answers(done, StartWay.PLANNED, StartWay.WHOLE) == pytest.approx(1.1 / 20.1)
    assert starts.ratio(done, StartWay.HTTP, StartWay.PLANNED) is None


def test_a_start_is_json_with_times_from_the_order() -> None:
    found = starts.one_start(FakeStage(), StartWay.PLANNED, LINK, "redis", 1, 1001, 60.0).to_dict()
    assert found["way"] == "redis, 100 Mbit/s, 10 ms: on demand and by plan"
    assert found["steps"]["executing"] == pytest.approx(1.0)
    assert found["curve"]["start"] == pytest.approx(0.0)
    assert max(found["curve"]["percent"]) == 100


def test_stalls_are_what_a_user_waits_beyond_local() -> None:
    local = SessionRun(actions=40, busy_s=2.0, watched_s=20.0)
    streamed = SessionRun(actions=60, busy_s=9.0, watched_s=30.0)
    assert starts.stall_s_per_min(streamed, local) == pytest.approx((9.0 - 3.0) * 2)


def test_a_faster_session_than_local_has_no_stall() -> None:
    run = SessionRun(actions=60, busy_s=2.0, watched_s=30.0)
    assert starts.stall_s_per_min(run, SessionRun(40, 2.0, 20.0)) == 0.0


def test_a_session_that_did_nothing_is_no_measurement() -> None:
    with pytest.raises(measures.MeasureError):
        starts.stall_s_per_min(SessionRun(0, 0.0, 30.0), SessionRun(40, 2.0, 20.0))
