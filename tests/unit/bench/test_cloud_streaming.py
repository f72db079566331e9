# SPDX-License-Identifier: Apache-2.0
"""Servers created both ways on a cloud, as a scenario."""

from pathlib import Path

from bench import cloud_streaming, registry, results


def test_the_ratio_of_each_round_is_kept_and_both_ways_are_shown(tmp_path: Path) -> None:
    outcome = cloud_streaming.outcome([(40.0, 5.0), (42.0, 6.0)], {"Nova": "34.0.0"}, [])
    (measure,) = registry.chosen(["stream_lab_create_ratio"])
    assert outcome.values == {measure.id: [8.0, 7.0]}

    results.save(tmp_path, [measure], {"cloud_streaming": outcome})

    table = (tmp_path / results.TABLE).read_text()
    assert "| server create: image from Glance | 2 | 41.00 |" in table
    assert "| server create: appliance streamed | 2 | 5.50 |" in table
