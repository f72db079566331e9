# SPDX-License-Identifier: Apache-2.0
"""Live migrations through Nova's API, conductor and compute services, with this driver."""

import contextlib
from typing import Any
from unittest import mock

import fixtures
import libvirt
from nova.tests.fixtures import libvirt as fakelibvirt

from nova_enlightened import exception
from tests.functional_nova import base
from tests.functional_nova.base import NO_ORDER, NOT_WANTED, ORDERED, RELAY_URI, RELAYS

LIBVIRT_DRIVER = "nova.virt.libvirt.driver.LibvirtDriver"


class TestUrgent(base.MigrationTestCase):
    """An order stands."""

    def setUp(self) -> None:
        super().setUp()
        self.agent.answer = ORDERED

    def test_it_goes_through_the_relays_in_post_copy_and_is_switched(self) -> None:
        self.create()
        call = self.migrate()
        self.assertEqual(RELAY_URI, call["params"]["migrate_uri"])
        self.assertTrue(call["flags"] & libvirt.VIR_MIGRATE_POSTCOPY)
        self.assertTrue(self.switched.is_set())
        self.assertEqual([("ordered", "wanted")], self.agent.decisions)
        self.assertEqual([("src", RELAYS, "completed")], self.agent.ended)

    def test_the_agent_of_the_source_is_asked_for_the_destination(self) -> None:
        server = self.create()
        self.migrate()
        self.assertEqual(
            [
                {
                    "host": "src",
                    "instance": server["id"],
                    "destination": "dest",
                    "tls_required": False,
                }
            ],
            self.agent.asked,
        )

    def test_nova_shows_it_in_post_copy_while_it_runs(self) -> None:
        self.released.clear()
        self.create()
        self._live_migrate(self.server, "running (post-copy)", "MIGRATING", host="dest")
        self.released.set()
        self._wait_for_migration_status(self.server, ["completed"])
        self._wait_for_state_change(self.server, "ACTIVE")

    def test_it_can_be_neither_aborted_nor_forced_once_it_is_switched(self) -> None:
        self.released.clear()
        self.create()
        self._live_migrate(self.server, "running (post-copy)", "MIGRATING", host="dest")
        migration = self._wait_for_migration_status(self.server, ["running (post-copy)"])
        url = f"/servers/{self.server['id']}/migrations/{migration['id']}"
        self.admin_api.api_delete(url, check_response_status=[400])
        self.admin_api.api_post(
            f"{url}/action", {"force_complete": None}, check_response_status=[400]
        )
        self.released.set()
        self._wait_for_migration_status(self.server, ["completed"])

    def test_without_a_peer_it_is_switched_on_novas_own_channel(self) -> None:
        self.agent.answer = NO_ORDER
        self.create()
        call = self.migrate()
        self.assertNotIn("migrate_uri", call["params"])
        self.assertTrue(self.switched.is_set())
        self.assertEqual([("post-copy", "no_order")], self.agent.decisions)
        self.assertEqual([], self.agent.ended)

    def test_relays_that_refuse_do_not_fail_it(self) -> None:
        self.failures = [base.failure(libvirt.VIR_ERR_OPERATION_FAILED, "the link was refused")]
        self.create()
        call = self.migrate()
        self.assertEqual(2, len(self.calls))
        self.assertNotIn("migrate_uri", call["params"])
        self.assertEqual("post-copy relays_failed", " ".join(self.agent.decisions[-1]))
        self.assertEqual("failed: the link was refused", self.agent.ended[0][2])

    def test_one_that_libvirt_refuses_twice_is_rolled_back(self) -> None:
        self.failures = [base.failure(libvirt.VIR_ERR_OPERATION_FAILED) for _ in range(2)]
        self.create()
        assert_it_stayed = self.expect_rollback()
        self._live_migrate(self.server, "failed", "ACTIVE", host="dest")
        assert_it_stayed()

    def test_a_port_follows_the_server(self) -> None:
        port = self.neutron.port_1["id"]
        self.create(networks=[{"port": port}])
        self.migrate()
        self.assertEqual(["dest"], list(self.neutron._port_bindings[port]))
        self.assertEqual([("ordered", "wanted")], self.agent.decisions)

    def test_allocations_follow_the_server(self) -> None:
        self.create()
        self.migrate()
        for host, used in (("src", 0), ("dest", 1)):
            usage = self._get_provider_usages(self.compute_rp_uuids[host])
            self.assertEqual(used, usage["VCPU"], host)


def stand(domain: Any, state: int, reason: int) -> None:
    """Have a domain of the fake libvirt say how it stands."""
    domain.state = lambda flags=0: [state, reason]


class TestBrokenAfterTheSwitch(base.MigrationTestCase):
    """libvirt gives up following a migration whose VM may execute at its destination."""

    def setUp(self) -> None:
        super().setUp()
        self.agent.answer = ORDERED
        self.useFixture(fixtures.MonkeyPatch("nova_enlightened.virt.outcome.LOOK_S", 0.05))

    def give_up(self, domain: Any, params: dict[str, Any]) -> None:
        """The VM is there, and goes on; libvirt of the source says that it failed."""
        stand(domain, libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
        connection = self.dest.driver._host.get_connection()
        connection.createXML(params["destination_xml"], "")
        raise base.failure(libvirt.VIR_ERR_OPERATION_FAILED, "client socket is closed")

    def arrive(self, domain: Any, params: dict[str, Any]) -> None:
        """As `give_up`, and its memory is whole before anybody looks."""
        with contextlib.suppress(fakelibvirt.libvirtError):
            self.give_up(domain, params)
        domain.complete_job()
        stand(domain, libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED)
        raise base.failure(libvirt.VIR_ERR_OPERATION_FAILED, "client socket is closed")

    def host_and_usage(self) -> tuple[str, int, int]:
        server = self.admin_api.get_server(self.server["id"])
        used = [self._get_provider_usages(self.compute_rp_uuids[host]) for host in ("src", "dest")]
        return server["OS-EXT-SRV-ATTR:host"], used[0]["VCPU"], used[1]["VCPU"]

    def test_a_vm_that_arrives_all_the_same_is_recorded_at_its_destination(self) -> None:
        self.after_the_switch = self.arrive
        self.create()
        self.migrate()
        self.assertEqual(("dest", 0, 1), self.host_and_usage())
        self.assertEqual("completed", self.agent.ended[-1][2])
        self.assertEqual(RELAYS, self.agent.followed[0]["migration"])

    def test_a_vm_that_is_lost_at_its_destination_is_in_error_with_the_reason(self) -> None:
        self.after_the_switch = self.give_up
        self.agent.recovered = {"state": "lost", "why": "QEMU at the destination has ended"}
        self.create()
        self._live_migrate(self.server, "error", "ERROR", host="dest")
        server = self.admin_api.get_server(self.server["id"])
        self.assertIn("QEMU at the destination has ended", server["fault"]["message"])

    def test_nothing_is_rolled_back_while_the_agent_recovers_it(self) -> None:
        self.after_the_switch = self.give_up
        self.agent.recovered = {"state": "resuming", "why": "both relays are gone"}
        self.create()
        self._live_migrate(self.server, "running (post-copy)", "MIGRATING", host="dest")
        self.assertEqual([], self.agent.ended)
        domain = self.src.driver._host.get_connection().lookupByUUIDString(self.server["id"])
        domain.complete_job()
        stand(domain, libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED)
        self._wait_for_migration_status(self.server, ["completed"])
        self._wait_for_state_change(self.server, "ACTIVE")
        self.assertEqual(("dest", 0, 1), self.host_and_usage())


class TestUrgentWithTls(base.MigrationTestCase):
    """Nova promises that guest memory crosses encrypted."""

    NATIVE_TLS = True

    def test_an_order_asks_for_an_encrypted_link_and_leaves_the_socket_plain(self) -> None:
        self.agent.answer = ORDERED
        self.create()
        call = self.migrate()
        self.assertTrue(self.agent.asked[0]["tls_required"])
        self.assertFalse(call["flags"] & libvirt.VIR_MIGRATE_TLS)

    def test_an_agent_that_cannot_promise_it_leaves_it_to_nova(self) -> None:
        self.agent.answer = exception.AgentRefused("src: [enlightened] link_tls is off")
        self.create()
        call = self.migrate()
        self.assertNotIn("migrate_uri", call["params"])
        self.assertTrue(call["flags"] & libvirt.VIR_MIGRATE_TLS)
        self.assertEqual([("stock", "agent_refused")], self.agent.decisions)

    def test_without_a_peer_qemus_own_channel_is_encrypted(self) -> None:
        self.agent.answer = NO_ORDER
        self.create()
        self.assertTrue(self.migrate()["flags"] & libvirt.VIR_MIGRATE_TLS)


class TestLeftToNova(base.MigrationTestCase):
    """What is not wanted, not allowed or not possible is Nova's."""

    def assert_stock(self, reason: str, asked: bool) -> None:
        call = self.migrate()
        self.assertNotIn("migrate_uri", call["params"])
        self.assertFalse(self.switched.is_set())
        self.assertEqual([("stock", reason)], self.agent.decisions)
        self.assertEqual(asked, bool(self.agent.asked))
        self.assertEqual([], self.agent.ended)

    def test_what_nobody_wants_is_asked_of_libvirt_exactly_as_novas_driver_does(self) -> None:
        self.create()
        ours = self._anonymous(self.migrate(), self.server)
        self.agent.asked.clear()
        self.flags(compute_driver="libvirt.LibvirtDriver")
        self.start_computes("stock-src", "stock-dest")
        self.create()
        stock = self._anonymous(self.migrate(), self.server)
        self.assertEqual([], self.agent.asked)
        self.assertEqual(stock, ours)

    def _anonymous(self, call: dict[str, Any], server: dict[str, Any]) -> str:
        server = self.admin_api.get_server(server["id"])
        text = repr(sorted(call.items()))
        for key in ("id", "OS-EXT-SRV-ATTR:instance_name", "name"):
            text = text.replace(server[key], key)
        return text.replace(self.dest.host, "dest")

    def test_not_wanted(self) -> None:
        self.agent.answer = NOT_WANTED
        self.create()
        self.assert_stock("not_wanted", asked=True)

    def test_agent_unreachable(self) -> None:
        self.agent.answer = exception.AgentUnreachable("agent of src: timed out")
        self.create()
        self.assert_stock("agent_unreachable", asked=True)

    def test_an_answer_of_another_version(self) -> None:
        self.agent.answer = {"wanted": True, "ordered": True, "channel": 5}
        self.create()
        self.assert_stock("agent_answer", asked=True)

    def test_forbidden_by_the_flavor(self) -> None:
        self.agent.answer = ORDERED
        flavor = self._create_flavor(extra_spec={"enlightened:post_copy": "forbidden"})
        self.create(flavor_id=flavor)
        self.assert_stock("forbidden", asked=False)

    def test_forbidden_by_the_image(self) -> None:
        self.agent.answer = ORDERED
        self.create(image_uuid=self.image(enlightened_post_copy="forbidden"))
        self.assert_stock("forbidden", asked=False)

    def test_forbidden_by_a_word_nobody_defined(self) -> None:
        self.agent.answer = ORDERED
        self.create(image_uuid=self.image(enlightened_post_copy="perhaps"))
        self.assert_stock("forbidden", asked=False)
        self.assertIn("enlightened_post_copy is 'perhaps'", self.stdlog.logger.output)

    def test_forbidden_by_the_owner(self) -> None:
        self.agent.answer = ORDERED
        self.create()
        self.api.post_server_metadata(self.server["id"], {"enlightened:post_copy": "forbidden"})
        self.assert_stock("forbidden", asked=False)

    def test_forbidden_by_the_operator(self) -> None:
        self.flags(post_copy="forbidden", group="enlightened")
        self.agent.answer = ORDERED
        self.create()
        self.assert_stock("forbidden", asked=False)

    def test_disks_that_have_to_be_copied(self) -> None:
        self.agent.answer = ORDERED
        self.shared_storage = False
        self.create()
        with (
            mock.patch(f"{LIBVIRT_DRIVER}.get_instance_disk_info", return_value="[]"),
            mock.patch(
                f"{LIBVIRT_DRIVER}._live_migration_copy_disk_paths", return_value=([], ["vda"])
            ),
        ):
            self.assert_stock("block_migration", asked=False)
        self.assertEqual(["vda"], self.calls[-1]["params"]["migrate_disks"])

    def test_paused(self) -> None:
        self.agent.answer = ORDERED
        self.create()
        self.api.post_server_action(self.server["id"], {"pause": {}})
        self.server = self._wait_for_state_change(self.server, "PAUSED")
        self._live_migrate(self.server, "completed", "PAUSED", host="dest")
        self.assertEqual([("stock", "paused")], self.agent.decisions)
        self.assertFalse(self.calls[-1]["flags"] & libvirt.VIR_MIGRATE_POSTCOPY)

    def test_a_decision_that_fails_leaves_it_to_nova(self) -> None:
        self.agent.answer = RuntimeError("unforeseen")  # type: ignore[assignment]
        self.create()
        self.assert_stock("error", asked=True)

    def test_an_abort_is_novas(self) -> None:
        self.released.clear()
        self.create()
        domain = self.src.driver._host.get_connection().lookupByUUIDString(self.server["id"])

        def abort() -> None:
            domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_CANCELLED
            self.released.set()

        domain.abortJob = abort
        assert_it_stayed = self.expect_rollback()
        self._live_migrate(self.server, "running", "MIGRATING", host="dest")
        migration = self._wait_for_migration_status(self.server, ["running"])
        self.admin_api.api_delete(f"/servers/{self.server['id']}/migrations/{migration['id']}")
        # Nova ends with either, as libvirt's job or its call is over first.
        self._wait_for_migration_status(self.server, ["cancelled", "failed"])
        self.assertEqual(1, len(self.calls))
        assert_it_stayed()

    def test_force_complete_is_novas(self) -> None:
        self.released.clear()
        self.create()
        self._live_migrate(self.server, "running", "MIGRATING", host="dest")
        migration = self._wait_for_migration_status(self.server, ["running"])
        self.assertFalse(self.switched.is_set())
        self.admin_api.api_post(
            f"/servers/{self.server['id']}/migrations/{migration['id']}/action",
            {"force_complete": None},
            check_response_status=[202],
        )
        self._wait_for_migration_status(self.server, ["running (post-copy)"])
        self.assertTrue(self.switched.is_set())
        self.released.set()
        self._wait_for_migration_status(self.server, ["completed"])


class TestPostCopyNotPermitted(base.MigrationTestCase):
    """The operator has not turned Nova's post-copy on."""

    PERMIT_POST_COPY = False

    def test_an_order_is_not_carried_out(self) -> None:
        self.agent.answer = ORDERED
        self.create()
        call = self.migrate()
        self.assertFalse(call["flags"] & libvirt.VIR_MIGRATE_POSTCOPY)
        self.assertEqual([("stock", "not_permitted")], self.agent.decisions)
        self.assertEqual([], self.agent.asked)
