# SPDX-License-Identifier: Apache-2.0
"""The XML of a captured domain: what has to be the same wherever it is played stays, and what is
of one host, one server or its owner goes.

QEMU restores device state into devices of the same kind at the same address: machine, CPU, memory
and every device with its address stay. Names, UUIDs, paths, MAC addresses, passwords, limits and
Nova's metadata go; whoever plays the appliance puts in its own.
"""

import dataclasses
from typing import Final
from xml.etree import ElementTree

from nova_enlightened.exception import CaptureRefused, HintError
from nova_enlightened.knowledge import domain_xml

Element = ElementTree.Element

_GONE: Final = (
    "name",
    "uuid",
    "title",
    "description",
    "metadata",
    "sysinfo",
    "os/smbios",
    "os/kernel",
    "os/initrd",
    "os/cmdline",
    "os/dtb",
    "memoryBacking",
    "memtune",
    "blkiotune",
    "cputune",
    "numatune",
    "resource",
    "keywrap",
    "seclabel",
    "on_poweroff",
    "on_reboot",
    "on_crash",
    "devices/emulator",
    "devices/disk/source",
    "devices/disk/backingStore",
    "devices/disk/mirror",
    "devices/disk/auth",
    "devices/disk/encryption",
    "devices/disk/iotune",
    "devices/disk/serial",
    "devices/disk/wwn",
    "devices/disk/transient",
    "devices/interface/mac",
    "devices/interface/source",
    "devices/interface/target",
    "devices/interface/virtualport",
    "devices/interface/vlan",
    "devices/interface/bandwidth",
    "devices/interface/filterref",
    "devices/interface/port",
    "devices/interface/ip",
    "devices/interface/backend",
    "devices/interface/script",
    "devices/console",
)
"""Elements taken out: of one host or one server. A console is the first serial port again."""

_CHARACTER: Final = ("serial", "parallel", "channel")
_GUEST_RANDOM: Final = "/dev/urandom"

_REFUSED: Final = {
    "devices/hostdev": "a device of its host is passed through to it",
    "devices/interface[@type='hostdev']": "a network device of its host is passed through to it",
    "devices/interface[@type='vdpa']": "a network device of its host is passed through to it",
    "devices/filesystem": "a directory of its host is shared with it",
    "devices/shmem": "it shares memory with others",
    "devices/tpm": "it has a TPM, whose state QEMU does not have",
    "devices/smartcard": "it has a smart card",
    "devices/nvram": "its non-volatile memory is a file",
    "devices/memory": "it has memory devices",
    "devices/vsock": "it has a vsock, whose number is its host's",
    "launchSecurity": "its memory is encrypted",
}
"""What keeps a domain from being an appliance, and why, in words."""

_MACHINE_WORDS: Final = ("-device", "-machine", "-cpu", "-global", "-object", "-M")


@dataclasses.dataclass(frozen=True)
class CapturedDisk:
    """A disk of a captured domain.

    :ivar target: such as ``vda``.
    :ivar bus: such as ``virtio``.
    :ivar path: file or block device; empty for another kind of source.
    :ivar format: ``raw``, ``qcow2``...
    :ivar writable: whether the guest may write to it.
    """

    target: str
    bus: str
    path: str
    format: str
    writable: bool


def refuse(xml: str) -> None:
    """:raises CaptureRefused: the domain cannot become an appliance, naming why and what to do."""
    domain = _root(xml)
    why = [words for path, words in _REFUSED.items() if domain.find(path) is not None]
    if any(word in _MACHINE_WORDS for word in domain_xml.qemu_arguments(domain)):
        why.append("its <qemu:commandline> changes its machine")
    if why:
        raise CaptureRefused(f"the domain cannot become an appliance: {'; '.join(why)}")


def disks(xml: str) -> list[CapturedDisk]:
    """Disks with contents of the appliance's: not CD-ROMs and floppies, which are somebody's
    media, nor Nova's config drive, which is the data of one server's owner.

    :raises CaptureRefused: a disk is neither a file nor a block device.
    """
    found = []
    for disk in _root(xml).iterfind("devices/disk"):
        target, source, driver = (disk.find(tag) for tag in ("target", "source", "driver"))
        if disk.get("device", "disk") != "disk" or target is None or source is None:
            continue
        name = target.get("dev", "")
        path = source.get("file") or source.get("dev") or ""
        if not path:
            raise CaptureRefused(
                f"disk {name} is of type {disk.get('type')}; only files and block devices of this "
                "host can be published. Capture it into a file and use --save with --disk"
            )
        if path.endswith("/disk.config"):
            continue
        found.append(
            CapturedDisk(
                name,
                target.get("bus", ""),
                path,
                driver.get("type", "raw") if driver is not None else "raw",
                disk.find("readonly") is None,
            )
        )
    return found


def sanitised(xml: str) -> str:
    """The XML without what is of one host, one server or its owner.

    :raises CaptureRefused: not the XML of a domain.
    """
    domain = _root(xml)
    for child in list(domain):
        if child.tag == domain_xml.QEMU_COMMAND_LINE:
            domain.remove(child)
    domain.attrib.pop("id", None)
    for path in _GONE:
        _remove(domain, path)
    _clear_identity(domain)
    devices = domain.find("devices")
    if devices is not None:
        _clear_devices(devices)
    ElementTree.indent(domain)
    return ElementTree.tostring(domain, "unicode") + "\n"


def cpu_of(cookie: str, xml: str) -> str:
    """The CPU as the guest saw it: libvirt's cookie has it with all features, else the XML's.

    :raises CaptureRefused: the XML is not a domain's.
    """
    for text in (cookie, xml):
        if not text:
            continue
        cpu = _root(text, ("cookie", "domain")).find("cpu")
        if cpu is not None:
            cpu.tail = None
            return ElementTree.tostring(cpu, "unicode")
    return ""


def _root(xml: str, tags: tuple[str, ...] = ("domain",)) -> Element:
    if tags == ("domain",):
        try:
            return domain_xml.root(xml)
        except HintError as error:
            raise CaptureRefused(str(error)) from error
    try:
        element = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise CaptureRefused(f"libvirt's cookie does not parse: {error}") from error
    if element.tag not in tags:
        raise CaptureRefused(f"<{element.tag}> where libvirt's cookie or a domain belongs")
    return element


def _remove(domain: Element, path: str) -> None:
    parent, _, tag = path.rpartition("/")
    for holder in domain.iterfind(parent or "."):
        for child in holder.findall(tag):
            holder.remove(child)


def _clear_identity(domain: Element) -> None:
    generation = domain.find("genid")
    if generation is not None:
        # The device stays, so that a clone can be told that it is one; its number is new.
        generation.text = None
    vcpu = domain.find("vcpu")
    if vcpu is not None:
        vcpu.attrib.pop("cpuset", None)
        vcpu.attrib.pop("placement", None)
    nvram = domain.find("os/nvram")
    if nvram is not None:
        # UEFI's variables are in a RAM block; the file is made anew from its template.
        template = nvram.get("template")
        nvram.clear()
        if template:
            nvram.set("template", template)


def _clear_devices(devices: Element) -> None:
    for driver in devices.iterfind("disk/driver"):
        driver.attrib.pop("type", None)
    for interface in devices.iterfind("interface"):
        interface.set("type", "ethernet")
    for tag in _CHARACTER:
        for device in devices.iterfind(tag):
            _clear_character(device, "unix" if tag == "channel" else "pty")
    for graphics in devices.iterfind("graphics"):
        kind = graphics.get("type", "vnc")
        graphics.clear()
        graphics.set("type", kind)
    for rng in devices.iterfind("rng"):
        _remove(rng, "backend")
        ElementTree.SubElement(rng, "backend", {"model": "random"}).text = _GUEST_RANDOM
    for device in devices:
        alias = device.find("alias")
        if alias is not None and not alias.get("name", "").startswith("ua-"):
            device.remove(alias)


def _clear_character(device: Element, kind: str) -> None:
    device.set("type", kind)
    for gone in ("source", "log", "protocol"):
        _remove(device, gone)
    target = device.find("target")
    if target is not None:
        target.attrib.pop("state", None)
