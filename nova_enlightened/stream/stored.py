# SPDX-License-Identifier: Apache-2.0
"""Reads a whole pre-copy stream that lies in memory: where each page's last contents are.

What QEMU writes into a file (libvirt's ``save``, or an external snapshot of memory) is the stream
of a pre-copy migration. While the guest executes a page may come several times; the last one
counts. Behind the RAM come the devices, whose lengths the stream does not tell, then an end mark
and a description of the devices up to the end. Sources: ``migration/savevm.c`` and
``migration/ram.c`` of QEMU 7.2 and 10.0.
"""

import dataclasses
import itertools
import json
import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.exception import StreamError
from nova_enlightened.stream import limits, sections
from nova_enlightened.stream.events import Configuration, RamBlock
from nova_enlightened.stream.ram_records import PAGE_STRIDE, ZERO_STRIDE, run_offsets
from nova_enlightened.stream.reader import Incomplete, Reader, text
from nova_enlightened.stream.wire import (
    FILE_MAGIC,
    FILE_VERSION,
    FLAGS_MASK,
    RAM_SECTION_NAME,
    RAM_SECTION_VERSION,
    TARGET_PAGE_BITS,
    TARGET_PAGE_SIZE,
    CommandKind,
    RamFlag,
    SectionType,
)

ZERO: Final = -1
"""In :attr:`StoredStream.positions`: the page is zeros, or was never sent."""

_CONTINUED: Final = {
    int(RamFlag.PAGE | RamFlag.CONTINUE): PAGE_STRIDE,
    int(RamFlag.ZERO | RamFlag.CONTINUE): ZERO_STRIDE,
}
_HEAD: Final = 6
"""Bytes before the description: end mark, its own mark, and its length."""
_STREAK: Final = 16
"""Equal records one after another before a run of them is looked for."""

_word = struct.Struct(">Q").unpack_from

Positions = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StoredStream:
    """What a stored stream consists of. Spans are (first byte, byte after the last).

    :ivar configuration_span: the configuration section, its type byte first.
    :ivar blocks: in stream order.
    :ivar positions: int64, one for each 4 KiB page of all blocks in order: where in the stream
        its 4096 bytes are, or :data:`ZERO`.
    :ivar device_state: from the first device section up to the end mark, without that.
    :ivar description: the JSON text behind it.
    """

    configuration: Configuration
    configuration_span: tuple[int, int]
    blocks: tuple[RamBlock, ...]
    ram_section_id: int
    positions: Positions
    device_state: tuple[int, int]
    description: tuple[int, int]


def read(stream: bytes | memoryview) -> StoredStream:
    """Read a stream; pages are not looked at, 1 to 10 GB/s of them are passed over.

    :raises StreamError: it is cut off or damaged, or has what a stored stream of this project
        must not: another page size, ignored shared memory, mapped RAM, other iterative sections.
    """
    reading = _Reading(memoryview(stream).cast("B"))
    try:
        return reading.run()
    except Incomplete as lack:
        raise StreamError(
            "the stored stream is cut off", offset=len(stream), section=reading.section
        ) from lack


class _Reading:
    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._reader = Reader(view, 0, len(view))
        self._positions: Positions = np.empty(0, np.int64)
        self._blocks: tuple[RamBlock, ...] = ()
        self._places: dict[str, tuple[int, int]] = {}
        self._base = self._bound = 0
        self._ram_section: int | None = None
        self._addresses = False
        self.section = "header"

    def run(self) -> StoredStream:
        reader = self._reader
        if reader.number(4) != FILE_MAGIC or reader.number(4) != FILE_VERSION:
            raise self._wrong("not a migration stream")
        self.section = "configuration"
        began = reader.position
        configuration = self._configuration()
        span = began, reader.position
        while (kind := reader.peek(1)[0]) != SectionType.FULL:
            self._ram_section_part(kind)
        if self._ram_section is None or not self._blocks:
            raise self._wrong("device state before any RAM")
        self.section = "device state"
        end, description = self._ending(reader.position)
        if end - reader.position > limits.MAX_DEVICE_STATE:
            raise self._wrong(f"device state of {end - reader.position} bytes")
        return StoredStream(
            configuration,
            span,
            self._blocks,
            self._ram_section,
            self._positions,
            (reader.position, end),
            description,
        )

    def _wrong(self, message: str) -> StreamError:
        return StreamError(message, offset=self._reader.position, section=self.section)

    def _configuration(self) -> Configuration:
        reader = self._reader
        if reader.number(1) != SectionType.CONFIGURATION:
            raise self._wrong("no configuration section: the machine type is too old")
        found = sections.read_machine(reader)
        while reader.peek(1)[0] == SectionType.SUBSECTION:
            reader.take(1)
            more = sections.read_subsection(reader, found)
            if more is None:
                raise self._wrong("unknown configuration subsection")
            found = more
        if found.capabilities:
            raise self._wrong(f"saved with {', '.join(found.capabilities)}")
        if found.page_bits not in (None, TARGET_PAGE_BITS):
            raise self._wrong(f"target pages of {found.page_bits} bits")
        return found

    def _ram_section_part(self, kind: int) -> None:
        reader = self._reader
        reader.take(1)
        if kind == SectionType.COMMAND:
            self._command()
            return
        self.section = "ram"
        section_id = reader.number(4)
        if kind == SectionType.START:
            name = text(reader.counted())
            reader.take(4)  # instance id
            version = reader.number(4)
            if name != RAM_SECTION_NAME or version != RAM_SECTION_VERSION:
                raise self._wrong(f"section {name!r} version {version} cannot be stored")
            if self._ram_section is not None:
                raise self._wrong("a second RAM section")
            self._ram_section = section_id
            self._setup()
        elif kind not in (SectionType.PART, SectionType.END) or section_id != self._ram_section:
            raise self._wrong(f"element {kind:#04x} of section {section_id} is out of place")
        self._records()
        if reader.number(1) != SectionType.FOOTER or reader.number(4) != section_id:
            raise self._wrong("no footer behind the RAM section")

    def _command(self) -> None:
        """QEMU 10.0 says where the guest has been stopped; a post-copy cannot be stored."""
        number, _ = sections.read_command(self._reader)
        if number != CommandKind.SWITCHOVER_START:
            raise self._wrong(f"command {number} cannot be stored")

    def _setup(self) -> None:
        word = self._reader.number(8)
        total = word & ~FLAGS_MASK
        if word & FLAGS_MASK != RamFlag.MEM_SIZE or total > limits.MAX_RAM_BYTES:
            raise self._wrong(f"RAM setup of {word:#x}")
        shape = sections.BlockListShape(False, False, TARGET_PAGE_SIZE)
        listed: list[RamBlock] = []
        first = 0
        while first * TARGET_PAGE_SIZE < total:
            block = sections.read_block(self._reader, total - first * TARGET_PAGE_SIZE, shape)
            if not block.length or block.name in self._places:
                raise self._wrong(f"RAM block {block.name!r} is empty or listed twice")
            if len(listed) == limits.MAX_RAM_BLOCKS:
                raise self._wrong(f"more than {limits.MAX_RAM_BLOCKS} RAM blocks")
            self._places[block.name] = first, block.length
            first += block.length // TARGET_PAGE_SIZE
            listed.append(block)
        if total > limits.MAX_RAM_A_BYTE * len(self._view):
            raise self._wrong(f"{total} bytes of RAM in a stream of {len(self._view)}")
        self._blocks = tuple(listed)
        self._positions = np.full(first, ZERO, np.int64)

    def _records(self) -> None:
        """Page records up to the end of this part."""
        view, position, last = self._view, self._reader.position, len(self._view) - 8
        streak, before = 0, -1
        while position <= last:
            word: int = _word(view, position)[0]
            flags = word & FLAGS_MASK
            if flags == RamFlag.EOS:
                self._reader.position = position + 8
                return
            streak = streak + 1 if flags == before else 0
            before = flags
            if streak == _STREAK and flags in _CONTINUED:
                position = self._run(position, flags)
                streak = 0
            else:
                position = self._record(position, word, flags)
        self._reader.position = position
        raise Incomplete(8)

    def _record(self, position: int, word: int, flags: int) -> int:
        """One page, or one page of zeros; the position behind it."""
        offset, kind = word - flags, flags & ~RamFlag.CONTINUE
        if kind not in (RamFlag.PAGE, RamFlag.ZERO):
            self._reader.position = position
            raise self._wrong(f"RAM flags {flags:#x} cannot be stored")
        position += 8
        if not flags & RamFlag.CONTINUE:
            self._reader.position = position
            self._enter(text(self._reader.counted()))
            position = self._reader.position
        if offset >= self._bound:
            self._reader.position = position
            raise self._wrong(f"a page at {offset:#x}, outside its RAM block")
        page = self._base + offset // TARGET_PAGE_SIZE
        if kind == RamFlag.PAGE:
            self._positions[page] = position
            return position + TARGET_PAGE_SIZE
        self._reader.position = position
        if self._reader.number(1):
            raise self._wrong("a page of equal bytes that are not zero")
        self._positions[page] = ZERO
        return position + 1

    def _run(self, position: int, flags: int) -> int:
        """Records that continue the block; the position behind them."""
        stride = _CONTINUED[flags]
        limit = (len(self._view) - position) // stride
        offsets = run_offsets(self._view, position, limit, stride, flags, self._bound)
        pages = (offsets // TARGET_PAGE_SIZE).astype(np.int64) + self._base
        if not len(pages):
            return self._record(position, _word(self._view, position)[0], flags)
        if stride == PAGE_STRIDE:
            first = position + 8
            self._positions[pages] = np.arange(first, first + stride * len(pages), stride)
        else:
            self._positions[pages] = ZERO
        return position + stride * len(pages)

    def _enter(self, name: str) -> None:
        place = self._places.get(name)
        if place is None:
            raise self._wrong(f"a page of RAM block {name!r}, which is not listed")
        self._base, self._bound = place

    def _ending(self, begin: int) -> tuple[int, tuple[int, int]]:
        """Where the device state ends, and the description: it alone reaches to the end exactly.

        JSON has no zero byte, so the last one there is belongs to the mark or to the length that
        are before it.
        """
        view, size = self._view, len(self._view)
        tail = bytes(view[max(begin, size - limits.MAX_DESCRIPTION - _HEAD) : size])
        mark = bytes((SectionType.EOF, SectionType.VMDESCRIPTION))
        last = tail.rfind(b"\0")
        for at in range(last, max(last - _HEAD, -1), -1):
            length = int.from_bytes(tail[at + 2 : at + _HEAD], "big")
            fits = tail[at : at + 2] == mark and length == len(tail) - at - _HEAD
            if fits and _is_json(tail[at + _HEAD :]):
                end = size - len(tail) + at
                return end, (end + _HEAD, size)
        raise self._wrong("no description of the devices at the end: the stream is cut off")


def _is_json(body: bytes) -> bool:
    try:
        return body[:1] == b"{" and isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def gather(stream: bytes | memoryview, positions: Positions) -> bytes:
    """The pages at these positions one after another, 4096 bytes each; zeros for ZERO."""
    source = np.frombuffer(stream, np.uint8)
    pages = np.zeros((len(positions), TARGET_PAGE_SIZE), np.uint8)
    wanted = np.flatnonzero(positions != ZERO)
    # Neighbours in the stream are copied at once: pages of a run are one stride apart.
    steps = np.diff(positions[wanted]) != PAGE_STRIDE
    joints = np.diff(wanted) != 1
    edges = [0, *(np.flatnonzero(steps | joints) + 1).tolist(), len(wanted)]
    for first, end in itertools.pairwise(edges):
        if first == end:
            continue
        count, begin = end - first, int(positions[wanted[first]])
        run = np.lib.stride_tricks.as_strided(
            source[begin : begin + (count - 1) * PAGE_STRIDE + TARGET_PAGE_SIZE],
            (count, TARGET_PAGE_SIZE),
            (PAGE_STRIDE, 1),
        )
        pages[wanted[first] : wanted[first] + count] = run
    return pages.tobytes()
