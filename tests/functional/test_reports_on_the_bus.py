# SPDX-License-Identifier: Apache-2.0
"""Reports cast by agents reach every listener, over oslo.messaging's in-memory driver."""

import pathlib
import threading
from typing import Any

import pytest
from oslo_config import cfg

from nova_enlightened import rpc
from nova_enlightened.contention.report import HostReport, Level
from nova_enlightened.contention.report_cache import ReportCache

REPORT = HostReport(
    host="compute1",
    node="compute1",
    at=1000.0,
    level=Level.WARN,
    reason="",
    cpu_level=Level.WARN,
    memory_level=Level.CALM,
    cpus=2,
    cpu_used=1.0,
    cpu_waiting=0.0,
    memory_total=1 << 20,
    memory_available=1 << 19,
)


class Noted(ReportCache):
    """A cache that says when something has come."""

    def __init__(self) -> None:
        super().__init__(max_age=5.0)
        self.came = threading.Event()

    def add(self, report: HostReport, now: float) -> bool:
        added = super().add(report, now)
        self.came.set()
        return added


@pytest.fixture
def transport(tmp_path: pathlib.Path) -> Any:
    file = tmp_path / "test.conf"
    file.write_text("[DEFAULT]\ntransport_url = fake://\n")
    config = cfg.ConfigOpts()
    config(["--config-file", str(file)], project="test", default_config_files=[])
    return rpc.get_transport(config)


def test_a_report_reaches_every_listener(transport: Any) -> None:
    caches = [Noted(), Noted()]
    listeners = [
        rpc.ReportListener(transport, f"listener-{number}", cache, clock=lambda: 1000.0)
        for number, cache in enumerate(caches)
    ]
    api = rpc.ReportAPI(transport)
    for listener in listeners:
        listener.start()
    try:
        for cache in caches:
            for _ in range(100):  # a cast before a listener listens is lost, as on a real bus
                api.cast(REPORT)
                if cache.came.wait(0.1):
                    break
        assert [listener.get("compute1") for listener in listeners] == [REPORT, REPORT]
        assert listeners[0].current() == [REPORT]
    finally:
        for listener in listeners:
            listener.stop()


def test_what_is_not_a_report_is_dropped(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    listener = rpc.ReportListener(transport, "listener", ReportCache(max_age=5.0))
    listener.host_report({}, {"version": 99})
    assert listener.current() == []
    assert "version 99" in caplog.text


def test_a_listener_that_never_reached_the_bus_stops_at_once(transport: Any) -> None:
    rpc.ReportListener(transport, "listener", ReportCache(max_age=5.0)).stop()
