# SPDX-License-Identifier: Apache-2.0
from xml.etree import ElementTree

import pytest

from nova_enlightened.exception import CaptureRefused
from nova_enlightened.host import captured_xml

DOMAIN = """\
<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>instance-00000007</name>
  <uuid>0b4a4cfe-1111-4222-8333-444444444444</uuid>
  <genid>1b4a4cfe-1111-4222-8333-444444444444</genid>
  <metadata><nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>
    <nova:name>secret-customer</nova:name></nova:instance></metadata>
  <memory unit='KiB'>2097152</memory>
  <memoryBacking><hugepages/></memoryBacking>
  <vcpu placement='static' cpuset='2-3'>2</vcpu>
  <cputune><shares>1024</shares></cputune>
  <sysinfo type='smbios'><system><entry name='serial'>secret-serial</entry></system></sysinfo>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram>/var/lib/libvirt/qemu/nvram/instance-00000007_VARS.fd</nvram>
    <kernel>/var/lib/nova/instances/kernel</kernel>
    <smbios mode='sysinfo'/>
  </os>
  <cpu mode='custom' match='exact'><model>Skylake</model></cpu>
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' queues='2'/>
      <source file='/var/lib/nova/instances/7/disk'><encryption/></source>
      <backingStore type='file'><source file='/base'/></backingStore>
      <target dev='vda' bus='virtio'/>
      <iotune><total_bytes_sec>1</total_bytes_sec></iotune>
      <serial>volume-secret</serial>
      <alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x04' function='0x0'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/volume'/><target dev='vdb' bus='scsi'/><readonly/>
      <alias name='ua-mine'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/><source file='/var/lib/nova/instances/7/cd.iso'/>
      <target dev='sda' bus='sata'/><readonly/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/var/lib/nova/instances/7/disk.config'/>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <controller type='pci' index='0' model='pcie-root'><alias name='pcie.0'/></controller>
    <interface type='bridge'>
      <mac address='fa:16:3e:00:00:01'/><source bridge='br-int'/>
      <virtualport type='openvswitch'/><target dev='tap0'/><bandwidth/>
      <model type='virtio'/><driver queues='2'/><mtu size='1450'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <serial type='file'><source path='/var/log/secret.log'/><log file='/var/log/x'/>
      <target type='isa-serial' port='0'/></serial>
    <console type='file'><source path='/var/log/secret.log'/></console>
    <channel type='unix'><source mode='bind' path='/run/secret'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
    <graphics type='vnc' port='5900' listen='10.0.0.1' passwd='secret'><listen/></graphics>
    <video><model type='virtio'/></video>
    <rng model='virtio'><backend model='egd'><source path='/run/secret'/></backend></rng>
  </devices>
  <seclabel type='dynamic'/>
  <qemu:commandline><qemu:arg value='-msg'/><qemu:arg value='timestamp=on'/></qemu:commandline>
</domain>
"""


def test_nothing_of_one_server_or_host_stays() -> None:
    left = captured_xml.sanitised(DOMAIN)
    for word in (
        "instance-00000007", "4cfe", "secret", "nova", "/var", "/run", "/usr/bin", "/dev/vg",
        "fa:16:3e", "br-int", "tap0", "5900", "10.0.0.1", "cpuset", "hugepages", "qemu:",
        "seclabel", "virtio-disk0", "iotune", "encryption", "backingStore", "-msg",
    ):  # fmt: skip
        assert word not in left, word


def test_what_device_state_needs_stays() -> None:
    domain = ElementTree.fromstring(captured_xml.sanitised(DOMAIN))
    assert domain.get("type") == "kvm"
    assert domain.findtext("memory") == "2097152"
    assert domain.findtext("vcpu") == "2"
    kind = domain.find("os/type")
    assert kind is not None
    assert kind.attrib == {"arch": "x86_64", "machine": "pc-q35-7.2"}
    assert domain.findtext("os/loader") == "/usr/share/OVMF/OVMF_CODE.fd"
    assert domain.find("os/nvram") is not None
    assert not domain.findtext("os/nvram")
    assert domain.findtext("cpu/model") == "Skylake"
    assert domain.find("clock/timer[@name='hpet']") is not None
    assert domain.find("genid") is not None
    assert not domain.findtext("genid")
    disks = domain.findall("devices/disk")
    assert [disk.find("target").get("dev") for disk in disks] == ["vda", "vdb", "sda", "vdc"]  # type: ignore[union-attr]
    assert disks[0].find("address") is not None
    assert disks[0].find("driver").attrib == {"name": "qemu", "cache": "none", "queues": "2"}  # type: ignore[union-attr]
    assert disks[1].find("readonly") is not None
    assert disks[1].find("alias[@name='ua-mine']") is not None
    network = domain.find("devices/interface")
    assert network is not None
    assert [child.tag for child in network] == ["model", "driver", "mtu", "address"]
    assert domain.find("devices/channel/target[@name='org.qemu.guest_agent.0']") is not None


def test_the_template_of_firmware_variables_stays() -> None:
    xml = DOMAIN.replace("<nvram>", "<nvram template='/usr/share/OVMF/OVMF_VARS.fd'>")
    domain = ElementTree.fromstring(captured_xml.sanitised(xml))
    assert domain.find("os/nvram[@template='/usr/share/OVMF/OVMF_VARS.fd']") is not None


def test_what_is_sanitised_stays_as_it_is() -> None:
    once = captured_xml.sanitised(DOMAIN)
    assert captured_xml.sanitised(once) == once


def test_disks_of_the_appliance_are_those_that_hold_its_data() -> None:
    found = captured_xml.disks(DOMAIN)
    assert [(one.target, one.format, one.writable) for one in found] == [
        ("vda", "qcow2", True),
        ("vdb", "raw", False),
    ]
    assert found[1].path == "/dev/vg/volume"


def test_a_disk_that_is_on_the_network_is_refused() -> None:
    xml = DOMAIN.replace("<source dev='/dev/vg/volume'/>", "<source protocol='rbd' name='x/y'/>")
    with pytest.raises(CaptureRefused, match=r"vdb.*--save"):
        captured_xml.disks(xml)


@pytest.mark.parametrize(
    "device, words",
    [
        ("<hostdev mode='subsystem' type='pci'/>", "passed through"),
        ("<interface type='vdpa'/>", "network device"),
        ("<filesystem/>", "shared"),
        ("<tpm model='tpm-crb'/>", "TPM"),
        ("<memory model='dimm'/>", "memory devices"),
        ("<vsock/>", "vsock"),
    ],
)
def test_a_domain_whose_state_is_not_all_in_qemu_is_refused(device: str, words: str) -> None:
    with pytest.raises(CaptureRefused, match=words):
        captured_xml.refuse(DOMAIN.replace("<seclabel", f"<devices>{device}</devices><seclabel"))


def test_arguments_for_qemu_that_make_devices_are_refused() -> None:
    captured_xml.refuse(DOMAIN)
    with pytest.raises(CaptureRefused, match="commandline"):
        captured_xml.refuse(DOMAIN.replace("'-msg'", "'-device'"))


def test_the_cpu_is_the_one_the_guest_saw() -> None:
    cookie = "<cookie><cpu mode='custom'><model>Skylake</model><feature name='x'/></cpu></cookie>"
    assert "feature" in captured_xml.cpu_of(cookie, DOMAIN)
    assert "<model>Skylake</model>" in captured_xml.cpu_of("", DOMAIN)


@pytest.mark.parametrize("xml", ["", "<domain", "<network/>"])
def test_what_is_no_domain_is_refused(xml: str) -> None:
    with pytest.raises(CaptureRefused):
        captured_xml.sanitised(xml)
