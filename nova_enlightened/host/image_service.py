# SPDX-License-Identifier: Apache-2.0
"""The image that stands for an appliance in Glance: a stub, and properties that say the rest.

Its properties pin store, manifest and plan; its content is half a kilobyte that a host boots only
if it does not know what an appliance is, and that says so on the screen.

openstacksdk's errors are translated here.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final
from xml.etree import ElementTree

from keystoneauth1 import exceptions as keystone_errors
from openstack import exceptions as sdk_errors

from nova_enlightened import exception
from nova_enlightened.appliance.manifest import Manifest

STORE: Final = "enlightened_appliance_store"
MANIFEST: Final = "enlightened_appliance_manifest"
PLAN: Final = "enlightened_appliance_plan"
TRACES: Final = "enlightened_appliance_traces"
TRAIT: Final = "trait:CUSTOM_ENLIGHTENED_STREAMING"
MIB: Final = 1 << 20
GIB: Final = 1 << 30

_SENTENCE: Final = (
    b"This image is a stored appliance, and this host does not stream appliances.\r\n"
    b"Install nova-enlightened on it, or choose a host with the trait\r\n"
    b"CUSTOM_ENLIGHTENED_STREAMING.\r\n\0"
)
# xor ax,ax; mov ds,ax; xor bx,bx; mov si,text; cld; next: lodsb; test al,al; jz halt;
# mov ah,0x0e; int 0x10; jmp next; halt: hlt; jmp halt; text:
_CODE: Final = bytes.fromhex("31c0 8ed8 31db be187c fc ac 84c0 7406 b40e cd10 ebf5 f4 ebfd")
# Active, type "no file system", from sector 0, of one sector.
_PARTITION: Final = bytes.fromhex("80 000100 da 000100 00000000 01000000")
STUB: Final = (_CODE + _SENTENCE).ljust(446, b"\0") + _PARTITION.ljust(64, b"\0") + b"\x55\xaa"
"""A boot sector that writes a sentence through the BIOS. It has a partition, as Glance refuses one
that has none (oslo.utils, ``format_inspector.GPTInspector``).
"""

_PATCH: Final = "application/openstack-images-v2.1-json-patch"
_DISK_BUSES: Final = frozenset({"virtio", "scsi", "ide", "sata", "usb"})
_HARDWARE: Final = {
    "hw_architecture": ("os/type", "arch"),
    "hw_disk_bus": ("devices/disk[@device='disk']/target", "bus"),
    "hw_cdrom_bus": ("devices/disk[@device='cdrom']/target", "bus"),
    "hw_scsi_model": ("devices/controller[@type='scsi']", "model"),
    "hw_vif_model": ("devices/interface/model", "type"),
    "hw_video_model": ("devices/video/model", "type"),
    "hw_rng_model": ("devices/rng", "model"),
    "hw_watchdog_action": ("devices/watchdog", "action"),
    "hw_input_bus": ("devices/input[@type='tablet']", "bus"),
}
"""Property of Nova's, and the attribute of the domain that says it."""


def hardware(manifest: Manifest) -> dict[str, str]:
    """Properties by which Nova gives a server the devices that were captured.

    :raises ManifestError: the appliance's XML is no domain's.
    """
    domain = _domain(manifest)
    found = {"hw_machine_type": manifest.machine}
    for name, (path, attribute) in _HARDWARE.items():
        element = domain.find(path)
        value = element.get(attribute) if element is not None else None
        if value:
            found[name] = value
    if found.get("hw_disk_bus") not in _DISK_BUSES:
        found.pop("hw_disk_bus", None)
    firmware = domain.find("os[@firmware='efi']") is not None
    uefi = firmware or domain.find("os/loader[@type='pflash']") is not None
    found["hw_firmware_type"] = "uefi" if uefi else "bios"
    if domain.find("devices/channel/target[@name='org.qemu.guest_agent.0']") is not None:
        found["hw_qemu_guest_agent"] = "yes"
    return found


def needs(manifest: Manifest) -> dict[str, int]:
    """``min_ram`` in MiB and ``min_disk`` in GiB of a flavor for it.

    :raises ManifestError: the appliance's XML is no domain's.
    """
    kib = _domain(manifest).findtext("memory") or ""
    if not kib.strip().isdecimal():
        raise exception.ManifestError("the appliance's domain says nothing of its memory")
    root = manifest.disks[0][1] if manifest.disks else 0
    return {"min_ram": -(-int(kib) * 1024 // MIB), "min_disk": -(-root // GIB)}


def _domain(manifest: Manifest) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(manifest.domain_xml)
    except ElementTree.ParseError as error:
        raise exception.ManifestError(f"the appliance's domain does not parse: {error}") from error


@dataclasses.dataclass(frozen=True)
class Image:
    """An image of Glance's that stands for an appliance."""

    id: str
    name: str
    status: str
    manifest: str
    plan: str


class ImageService:
    """Glance, through openstacksdk.

    :param connection: an ``openstack.connection.Connection``, or what stands in for one.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def reach(self) -> None:
        """See that it lets this user in. :raises ImageServiceError: it does not, or is away."""
        with _translated("Glance"):
            self._connection.authorize()

    def register(
        self,
        name: str,
        manifest: Manifest,
        store: str,
        plan: str | None = None,
        traces: bool = False,
    ) -> Image:
        """The image of an appliance; one that is there already is brought up to date.

        :param traces: whether traces of servers' runs may be kept.
        :raises ImageServiceError: Glance declines or does not answer.
        """
        properties = {
            **hardware(manifest),
            STORE: store,
            MANIFEST: manifest.digest,
            TRACES: "yes" if traces else "no",
            TRAIT: "required",
        }
        if plan is not None:
            properties[PLAN] = plan
        with _translated(f"image {name}"):
            found = self._of(manifest.digest, name)
            if found is None:
                found = self._connection.image.create_image(
                    name,
                    data=STUB,
                    disk_format="raw",
                    container_format="bare",
                    validate_checksum=False,
                    allow_duplicates=True,
                    **needs(manifest),
                    **properties,
                )
            else:
                found = self._update(found, properties)
        return _image(found)

    def set_plan(self, manifest: str, plan: str) -> list[Image]:
        """Have servers of every image of an appliance prefetch by this plan.

        :raises ImageServiceError: Glance declines or does not answer.
        """
        with _translated(f"images of appliance {manifest}"):
            return [_image(self._update(image, {PLAN: plan})) for image in self._all(manifest)]

    def images(self, manifest: str) -> list[Image]:
        """Images of an appliance. :raises ImageServiceError: Glance does not answer."""
        with _translated(f"images of appliance {manifest}"):
            return [_image(found) for found in self._all(manifest)]

    def _all(self, manifest: str) -> list[Any]:
        # openstacksdk drops filters by properties it does not know, and lists all images.
        return [
            image
            for image in self._connection.image.images()
            if (image.properties or {}).get(MANIFEST) == manifest
        ]

    def _update(self, image: Any, properties: Mapping[str, str]) -> Any:
        # Not by update_image, which takes properties with a dot in their name for removed.
        changes = [
            {"op": "add", "path": f"/{name}", "value": value} for name, value in properties.items()
        ]
        answer = self._connection.image.patch(
            f"/images/{image.id}", json=changes, headers={"Content-Type": _PATCH}
        )
        sdk_errors.raise_from_response(answer)
        return self._connection.image.get_image(image.id)

    def _of(self, manifest: str, name: str) -> Any:
        # An image whose upload broke off is "queued" for ever, and never becomes one.
        found = [one for one in self._all(manifest) if one.name == name]
        return next((one for one in found if one.status == "active"), None)


def _image(found: Any) -> Image:
    properties: Mapping[str, Any] = found.properties or {}
    return Image(
        str(found.id),
        str(found.name),
        str(found.status),
        str(properties.get(MANIFEST, "")),
        str(properties.get(PLAN, "")),
    )


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (sdk_errors.SDKException, keystone_errors.ClientException) as error:
        raise exception.ImageServiceError(f"{what}: {error}") from error
