# SPDX-License-Identifier: Apache-2.0
"""Servers made of an image that names a stored appliance, through Nova's API and services."""

import contextlib
import os
import threading
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import fixtures
import libvirt
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.tests.functional.api import client
from nova.virt.libvirt import driver as nova_driver

from nova_enlightened import exception
from tests.functional_nova import base
from tests.unit.virt.domains import CAPTURED, MACHINE

STORE = "https://appliances.example.org/"
MANIFEST, PLAN = "a1" * 32, "b2" * 32
PROPERTIES = {
    "enlightened_appliance_store": STORE,
    "enlightened_appliance_manifest": MANIFEST,
    "enlightened_appliance_plan": PLAN,
}
SOCKET = "/run/nova-enlightened/x/vda.nbd"
GIB = 1 << 30
QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
# Nova's fixtures replace it, for tests that care for no disk.
CREATE_IMAGE = nova_driver.LibvirtDriver._create_image


class StreamingAgent(base.Agent):
    """An agent whose appliances go through `states`, the last of which stays."""

    def __init__(self) -> None:
        super().__init__()
        self.refusal: exception.EnlightenedError | None = None
        self.manifest = {
            "machine": MACHINE,
            "qemu_version": "2.1.0",
            "cpu": "",
            "domain_xml": CAPTURED,
            "disks": [["vda", 1 * GIB]],
        }
        self.states: list[dict[str, Any]] = [
            {"phase": "buffering", "percent": 20, "error": None, "words": "20 %"},
            {"phase": "buffering", "percent": 80, "error": None, "words": "80 %"},
            {"phase": "streaming", "percent": 10, "error": None, "words": "executes"},
        ]
        self.prepared: list[dict[str, Any]] = []
        self.played: list[dict[str, Any]] = []
        self.let_go: list[tuple[str, bool]] = []
        self.followed = threading.Event()

    def prepare_appliance(self, host: str, instance: str, appliance: dict[str, Any]) -> Any:
        self.prepared.append({"instance": instance, **appliance})
        if self.refusal is not None:
            raise self.refusal
        return {"manifest": self.manifest, "sockets": {"vda": SOCKET}}

    def play_appliance(
        self, host: str, instance: str, identity: dict[str, Any], within: float
    ) -> Any:
        self.played.append(identity)
        return {}

    def appliance_state(self, host: str, instance: str) -> Any:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        self.followed.set()
        return state

    def end_appliance(self, host: str, instance: str, kept: bool) -> Any:
        self.let_go.append((instance, kept))
        return {}

    def finish(self) -> None:
        """All of it is here."""
        self.states = [{"phase": "done", "percent": 100, "error": None, "words": ""}]


class StreamingTestCase(base.MigrationTestCase):
    """Disks are files in a directory of the test's; qemu-img is asked, and not run."""

    def setUp(self) -> None:
        self.backing: str | None = f"nbd+unix:///vda?socket={SOCKET}"
        self.images: list[tuple[str, ...]] = []
        self.created: list[str] = []
        super().setUp()
        self.agent: StreamingAgent

    def _patch_libvirt(self) -> None:
        super()._patch_libvirt()
        self.agent = StreamingAgent()
        self.flags(virt_type="qemu", group="libvirt")
        self.flags(instances_path=self.useFixture(fixtures.TempDir()).path)
        both = base.libvirt_with_novas_errors()
        create = fakelibvirt.Connection.createXML

        def remember(connection: Any, xml: str, flags: int) -> Any:
            self.created.append(xml)
            domain = create(connection, xml, flags)
            domain._transient = False  # it is defined already
            return domain

        for name, replacement in (
            ("nova_enlightened.virt.streaming.libvirt", both),
            ("nova.virt.libvirt.driver.LibvirtDriver._create_image", CREATE_IMAGE),
            ("nova_enlightened.virt.streaming.processutils.execute", self._execute),
            ("nova.tests.fixtures.libvirt.Connection.createXML", remember),
            ("nova.virt.libvirt.utils.get_disk_backing_file", lambda *_, **__: self.backing),
        ):
            self.useFixture(fixtures.MonkeyPatch(name, replacement))

    def _execute(self, *words: str, **_: Any) -> tuple[str, str]:
        if words[:2] == ("qemu-img", "create"):
            self.images.append(words)
            with open(words[-2], "w"):
                pass
        return "", ""

    def stream(self, state: str = "ACTIVE", **properties: str) -> Any:
        wanted = {
            "networks": [{"port": self.neutron.port_1["id"]}],
            "image_uuid": self.image(**{**PROPERTIES, **properties}),
            "flavor_id": self._create_flavor(vcpu=2, memory_mb=2048, disk=20, ephemeral=0),
        }
        self.server = self._create_server(host=self.src.host, expected_state=state, **wanted)
        return self.server

    def fault(self) -> str:
        found: str = self.api.get_server(self.server["id"])["fault"]["message"]
        return found

    def metadata(self) -> dict[str, str]:
        from nova import context, objects

        instance = objects.Instance.get_by_uuid(
            context.get_admin_context(), self.server["id"], expected_attrs=["system_metadata"]
        )
        return dict(instance.system_metadata)


class TestStart(StreamingTestCase):
    """From `openstack server create` to ACTIVE."""

    def test_nothing_is_fetched_and_the_disk_lies_on_the_players_export(self) -> None:
        self.stream()
        ((*words, path, size),) = self.images
        self.assertIn(f"nbd+unix:///vda?socket={SOCKET}", words)
        self.assertEqual("disk", os.path.basename(path))
        self.assertEqual(20 * GIB, int(size))

    def test_qemu_waits_for_an_incoming_migration_and_what_is_defined_does_not(self) -> None:
        self.stream()
        (running,) = map(ElementTree.fromstring, self.created)
        arguments = [one.get("value") for one in running.iter(f"{QEMU}arg")]
        self.assertEqual(["-incoming", "defer"], arguments)
        defined = ElementTree.fromstring(self.defined[-1])
        self.assertEqual([], list(defined.iter(f"{QEMU}arg")))
        for tag in ("name", "uuid"):
            self.assertEqual(defined.findtext(tag), running.findtext(tag))

    def test_the_agent_is_told_who_the_clone_is(self) -> None:
        self.stream()
        (identity,) = self.agent.played
        (interface,) = identity["interfaces"]
        self.assertEqual(self.neutron.port_1["mac_address"], interface["mac"])
        self.assertEqual(["192.168.1.3/24"], interface["addresses"])
        self.assertEqual("192.168.1.1", interface["gateway"])

    def test_progress_is_the_servers(self) -> None:
        seen: list[int] = []
        tell = self.src.driver._tell_progress
        with mock.patch.object(
            type(self.src.driver), "_tell_progress",
            staticmethod(lambda instance, percent: (seen.append(percent), tell(instance, percent))),
        ):  # fmt: skip
            self.stream()
        self.assertEqual([20, 80, 100], seen)
        self.assertEqual(100, self.api.get_server(self.server["id"])["progress"])

    def test_a_snapshot_will_not_inherit_the_appliance(self) -> None:
        self.stream()
        inherited = [name for name in self.metadata() if name.startswith("image_enlightened_app")]
        self.assertEqual([], inherited)

    def test_paused_it_is_active_before_it_executes(self) -> None:
        self.flags(buffering="paused", group="enlightened_streaming")
        self.agent.states = [{"phase": "buffering", "percent": 5, "error": None, "words": ""}]
        self.stream()
        self.assertTrue(self.agent.followed.wait(base.TIMEOUT_S))
        self.agent.states = [{"phase": "failed", "percent": 5, "error": "chunk 7", "words": ""}]
        self._wait_for_state_change(self.server, "ERROR")
        self.assertIn("chunk 7", self.fault())

    def test_an_image_without_the_properties_is_fetched_as_ever(self) -> None:
        self.create()
        self.assertEqual([], self.agent.prepared)
        self.assertEqual([], self.created)


class TestRefusals(StreamingTestCase):
    """Before anything starts."""

    def refused(self, words: str) -> None:
        self.assertIn(words, self.fault())
        self.assertEqual(([], []), (self.created, self.images))

    def test_a_flavor_that_does_not_fit(self) -> None:
        self.agent.manifest["domain_xml"] = CAPTURED.replace("<vcpu>2", "<vcpu>4")
        self.stream("ERROR")
        self.refused("4 vCPUs and the flavor 2")

    def test_a_disk_larger_than_the_flavors(self) -> None:
        self.agent.manifest["disks"] = [["vda", 30 * GIB]]
        self.stream("ERROR")
        self.refused("disk takes 30 GiB and the flavor gives 20")

    def test_a_machine_that_this_qemu_does_not_have(self) -> None:
        failed = base.failure(libvirt.VIR_ERR_INVALID_ARG, "the machine is not supported")
        with mock.patch.object(fakelibvirt.Connection, "getDomainCapabilities", side_effect=failed):
            self.stream("ERROR")
        # Nova asks other hosts, and says only that there is none.
        self.assertEqual(([], []), (self.created, self.images))
        self.assertEqual([(self.server["id"], False)], self.agent.let_go[:1])

    def test_a_newer_qemus_capture(self) -> None:
        self.agent.manifest["qemu_version"] = "99.0.0"
        self.stream("ERROR")
        self.assertEqual(([], []), (self.created, self.images))

    def test_a_host_cpu_without_the_captured_features(self) -> None:
        self.agent.manifest["cpu"] = "<cpu><model>Penryn</model><vendor>Nobody</vendor></cpu>"
        self.stream("ERROR")
        self.assertEqual(([], []), (self.created, self.images))

    def test_a_store_that_the_host_does_not_fetch_from(self) -> None:
        self.agent.refusal = exception.AgentRefused("the store is not one of [..] stores")
        self.stream("ERROR")
        self.refused("the store is not one of")

    def test_a_digest_that_is_none(self) -> None:
        self.stream("ERROR", enlightened_appliance_manifest="../../etc/passwd")
        self.refused("is no SHA-256")

    def test_an_agent_that_does_not_answer(self) -> None:
        self.agent.refusal = exception.AgentUnreachable("agent of src: no answer")
        self.stream("ERROR")
        self.assertEqual(([], []), (self.created, self.images))


class TestFailures(StreamingTestCase):
    """After QEMU has started."""

    def test_a_chunk_that_never_comes_is_named_in_the_servers_fault(self) -> None:
        self.agent.states = [
            {"phase": "failed", "percent": 3, "error": "chunk 12 of pack abc: 404", "words": ""}
        ]
        self.stream("ERROR")
        self.assertIn("chunk 12 of pack abc: 404", self.fault())
        self.assertIn((self.server["id"], False), self.agent.let_go)
        self.assertEqual([], self.src.driver._host.get_connection().listAllDomains(0))


class TestAfterwards(StreamingTestCase):
    """A server that streams, or has streamed."""

    def test_a_stop_and_start_have_the_rest_of_the_disk_served(self) -> None:
        self.stream()
        self.agent.prepared.clear()
        self._stop_server(self.server)
        self._start_server(self.server)
        self.assertEqual([False], [one["memory"] for one in self.agent.prepared])
        self.assertEqual(1, len(self.created))  # it boots: nobody waits for a migration

    def test_a_whole_disk_needs_nobody(self) -> None:
        self.stream()
        self.agent.finish()
        self.backing = None
        self.agent.prepared.clear()
        self._reboot_server(self.server, hard=True)
        self.assertEqual([], self.agent.prepared)

    def test_a_live_migration_meanwhile_is_refused_with_the_reason(self) -> None:
        self.stream()
        self.refused({"os-migrateLive": {"host": "dest", "block_migration": "auto"}})
        self.assertEqual([], self.calls)

    def test_a_resize_meanwhile_is_refused_with_the_reason(self) -> None:
        self.stream()
        self.refused({"migrate": {"host": "dest"}})

    def test_a_suspend_meanwhile_is_refused_with_the_reason(self) -> None:
        self.stream()
        self.refused({"suspend": None})

    def refused(self, action: dict[str, Any]) -> None:
        """Nova's bus within one process has casts fail like calls, up to the API."""
        with contextlib.suppress(client.OpenStackApiException):
            self.admin_api.post_server_action(self.server["id"], action)
        self._wait_for_server_parameter(self.server, {"OS-EXT-STS:task_state": None})
        self.assertIn("still streams its appliance (streaming, 10 %)", self.told())
        self.assertEqual(1, len(self.src.driver._host.get_connection()._vms))

    def told(self) -> str:
        """What Nova tells the server's owner of all that was done to it."""
        self.api.microversion = "2.84"  # the first that tells details
        url = f"/servers/{self.server['id']}/os-instance-actions"
        whole = [
            self.api.api_get(f"{url}/{one['request_id']}").body["instanceAction"]
            for one in self.api.get_instance_actions(self.server["id"])
        ]
        return " ".join(event["details"] or "" for one in whole for event in one["events"])

    def test_a_snapshot_meanwhile_leaves_no_image(self) -> None:
        self.stream()
        self.api.post_server_action(self.server["id"], {"createImage": {"name": "early"}})
        self._wait_for_server_parameter(
            self.server, {"status": "ACTIVE", "OS-EXT-STS:task_state": None}
        )
        images = self.glance.detail(None)
        self.assertEqual([], [one for one in images if one["name"] == "early"])

    def test_a_live_migration_afterwards_goes_novas_way(self) -> None:
        self.stream()
        self.agent.finish()
        self.backing = None
        self.migrate()

    def test_a_rebuild_starts_the_appliance_anew(self) -> None:
        self.stream()
        os.unlink(self.images[0][-2])
        self.agent.states = [{"phase": "streaming", "percent": 1, "error": None, "words": ""}]
        self._rebuild_server(self.server, self.server["image"]["id"])
        self.assertEqual(2, len(self.created))

    def test_a_delete_lets_the_player_go(self) -> None:
        self.stream()
        self._delete_server(self.server)
        self.assertEqual((self.server["id"], False), self.agent.let_go[-1])
