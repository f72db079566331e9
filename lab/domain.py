# SPDX-License-Identifier: Apache-2.0
"""A guest's libvirt domain, as XML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from lab.image import GuestImage
from lab.network import CONTROL_ADDRESS, DATA_BRIDGE, PREFIX

CHANNEL = "org.openstack.enlightened.0"
GUEST_AGENT_CHANNEL = "org.qemu.guest_agent.0"


@dataclass(frozen=True)
class GuestSpec:
    """What is asked of a guest. ``number`` makes its MAC and address; sizes in MiB.

    ``workload``: scattered, heap, contiguous (``guest/hotpages.c``), checksum, redis, web, session
    or idle; ``arguments`` are words for that program. ``disk`` is a qcow2 file of its own, which
    it writes; without one it has the image's, read-only. ``fragment_mib`` of its memory are made
    as fragmented as in a guest that has run for long (``guest/fragment.c``). ``devices``,
    ``numa`` and ``memory_backing`` are XML. ``extra_qemu`` are words for QEMU, but not ``-global
    migration.x-postcopy-preempt=on``: libvirt 9.0 connects by itself, and QEMU refuses preempt on
    a connection it was handed.
    """

    name: str
    number: int
    workload: str = "scattered"
    memory_mib: int = 768
    vcpus: int = 1
    machine: str = "pc"
    arguments: tuple[str, ...] = ()
    extra_qemu: tuple[str, ...] = ()
    kernel_arguments: tuple[str, ...] = ()
    channels: bool = True
    free_page_reporting: bool = True
    memory_backing: str = ""
    numa: str = ""
    devices: str = field(default="", repr=False)
    disk: Path | None = None
    fragment_mib: int = 0

    @property
    def mac(self) -> str:
        """Its network card's address, the same on every host."""
        return f"52:54:00:6e:65:{self.number:02x}"

    @property
    def address(self) -> str:
        """Its address on the data network, the same on every host."""
        return f"10.78.0.{self.number}"


def kernel_command_line(spec: GuestSpec, port: int) -> str:
    """What guest/init.sh and guest/workload.sh read."""
    words = [
        "console=ttyS0",
        "quiet",
        "loglevel=4",
        "no_timer_check",
        "mitigations=off",
        "module_blacklist=kvm,kvm_amd,kvm_intel",
        "systemd.show_status=false",
        *spec.kernel_arguments,
        f"lab.name={spec.name}",
        f"lab.address={spec.address}/{PREFIX}",
        f"lab.collector={CONTROL_ADDRESS}",
        f"lab.port={port}",
        f"lab.workload={spec.workload}",
    ]
    if spec.disk is not None:
        words.append("lab.disk=rw")
    if spec.fragment_mib:
        words.append(f"lab.fragment={spec.fragment_mib}")
    if spec.arguments:
        words.append(f"lab.args={','.join(spec.arguments)}")
    return " ".join(words)


def _channel(name: str) -> str:
    return f"""
    <channel type='unix'>
      <source mode='bind'/>
      <target type='virtio' name={quoteattr(name)}/>
    </channel>"""


def _disk(spec: GuestSpec, image: GuestImage) -> str:
    kind, path = ("raw", image.root) if spec.disk is None else ("qcow2", spec.disk)
    return f"""\
<disk type='file' device='disk'>
      <driver name='qemu' type='{kind}'/>
      <source file={quoteattr(str(path))}/>
      <target dev='vda' bus='virtio'/>{"<readonly/>" if spec.disk is None else ""}
    </disk>"""


def _command_line(words: Sequence[str]) -> str:
    if not words:
        return ""
    arguments = "".join(f"\n    <qemu:arg value={quoteattr(word)}/>" for word in words)
    return f"\n  <qemu:commandline>{arguments}\n  </qemu:commandline>"


def domain_xml(
    spec: GuestSpec, image: GuestImage, acceleration: str, console: Path, port: int
) -> str:
    """The domain. Where its only disk is read-only, libvirt migrates it without shared storage."""
    kvm = acceleration == "KVM"
    cpu = "<cpu mode='host-model' check='none'>" if kvm else (
        "<cpu mode='custom' match='exact' check='none'><model>qemu64</model>"
    )  # fmt: skip
    reporting = " freePageReporting='on'" if spec.free_page_reporting else ""
    channels = _channel(CHANNEL) + _channel(GUEST_AGENT_CHANNEL) if spec.channels else ""
    return f"""\
<domain type={"'kvm'" if kvm else "'qemu'"} xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{escape(spec.name)}</name>
  <memory unit='MiB'>{spec.memory_mib}</memory>
  <vcpu>{spec.vcpus}</vcpu>
  {spec.memory_backing}
  <os>
    <type arch='x86_64' machine={quoteattr(spec.machine)}>hvm</type>
    <kernel>{escape(str(image.kernel))}</kernel>
    <initrd>{escape(str(image.initrd))}</initrd>
    <cmdline>{escape(kernel_command_line(spec, port))}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  {cpu}{spec.numa}</cpu>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    {_disk(spec, image)}
    <interface type='bridge'>
      <mac address='{spec.mac}'/>
      <source bridge='{DATA_BRIDGE}'/>
      <model type='virtio'/>
    </interface>{channels}
    <serial type='file'>
      <source path={quoteattr(str(console))} append='on'/>
    </serial>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='virtio'{reporting}/>
    <controller type='usb' model='none'/>{spec.devices}
  </devices>{_command_line(spec.extra_qemu)}
</domain>
"""
