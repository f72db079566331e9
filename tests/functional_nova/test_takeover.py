# SPDX-License-Identifier: Apache-2.0
"""nova-compute of the source ends in the middle of an urgent migration, and starts again."""

import threading
from typing import Any

import fixtures
import libvirt
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt

from nova_enlightened.virt import watched
from tests.functional_nova import base
from tests.functional_nova.base import ORDERED, RELAYS
from tests.functional_nova.test_live_migration import stand

RUNS = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)
SPLIT = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY)
MIGRATED = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED)
OFF = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN)
LOST = {"state": "lost", "why": "QEMU at the destination has ended"}


class Killed(BaseException):
    """The process ends here: no code of its own, or of Nova's, sees it as an error."""


class RestartedCase(base.MigrationTestCase):
    """A server is on its way, and its nova-compute is killed and started again."""

    def setUp(self) -> None:
        super().setUp()
        self.agent.answer = ORDERED
        for name, seconds in (("LOOK_S", 0.05), ("AGAIN_S", 0.1)):
            self.useFixture(fixtures.MonkeyPatch(f"nova_enlightened.virt.takeover.{name}", seconds))
        self.released.clear()
        self.killed = False
        self.monitor_ended = threading.Event()
        asked = watched.WatchedGuest.get_job_info

        def get_job_info(guest: Any) -> Any:
            if self.killed:
                self.monitor_ended.set()
                raise Killed
            return asked(guest)

        self.useFixture(
            fixtures.MonkeyPatch(
                "nova_enlightened.virt.watched.WatchedGuest.get_job_info", get_job_info
            )
        )
        self.after_the_switch = self.end_with_the_process
        self.addCleanup(self.released.set)

    def end_with_the_process(self, domain: Any, params: dict[str, Any]) -> None:
        """libvirt goes on; nobody waits for its answer."""
        connection = self.dest.driver._host.get_connection()
        connection.createXML(params["destination_xml"], "")
        raise Killed

    def leave(self) -> None:
        """Have it switched, and nova-compute killed."""
        self.create()
        self._live_migrate(self.server, "running (post-copy)", "MIGRATING", host="dest")
        self.killed = True
        self.released.set()
        self.assertTrue(self.monitor_ended.wait(base.TIMEOUT_S))

    def restart(self, state: int, reason: int) -> None:
        """Start nova-compute again, where libvirt says that of the domain."""
        stand(self.domain(), state, reason)
        self.src = self.restart_compute_service("src")

    def leave_and_restart(self, state: int, reason: int) -> None:
        self.leave()
        self.restart(state, reason)

    def domain(self) -> Any:
        connection = self.src.driver._host.get_connection()
        return connection.lookupByUUIDString(self.server["id"])

    def entry(self) -> Any:
        return self.src.driver._journal.get(self.server["id"])

    def instance(self) -> Any:
        return objects.Instance.get_by_uuid(
            nova_context.get_admin_context(), self.server["id"], expected_attrs=["flavor"]
        )

    def assert_on_record(self, host: str, status: str, state: str) -> None:
        """The instance's host, its migration, and what placement holds."""
        self._wait_for_migration_status(self.server, [status])
        for thread in threading.enumerate():
            if thread.name == "departure-takeover":
                thread.join(base.TIMEOUT_S)
        server = self._wait_for_state_change(self.server, state)
        self.assertEqual(host, server["OS-EXT-SRV-ATTR:host"])
        self.assertIsNone(server["OS-EXT-STS:task_state"])
        for each in ("src", "dest"):
            usage = self._get_provider_usages(self.compute_rp_uuids[each])
            self.assertEqual(int(each == host), usage["VCPU"], each)


class TestOutcomes(RestartedCase):
    """What Nova has on record in the end."""

    def test_one_that_arrives_is_on_record_at_its_destination(self) -> None:
        self.agent.there = "executes"
        self.leave_and_restart(*MIGRATED)
        self.assert_on_record("dest", "completed", "ACTIVE")
        self.assertIsNone(self.entry())
        self.assertIn(("src", RELAYS, "completed"), self.agent.ended)

    def test_one_that_is_under_way_is_shown_as_migrating_until_it_arrives(self) -> None:
        self.leave_and_restart(*SPLIT)
        self._wait_for_server_parameter(self.server, {"OS-EXT-STS:task_state": "migrating"})
        self.assertEqual("src", self.instance().host)
        self.agent.there = "executes"
        stand(self.domain(), *MIGRATED)
        self.assert_on_record("dest", "completed", "ACTIVE")

    def test_one_that_stayed_is_rolled_back(self) -> None:
        self.leave_and_restart(*RUNS)
        self.assert_on_record("src", "error", "ACTIVE")
        self.assertIsNone(self.entry())

    def test_one_that_is_not_switched_is_called_back(self) -> None:
        self.leave()
        domain = self.domain()
        domain.jobInfo = lambda: [fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED] + [0] * 11

        def abort() -> None:
            domain.jobInfo = lambda: [0] * 12

        domain.abortJob = abort
        self.restart(*RUNS)
        self.assert_on_record("src", "error", "ACTIVE")

    def test_one_that_is_lost_at_its_destination_is_in_error_with_the_reason(self) -> None:
        self.agent.recovered = LOST
        self.leave_and_restart(*SPLIT)
        self.assert_on_record("src", "error", "ERROR")
        server = self.admin_api.get_server(self.server["id"])
        self.assertIn(LOST["why"], server["fault"]["message"])

    def test_one_whose_source_was_rebooted_is_in_error_at_its_destination(self) -> None:
        self.agent.there = "post-copy"
        self.leave_and_restart(*OFF)
        self.assert_on_record("dest", "completed", "ERROR")

    def test_a_second_restart_goes_on_where_the_first_was(self) -> None:
        self.leave_and_restart(*SPLIT)
        self.agent.there = "executes"
        self.restart(*MIGRATED)
        self.assert_on_record("dest", "completed", "ACTIVE")

    def test_a_restart_after_novas_own_end_and_before_the_entry_is_closed_changes_nothing(
        self,
    ) -> None:
        self.agent.there = "executes"
        self.leave()
        entry = self.entry()
        self.restart(*MIGRATED)
        self.assert_on_record("dest", "completed", "ACTIVE")
        self.src.driver._journal.keep(entry)
        self.src = self.restart_compute_service("src")
        self.assert_on_record("dest", "completed", "ACTIVE")
        self.assertIsNone(self.entry())


class TestGuard(RestartedCase):
    """Nothing starts at the source what may execute at its destination."""

    def refused(self, act: Any, *arguments: Any) -> None:
        """By the driver itself, whoever asks it."""
        launched: list[Any] = []

        def launch(*given: Any, **_: Any) -> None:
            launched.append(given)

        for name in ("Domain.createWithFlags", "Domain.resume", "Connection.createXML"):
            self.useFixture(fixtures.MonkeyPatch(f"nova.tests.fixtures.libvirt.{name}", launch))
        error = self.assertRaises(nova_exception.MigrationError, act, *arguments)
        self.assertIn("not started here", str(error))
        self.assertEqual([], launched)

    def setUp(self) -> None:
        super().setUp()
        self.leave_and_restart(*SPLIT)
        self.context = nova_context.get_admin_context()
        self.driver = self.src.driver

    def test_a_start_is_refused(self) -> None:
        self.refused(self.driver.power_on, self.context, self.instance(), [], None)

    def test_a_hard_reboot_is_refused_before_anything_is_destroyed(self) -> None:
        self.refused(self.driver.reboot, self.context, self.instance(), [], "HARD", None)
        self.assertEqual(list(SPLIT), self.domain().state())

    def test_a_soft_reboot_is_refused(self) -> None:
        self.domain().jobInfo = lambda: [fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED] + [0] * 11
        stand(self.domain(), *RUNS)
        self.refused(self.driver._soft_reboot, self.instance())

    def test_a_resume_of_guests_at_the_hosts_boot_is_refused(self) -> None:
        stand(self.domain(), *OFF)
        self.domain()._state = fakelibvirt.VIR_DOMAIN_SHUTOFF
        self.refused(self.driver.resume_state_on_host_boot, self.context, self.instance(), [], None)

    def test_an_unpause_is_refused(self) -> None:
        self.refused(self.driver.unpause, self.instance())

    def test_a_rescue_is_refused_before_anything_is_destroyed(self) -> None:
        self.refused(
            self.driver.rescue, self.context, self.instance(), [], None, "secret", None, None
        )
        self.assertEqual(list(SPLIT), self.domain().state())

    def test_whatever_creates_a_guest_is_refused(self) -> None:
        self.refused(self.driver._create_guest, self.context, "<domain/>", self.instance())

    def test_the_api_refuses_a_reboot_while_it_is_under_way(self) -> None:
        self._wait_for_server_parameter(self.server, {"OS-EXT-STS:task_state": "migrating"})
        self.api.api_post(
            f"/servers/{self.server['id']}/action",
            {"reboot": {"type": "HARD"}},
            check_response_status=[409],
        )

    def test_one_whose_entry_cannot_be_read_is_refused(self) -> None:
        self.driver._taking.stop()
        journal = self.driver._journal
        journal._path(self.server["id"]).write_text("{")
        stand(self.domain(), *OFF)
        self.refused(self.driver.power_on, self.context, self.instance(), [], None)


class TestLostGuard(RestartedCase):
    """It was lost: only the operator may start it, once nothing is left at its destination."""

    def setUp(self) -> None:
        super().setUp()
        self.agent.recovered = LOST
        self.leave_and_restart(*SPLIT)
        self.assert_on_record("src", "error", "ERROR")

    def test_it_is_refused_while_its_destination_does_not_answer(self) -> None:
        self.assertRaises(
            nova_exception.MigrationError, self.src.driver._refuse_departed, self.instance()
        )
        self.assertEqual(LOST["why"], self.entry().lost)

    def test_it_may_be_started_once_nothing_is_left_there(self) -> None:
        self.agent.there = "gone"
        self.src.driver._refuse_departed(self.instance())
        self.assertIsNone(self.entry())

    def test_it_is_forgotten_with_its_server(self) -> None:
        self._delete_server(self.server)
        self.src = self.restart_compute_service("src")
        self.assertIsNone(self.entry())
