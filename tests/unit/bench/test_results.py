# SPDX-License-Identifier: Apache-2.0
"""The registry of measures and the files of results."""

import json
from pathlib import Path

import pytest

from bench import registry, results, tables
from bench.registry import BY_ID, Better
from bench.results import Outcome

KEYS = {"median", "min", "max", "n", "unit", "bar", "better", "versions"}


def outcome(**values: list[float]) -> Outcome:
    return Outcome(values, {"QEMU": "7.2.22"}, [{"way": "a", "rates": [1, 2]}], ["seen"])


def test_nothing_chosen_is_everything() -> None:
    assert registry.chosen([]) == registry.MEASURES
    assert registry.chosen([""]) == registry.MEASURES


def test_a_scenario_stands_for_its_measures() -> None:
    assert [m.id for m in registry.chosen(["contention"])] == [
        "contention_precopy_ratio",
        "contention_postcopy_ratio",
    ]


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(registry.UnknownMeasure, match="nonsense"):
        registry.chosen(["relay_over_direct", "nonsense"])


def test_scenarios_of_one_release_stay_together() -> None:
    names = registry.scenarios(registry.MEASURES)
    assert names[-1] == "scattered_qemu10"
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("id", "median", "met"),
    [
        ("scattered_recovery_ratio_qemu7", 4.0, True),
        ("scattered_recovery_ratio_qemu7", 3.9, False),
        ("scattered_over_limit", 1.3, True),
        ("scattered_over_limit", 1.31, False),
        ("relay_cpu_s_per_gb", 5.0, None),
    ],
)
def test_bars(id: str, median: float, met: bool | None) -> None:
    assert BY_ID[id].met(median) is met


def test_an_entry_has_exactly_the_agreed_keys() -> None:
    got = results.entry(BY_ID["relay_cpu_s_per_gb"], [0.4, 0.2, 0.3], {"QEMU": "7.2"})
    assert set(got) == KEYS
    assert (got["median"], got["min"], got["max"], got["n"]) == (0.3, 0.2, 0.4, 3)
    assert got["better"] == Better.LOWER
    assert got["bar"] is None


def test_a_part_run_leaves_the_rest() -> None:
    old = {"redis_work_lost_ratio": {"median": 3.0}, "relay_over_direct": {"median": 0.5}}
    wanted = registry.chosen(["relay_over_direct"])
    got = results.merged(
        old, wanted, {"relay": outcome(relay_over_direct=[0.9], relay_tls_over_plain=[0.4])}
    )
    assert got["redis_work_lost_ratio"] == {"median": 3.0}
    assert got["relay_over_direct"]["median"] == 0.9
    assert "relay_tls_over_plain" not in got


def test_a_scenario_that_failed_leaves_its_old_figures() -> None:
    old = {"relay_over_direct": {"median": 0.5}}
    assert results.merged(old, registry.MEASURES, {"relay": outcome()}) == old


def test_a_measure_that_is_gone_is_dropped() -> None:
    assert results.merged({"gone": {"median": 1.0}}, registry.MEASURES, {}) == {}


def test_what_is_saved_is_found_again(tmp_path: Path) -> None:
    wanted = registry.chosen(["relay"])
    got = outcome(relay_over_direct=[0.8, 0.95, 0.9], relay_cpu_s_per_gb=[0.31234567])
    results.save(tmp_path, wanted, {"relay": got})
    latest = results.load(tmp_path)
    assert latest["relay_over_direct"]["median"] == 0.9
    assert latest["relay_cpu_s_per_gb"]["median"] == 0.3123
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert samples["relay"]["values"]["relay_over_direct"] == [0.8, 0.95, 0.9]
    table = (tmp_path / "latest.md").read_text()
    assert "| 0.9 | 0.8 to 0.95 | 3 | ≥ 0.9 | yes |" in table
    assert "- seen" in table
    assert "QEMU 7.2.22" in table


def test_the_runs_of_parts_that_were_not_measured_stay(tmp_path: Path) -> None:
    wanted = registry.chosen(["relay"])
    versions = {"QEMU": "7.2"}
    first = [{"way": "plain", "round": 1}, {"way": "tls", "round": 1}]
    results.save(tmp_path, wanted, {"relay": Outcome({"x": [1.0]}, versions, first)})
    again = [{"way": "tls", "round": 2}]
    results.save(tmp_path, wanted, {"relay": Outcome({"y": [2.0]}, versions, again)})
    kept = results.load(tmp_path, results.SAMPLES)["relay"]
    assert kept["runs"] == [{"way": "plain", "round": 1}, {"way": "tls", "round": 2}]
    assert kept["values"] == {"x": [1.0], "y": [2.0]}


def test_a_count_without_runs_leaves_those_there_are(tmp_path: Path) -> None:
    wanted = registry.chosen(["cloud"])
    runs = [{"way": "precopy", "round": 1}]
    results.save(tmp_path, wanted, {"cloud": Outcome({"x": [1.0]}, {}, runs)})
    results.save(tmp_path, wanted, {"cloud": Outcome({"y": [0.0]}, {}, [])})
    assert results.load(tmp_path, results.SAMPLES)["cloud"]["runs"] == runs


def test_the_parts_of_every_way_are_shown_in_order_of_time(tmp_path: Path) -> None:
    runs = [
        {"way": "stock", "recovery_s": 8.0, "parts": {"switchover": 0.5, "executing": 3.0}},
        {"way": "stock", "recovery_s": 9.0, "parts": {"switchover": 0.7, "executing": 4.0}},
        {"way": "ours", "recovery_s": None, "parts": {"relays started": 0.01, "executing": 1.0},
         "relay": {"cpu_source_s": 0.4}},
    ]  # fmt: skip
    text = tables.markdown({}, {"scattered": {"runs": runs}})
    assert "| stock | 2 | 8.50 |  |" in text
    assert "| ours | 1 |  | 0.40 |" in text
    steps = [line.split(" | ")[0].strip("| ") for line in text.splitlines()]
    order = [step for step in steps if step in ("relays started", "switchover", "executing")]
    assert order == ["relays started", "switchover", "executing"]
    assert "| executing | 3.50 | 1.00 |" in text


def test_results_that_are_no_object_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "latest.json").write_text("[]")
    with pytest.raises(ValueError, match="no JSON object"):
        results.save(tmp_path, registry.MEASURES, {})
    assert (tmp_path / "latest.json").read_text() == "[]"


def test_compact_json_is_the_same_json() -> None:
    value = {"a": {"runs": [{"x": [1, 2, {"y": None}]}, {}], "empty": [], "none": {}}, "b": 1}
    assert json.loads(results.compact(value)) == value
