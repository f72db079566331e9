# SPDX-License-Identifier: Apache-2.0
"""What the agent tells Prometheus. One registry for each agent; served only where configured."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import prometheus_client
from prometheus_client.core import GaugeMetricFamily, Metric

from nova_enlightened import exception
from nova_enlightened.contention.report import HostReport

PREFIX: Final = "nova_enlightened"
ROLES: Final = ("source", "destination")
KIB: Final = 1024


class _Newest:
    """The newest report, as gauges, made when somebody asks for them and not each second."""

    def __init__(self) -> None:
        self.report: HostReport | None = None
        self.took = 0.0

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        report = self.report
        if report is None:
            return
        levels = _gauge("contention_level", "0 calm, 1 warn, 2 act", "resource")
        for resource, level in (("cpu", report.cpu_level), ("memory", report.memory_level)):
            levels.add_metric([resource], int(level))
        yield levels
        armed = sum(one.armed for one in report.domains)
        for name, text, value in (
            ("cpus_used", "CPUs in use", report.cpu_used),
            ("cpus_waiting", "CPUs guests wanted and did not get", report.cpu_waiting),
            ("memory_available_bytes", "memory to give", report.memory_available * KIB),
            ("capable", "1 where guests can leave and arrive in their order", report.capable),
            ("link_bytes_per_second", "migration traffic the link carries", report.bandwidth),
            ("guests", "guests that run here", len(report.domains)),
            ("guests_armed", "guests that sample which memory they use", armed),
            ("sampling_seconds", "time the last sample took", self.took),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=float(value))
        waiting = _gauge("guest_cpus_waiting", "CPUs a guest did not get", "instance")
        hot = _gauge("guest_hot_bytes", "memory an armed guest uses", "instance")
        for one in report.domains:
            waiting.add_metric([one.uuid], one.waiting)
            if one.hot is not None:
                hot.add_metric([one.uuid], one.hot * KIB)
        yield from (waiting, hot)


def _gauge(name: str, text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=[label])


class Metrics:
    """Gauges and counters of one agent."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self._server: Any = None
        self._newest = _Newest()
        self.registry.register(self._newest)

        def counter(name: str, text: str, *labels: str) -> prometheus_client.Counter:
            return prometheus_client.Counter(
                f"{PREFIX}_{name}", text, labels, registry=self.registry
            )

        self._orders = prometheus_client.Gauge(
            f"{PREFIX}_orders_standing",
            "urgent orders no migration has taken yet",
            registry=self.registry,
        )
        self._relays = prometheus_client.Gauge(
            f"{PREFIX}_relays_running", "relay processes", ("role",), registry=self.registry
        )
        self._prepared = counter("preparations", "migrations this host prepared", "answer")
        self._ended = counter("evictions", "ordered migrations that ended", "outcome")
        self._decisions = counter(
            "decisions", "live migrations nova-compute decided on", "kind", "reason"
        )
        self._failures = counter("sampling_failures", "samples a collector failed", "collector")

    def serve(self, address: str, port: int) -> None:
        """Serve them. :raises ConfigError: the address or the port cannot be listened on."""
        try:
            self._server, _ = prometheus_client.start_http_server(
                port, address, registry=self.registry
            )
        except OSError as error:
            raise exception.ConfigError(
                f"[enlightened_agent] metrics_address, metrics_port = {address}, {port}: {error}"
            ) from error

    def close(self) -> None:
        """Serve them no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def reported(self, report: HostReport | None, took: float = 0.0) -> None:
        """A sample was taken; None: the host cannot be told of now. :param took: seconds."""
        self._newest.report, self._newest.took = report, took

    def collector_failed(self, name: str) -> None:
        """A collector could not read what it reads."""
        self._failures.labels(name).inc()

    def looked(self, running: Sequence[Mapping[str, Any]], orders: int) -> None:
        """Relays that run and orders that stand."""
        self._orders.set(orders)
        for role in ROLES:
            self._relays.labels(role).set(sum(one["role"] == role for one in running))

    def prepared(self, wanted: bool, ordered: bool) -> None:
        """nova-compute had a migration prepared."""
        answer = "ordered" if ordered else "post-copy" if wanted else "stock"
        self._prepared.labels(answer).inc()

    def ended(self, completed: bool) -> None:
        """An ordered migration has ended."""
        self._ended.labels("completed" if completed else "failed").inc()

    def decided(self, kind: str, reason: str) -> None:
        """What nova-compute decided of a live migration."""
        self._decisions.labels(kind, reason).inc()
