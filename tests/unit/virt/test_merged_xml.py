# SPDX-License-Identifier: Apache-2.0
"""The domain that a stored appliance is resumed in."""

import re
from xml.etree import ElementTree

import pytest

from nova_enlightened import exception
from nova_enlightened.virt import merged_xml
from tests.unit.virt.domains import CAPTURED, MACHINE, OWN

GENERATION = "0d6f0f5e-0c1f-4c5b-8f7e-2f5f0f6f3b11"
QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


def merged(captured: str = CAPTURED, own: str = OWN) -> ElementTree.Element:
    return ElementTree.fromstring(merged_xml.merge(captured, own, GENERATION, {}).xml)


def with_device(device: str, xml: str = CAPTURED) -> str:
    return xml.replace("</devices>", f"{device}</devices>")


def text(element: ElementTree.Element) -> str:
    return ElementTree.tostring(element, "unicode")


def attributes(element: ElementTree.Element, path: str) -> dict[str, str]:
    found = element.find(path)
    assert found is not None, path
    return found.attrib


def test_who_it_is_is_novas() -> None:
    domain = merged()
    assert domain.findtext("name") == "instance-00000007"
    assert domain.findtext("uuid") == "6b0a3c52-67a0-4f0c-9a54-8b4a7b6c1d11"
    assert domain.find("metadata/{http://openstack.org/xmlns/libvirt/nova/1.1}instance") is not None
    assert domain.findtext("cputune/shares") == "2048"
    assert attributes(domain, "vcpu") == {"cpuset": "2-3"}


def test_machine_cpu_and_memory_are_as_captured() -> None:
    domain = merged()
    assert attributes(domain, "os/type") == {"arch": "x86_64", "machine": MACHINE}
    assert domain.findtext("cpu/model") == "qemu64"
    assert attributes(domain, "features/vmcoreinfo") == {"state": "on"}


def test_every_captured_device_stays_at_its_address() -> None:
    def places(xml: ElementTree.Element) -> list[tuple[str, dict[str, str]]]:
        return [(device.tag, device.find("address").attrib) for device in xml.find("devices")  # type: ignore[union-attr]
                if device.find("address") is not None]  # fmt: skip

    assert places(merged()) == places(ElementTree.fromstring(CAPTURED))


def test_a_disk_is_the_captured_device_on_novas_file() -> None:
    disk = merged().find("devices/disk")
    assert disk is not None
    assert attributes(disk, "source")["file"] == "/var/lib/nova/instances/6b0a3c52/disk"
    # What the guest sees of the driver is captured, how the host does it is Nova's.
    assert attributes(disk, "driver") == {
        "name": "qemu", "type": "qcow2", "cache": "writeback", "queues": "2"
    }  # fmt: skip


def test_a_streamed_disk_lies_on_its_export_and_stops_where_that_is_gone() -> None:
    made = merged_xml.merge(CAPTURED, OWN, GENERATION, {"vda": "/run/x/vda.nbd"}).xml
    disk = ElementTree.fromstring(made).find("devices/disk")
    assert disk is not None
    assert attributes(disk, "backingStore/source") == {"protocol": "nbd", "name": "vda"}
    assert attributes(disk, "backingStore/source/host")["socket"] == "/run/x/vda.nbd"
    assert attributes(disk, "driver")["rerror_policy"] == "stop"


def test_an_interface_is_the_captured_card_with_novas_tap_and_address() -> None:
    interface = merged().find("devices/interface")
    assert interface is not None
    assert interface.get("type") == "bridge"
    assert attributes(interface, "mac")["address"] == "fa:16:3e:aa:bb:cc"
    assert attributes(interface, "source") == {"bridge": "br-int"}
    assert attributes(interface, "model") == {"type": "virtio"}
    # Its guest was offered no MTU: a device that has one would not load its state.
    assert interface.find("mtu") is None


def test_the_console_is_logged_where_nova_reads_it() -> None:
    assert attributes(merged(), "devices/serial/log")["file"].endswith("/console.log")


def test_channels_that_are_known_get_sockets_of_libvirts() -> None:
    own = OWN.replace("org.openstack.enlightened.0", "something.else.0")
    channel = merged(own=own).find("devices/channel")
    assert channel is not None
    assert (channel.get("type"), attributes(channel, "source")) == ("unix", {"mode": "bind"})


def test_a_channel_that_is_unknown_leads_nowhere() -> None:
    captured = CAPTURED.replace("org.openstack.enlightened.0", "com.example.0")
    channel = merged(captured).find("devices/channel")
    assert channel is not None
    assert channel.get("type") == "null"


def test_qemu_waits_for_an_incoming_migration() -> None:
    values = [one.get("value") for one in merged().iter(f"{QEMU}arg")]
    assert values == ["-incoming", "defer"]


def test_a_guest_with_a_generation_id_gets_a_new_one() -> None:
    captured = CAPTURED.replace(
        "<features>", "<genid>11111111-1111-1111-1111-111111111111</genid><features>"
    )
    assert merged(captured).findtext("genid") == GENERATION
    assert merged().find("genid") is None


def test_a_drive_without_a_medium_stays_empty() -> None:
    drive = '<disk type="file" device="cdrom"><target dev="hda" bus="ide"/></disk>'
    disks = merged(with_device(drive)).findall("devices/disk")
    assert [disk.find("source") is not None for disk in disks] == [True, False]


def test_a_config_drive_that_it_never_saw_comes_later() -> None:
    drive = (
        '<disk type="file" device="cdrom"><source file="/i/disk.config"/>'
        '<target dev="hdd" bus="ide"/></disk>'
    )
    made = merged_xml.merge(CAPTURED, with_device(drive, OWN), GENERATION, {})
    assert made.dropped == ("disk hdd",)
    assert "disk.config" not in made.xml


@pytest.mark.parametrize(
    "device, words",
    [
        ('<hostdev mode="subsystem" type="pci"/>', "hostdev"),
        ('<filesystem type="mount"><source dir="/"/><target dir="x"/></filesystem>', "filesystem"),
        ('<tpm model="tpm-crb"><backend type="emulator"/></tpm>', "tpm"),
        ('<input type="evdev"><source dev="/dev/input/event0"/></input>', "evdev"),
        ('<disk device="lun"><target dev="sda" bus="scsi"/></disk>', "disks"),
        ('<video><driver name="vhostuser"/><model type="virtio"/></video>', ""),
    ],
)
def test_a_captured_device_that_leads_outside_is_refused_or_cut(device: str, words: str) -> None:
    if not words:
        assert "vhostuser" not in text(merged(with_device(device)))
        return
    with pytest.raises(exception.ManifestError, match=words):
        merged(with_device(device))


@pytest.mark.parametrize(
    "hostile",
    [
        '<source file="/etc/shadow"/>',
        '<backingStore type="file"><source file="/etc/shadow"/></backingStore>',
        '<driver name="qemu" cache="none" discard="unmap" iothread="1"/>',
        '<mirror file="/etc/shadow"/>',
    ],
)
def test_nothing_of_the_host_is_named_by_a_captured_disk(hostile: str) -> None:
    captured = CAPTURED.replace('<target dev="vda"', f'{hostile}<target dev="vda"')
    made = text(merged(captured))
    assert "/etc/shadow" not in made
    assert "iothread" not in made


def test_arguments_for_qemu_are_not_taken_from_an_image() -> None:
    captured = CAPTURED.replace(
        "<domain ", '<domain xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0" '
    ).replace(
        "</domain>", '<qemu:commandline><qemu:arg value="-chardev"/></qemu:commandline></domain>'
    )
    assert "-chardev" not in text(merged(captured))


def test_a_firmwares_file_is_not_taken_from_an_image() -> None:
    captured = CAPTURED.replace("<boot dev", "<loader>/etc/shadow</loader><boot dev")
    with pytest.raises(exception.ManifestError, match="loader"):
        merged(captured)


def test_an_emulator_is_not_taken_from_an_image() -> None:
    assert "/bin/sh" not in text(merged(with_device("<emulator>/bin/sh</emulator>")))


def test_a_file_within_a_part_the_guest_sees_is_cut() -> None:
    device = '<rng model="virtio"><backend model="egd"><source path="/hostile"/></backend></rng>'
    assert "/hostile" not in text(merged(with_device(device)))


def test_fewer_interfaces_than_captured_are_refused() -> None:
    own = re.sub(r"<interface.*?</interface>", "", OWN, flags=re.DOTALL)
    with pytest.raises(exception.ManifestError, match="1 interfaces, and the server 0"):
        merged(own=own)


def test_more_interfaces_than_captured_are_refused() -> None:
    second = '<interface type="bridge"><mac address="fa:16:3e:00:00:02"/></interface>'
    with pytest.raises(exception.ManifestError, match="fa:16:3e:00:00:02"):
        merged(own=with_device(second, OWN))


def test_a_disk_that_was_not_captured_is_refused() -> None:
    second = '<disk type="file"><source file="/i/disk.swap"/><target dev="vdb"/></disk>'
    with pytest.raises(exception.ManifestError, match="vdb"):
        merged(own=with_device(second, OWN))


def test_what_ran_with_acceleration_does_not_run_without() -> None:
    with pytest.raises(exception.ManifestError, match="kvm"):
        merged(CAPTURED.replace('type="qemu"', 'type="kvm"', 1))


def test_what_is_no_domain_is_refused() -> None:
    with pytest.raises(exception.ManifestError, match="captured domain"):
        merged("<html/>")


def test_the_interfaces_addresses_then_and_now_are_told() -> None:
    captured = CAPTURED.replace(
        '<model type="virtio"/>', '<mac address="52:54:00:00:00:01"/><model type="virtio"/>'
    )
    made = merged_xml.merge(captured, OWN, GENERATION, {})
    assert made.interfaces == (("52:54:00:00:00:01", "fa:16:3e:aa:bb:cc"),)


def test_qemu_gets_a_second_monitor_at_the_agents_socket() -> None:
    made = merged_xml.merge(CAPTURED, OWN, GENERATION, {"vda": "/run/x/vda.nbd"}, "/run/x/q.sock")
    words = [
        one.get("value") for one in ElementTree.fromstring(made.xml).iter() if "value" in one.attrib
    ]
    line = words[words.index("-incoming") :]
    assert line[:3] == ["-incoming", "defer", "-chardev"]
    assert "path=/run/x/q.sock," in str(line[3])
    assert line[4] == "-mon"
    assert "q.sock" not in OWN
