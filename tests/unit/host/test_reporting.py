# SPDX-License-Identifier: Apache-2.0
"""From collectors to a report, from a report to the bus and to Prometheus."""

import dataclasses
import threading
import urllib.request
from typing import Any

import pytest

from nova_enlightened import conf as options
from nova_enlightened import exception
from nova_enlightened.contention.detector import Detector, Thresholds
from nova_enlightened.contention.report import DomainSample, HostReport, Level
from nova_enlightened.host import outbox
from nova_enlightened.host.armed import GuestFacts
from nova_enlightened.host.collectors.reading import Collector, Reading
from nova_enlightened.host.metrics import Metrics
from nova_enlightened.host.outbox import Outbox, is_due
from nova_enlightened.host.sampling import Identity, Sampler, thresholds

A = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"
IDENTITY = Identity("host1", "node1")
READING = Reading(
    cpus=2,
    cpu_busy=1.0,
    memory_total=1 << 20,
    memory_available=1 << 19,
    bandwidth=1000,
    domains=(DomainSample(A, 1, 1.0, 0.0, 1 << 18, 1 << 17),),
)


class Fixed(Collector):
    """Finds what it is given, or fails."""

    def __init__(self, name: str, found: Reading | Exception) -> None:
        self.name = name  # type: ignore[misc]
        self.found = found
        self.sofar: Reading | None = None

    def collect(self, now: float, sofar: Reading) -> Reading:
        self.sofar = sofar
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def report(at: float = 0.0, level: Level = Level.CALM, **different: Any) -> HostReport:
    sampler = Sampler([Fixed("all", READING)], Detector())
    made = sampler.report(sampler.read(0.0), IDENTITY, 0.0, at, capable=True)
    return dataclasses.replace(made, level=level, **different)


# -- sampling ---------------------------------------------------------------------------------


def test_a_collector_sees_what_others_found_before_it() -> None:
    second = Fixed("b", Reading())
    Sampler([Fixed("a", READING), second], Detector()).read(0.0)
    assert second.sofar == READING


@pytest.mark.parametrize("failure", [exception.CollectorError("no"), ZeroDivisionError("plugin")])
def test_a_collector_that_fails_leaves_the_others_readings(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    failed: list[str] = []
    broken = Fixed("broken", failure)
    sampler = Sampler([broken, Fixed("all", READING)], Detector(), failed=failed.append)
    assert [sampler.read(float(t)) for t in range(3)] == [READING] * 3
    assert failed == ["broken"] * 3
    assert sum("Collector broken:" in line for line in caplog.messages) == 1


def test_a_collector_that_works_again_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    one = Fixed("one", exception.CollectorError("no"))
    sampler = Sampler([one], Detector())
    sampler.read(0.0)
    one.found = READING
    assert sampler.read(1.0) == READING
    assert "Collector one works again" in caplog.text


def test_the_report_is_that_of_this_host() -> None:
    made = report(at=1000.0)
    assert (made.host, made.node, made.at) == ("host1", "node1", 1000.0)
    assert (made.bandwidth, made.capable) == (1000, True)
    assert [one.uuid for one in made.domains] == [A]


def test_the_report_says_what_is_known_of_armed_guests() -> None:
    facts = {A: GuestFacts(True, 160, "how")}
    sampler = Sampler([Fixed("all", READING)], Detector(), facts.get)
    made = sampler.report(sampler.read(0.0), IDENTITY, 0.0, 0.0, capable=True)
    assert (made.domains[0].armed, made.domains[0].hot) == (True, 160)


def test_without_libvirt_there_is_no_report() -> None:
    sampler = Sampler([Fixed("all", dataclasses.replace(READING, domains=None))], Detector())
    with pytest.raises(exception.CollectorError, match="domains"):
        sampler.report(sampler.read(0.0), IDENTITY, 0.0, 0.0, capable=True)


def test_the_defaults_are_the_detectors_own() -> None:
    assert thresholds(options.read([]).enlightened_agent) == Thresholds()


# -- what is sent ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "new", "due"),
    [
        (None, report(), True),
        (report(100.0), report(101.0), False),
        (report(100.0), report(102.0), True),
        (report(100.0), report(100.5, Level.WARN), True),
        (report(100.0, Level.ACT), report(100.5, Level.ACT), True),
        (report(100.0, Level.WARN), report(100.5), True),
        (report(100.0), report(100.5, capable=False), True),
        (report(100.0), report(100.5, urgent=("server",)), True),
        (report(100.0), report(50.0), True),
    ],
)
def test_calm_reports_are_sent_now_and_then_and_others_at_once(
    last: HostReport | None, new: HostReport, due: bool
) -> None:
    assert is_due(new, last, 2.0) is due


def test_a_bus_that_is_down_never_holds_up_who_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "CALM_DOWN_S", 0.0)
    sent: list[float] = []
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def cast(one: HostReport) -> None:
        begun.set()
        go_on.wait(10)
        sent.append(one.at)
        if len(sent) == 1:
            raise exception.AgentUnreachable("bus down")
        done.set()

    box = Outbox(cast, interval=0.0)
    box.start()
    box.offer(report(1.0))
    assert begun.wait(10)
    for at in (2.0, 3.0, 4.0):
        box.offer(report(at))
    go_on.set()
    assert done.wait(10)
    box.stop()
    # Only the newest was kept meanwhile.
    assert sent == [1.0, 4.0]


# -- metrics ----------------------------------------------------------------------------------


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"nova_enlightened_{name}", labels)


def test_metrics_say_what_the_report_says() -> None:
    metrics = Metrics()
    metrics.reported(report(level=Level.WARN, cpu_level=Level.WARN, cpu_waiting=0.5), took=0.002)
    assert value(metrics, "contention_level", resource="cpu") == 1
    assert value(metrics, "cpus_waiting") == 0.5
    assert value(metrics, "guest_cpus_waiting", instance=A) == 0.0


def test_guests_that_have_gone_are_not_told_of_any_more() -> None:
    metrics = Metrics()
    metrics.reported(report(), took=0.0)
    metrics.reported(report(domains=()), took=0.0)
    assert value(metrics, "guest_cpus_waiting", instance=A) is None


def test_preparations_are_counted_by_what_came_of_them() -> None:
    metrics = Metrics()
    for answer in ((True, True), (True, False), (False, False), (True, True)):
        metrics.prepared(*answer)
    counts = [
        value(metrics, "preparations_total", answer=answer)
        for answer in ("ordered", "post-copy", "stock")
    ]
    assert counts == [2, 1, 1]


def test_metrics_are_served_where_that_is_configured() -> None:
    metrics = Metrics()
    metrics.decided("ordered", "wanted")
    metrics.serve("127.0.0.1", 0)
    port = metrics._server.server_address[1]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    metrics.close()
    assert 'nova_enlightened_decisions_total{kind="ordered",reason="wanted"} 1.0' in text


def test_a_port_that_is_taken_is_refused_by_name() -> None:
    first, second = Metrics(), Metrics()
    first.serve("127.0.0.1", 0)
    try:
        with pytest.raises(exception.ConfigError, match="metrics_port"):
            second.serve("127.0.0.1", first._server.server_address[1])
    finally:
        first.close()
