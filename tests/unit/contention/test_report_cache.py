# SPDX-License-Identifier: Apache-2.0
import dataclasses

from nova_enlightened.contention.report import HostReport, Level
from nova_enlightened.contention.report_cache import ReportCache

REPORT = HostReport(
    host="compute1",
    node="compute1",
    at=1000.0,
    level=Level.CALM,
    reason="",
    cpu_level=Level.CALM,
    memory_level=Level.CALM,
    cpus=2,
    cpu_used=1.0,
    cpu_waiting=0.0,
    memory_total=1 << 20,
    memory_available=1 << 19,
)


def made(at: float, host: str = "compute1", level: Level = Level.CALM) -> HostReport:
    return dataclasses.replace(REPORT, at=at, host=host, level=level)


def test_the_newest_report_of_each_host_is_held() -> None:
    cache = ReportCache(max_age=5.0)
    for report in (made(1000.0), made(1001.0), made(1001.0, "compute0")):
        assert cache.add(report, 1001.0)
    assert cache.get("compute1", 1001.0) == made(1001.0)
    assert cache.current(1001.0) == [made(1001.0, "compute0"), made(1001.0)]


def test_a_host_nobody_heard_of_is_unknown() -> None:
    assert ReportCache(max_age=5.0).get("compute1", 1000.0) is None


def test_a_silent_host_becomes_unknown() -> None:
    cache = ReportCache(max_age=5.0)
    cache.add(made(1000.0), 1000.0)
    assert cache.get("compute1", 1005.0) is not None
    assert cache.get("compute1", 1005.1) is None
    assert cache.current(1005.1) == []


def test_a_report_that_lay_in_a_queue_for_long_says_nothing() -> None:
    cache = ReportCache(max_age=5.0)
    cache.add(made(1000.0), 1060.0)
    assert cache.get("compute1", 1060.0) is None


def test_a_report_from_a_clock_that_is_ahead_still_ages() -> None:
    cache = ReportCache(max_age=5.0)
    cache.add(made(9000.0), 1000.0)
    assert cache.get("compute1", 1004.0) is not None
    assert cache.get("compute1", 1006.0) is None


def test_a_report_that_was_overtaken_is_dropped() -> None:
    cache = ReportCache(max_age=5.0)
    cache.add(made(1001.0, level=Level.ACT), 1001.0)
    assert not cache.add(made(1000.0), 1001.1)
    held = cache.get("compute1", 1001.1)
    assert held is not None
    assert held.level is Level.ACT


def test_a_clock_that_was_set_back_is_believed_once_the_old_report_has_aged() -> None:
    cache = ReportCache(max_age=5.0)
    cache.add(made(9000.0), 1000.0)
    assert not cache.add(made(1001.0), 1001.0)
    assert cache.add(made(1006.0), 1006.0)
    assert cache.get("compute1", 1006.0) == made(1006.0)


def test_a_flood_of_host_names_pushes_the_longest_silent_out() -> None:
    cache = ReportCache(max_age=5.0, max_hosts=2)
    for number, host in enumerate(("a", "b", "a", "c")):
        cache.add(made(1000.0 + number, host), 1000.0 + number)
    assert [report.host for report in cache.current(1003.0)] == ["a", "c"]
