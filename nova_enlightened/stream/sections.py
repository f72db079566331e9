# SPDX-License-Identifier: Apache-2.0
"""Elements of the main stream other than RAM pages, each read by one pure function.

Every function takes a :class:`Reader` placed behind what named the element, raises
:exc:`Incomplete` when bytes are missing and :exc:`StreamError` when a length is impossible.
Names are QEMU's: ``migration/savevm.c`` unless said otherwise.
"""

import dataclasses

from nova_enlightened.exception import StreamError
from nova_enlightened.stream import limits
from nova_enlightened.stream.events import Configuration, RamBlock, RamDiscard
from nova_enlightened.stream.reader import Incomplete, Reader, text
from nova_enlightened.stream.wire import FLAGS_MASK, TARGET_PAGE_SIZE, CommandKind

COMMAND_LENGTHS: dict[CommandKind, tuple[int, ...] | None] = {
    CommandKind.OPEN_RETURN_PATH: (0,),
    CommandKind.PING: (4,),
    # Empty when only dirty bitmaps are to be post-copied.
    CommandKind.POSTCOPY_ADVISE: (0, 16),
    CommandKind.POSTCOPY_LISTEN: (0,),
    CommandKind.POSTCOPY_RUN: (0,),
    CommandKind.POSTCOPY_RAM_DISCARD: None,
    CommandKind.PACKAGED: (4,),
    CommandKind.ENABLE_COLO: (0,),
    CommandKind.POSTCOPY_RESUME: (0,),
    CommandKind.RECV_BITMAP: None,
    CommandKind.SWITCHOVER_START: (0,),
}
"""Lengths of data each command may have (``mig_cmd_args``); None: its reader checks them."""


def read_machine(reader: Reader) -> Configuration:
    """The body of the configuration section up to its subsections."""
    length = reader.number(4)
    if length > limits.MAX_MACHINE_NAME:
        raise StreamError(f"machine type of {length} bytes")
    return Configuration(machine=text(bytes(reader.take(length))))


def read_subsection(reader: Reader, known: Configuration) -> Configuration | None:
    """One configuration subsection added to ``known``; None if it is of no known kind.

    A subsection is its name (counted), be32 version, then fields without a length.
    """
    name = reader.counted()
    version = reader.number(4)
    if version != 1:
        return None
    if name == b"configuration/target-page-bits":
        return dataclasses.replace(known, page_bits=reader.number(4))
    if name == b"configuration/capabilities":
        count = reader.number(4)
        if count > limits.MAX_CAPABILITIES:
            raise StreamError(f"{count} capabilities")
        listed = tuple(text(reader.counted()) for _ in range(count))
        return dataclasses.replace(known, capabilities=listed)
    if name == b"configuration/uuid":
        return dataclasses.replace(known, uuid=bytes(reader.take(16)))
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class BlockListShape:
    """Which optional fields the RAM setup's blocks may have (``ram_save_setup`` in ram.c).

    ``page_sizes``: a block whose page size is not the host's carries it, when post-copy of RAM
    is enabled. ``addresses``: each block carries its guest address (``x-ignore-shared``).
    ``default_page_size``: that of a block without the field.
    """

    page_sizes: bool
    addresses: bool
    default_page_size: int


def read_block(reader: Reader, remaining: int, shape: BlockListShape) -> RamBlock:
    """The next RAM block; ``remaining`` is the sum of the lengths not yet listed.

    The stream does not say whether a page size is there: the receiver knows. An observer can
    tell from what follows. A name is never empty, so its length byte is not 0, and a 64-bit
    size or address never begins with another byte than 0. After the last block comes a RAM
    record without an offset, so a number from 1 to 4095, which is neither size nor address.
    """
    name = reader.counted()
    if not name:
        raise StreamError("RAM block without a name")
    length = reader.number(8)
    if length > remaining or length % TARGET_PAGE_SIZE:
        raise StreamError(f"RAM block {text(name)!r} of {length} bytes where {remaining} remain")
    last = length == remaining
    words: list[int] = []
    most = shape.page_sizes + shape.addresses
    while len(words) < most:
        # The address alone needs no look ahead: it is always there.
        certain = shape.addresses and not words
        if not certain and not _number_follows(reader, last):
            break
        words.append(reader.number(8))
    has_size = shape.page_sizes and len(words) == most
    return RamBlock(text(name), length, words[0] if has_size else shape.default_page_size)


def _number_follows(reader: Reader, last: bool) -> bool:
    if last:
        return not 0 < int.from_bytes(reader.peek(8), "big") <= FLAGS_MASK
    return reader.peek(1)[0] == 0


def read_command(reader: Reader) -> tuple[int, bytes]:
    """A command's number and data; the length is checked for the known ones."""
    number = reader.number(2)
    length = reader.number(2)
    if number in COMMAND_LENGTHS:
        kind = CommandKind(number)
        allowed = COMMAND_LENGTHS[kind]
        if allowed is not None and length not in allowed:
            raise StreamError(f"command {kind.name} with {length} bytes of data")
    return number, bytes(reader.take(length))


def read_discard(data: bytes) -> RamDiscard:
    """The data of POSTCOPY_RAM_DISCARD: version 0, name, 0, then (be64 start, be64 length)."""
    reader = Reader(memoryview(data), 0, len(data))
    try:
        version = reader.number(1)
        name = reader.counted()
        terminator = reader.number(1)
    except Incomplete as lack:
        raise StreamError(f"RAM discard of {len(data)} bytes needs {lack.want}") from lack
    left = len(data) - reader.position
    if version or terminator or not left or left % 16:
        raise StreamError(f"malformed RAM discard for block {text(name)!r}")
    ranges = tuple((reader.number(8), reader.number(8)) for _ in range(left // 16))
    for start, length in ranges:
        if start % TARGET_PAGE_SIZE or length % TARGET_PAGE_SIZE or start + length > 1 << 63:
            raise StreamError(f"RAM discard of {length} bytes at {start} in {text(name)!r}")
    return RamDiscard(text(name), ranges)


def read_recv_bitmap(data: bytes) -> str:
    """The block that a RECV_BITMAP command names."""
    if len(data) < 2 or data[0] != len(data) - 1:
        raise StreamError("malformed request for a received-bitmap")
    return text(data[1:])
