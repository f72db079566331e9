# SPDX-License-Identifier: Apache-2.0
"""Fuzzing as a scenario."""

from typing import Any

import pytest

from bench import fuzz, registry
from bench.measures import MeasureError


def result(**changes: Any) -> dict[str, Any]:
    fields = {
        "target": "migration", "source": "ab", "executions": 2000, "seconds": 4.0,
        "growth": 24 << 20, "coverage": 300, "features": 900, "crashes": [],
    }  # fmt: skip
    return {**fields, **changes}


def test_nothing_that_breaks_a_parser_is_no_crash() -> None:
    outcome = fuzz.outcome([result(), result(target="snapshot")], 2000)
    assert outcome.values == {"fuzz_crashes": [0]}
    assert set(outcome.values) == {m.id for m in registry.chosen(["fuzz"])}
    assert "24 MiB" in outcome.notes[0]


def test_each_input_that_breaks_a_parser_counts() -> None:
    outcome = fuzz.outcome([result(executions=70, crashes=["a", "b"]), result()], 2000)
    assert outcome.values == {"fuzz_crashes": [2]}
    assert not registry.BY_ID["fuzz_crashes"].met(2)


def test_a_run_that_was_cut_short_is_no_result() -> None:
    with pytest.raises(MeasureError, match="migration"):
        fuzz.outcome([result(executions=1999)], 2000)


def test_no_target_at_all_is_no_result() -> None:
    with pytest.raises(MeasureError):
        fuzz.outcome([], 2000)
