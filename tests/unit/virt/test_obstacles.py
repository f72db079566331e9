# SPDX-License-Identifier: Apache-2.0
"""What in a domain keeps it from post-copy."""

import pytest

from nova_enlightened.exception import HintError
from nova_enlightened.virt import obstacles

DOMAIN = """
<domain type='kvm'>
  <memoryBacking>{backing}</memoryBacking>
  <cpu>{cpu}</cpu>
  <devices>
    <disk type='file' device='disk'/>
    <interface type='ethernet'/>
    <channel type='unix'/>
    <memory model='dimm'/>
    {devices}
  </devices>
  {rest}
</domain>
"""


def domain(backing: str = "", devices: str = "", cpu: str = "", rest: str = "") -> str:
    return DOMAIN.format(backing=backing, devices=devices, cpu=cpu, rest=rest)


@pytest.mark.parametrize(
    "backing", ["", "<nosharepages/>", "<locked/>", "<source type='anonymous'/>"]
)
def test_private_memory_and_plain_devices_are_no_obstacle(backing: str) -> None:
    assert obstacles.find(domain(backing)) is None


@pytest.mark.parametrize(
    "xml, word",
    [
        (domain(devices="<hostdev mode='subsystem' type='pci'/>"), "passed through"),
        (domain(devices="<hostdev mode='subsystem' type='mdev'/>"), "passed through"),
        (domain(devices="<interface type='hostdev'/>"), "SR-IOV"),
        (domain(devices="<interface type='vdpa'/>"), "vDPA"),
        (domain(devices="<interface type='vhostuser'/>"), "vhost-user"),
        (domain(devices="<disk type='vhostuser'/>"), "vhost-user"),
        (domain(devices="<filesystem type='mount'/>"), "file system"),
        (domain(devices="<memory model='nvdimm'/>"), "persistent memory"),
        (domain("<hugepages><page size='2048' unit='KiB'/></hugepages>"), "huge pages"),
        (domain("<source type='file'/>"), "of type file"),
        (domain("<source type='memfd'/>"), "of type memfd"),
        (domain("<source type='memfd'/><access mode='shared'/>"), "shared"),
        (domain(cpu="<numa><cell id='0' memAccess='shared'/></numa>"), "shared"),
        (domain(rest="<launchSecurity type='sev'/>"), "encrypted"),
    ],
)
def test_memory_the_kernel_cannot_fetch_on_a_fault_is_an_obstacle(xml: str, word: str) -> None:
    assert word in str(obstacles.find(xml))


@pytest.mark.parametrize("xml", ["", "<domain>", "<network/>", "x" * (17 << 20)])
def test_what_is_no_domain_is_refused(xml: str) -> None:
    with pytest.raises(HintError):
        obstacles.find(xml)
