# SPDX-License-Identifier: Apache-2.0
"""What the parsers report: plain frozen values.

Offsets and lengths are bytes. Numbers of sections, pings and so on are QEMU's.
"""

import dataclasses
import enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nova_enlightened.stream.wire import CommandKind, SectionType


class NeedData(enum.Enum):
    """Type of :data:`NEED_DATA`."""

    NEED_DATA = "NEED_DATA"

    def __repr__(self) -> str:
        return "NEED_DATA"


NEED_DATA = NeedData.NEED_DATA
"""Returned by ``next_event()`` when everything received so far has been reported."""


class RamBlock(NamedTuple):
    """One RAM block as the RAM setup lists it."""

    name: str
    length: int
    page_size: int
    """Host page size in bytes: 4096 unless the source said otherwise (huge pages)."""


class OpaqueReason(enum.Enum):
    """Why the parser stopped understanding a stream."""

    NOT_A_MIGRATION_STREAM = "not a migration stream"
    TLS = "TLS by QEMU itself"
    MULTIFD = "multifd"
    XBZRLE = "XBZRLE page"
    COMPRESSED = "compressed page"
    RDMA_HOOK = "RDMA hook"
    MAPPED_RAM = "mapped-ram"
    COLO = "COLO"
    VERSION = "unknown version"
    PAGE_SIZE = "target page size is not 4096"
    CONFIGURATION = "unknown configuration subsection"
    DEVICE_SECTION = "device section of unknown length"
    COMMAND = "unknown command"
    RAM_FLAGS = "unknown RAM flags"
    NO_BLOCK = "page of no block"
    UNKNOWN_BLOCK = "RAM of an unlisted block"
    OUTSIDE_BLOCK = "RAM beyond its block"
    OUT_OF_PLACE = "out of place"


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """Magic number and version; first in every stream but a resumed or preempt one."""

    version: int


@dataclasses.dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration section."""

    machine: str
    capabilities: tuple[str, ...] = ()
    """Only those the destination must share: ``x-ignore-shared``, ``mapped-ram``."""
    page_bits: int | None = None
    """Target page size as a power of two; None where it is the CPU's smallest."""
    uuid: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class SectionStart:
    """A RAM section begins; ``phase`` is START, PART or END."""

    phase: SectionType
    section_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class SectionEnd:
    """The end mark of a RAM section was read, or that of a preempt channel (id None).

    Only sources before QEMU 8.0 mark the end of a preempt channel.
    """

    section_id: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class RamBlocks:
    """The RAM setup: every migratable block, in stream order."""

    blocks: tuple[RamBlock, ...]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RamPages:
    """Pages of one block, complete on the wire, in stream order among themselves.

    ``offsets`` are byte offsets into the block, multiples of 4096, dtype uint64, length at
    least 1; duplicates are possible (a page sent twice). ``zero`` says that they came as zero
    records (9 bytes each) rather than with 4096 bytes of payload. Between two other events the
    parser may report pages with payload ahead of zero pages that preceded them.
    """

    block: str
    offsets: npt.NDArray[np.uint64]
    zero: bool


@dataclasses.dataclass(frozen=True, slots=True)
class RamDiscard:
    """The destination must drop these ranges: they will be sent again (or asked for)."""

    block: str
    ranges: tuple[tuple[int, int], ...]
    """(start, length) in bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """Any command without an event of its own."""

    kind: CommandKind
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Packaged:
    """A package of device state of ``length`` bytes follows."""

    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class PostcopyListen:
    """The destination begins to take faults."""


@dataclasses.dataclass(frozen=True, slots=True)
class PostcopyRun:
    """The guest executes at the destination once this is read there."""


@dataclasses.dataclass(frozen=True, slots=True)
class EndOfStream:
    """The main stream, first or resumed, has said everything about the guest."""


@dataclasses.dataclass(frozen=True, slots=True)
class Opaque:
    """From byte ``position`` on, nothing more is understood; bytes are only counted."""

    reason: OpaqueReason
    detail: str
    position: int


Event = (
    Header
    | Configuration
    | SectionStart
    | SectionEnd
    | RamBlocks
    | RamPages
    | RamDiscard
    | Command
    | Packaged
    | PostcopyListen
    | PostcopyRun
    | EndOfStream
    | Opaque
)
