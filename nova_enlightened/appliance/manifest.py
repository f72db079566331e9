# SPDX-License-Identifier: Apache-2.0
"""The manifest: everything that has to be known of an appliance to play it.

One JSON object in canonical form (keys sorted, no spaces, ASCII), at most 8 MiB. Its SHA-256 names
it, and it names everything else by SHA-256; so whoever trusts the one digest trusts all.
"""

import base64
import binascii
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self

from nova_enlightened.appliance.chunks import MAX_INDEX, MAX_PACK, MAX_PACKS
from nova_enlightened.appliance.places import ApplianceSpace
from nova_enlightened.exception import EnlightenedError, ManifestError
from nova_enlightened.knowledge.space import TARGET_PAGE, PageSpace
from nova_enlightened.stream.limits import MAX_RAM_BLOCKS

FORMAT: Final = 1
MAX_MANIFEST: Final = 8 << 20
MAX_NAME: Final = 255
MAX_XML: Final = 1 << 20
MAX_DESCRIPTION: Final = 4 << 20
"""Bytes of QEMU's description of its devices; it is about 100 KB for a small machine."""
MAX_CONFIGURATION: Final = 1 << 16
MAX_DEVICE_STATE: Final = 256 << 20
MAX_DISKS: Final = 64
MAX_BLOCK_NAME: Final = 255
"""A RAM block's name has one byte for its length in the stream."""
MAX_SIZE: Final = 1 << 40

SHA256: Final = re.compile(r"[0-9a-f]{64}")
TARGET: Final = re.compile(r"[a-z]{2,8}[a-z0-9]{0,8}")


class Object(NamedTuple):
    """An object of the store: its name, which is the SHA-256 of its content, and its bytes."""

    sha256: str
    length: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """One appliance.

    :ivar name: for people.
    :ivar created: ISO 8601, for people.
    :ivar machine: QEMU's machine type with its version, such as ``pc-i440fx-7.2``.
    :ivar qemu_version: that captured it, such as ``7.2.22``.
    :ivar cpu: libvirt's ``<cpu>`` element with every feature the guest has seen.
    :ivar domain_xml: the captured domain, without what belongs to its host only.
    :ivar ram_blocks: (name, bytes) in the order of the captured RAM setup.
    :ivar page_sizes: of each RAM block, in bytes: 4096, or that of its huge pages.
    :ivar ram_section_id: that the device state leaves free for RAM.
    :ivar ram_setup_flags: low 12 bits of the word that opens the captured RAM setup.
    :ivar configuration: the captured configuration section, from its type byte on.
    :ivar vm_description: QEMU's JSON of what the device state consists of.
    :ivar device_state: object with the device sections, without EOF and description.
    :ivar base_index: object with the chunk index of all places.
    :ivar disks: (target, bytes), in the order their places are numbered.
    :ivar packs: every pack the base index names, in its order.
    :ivar unit_table: object with the table of units of the base index, for publishing
        children; None where it was not kept.
    :ivar parent: SHA-256 of the manifest whose chunks this one shares, or None.
    """

    name: str
    created: str
    machine: str
    qemu_version: str
    cpu: str
    domain_xml: str
    ram_blocks: tuple[tuple[str, int], ...]
    page_sizes: tuple[int, ...]
    ram_section_id: int
    ram_setup_flags: int
    configuration: bytes
    vm_description: str
    device_state: Object
    base_index: Object
    disks: tuple[tuple[str, int], ...]
    packs: tuple[Object, ...]
    unit_table: Object | None = None
    parent: str | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        """:raises ManifestError: a value is outside what it may be."""
        for name, check in _CHECKS.items():
            check(name, getattr(self, name))
        if len(self.page_sizes) != len(self.ram_blocks):
            raise ManifestError("manifest: not one page size for each RAM block")
        if len({pack.sha256 for pack in self.packs}) != len(self.packs):
            raise ManifestError("manifest: a pack is listed twice")
        try:
            self.space()
        except EnlightenedError as error:
            raise ManifestError(f"manifest: {error}") from error

    def to_bytes(self) -> bytes:
        """The file, in the one form it has."""
        fields = dataclasses.asdict(self)
        fields["configuration"] = base64.b64encode(self.configuration).decode()
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Self:
        """The manifest in a file.

        :raises ManifestError: not a manifest, not in canonical form, or a value is not allowed.
        """
        if len(data) > MAX_MANIFEST:
            raise ManifestError(f"a manifest of {len(data)} bytes exceeds {MAX_MANIFEST}")
        try:
            fields = json.loads(bytes(data).decode("ascii"))
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"a manifest that is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ManifestError("a manifest that is no JSON object")
        if fields.get("format") != FORMAT:
            raise ManifestError(f"a manifest of format {fields.get('format')!r}, not {FORMAT}")
        names = {field.name for field in dataclasses.fields(cls)}
        if fields.keys() != names:
            odd = sorted(map(str, fields.keys() ^ names))
            raise ManifestError(f"manifest: fields missing or unknown: {', '.join(odd)[:200]}")
        manifest = cls(**{name: _READERS.get(name, _as_is)(fields[name]) for name in names})
        if manifest.to_bytes() != bytes(data):
            raise ManifestError("a manifest that is not in canonical form")
        return manifest

    @property
    def digest(self) -> str:
        """The SHA-256 of the file, in hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def space(self) -> ApplianceSpace:
        """The appliance's places."""
        return ApplianceSpace(PageSpace(self.ram_blocks), self.disks)


# -- what the fields may be -----------------------------------------------------------------------

Check = Callable[[str, Any], None]


def _refuse(name: str, value: object) -> ManifestError:
    return ManifestError(f"manifest: {name} cannot be {value!r:.80}")


def _text(limit: int, least: int = 1) -> Check:
    def check(name: str, value: object) -> None:
        if not isinstance(value, str) or not least <= len(value) <= limit:
            raise _refuse(name, value)
        # Lone surrogates are text that no file and no XML can hold.
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _refuse(name, value)

    return check


def _number(least: int, most: int) -> Check:
    def check(name: str, value: object) -> None:
        if type(value) is not int or not least <= value <= most:
            raise _refuse(name, value)

    return check


def _data(limit: int) -> Check:
    def check(name: str, value: object) -> None:
        if not isinstance(value, bytes) or len(value) > limit:
            raise _refuse(name, value)

    return check


def _digest(name: str, value: object) -> None:
    if value is not None and not (isinstance(value, str) and SHA256.fullmatch(value)):
        raise _refuse(name, value)


def _object(limit: int) -> Check:
    def check(name: str, value: object) -> None:
        if not isinstance(value, Object) or value.sha256 is None:
            raise _refuse(name, value)
        _digest(name, value.sha256)
        _number(1, limit)(name, value.length)

    return check


def _optional(check: Check) -> Check:
    def either(name: str, value: object) -> None:
        if value is not None:
            check(name, value)

    return either


def _list(check: Check, limit: int, least: int = 0) -> Check:
    def each(name: str, value: object) -> None:
        if not isinstance(value, tuple) or not least <= len(value) <= limit:
            raise _refuse(name, value)
        for item in value:
            check(name, item)

    return each


def _sized(text: Check) -> Check:
    def check(name: str, value: object) -> None:
        if not isinstance(value, tuple) or len(value) != 2:
            raise _refuse(name, value)
        text(name, value[0])
        _number(1, MAX_SIZE)(name, value[1])

    return check


def _target(name: str, value: object) -> None:
    if not isinstance(value, str) or not TARGET.fullmatch(value):
        raise _refuse(name, value)


def _page_size(name: str, value: object) -> None:
    _number(TARGET_PAGE, 1 << 30)(name, value)
    if isinstance(value, int) and value & (value - 1):
        raise _refuse(name, value)


_CHECKS: Final[dict[str, Check]] = {
    "format": _number(FORMAT, FORMAT),
    "name": _text(MAX_NAME),
    "created": _text(64),
    "parent": _digest,
    "machine": _text(MAX_NAME),
    "qemu_version": _text(64),
    "cpu": _text(MAX_XML, 0),
    "domain_xml": _text(MAX_XML),
    "ram_blocks": _list(_sized(_text(MAX_BLOCK_NAME)), MAX_RAM_BLOCKS, 1),
    "page_sizes": _list(_page_size, MAX_RAM_BLOCKS, 1),
    "ram_section_id": _number(0, 0xFFFFFFFF),
    "ram_setup_flags": _number(0, TARGET_PAGE - 1),
    "configuration": _data(MAX_CONFIGURATION),
    "vm_description": _text(MAX_DESCRIPTION, 0),
    "device_state": _object(MAX_DEVICE_STATE),
    "base_index": _object(MAX_INDEX),
    "unit_table": _optional(_object(MAX_INDEX)),
    "disks": _list(_sized(_target), MAX_DISKS),
    "packs": _list(_object(MAX_PACK), MAX_PACKS),
}

# -- from JSON's values; what is wrong with them the checks above say ------------------------------


def _as_is(value: Any) -> Any:
    return value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _pairs(value: Any) -> Any:
    return tuple(_tuple(pair) for pair in value) if isinstance(value, list) else value


def _to_object(value: Any) -> Any:
    return Object(*value) if isinstance(value, list) and len(value) == 2 else value


def _to_objects(value: Any) -> Any:
    return tuple(_to_object(item) for item in value) if isinstance(value, list) else value


def _to_data(value: Any) -> Any:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ManifestError(f"manifest: configuration is not base64: {error}") from error


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "ram_blocks": _pairs,
    "page_sizes": _tuple,
    "configuration": _to_data,
    "device_state": _to_object,
    "base_index": _to_object,
    "unit_table": _to_object,
    "disks": _pairs,
    "packs": _to_objects,
}
