# SPDX-License-Identifier: Apache-2.0
"""The XML of a domain that starts from a stored appliance."""

import dataclasses
import urllib.parse
from collections.abc import Iterable
from typing import Final
from xml.etree import ElementTree

from nova_enlightened import exception
from nova_enlightened.host import spare_monitor
from nova_enlightened.knowledge import domain_xml

INCOMING: Final = ("-incoming", "defer")


@dataclasses.dataclass(frozen=True)
class StreamedDisk:
    """A disk of the domain.

    :param target: such as ``vda``, as in the capture.
    :param overlay: qcow2 file that takes its writes.
    :param socket: unix socket of the export that is under it.
    """

    target: str
    overlay: str
    socket: str


def nbd_uri(target: str, socket: str) -> str:
    """The URI of a disk's export."""
    return f"nbd+unix:///{target}?{urllib.parse.urlencode({'socket': socket}, safe='/')}"


def command_line(monitor: str | None) -> list[str]:
    """Words of QEMU's for a domain that streams.

    :param monitor: where its second monitor connects; see :mod:`.spare_monitor`. None: it has none.
    """
    return [*INCOMING, *(spare_monitor.arguments(monitor) if monitor is not None else ())]


def with_incoming(xml: str, monitor: str | None = None) -> str:
    """The same domain, waiting for a migration. Not for a persistent definition: a cold start
    would wait too.

    :param monitor: see :func:`command_line`.
    :raises StreamingError: that is no domain's XML.
    """
    domain = _parsed(xml)
    domain_xml.add_qemu_arguments(domain, command_line(monitor))
    return ElementTree.tostring(domain, encoding="unicode")


def streamed_xml(
    xml: str, name: str, uuid: str, disks: Iterable[StreamedDisk], monitor: str | None = None
) -> str:
    """A clone of a captured domain: another name and UUID, disks on their exports, waiting for its
    memory. Machine, CPU and the addresses of devices stay: they must match the capture.

    :param xml: of the captured domain.
    :param monitor: see :func:`command_line`.
    :raises StreamingError: that is no domain's XML, or has no such disk.
    """
    domain = _parsed(xml)
    _set(domain, "name", name)
    _set(domain, "uuid", uuid)
    for disk in disks:
        found = domain.find(f"./devices/disk/target[@dev='{disk.target}']/..")
        if found is None:
            raise exception.StreamingError(f"the captured domain has no disk {disk.target}")
        _lay_on_export(found, disk)
    return with_incoming(ElementTree.tostring(domain, encoding="unicode"), monitor)


def _parsed(xml: str) -> ElementTree.Element:
    try:
        domain = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise exception.StreamingError(f"XML of a domain: {error}") from error
    if domain.tag != "domain":
        raise exception.StreamingError(f"XML of a {domain.tag}, not a domain")
    return domain


def _set(domain: ElementTree.Element, tag: str, text: str) -> None:
    found = domain.find(tag)
    if found is None:
        found = ElementTree.Element(tag)
        domain.insert(0, found)
    found.text = text


def _lay_on_export(disk: ElementTree.Element, wanted: StreamedDisk) -> None:
    """Writes go to the overlay. When the export is gone for a moment, the guest stops rather than
    see an error: see :func:`.streaming.resume_after_errors`.
    """
    disk.set("type", "file")
    for tag in ("driver", "source", "backingStore"):
        for old in disk.findall(tag):
            disk.remove(old)
    driver = ElementTree.Element("driver", name="qemu", type="qcow2")
    driver.set("error_policy", "stop")
    driver.set("rerror_policy", "stop")
    backing = ElementTree.Element("backingStore", type="network")
    ElementTree.SubElement(backing, "format", type="raw")
    source = ElementTree.SubElement(backing, "source", protocol="nbd", name=wanted.target)
    ElementTree.SubElement(source, "host", transport="unix", socket=wanted.socket)
    ElementTree.SubElement(backing, "backingStore")
    file = ElementTree.Element("source", file=wanted.overlay)
    for place, element in enumerate((driver, file, backing)):
        disk.insert(place, element)
