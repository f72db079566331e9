# SPDX-License-Identifier: Apache-2.0
"""What Prometheus may read of the remediator. Its own registry: nothing of the process leaks in."""

from collections.abc import Iterable
from typing import Any, Final

import prometheus_client

from nova_enlightened import exception
from nova_enlightened.conf import remediation as options
from nova_enlightened.contention.report import HostReport, Level
from nova_enlightened.remediation.record import EvictionRecord

_PREFIX: Final = "nova_enlightened_remediator"
_SECONDS: Final = (0.5, 1, 2, 3, 4, 6, 10, 20, 60, 300, 900)
_PARTS: Final = (
    ("detected", "decided"),
    ("decided", "ordered"),
    ("ordered", "requested"),
    ("requested", "accepted"),
    ("requested", "appeared"),
    ("requested", "post_copy"),
    ("requested", "completed"),
    ("completed", "relieved"),
)


class Metrics:
    """The figures; each method may be called from the main loop only."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        registry = self.registry
        self._leads = prometheus_client.Gauge(
            f"{_PREFIX}_leads", "1 where this instance leads", registry=registry
        )
        self._hosts = prometheus_client.Gauge(
            f"{_PREFIX}_hosts", "Hosts by how contended they are", ["level"], registry=registry
        )
        self._under_way = prometheus_client.Gauge(
            f"{_PREFIX}_evictions_under_way", "Evictions that have not ended", registry=registry
        )
        self._armed = prometheus_client.Gauge(
            f"{_PREFIX}_guests_armed", "Armed guests", registry=registry
        )
        self._ended = prometheus_client.Counter(
            f"{_PREFIX}_evictions", "Evictions by how they ended", ["outcome"], registry=registry
        )
        self._part = prometheus_client.Histogram(
            f"{_PREFIX}_eviction_seconds",
            "How long each part of an eviction took",
            ["start", "end"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._relief = prometheus_client.Counter(
            f"{_PREFIX}_relief_cpus",
            "CPUs of waiting that evictions were to end, and did",
            ["how"],
            registry=registry,
        )
        self._errors = prometheus_client.Counter(
            f"{_PREFIX}_errors", "What went wrong, by what was asked", ["asked"], registry=registry
        )

    def serve(self, address: str, port: int) -> Any:
        """Serve them; returns the server, to be shut down. None where `port` is 0.

        :raises ConfigError: the address cannot be listened on.
        """
        if not port:
            return None
        try:
            server, _ = prometheus_client.start_http_server(port, address, self.registry)
        except OSError as error:
            raise exception.ConfigError(
                f"[{options.GROUP}] metrics_address = {address}, metrics_port = {port}: {error}"
            ) from error
        return server

    def state(
        self, *, leads: bool, reports: Iterable[HostReport], under_way: int, armed: int
    ) -> None:
        """How things stand."""
        self._leads.set(int(leads))
        levels = [report.level for report in reports]
        for level in Level:
            self._hosts.labels(level.name.lower()).set(levels.count(level))
        self._under_way.set(under_way)
        self._armed.set(armed)

    def ended(self, record: EvictionRecord) -> None:
        """An eviction ended."""
        self._ended.labels(str(record.state)).inc()
        for start, end in _PARTS:
            began, ended = record.at(start), record.at(end)
            if began is not None and ended is not None:
                self._part.labels(start, end).observe(max(0.0, ended - began))
        if record.resource == "cpu" and record.measured_relief is not None:
            self._relief.labels("predicted").inc(max(0.0, record.predicted_relief))
            self._relief.labels("measured").inc(max(0.0, record.measured_relief))

    def failed(self, asked: str) -> None:
        """Something was asked in vain."""
        self._errors.labels(asked).inc()
