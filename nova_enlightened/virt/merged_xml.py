# SPDX-License-Identifier: Apache-2.0
"""The domain of a server that starts from a stored appliance: two domains' XML made one.

The guest that is resumed has seen its hardware already. So what a guest sees, every device with
its address, is the captured domain's; what only the host sees (files, taps, logs, limits) and who
it is (name, UUID, metadata, MAC addresses) is that of the domain Nova made for this server.

A captured domain comes from an image, and so from anybody. Nothing of it is taken but elements
and attributes listed here, none of which names a file, a device or a program of the host.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

from nova_enlightened import exception
from nova_enlightened.host import streamed_xml
from nova_enlightened.knowledge import domain_xml

Element = ElementTree.Element

ElementTree.register_namespace("nova", "http://openstack.org/xmlns/libvirt/nova/1.1")

# In the order that libvirt's schema has them, which it does not insist on.
_CAPTURED: Final = (
    "maxMemory",
    "memory",
    "currentMemory",
    "vcpu",
    "features",
    "cpu",
    "clock",
    "pm",
)
_OWN: Final = (
    "name", "uuid", "metadata", "memoryBacking", "cputune", "numatune", "iothreads", "resource",
    "sysinfo", "on_poweroff", "on_reboot", "on_crash", "perf", "seclabel",
)  # fmt: skip

# By device: attributes and children a guest sees, of which none points outside of it.
_GUEST: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = {
    tag: (frozenset(attributes.split()), frozenset(children.split()))
    for tag, attributes, children in (
        ("controller", "type index model ports vectors", "model target address driver master"),
        ("disk", "device", "target address serial wwn vendor product blockio geometry boot"),
        ("interface", "", "model address mtu boot"),
        ("input", "type bus model", "address"),
        ("video", "", "model address"),
        ("watchdog", "model action", "address"),
        ("memballoon", "model autodeflate freePageReporting", "address stats"),
        ("panic", "model", "address"),
        ("iommu", "model", "driver address"),
        ("hub", "type", "address"),
        ("sound", "model", "codec address"),
        ("serial", "", "target address"),
        ("console", "", "target address"),
        ("channel", "", "target address"),
        ("rng", "model", "address"),
    )
}
_INPUTS: Final = frozenset({"mouse", "tablet", "keyboard"})
# Attributes of <driver> that change what the guest sees; the others say how the host does it.
_DRIVER: Final = frozenset(
    {"queues", "queue_size", "rx_queue_size", "tx_queue_size", "event_idx", "packed", "ats",
     "iommu", "page_per_vq"}
)  # fmt: skip
_HOST_SIDE: Final = ("emulator", "graphics", "audio")
_BACKENDS: Final = {"serial": "pty", "console": "pty", "channel": "null"}
"""Where a character device leads that the server has none like."""
_CHANNELS: Final = ("org.openstack.enlightened.0", "org.qemu.guest_agent.0")
"""libvirt makes the sockets of these, as for Nova's own."""
_CONFIG_DRIVE: Final = "disk.config"


@dataclass(frozen=True)
class Merged:
    """What QEMU is started with.

    :param xml: with an ``-incoming defer`` of QEMU's: to run, not to keep.
    :param dropped: devices of Nova's that the server gets at its first cold start, in words.
    :param interfaces: (MAC address when captured, MAC address now) in the guest's order.
    """

    xml: str
    dropped: tuple[str, ...]
    interfaces: tuple[tuple[str, str], ...]


def merge(
    captured: str,
    own: str,
    generation: str,
    exports: Mapping[str, str],
    monitor: str | None = None,
) -> Merged:
    """The domain to resume.

    :param exports: unix socket of the NBD export below each disk, by target.
    :param captured: a manifest's ``domain_xml``; hostile.
    :param own: as Nova made it for this server.
    :param monitor: this host's socket for QEMU's second monitor, see `host.spare_monitor`.
    :param generation: a new UUID, for a guest that has a VM generation ID.
    :raises ManifestError: the two do not fit each other, or the captured one has something that
        cannot be resumed elsewhere.
    """
    try:
        guest, host = domain_xml.root(captured), domain_xml.root(own)
    except exception.HintError as error:
        raise exception.ManifestError(f"captured domain: {error}") from error
    if guest.get("type") != host.get("type"):
        raise exception.ManifestError(
            f"captured under {guest.get('type')!r}, and this host runs {host.get('type')!r}"
        )
    made = ElementTree.Element("domain", {"type": host.get("type", "")})
    _take(made, host, _OWN)
    _take(made, guest, _CAPTURED)
    _pin(made, host)
    if guest.find("genid") is not None:
        ElementTree.SubElement(made, "genid").text = generation
    made.append(_os(guest, host))
    devices = _Devices(guest, host, exports)
    made.append(devices.merged())
    domain_xml.add_qemu_arguments(made, streamed_xml.command_line(monitor))
    xml = ElementTree.tostring(made, "unicode")
    return Merged(xml, tuple(devices.dropped), tuple(devices.macs))


def _take(made: Element, source: Element, tags: tuple[str, ...]) -> None:
    for tag in tags:
        made.extend(copy.deepcopy(source.findall(tag)))


def _pin(made: Element, host: Element) -> None:
    """The host's part of <vcpu>: which processors it may use."""
    here, there = made.find("vcpu"), host.find("vcpu")
    if here is None:
        raise exception.ManifestError("the captured domain has no <vcpu>")
    here.attrib.pop("cpuset", None)
    if there is not None and "cpuset" in there.attrib:
        here.set("cpuset", there.attrib["cpuset"])


def _os(guest: Element, host: Element) -> Element:
    """Machine and boot order as captured; kernel, firmware and their files as Nova has them."""
    there, here = guest.find("os"), host.find("os")
    kind = None if there is None else there.find("type")
    if here is None or there is None or kind is None:
        raise exception.ManifestError("a domain without an <os>")
    for tag in ("loader", "nvram"):
        if (there.find(tag) is None) != (here.find(tag) is None):
            raise exception.ManifestError(f"only one of appliance and server has a <{tag}>")
    made = ElementTree.Element("os")
    wanted = {name: kind.get(name, "") for name in ("arch", "machine")}
    ElementTree.SubElement(made, "type", wanted).text = "hvm"
    _take(made, here, ("loader", "nvram", "kernel", "initrd", "cmdline", "smbios"))
    _take(made, there, ("boot", "bootmenu"))
    return made


class _Devices:
    """Puts the captured devices on what Nova made for them."""

    def __init__(self, guest: Element, host: Element, exports: Mapping[str, str]) -> None:
        self._guest = _devices(guest)
        self._host = _devices(host)
        self._exports = exports
        self._used: list[Element] = []
        self.dropped: list[str] = []
        self.macs: list[tuple[str, str]] = []

    def merged(self) -> Element:
        made = ElementTree.Element("devices")
        _take(made, self._host, _HOST_SIDE)
        self._used += [one for one in self._host if one.tag in _HOST_SIDE]
        for device in self._guest:
            if device.tag in ("emulator", "graphics", "audio"):
                continue
            if device.tag not in _GUEST:
                raise exception.ManifestError(f"a <{device.tag}> cannot be resumed elsewhere")
            made.append(self._one(device))
        self._look_for_unused()
        return made

    def _one(self, device: Element) -> Element:
        made = _guest_side(device)
        if device.tag == "disk":
            self._disk(device, made)
        elif device.tag == "interface":
            self._interface(device, made)
        elif device.tag == "rng":
            self._rng(device, made)
        elif device.tag in _BACKENDS:
            self._character(device, made)
        elif device.tag == "input" and device.get("type") not in _INPUTS:
            raise exception.ManifestError(f"input devices of type {device.get('type')!r}")
        return made

    def _next(self, tag: str) -> Element | None:
        """The first of Nova's devices of this kind that stands for none yet."""
        found = (one for one in self._host.findall(tag) if one not in self._used)
        return next(found, None)

    def _disk(self, device: Element, made: Element) -> None:
        kind = device.get("device", "disk")
        fitting = [
            one for one in self._host.findall("disk")
            if one not in self._used and one.get("device", "disk") == kind
        ]  # fmt: skip
        if kind == "cdrom" and not fitting:
            made.set("type", "file")  # an empty drive
            return
        if not fitting or kind not in ("disk", "cdrom"):
            raise exception.ManifestError(
                f"the appliance has {len(self._guest.findall('disk'))} disks, and the server "
                f"{len(self._host.findall('disk'))}"
            )
        here = fitting[0]
        self._used.append(here)
        made.set("type", here.get("type", "file"))
        _take(made, here, ("source", "iotune", "encryption"))
        _driver(device, here, made)
        socket = self._exports.get(_target(made))
        if socket is not None:
            _lay_on_export(made, _target(made), socket)

    def _interface(self, device: Element, made: Element) -> None:
        here = self._next("interface")
        if here is None:
            raise exception.ManifestError(
                f"the appliance has {len(self._guest.findall('interface'))} interfaces, and the "
                f"server {len(self._host.findall('interface'))}"
            )
        self._used.append(here)
        made.attrib.update(here.attrib)
        _take(made, here, ("mac", "source", "target", "bandwidth", "filterref", "virtualport",
                           "vlan", "port", "backend", "link"))  # fmt: skip
        _driver(device, here, made)
        _take(made, device, ("rom",) if _plain_rom(device) else ())
        self.macs.append((_mac(device), _mac(here)))

    def _rng(self, device: Element, made: Element) -> None:
        here = self._next("rng")
        if here is not None:
            self._used.append(here)
            _take(made, here, ("backend", "rate"))
        else:
            ElementTree.SubElement(made, "backend", {"model": "random"}).text = "/dev/urandom"

    def _character(self, device: Element, made: Element) -> None:
        target = device.find("target")
        name = "" if target is None else target.get("name", "")
        here = self._channel(name) if device.tag == "channel" else self._next(device.tag)
        if here is not None:
            self._used.append(here)
            made.set("type", here.get("type", "pty"))
            _take(made, here, ("source", "log", "protocol"))
        elif name in _CHANNELS:
            made.set("type", "unix")
            ElementTree.SubElement(made, "source", {"mode": "bind"})
        else:
            made.set("type", _BACKENDS[device.tag])

    def _channel(self, name: str) -> Element | None:
        for one in self._host.findall("channel"):
            target = one.find("target")
            if one not in self._used and target is not None and target.get("name", "") == name:
                return one
        return None

    def _look_for_unused(self) -> None:
        """What Nova has besides. A guest that runs cannot be given a disk it does not know of."""
        for one in self._host:
            if one in self._used:
                continue
            if one.tag == "disk" and _source(one).rsplit("/", 1)[-1] != _CONFIG_DRIVE:
                raise exception.ManifestError(
                    f"the server has a disk {_target(one)} that the appliance does not"
                )
            if one.tag == "interface":
                raise exception.ManifestError(
                    f"the server has an interface {_mac(one)} that the appliance does not"
                )
            if one.tag in ("hostdev", "filesystem", "tpm", "vsock", "memory", "shmem"):
                raise exception.ManifestError(f"the server has a <{one.tag}>; the appliance not")
            if one.tag in ("disk", "channel"):
                self.dropped.append(f"{one.tag} {_target(one)}")


def _devices(domain: Element) -> Element:
    found = domain.find("devices")
    if found is None:
        raise exception.ManifestError("a domain without <devices>")
    return found


def _guest_side(device: Element) -> Element:
    """The device with what is listed for its kind, and nothing else."""
    attributes, children = _GUEST[device.tag]
    kept = {name: value for name, value in device.attrib.items() if name in attributes}
    made = ElementTree.Element(device.tag, kept)
    for child in device:
        if child.tag in children:
            made.append(_plain(child))
    return made


def _plain(element: Element) -> Element:
    """A copy without what leads outside: drivers of processes beside QEMU, and files."""
    made = copy.deepcopy(element)
    for one in made.iter():
        for name in ("file", "path", "dev") if one.tag != "target" else ():
            one.attrib.pop(name, None)
        if one.tag == "driver" and one.get("name") == "vhostuser":
            raise exception.ManifestError("a device of a process beside QEMU")
    return made


def _driver(device: Element, here: Element, made: Element) -> None:
    seen, done = device.find("driver"), here.find("driver")
    wanted = {} if done is None else {k: v for k, v in done.attrib.items() if k not in _DRIVER}
    if seen is not None:
        wanted |= {name: value for name, value in seen.attrib.items() if name in _DRIVER}
    if wanted:
        made.append(ElementTree.Element("driver", wanted))


def _lay_on_export(disk: Element, target: str, socket: str) -> None:
    """Where the export is gone for a moment, the guest stops rather than see an error."""
    driver = disk.find("driver")
    if driver is None:
        driver = ElementTree.SubElement(disk, "driver", {"name": "qemu", "type": "qcow2"})
    driver.attrib |= {"error_policy": "stop", "rerror_policy": "stop"}
    below = ElementTree.SubElement(disk, "backingStore", {"type": "network"})
    ElementTree.SubElement(below, "format", {"type": "raw"})
    source = ElementTree.SubElement(below, "source", {"protocol": "nbd", "name": target})
    ElementTree.SubElement(source, "host", {"transport": "unix", "socket": socket})
    ElementTree.SubElement(below, "backingStore")


def _plain_rom(device: Element) -> bool:
    """Whether it has a <rom> that names no file."""
    rom = device.find("rom")
    return rom is not None and set(rom.attrib) <= {"bar", "enabled"}


def _mac(device: Element) -> str:
    found = device.find("mac")
    return "" if found is None else found.get("address", "").lower()


def _source(device: Element) -> str:
    found = device.find("source")
    return "" if found is None else found.get("file", "")


def _target(device: Element) -> str:
    found = device.find("target")
    return "" if found is None else found.get("dev", found.get("name", ""))
