# SPDX-License-Identifier: Apache-2.0
"""The guest channel in the domains that Nova defines."""

from unittest import mock
from xml.etree import ElementTree

from nova_enlightened.stream.guest_channel import PORT_NAME
from tests.functional_nova import base

LIBVIRT_DRIVER = "nova.virt.libvirt.driver.LibvirtDriver"
PATH = f"./devices/channel/target[@name='{PORT_NAME}']/.."


class TestGuestChannel(base.MigrationTestCase):
    """Domains as libvirt is asked to define them."""

    def _force_down_compute(self, host: str) -> None:
        service = self.admin_api.get_services(host=host, binary="nova-compute")[0]
        self.admin_api.put_service(service["id"], {"forced_down": True})

    def channels(self) -> list[str]:
        """The guest channels of the domain that was defined last."""
        domain = ElementTree.fromstring(self.defined[-1])
        return [ElementTree.tostring(one, "unicode").strip() for one in domain.findall(PATH)]

    def assert_one(self) -> None:
        (channel,) = self.channels()
        element = ElementTree.fromstring(channel)
        self.assertEqual({"type": "unix"}, element.attrib)
        # libvirt makes the path, on each host its own.
        self.assertEqual({"mode": "bind"}, element.find("source").attrib)
        self.assertEqual({"type": "virtio", "name": PORT_NAME}, element.find("target").attrib)

    def test_a_new_server_has_it_and_keeps_it_over_a_hard_reboot(self) -> None:
        self.create()
        self.assert_one()
        defined = len(self.defined)
        self._reboot_server(self.server, hard=True)
        self.assertGreater(len(self.defined), defined)
        self.assert_one()

    def test_a_server_that_is_resized_keeps_it(self) -> None:
        self.create()
        self.defined.clear()
        with mock.patch(f"{LIBVIRT_DRIVER}.migrate_disk_and_power_off", return_value="{}"):
            self._migrate_server(self.server, host="dest")
        self.assert_one()

    def test_a_server_that_is_evacuated_keeps_it(self) -> None:
        self.create()
        self.defined.clear()
        self.src.stop()
        self._force_down_compute("src")
        self._evacuate_server(self.server, expected_host="dest", expected_state="ACTIVE")
        self.assert_one()

    def test_it_is_beside_qemus_own_guest_agent(self) -> None:
        self.create(image_uuid=self.image(hw_qemu_guest_agent="yes"))
        self.assert_one()
        self.assertIn("org.qemu.guest_agent.0", self.defined[-1])

    def test_an_image_refuses_it(self) -> None:
        self.create(image_uuid=self.image(enlightened_guest_channel="no"))
        self.assertEqual([], self.channels())

    def test_the_operator_turns_it_off(self) -> None:
        self.flags(guest_channel=False, group="enlightened")
        self.create()
        self.assertEqual([], self.channels())
