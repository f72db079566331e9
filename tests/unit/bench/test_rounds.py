# SPDX-License-Identifier: Apache-2.0
"""The flow of a benchmark, on a stage without a lab."""

import json

import pytest

from bench import rounds
from lab.way import Migration, Way
from tests.unit.bench import stage

WAYS = (Way.STOCK, Way.STOCK_PREEMPT, Way.ENLIGHTENED)


def test_a_run_judges_what_the_guest_did() -> None:
    run = rounds.one_run(stage.FakeStage(), Way.STOCK, 1, 60.0)
    assert run.cost.baseline == pytest.approx(stage.RATE)
    assert run.recovery_s == pytest.approx(8.0)
    assert run.cost.lost_s == pytest.approx(8.0)
    assert run.order_to_executing_s == pytest.approx(stage.SWITCH_S + stage.PAUSE_S)
    assert not run.cost.lower_bound


def test_ours_is_armed_before_the_order_and_stock_is_not() -> None:
    theatre = stage.FakeStage()
    rounds.one_run(theatre, Way.ENLIGHTENED, 1, 60.0)
    rounds.one_run(theatre, Way.STOCK, 1, 60.0)
    assert theatre.calls == ["arm", "enlightened", "stock_postcopy"]


def test_precopy_that_never_ends_is_a_lower_bound() -> None:
    run = rounds.one_run(stage.FakeStage(), Way.PRECOPY, 1, 10.0)
    assert run.migration.failure
    assert run.cost.lost_s == pytest.approx(5.0)


def test_every_round_has_every_way_in_turn() -> None:
    theatre = stage.FakeStage()
    series = rounds.all_rounds(theatre, WAYS, 3, 60.0)
    assert len(series.runs) == 9
    assert not series.failures
    first = [call for call in theatre.calls if call != "arm"][::3]
    assert first == [str(way) for way in WAYS]


def test_ratios_are_within_rounds() -> None:
    series = rounds.all_rounds(stage.FakeStage(), WAYS, 2, 60.0)
    got = series.ratios(
        lambda runs: rounds.best_stock(runs).recovery_s / runs[Way.ENLIGHTENED].recovery_s
    )
    assert got == pytest.approx([5.0, 5.0])


def test_a_failed_run_costs_its_round_only() -> None:
    theatre = stage.FakeStage(broken=frozenset({2}))  # ours, in the first round
    series = rounds.all_rounds(theatre, WAYS, 3, 60.0)
    assert theatre.calls.count("recover") == 1
    assert series.failures == ("round 1, enlightened post-copy: it broke",)
    ratios = series.ratios(lambda runs: runs[Way.STOCK].recovery_s / runs[WAYS[2]].recovery_s)
    assert len(ratios) == 2


def test_the_better_stock_counts() -> None:
    series = rounds.all_rounds(stage.FakeStage(), WAYS, 1, 60.0)
    assert rounds.best_stock(series.by_round()[1]).way is Way.STOCK_PREEMPT


def test_no_stock_is_no_ratio() -> None:
    series = rounds.all_rounds(stage.FakeStage(), (Way.ENLIGHTENED,), 1, 60.0)
    assert series.ratios(lambda runs: rounds.best_stock(runs).recovery_s) == []


def test_a_run_can_be_kept_as_json() -> None:
    run = rounds.one_run(stage.FakeStage(), Way.STOCK, 1, 60.0)
    kept = json.loads(json.dumps(run.to_dict()))
    assert kept["parts"]["executing"] == pytest.approx(0.6)
    assert kept["curve"]["start"] == pytest.approx(-3.0)
    assert max(kept["curve"]["percent"]) == 100


def test_parts_are_in_order_of_time() -> None:
    migration = Migration(
        Way.ENLIGHTENED, "g", "a", "b", 10.0,
        prepared=11.0, switchover=12.0, extra={"relays ready": 10.5},
    )  # fmt: skip
    assert list(migration.parts().items()) == [
        ("relays ready", 0.5),
        ("destination prepared", 1.0),
        ("switchover", 2.0),
    ]
