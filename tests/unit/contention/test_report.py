# SPDX-License-Identifier: Apache-2.0
import json
from typing import Any

import pytest

from nova_enlightened.contention.report import DomainReport, HostReport, Level

REPORT = HostReport(
    host="compute1",
    node="compute1.example",
    at=1000.5,
    level=Level.ACT,
    reason="2 CPUs, 1.5 wanted and not given",
    cpu_level=Level.ACT,
    memory_level=Level.CALM,
    cpus=2,
    cpu_used=2.0,
    cpu_waiting=1.5,
    memory_total=1 << 20,
    memory_available=1 << 19,
    domains=(DomainReport("a" * 8, vcpus=1, cpu=0.5, waiting=0.7, memory=1 << 18, hot=1 << 12),),
    urgent=("a" * 8,),
)


def test_a_report_survives_its_way_over_the_bus() -> None:
    assert HostReport.from_dict(json.loads(json.dumps(REPORT.to_dict()))) == REPORT


def test_what_a_newer_sender_adds_is_left_out() -> None:
    assert HostReport.from_dict({**REPORT.to_dict(), "moon": "full"}) == REPORT


@pytest.mark.parametrize(
    "values",
    [
        None,
        "report",
        [1],
        {},
        {"version": 99},
        {"version": 1},
        {**REPORT.to_dict(), "level": 7},
        {**REPORT.to_dict(), "domains": 3},
        {**REPORT.to_dict(), "domains": [1]},
        {**REPORT.to_dict(), "domains": [{"uuid": "a"}]},
        {**REPORT.to_dict(), "urgent": 1},
        {**REPORT.to_dict(), "urgent": "a" * 8},
        {**REPORT.to_dict(), "urgent": ["a"] * 20_000},
        {**REPORT.to_dict(), "host": 3},
        {**REPORT.to_dict(), "at": "yesterday"},
        {**REPORT.to_dict(), "at": float("nan")},
        {**REPORT.to_dict(), "cpu_used": -1},
        {**REPORT.to_dict(), "cpus": 10**30},
        {**REPORT.to_dict(), "reason": "x" * 10_000},
        {**REPORT.to_dict(), "capable": "perhaps"},
    ],
)
def test_what_is_not_a_report_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="report"):
        HostReport.from_dict(values)
