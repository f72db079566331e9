# SPDX-License-Identifier: Apache-2.0
"""The plots, drawn from results on disk."""

from pathlib import Path

from bench import plots, registry, results, rounds
from bench.results import Outcome
from lab.way import Way
from tests.unit.bench.stage import FakeStage

WAYS = (Way.STOCK, Way.STOCK_PREEMPT, Way.ENLIGHTENED)


def test_every_scenario_with_curves_is_drawn(tmp_path: Path) -> None:
    series = rounds.all_rounds(FakeStage(), WAYS, 2, 60.0)
    runs = [run.to_dict() for run in series.runs]
    both = [{**run, "curve_stays": run["curve"], "until_s": 3.0, "lost_s": 1.0} for run in runs]
    results.save(
        tmp_path,
        registry.MEASURES,
        {
            "scattered_qemu7": Outcome({"scattered_over_limit": [1.2, 1.4]}, {}, runs),
            "contention": Outcome({"contention_postcopy_ratio": [1.7]}, {}, both),
            "relay": Outcome({"relay_over_direct": [0.5]}, {}, [{"way": "direct"}]),
        },
    )
    drawn = plots.draw(tmp_path)
    assert sorted(path.name for path in drawn) == [
        "contention.png",
        "scattered_qemu7.png",
        "summary.png",
    ]
    for path in drawn:
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size < 200_000


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    assert plots.draw(tmp_path) == []


def test_a_measure_whose_bar_is_zero_is_left_out_of_the_summary(tmp_path: Path) -> None:
    outcome = Outcome({"fleet_repeat_moves": [0.0], "fleet_relieved_percent": [98.0]}, {})
    results.save(tmp_path, registry.MEASURES, {"fleet": outcome})
    assert [path.name for path in plots.draw(tmp_path)] == ["summary.png"]
