# SPDX-License-Identifier: Apache-2.0
"""Whether a stored appliance fits a flavor and a host. Found out before anything starts.

A guest that is resumed cannot be given other hardware: its flavor has to say what it has already,
but for the disk, which may be larger. A host has to have the machine, the CPU and a QEMU that
reads what the capturing one wrote.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self
from xml.etree import ElementTree

from nova_enlightened import exception
from nova_enlightened.knowledge import domain_xml

MIB: Final = 1 << 20
GIB: Final = 1 << 30
_UNVERIFIABLE: Final = frozenset({"host-passthrough", "maximum"})


@dataclass(frozen=True)
class Stored:
    """What the agent tells of a manifest that it has checked.

    :param disks: (target, bytes).
    """

    machine: str
    qemu_version: str
    cpu: str
    domain_xml: str
    disks: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        """:raises ManifestError: it is not what an agent of this version tells."""
        try:
            return cls(
                machine=str(said["machine"]),
                qemu_version=str(said["qemu_version"]),
                cpu=str(said["cpu"]),
                domain_xml=str(said["domain_xml"]),
                disks=tuple((str(target), int(size)) for target, size in said["disks"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise exception.ManifestError(f"the agent's answer makes no sense: {error}") from error


@dataclass(frozen=True)
class Size:
    """What a flavor gives, or an appliance has. Memory, disk, ephemeral and swap are bytes."""

    vcpus: int
    memory: int
    disk: int
    ephemeral: int = 0
    swap: int = 0


def size_of(stored: Stored) -> Size:
    """What the appliance has. :raises ManifestError: its XML does not say."""
    try:
        domain = domain_xml.root(stored.domain_xml)
        memory = domain_xml.parse(stored.domain_xml).size
        vcpus = int((domain.findtext("vcpu") or "").strip())
    except (exception.HintError, ValueError) as error:
        raise exception.ManifestError(f"captured domain: {error}") from error
    if len(stored.disks) != 1:
        raise exception.ManifestError(
            f"the appliance has {len(stored.disks)} disks; a server made from an image has one"
        )
    return Size(vcpus, memory, stored.disks[0][1])


def arch_of(stored: Stored) -> str:
    """The architecture of the captured machine. :raises ManifestError: its XML does not say."""
    try:
        kind = domain_xml.root(stored.domain_xml).find("os/type")
    except exception.HintError as error:
        raise exception.ManifestError(f"captured domain: {error}") from error
    arch = None if kind is None else kind.get("arch")
    if not arch:
        raise exception.ManifestError("the captured domain has no architecture")
    return arch


def misfit(appliance: Size, flavor: Size) -> str | None:
    """Why a server of this flavor cannot be the appliance, in words."""
    wrong = []
    if appliance.vcpus != flavor.vcpus:
        wrong.append(f"it has {appliance.vcpus} vCPUs and the flavor {flavor.vcpus}")
    if appliance.memory != flavor.memory:
        wrong.append(
            f"it has {appliance.memory // MIB} MiB of memory and the flavor {flavor.memory // MIB}"
        )
    if flavor.disk and flavor.disk < appliance.disk:
        wrong.append(
            f"its disk takes {appliance.disk / GIB:.3g} GiB and the flavor gives "
            f"{flavor.disk / GIB:.3g}"
        )
    for name in ("ephemeral", "swap"):
        if getattr(flavor, name):
            wrong.append(f"the flavor has {name} space, and a running guest cannot be given any")
    return "; ".join(wrong) or None


def older(host: int, captured: str) -> str | None:
    """Why this host's QEMU cannot read what the capturing one wrote.

    :param host: as libvirt tells it: major * 1,000,000 + minor * 1,000 + micro.
    :param captured: such as ``7.2.22``. Micro releases read each other's.
    """
    found = re.match(r"(\d{1,4})\.(\d{1,4})", captured)
    if found is None:
        return f"it was captured by QEMU {captured!r}, which is no version"
    here = (host // 1_000_000, host // 1_000 % 1_000)
    if (int(found[1]), int(found[2])) > here:
        return f"it was captured by QEMU {captured}, and this host has {here[0]}.{here[1]}"
    return None


def unverifiable(cpu: str) -> str | None:
    """Why no host can be compared with the captured CPU.

    :raises ManifestError: it is no <cpu>.
    """
    try:
        element = ElementTree.fromstring(cpu) if cpu else None
    except ElementTree.ParseError as error:
        raise exception.ManifestError(f"captured CPU: {error}") from error
    if element is None:
        return None
    if element.tag != "cpu":
        raise exception.ManifestError(f"<{element.tag}> where a <cpu> belongs")
    mode = element.get("mode", "custom")
    if mode in _UNVERIFIABLE:
        return f"it was captured with CPU mode {mode}: no other host can be compared with it"
    return None
