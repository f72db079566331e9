# SPDX-License-Identifier: Apache-2.0
"""The filter and the weigher in a Nova with fake hosts: new servers, and live migrations."""

import dataclasses
import os
import sys
import threading
import time
from typing import Any
from unittest import mock

import nova.conf
import oslo_messaging
from nova.tests.functional import integrated_helpers

from nova_enlightened import rpc
from nova_enlightened.contention.report import DomainReport, HostReport, Level
from nova_enlightened.scheduler import reports

CONF = nova.conf.CONF
FILTER = "nova_enlightened.scheduler.filters.ContentionFilter"
WEIGHER = "nova_enlightened.scheduler.weights.ContentionWeigher"
GIB = 1 << 20  # KiB
PATIENCE_S = 10.0


class SchedulingTestBase(integrated_helpers.ProviderUsageBaseTestCase):
    """Three hosts of Nova's fake driver, a scheduler with both plugins, and a bus in memory."""

    compute_driver = "fake.MediumFakeDriver"
    FILTERS: tuple[str, ...] = ("ContentionFilter",)
    OPTIONS: tuple[tuple[str, Any], ...] = ()

    def setUp(self) -> None:
        self.flags(
            api_paste_config=os.path.join(sys.prefix, "etc", "nova", "api-paste.ini"), group="wsgi"
        )
        self.flags(
            available_filters=["nova.scheduler.filters.all_filters", FILTER],
            enabled_filters=[*CONF.filter_scheduler.enabled_filters, *self.FILTERS],
            weight_classes=[WEIGHER],
            group="filter_scheduler",
        )
        self.heard = reports.shared(CONF)
        for name, value in self.OPTIONS:
            self.flags(**{name: value}, group="enlightened_scheduler")
        super().setUp()
        self.addCleanup(self.heard.stop)
        for name in "abc":
            self._start_compute(host=name)
        self.bus = rpc.ReportAPI(rpc.get_transport(CONF))

    def report(self, host: str, level: Level = Level.CALM, **values: Any) -> HostReport:
        report = HostReport(
            host=host,
            node=host,
            at=time.time(),
            level=level,
            reason="guests wait for 1.50 CPUs",
            cpu_level=level,
            memory_level=Level.CALM,
            cpus=10,
            cpu_used=1.0,
            cpu_waiting=0.0,
            memory_total=8 * GIB,
            memory_available=7 * GIB,
        )
        return dataclasses.replace(report, **values)

    def tell(self, *told: HostReport) -> None:
        """Cast reports until the scheduler has heard them: it listens from its first question."""
        end = time.monotonic() + PATIENCE_S
        pause, wanted = threading.Event(), {one.host for one in told}
        while not wanted <= {one.host for one in self.heard.current()}:
            assert time.monotonic() < end, "the scheduler hears nothing"
            for one in told:
                self.bus.cast(one)
            pause.wait(0.05)

    def host_of(self, server: dict[str, Any]) -> str:
        return self.admin_api.get_server(server["id"])["OS-EXT-SRV-ATTR:host"]

    def server_on(self, host: str) -> dict[str, Any]:
        return self._create_server(host=host, networks="none")

    def home(self, server: dict[str, Any], *, urgent: bool = False, **values: Any) -> HostReport:
        """The contended host of a server, which uses one CPU."""
        domain = DomainReport(server["id"], vcpus=1, cpu=0.5, waiting=0.5, memory=GIB // 2)
        order = (server["id"],) if urgent else ()
        return self.report("a", Level.ACT, domains=(domain,), urgent=order, **values)


class TestScheduling(SchedulingTestBase):
    def test_a_live_migration_avoids_the_contended_host(self) -> None:
        server = self.server_on("a")
        self.tell(self.home(server), self.report("b", Level.ACT), self.report("c", cpu_used=4.0))
        self._live_migrate(server)
        assert self.host_of(server) == "c"

    def test_a_live_migration_avoids_a_host_that_it_would_fill(self) -> None:
        server = self.server_on("a")
        self.tell(self.home(server), self.report("b", cpu_used=9.5), self.report("c"))
        self._live_migrate(server)
        assert self.host_of(server) == "c"

    def test_a_live_migration_with_only_contended_hosts_left_stays(self) -> None:
        server = self.server_on("a")
        self.tell(self.home(server), self.report("b", Level.ACT), self.report("c", Level.ACT))
        self._live_migrate(server, "error")
        assert self.host_of(server) == "a"

    def test_an_urgent_move_goes_to_a_host_that_can_receive_it_in_order(self) -> None:
        server = self.server_on("a")
        able = self.report("c", capable=True, cpu_used=5.0)
        self.tell(self.home(server, urgent=True), self.report("b", cpu_used=0.0), able)
        self._live_migrate(server)
        assert self.host_of(server) == "c"

    def test_without_an_order_the_host_with_more_to_spare_is_taken(self) -> None:
        server = self.server_on("a")
        able = self.report("c", capable=True, cpu_used=5.0)
        self.tell(self.home(server), self.report("b", cpu_used=0.0), able)
        self._live_migrate(server)
        assert self.host_of(server) == "b"

    def test_a_destination_that_is_named_is_taken(self) -> None:
        server = self.server_on("a")
        self.tell(self.home(server), self.report("b", Level.ACT), self.report("c"))
        self._live_migrate(server, host="b")
        assert self.host_of(server) == "b"

    def test_new_servers_avoid_the_contended_hosts(self) -> None:
        self.tell(self.report("a", Level.ACT), self.report("b"), self.report("c", Level.ACT))
        for _ in range(2):
            assert self.host_of(self._create_server(networks="none")) == "b"

    def test_a_new_server_is_built_where_every_host_is_contended(self) -> None:
        self.tell(*(self.report(name, Level.ACT) for name in "abc"))
        self._create_server(networks="none")

    def test_a_report_that_is_old_counts_for_nothing(self) -> None:
        server = self.server_on("a")
        self.tell(self.home(server), self.report("b", Level.ACT), self.report("c", Level.ACT))
        later = time.time() + 60.0
        (listener,) = self.heard._listener._listeners
        with mock.patch.object(listener, "_clock", return_value=later):
            self._live_migrate(server)
        assert self.host_of(server) in ("b", "c")

    def test_garbage_on_the_bus_changes_nothing(self) -> None:
        server = self.server_on("a")
        self.tell(self.home(server), self.report("b", Level.ACT), self.report("c"))
        for garbage in (None, 7, {}, {"version": 1}, {**self.report("c").to_dict(), "level": 9}):
            self.bus._client.cast({}, "host_report", report=garbage)
        self.bus._client.cast({}, "stop")
        self.tell(self.report("d"))
        self._live_migrate(server)
        assert self.host_of(server) == "c"

    def test_a_resize_and_a_rebuild_go_on(self) -> None:
        server = self.server_on("a")
        self.tell(self.home(server), self.report("b", Level.ACT), self.report("c"))
        self._rebuild_server(server, "155d900f-4e14-4e4c-a73d-069cbf4541e6")
        assert self.host_of(server) == "a"
        self._migrate_server(server)
        assert self.host_of(server) == "c"


class TestWeigherAlone(SchedulingTestBase):
    FILTERS = ()

    def test_a_calm_host_is_preferred(self) -> None:
        self.tell(self.report("a", Level.ACT), self.report("b", Level.WARN), self.report("c"))
        assert self.host_of(self._create_server(networks="none")) == "c"


class TestRefusal(SchedulingTestBase):
    OPTIONS = (("refuse_new_servers", True),)

    def test_a_new_server_is_refused_where_the_operator_says_so(self) -> None:
        self.tell(*(self.report(name, Level.ACT) for name in "abc"))
        self._create_server(networks="none", expected_state="ERROR")


class TestBusDown(SchedulingTestBase):
    """As stock Nova: nothing is heard, nothing is waited for."""

    def setUp(self) -> None:
        down = mock.patch.object(
            oslo_messaging, "get_rpc_server", side_effect=oslo_messaging.MessagingException("down")
        )
        super().setUp()
        # Nova's services have theirs by now.
        down.start()
        self.addCleanup(down.stop)

    def test_servers_are_built_and_move(self) -> None:
        server = self.server_on("a")
        self._live_migrate(server)
        assert self.host_of(server) in ("b", "c")
