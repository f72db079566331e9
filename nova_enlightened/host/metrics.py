# SPDX-License-Identifier: Apache-2.0
"""What the agent tells Prometheus. One registry for each agent; served only where configured."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import prometheus_client

from nova_enlightened import exception
from nova_enlightened.contention.report import HostReport

PREFIX: Final = "nova_enlightened"
ROLES: Final = ("source", "destination")


class Metrics:
    """Gauges and counters of one agent."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self._server: Any = None

        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> prometheus_client.Gauge:
            return prometheus_client.Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

        def counter(name: str, text: str, labels: Sequence[str]) -> prometheus_client.Counter:
            return prometheus_client.Counter(
                f"{PREFIX}_{name}", text, labels, registry=self.registry
            )

        self._level = gauge("contention_level", "0 calm, 1 warn, 2 act", ("resource",))
        self._cpu_used = gauge("cpus_used", "CPUs in use")
        self._cpu_waiting = gauge("cpus_waiting", "CPUs guests wanted and did not get")
        self._memory = gauge("memory_available_bytes", "memory the host could give")
        self._capable = gauge("capable", "1 where guests can leave and arrive in their order")
        self._bandwidth = gauge("link_bytes_per_second", "migration traffic the link can carry")
        self._guest_waiting = gauge(
            "guest_cpus_waiting", "CPUs a guest wanted and did not get", ("instance",)
        )
        self._guest_hot = gauge("guest_hot_bytes", "memory an armed guest uses", ("instance",))
        self._domains = gauge("guests", "guests that run here")
        self._armed = gauge("guests_armed", "guests that sample which memory they use")
        self._orders = gauge("orders_standing", "urgent orders no migration has taken yet")
        self._relays = gauge("relays_running", "relay processes", ("role",))
        self._sampling = gauge("sampling_seconds", "time the last sample took")
        self._prepared = counter(
            "preparations", "migrations this host was asked to prepare", ("answer",)
        )
        self._ended = counter("evictions", "ordered migrations that ended", ("outcome",))
        self._decisions = counter(
            "decisions", "live migrations nova-compute decided on", ("kind", "reason")
        )
        self._failures = counter("sampling_failures", "samples a collector failed", ("collector",))

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

    def reported(self, report: HostReport, took: float) -> None:
        """A sample was taken. :param took: seconds."""
        for resource, level in (("cpu", report.cpu_level), ("memory", report.memory_level)):
            self._level.labels(resource).set(int(level))
        self._cpu_used.set(report.cpu_used)
        self._cpu_waiting.set(report.cpu_waiting)
        self._memory.set(report.memory_available * 1024)
        self._capable.set(report.capable)
        self._bandwidth.set(report.bandwidth)
        self._domains.set(len(report.domains))
        self._armed.set(sum(one.armed for one in report.domains))
        self._sampling.set(took)
        # Guests that have gone must not be told of for ever.
        self._guest_waiting.clear()
        self._guest_hot.clear()
        for one in report.domains:
            self._guest_waiting.labels(one.uuid).set(one.waiting)
            if one.hot is not None:
                self._guest_hot.labels(one.uuid).set(one.hot * 1024)

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
