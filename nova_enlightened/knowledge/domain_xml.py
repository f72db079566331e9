# SPDX-License-Identifier: Apache-2.0
"""What a libvirt domain's XML says of its memory and of QEMU's command line, and where QEMU puts
that memory.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

from nova_enlightened.exception import HintError
from nova_enlightened.knowledge.space import TARGET_PAGE

GIB: Final = 1 << 30
ABOVE_4G: Final = 4 * GIB
MAX_XML: Final = 16 << 20
HYPERTRANSPORT: Final = 0xFD_0000_0000
"""AMD reserves the guest addresses from here to 1 TiB. QEMU 7.1 and later move *all* memory
above 4 GiB past 1 TiB when a guest with an AMD CPU could reach them (`pc.c`)."""
PCI_HOLE64: Final = 64 * GIB
"""At least the 64-bit PCI window that QEMU counts as reach past the end of RAM (q35: 32)."""

UNITS: Final = {
    "b": 1, "bytes": 1, "byte": 1,
    "k": 1 << 10, "kib": 1 << 10, "kb": 10**3,
    "m": 1 << 20, "mib": 1 << 20, "mb": 10**6,
    "g": 1 << 30, "gib": 1 << 30, "gb": 10**9,
    "t": 1 << 40, "tib": 1 << 40, "tb": 10**12,
}  # fmt: skip
_QEMU: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
QEMU_COMMAND_LINE: Final = f"{{{_QEMU}}}commandline"
_QEMU_ARGUMENT: Final = f"{{{_QEMU}}}arg"

ElementTree.register_namespace("qemu", _QEMU)


@dataclass(frozen=True)
class DomainMemory:
    """Sizes are bytes."""

    machine: str
    size: int
    """Initial memory: without memory devices."""
    below_4g: int
    """How much of it lies below 4 GiB; the rest is from 4 GiB up."""
    cells: tuple[int, ...]
    """Size of each NUMA cell, by id; empty without NUMA."""
    devices: tuple[tuple[str, int, int], ...]
    """(RAM block name, guest physical address, size) of each memory device."""


def root(xml: str) -> ElementTree.Element:
    """The <domain> element. :raises HintError: not the XML of a domain."""
    if len(xml) > MAX_XML:
        raise HintError(f"domain XML of {len(xml)} characters")
    try:
        domain = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise HintError(f"domain XML does not parse: {error}") from error
    if domain.tag != "domain":
        raise HintError(f"<{domain.tag}> is not a domain")
    return domain


def qemu_arguments(domain: ElementTree.Element) -> list[str]:
    """Words that QEMU's command line has besides libvirt's own."""
    return [argument.get("value", "") for argument in domain.iter(_QEMU_ARGUMENT)]


def add_qemu_arguments(domain: ElementTree.Element, words: Iterable[str]) -> None:
    """Have QEMU's command line end with these."""
    line = domain.find(QEMU_COMMAND_LINE)
    if line is None:
        line = ElementTree.SubElement(domain, QEMU_COMMAND_LINE)
    for word in words:
        ElementTree.SubElement(line, _QEMU_ARGUMENT, value=word)


def parse(xml: str) -> DomainMemory:
    """:raises HintError: not a domain, or a machine whose map is not known."""
    domain = root(xml)
    machine = _machine(domain)
    memory = domain.find("memory")
    if memory is None:
        raise HintError("the domain says nothing of its memory")
    devices = domain.findall("devices/memory")
    cells = tuple(_bytes(cell.get("memory"), cell.get("unit")) for cell in _cells(domain))
    # <memory> counts the memory devices too (virDomainDefGetMemoryInitial).
    size = sum(cells) or _size(memory) - sum(map(_device_size, devices))
    if size <= 0 or any(part % TARGET_PAGE for part in (size, *cells)):
        raise HintError(f"the domain has {size} bytes of initial memory, in cells {cells}")
    _refuse_terabyte(domain, machine, size)
    below = _below_4g(machine, size, _max_below_4g(domain))
    return DomainMemory(machine, size, below, cells, tuple(_placed(devices)))


def _machine(domain: ElementTree.Element) -> str:
    kind = domain.find("os/type")
    machine = kind.get("machine", "") if kind is not None else ""
    arch = kind.get("arch", "") if kind is not None else ""
    if arch not in ("x86_64", "i686", ""):
        raise HintError(f"the memory map of {arch} machines is not known")
    if not re.match(r"(pc$|q35$|pc-i440fx-|pc-q35-|pc-\d)", machine):
        raise HintError(f"the memory map of machine {machine!r} is not known")
    return machine


def _below_4g(machine: str, size: int, asked: int | None) -> int:
    """Bytes of RAM below 4 GiB, as pc_init1 and pc_q35_init settle it."""
    if "q35" in machine:
        bound = 2 * GIB if size >= 0xB000_0000 else 0xB000_0000
        bound = min(bound, asked or ABOVE_4G)
    else:
        bound = asked or 0xE000_0000
        # Up to pc-i440fx-1.7 memory was not aligned to whole GiB (gigabyte_align).
        if size >= bound and not re.match(r"pc(-i440fx)?-[01]\.", machine):
            bound = min(bound, 3 * GIB)
    return min(size, bound)


def _max_below_4g(domain: ElementTree.Element) -> int | None:
    """What an operator passed through: libvirt has no element for it."""
    for word in qemu_arguments(domain):
        found = re.search(r"max-ram-below-4g=(\d+)([kmgt]?)", word, re.I)
        if found:
            return _bytes(found[1], found[2] or "b")
    return None


def _refuse_terabyte(domain: ElementTree.Element, machine: str, size: int) -> None:
    most = domain.find("maxMemory")
    reach = ABOVE_4G + max(size, _size(most) if most is not None else 0) + PCI_HOLE64
    if reach >= HYPERTRANSPORT:
        raise HintError(
            f"where machine {machine!r} puts {size} bytes of memory depends on its CPU vendor"
        )


def _cells(domain: ElementTree.Element) -> list[ElementTree.Element]:
    cells = domain.findall("cpu/numa/cell")
    try:
        # Ids may come in any order; without them document order is id order.
        return sorted(cells, key=lambda cell: int(cell.get("id") or cells.index(cell)))
    except ValueError as error:
        raise HintError(f"a NUMA cell without a number for its id: {error}") from error


def _placed(devices: list[ElementTree.Element]) -> list[tuple[str, int, int]]:
    """(block, address, size) of the devices whose address the XML tells."""
    placed = []
    for device in devices:
        alias = device.find("alias")
        address = device.find("address[@base]")
        if alias is None or address is None:
            continue
        try:
            base = int(address.get("base", ""), 0)
        except ValueError as error:
            raise HintError(f"a memory device at no address: {error}") from error
        placed.append((f"mem{alias.get('name', '')}", base, _device_size(device)))
    return placed


def _device_size(device: ElementTree.Element) -> int:
    size = device.find("target/size")
    return _size(size) if size is not None else 0


def _size(element: ElementTree.Element) -> int:
    return _bytes(element.text, element.get("unit"))


def _bytes(text: str | None, unit: str | None) -> int:
    try:
        return int((text or "").strip()) * UNITS[(unit or "KiB").lower()]
    except (KeyError, ValueError) as error:
        raise HintError(f"{text!r} {unit!r} is not a size") from error
