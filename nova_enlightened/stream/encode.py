# SPDX-License-Identifier: Apache-2.0
"""Writes what :mod:`.grammar` and :mod:`.return_path` read: one pure function per element.

The player of stored appliances speaks with these, and tests round-trip through them. Arguments
are trusted; a value that does not fit its field raises ``struct.error`` or ``ValueError``.
"""

import struct
from collections.abc import Iterable, Sequence

from nova_enlightened.stream.events import Configuration, RamBlock
from nova_enlightened.stream.wire import (
    FILE_MAGIC,
    FILE_VERSION,
    RAM_SECTION_NAME,
    RAM_SECTION_VERSION,
    RECV_BITMAP_END_MARK,
    TARGET_PAGE_SIZE,
    CommandKind,
    RamFlag,
    ReturnPathType,
    SectionType,
)


def _u32(value: int) -> bytes:
    return struct.pack(">I", value)


def _u64(value: int) -> bytes:
    return struct.pack(">Q", value)


def counted(name: str) -> bytes:
    """A name of at most 255 bytes behind its one-byte length."""
    raw = name.encode("utf-8", "surrogateescape")
    return bytes((len(raw),)) + raw


# The main stream.


def header() -> bytes:
    """Magic number and version."""
    return _u32(FILE_MAGIC) + _u32(FILE_VERSION)


def configuration(values: Configuration) -> bytes:
    """The configuration section with the subsections that ``values`` has."""
    name = values.machine.encode("utf-8", "surrogateescape")
    parts = [bytes((SectionType.CONFIGURATION,)), _u32(len(name)), name]
    if values.page_bits is not None:
        parts += [_subsection("target-page-bits"), _u32(values.page_bits)]
    if values.capabilities:
        parts += [_subsection("capabilities"), _u32(len(values.capabilities))]
        parts += [counted(capability) for capability in values.capabilities]
    if values.uuid is not None:
        parts += [_subsection("uuid"), values.uuid]
    return b"".join(parts)


def _subsection(name: str) -> bytes:
    return bytes((SectionType.SUBSECTION,)) + counted(f"configuration/{name}") + _u32(1)


def command(kind: int, data: bytes = b"") -> bytes:
    """A command with its data."""
    return struct.pack(">BHH", SectionType.COMMAND, kind, len(data)) + data


def ping(value: int) -> bytes:
    """PING: the destination answers PONG with the same value."""
    return command(CommandKind.PING, _u32(value))


def postcopy_advise(page_sizes: int = TARGET_PAGE_SIZE) -> bytes:
    """POSTCOPY_ADVISE for RAM; ``page_sizes`` is the OR of all RAM blocks' page sizes."""
    return command(CommandKind.POSTCOPY_ADVISE, _u64(page_sizes) + _u64(TARGET_PAGE_SIZE))


def ram_discard(block: str, ranges: Sequence[tuple[int, int]]) -> bytes:
    """POSTCOPY_RAM_DISCARD of (start, length) byte ranges; QEMU sends up to 12 in one."""
    spans = b"".join(_u64(start) + _u64(length) for start, length in ranges)
    return command(CommandKind.POSTCOPY_RAM_DISCARD, b"\0" + counted(block) + b"\0" + spans)


def packaged(blob: bytes) -> bytes:
    """PACKAGED, and the blob that its data announces."""
    return command(CommandKind.PACKAGED, _u32(len(blob))) + blob


def postcopy_package(device_state: bytes) -> bytes:
    """The package that starts post-copy: LISTEN, device state, PING 3, RUN."""
    listen = command(CommandKind.POSTCOPY_LISTEN)
    return packaged(listen + device_state + ping(3) + command(CommandKind.POSTCOPY_RUN))


def recv_bitmap_request(block: str) -> bytes:
    """RECV_BITMAP: ask, during recovery, which pages of ``block`` have arrived."""
    return command(CommandKind.RECV_BITMAP, counted(block))


def ram_start(section_id: int) -> bytes:
    """The header of the RAM section's first part, which holds the RAM setup."""
    name = counted(RAM_SECTION_NAME)
    start = struct.pack(">BI", SectionType.START, section_id)
    return start + name + _u32(0) + _u32(RAM_SECTION_VERSION)


def ram_part(section_id: int, last: bool = False) -> bytes:
    """The header of a later part of the RAM section."""
    return struct.pack(">BI", SectionType.END if last else SectionType.PART, section_id)


def footer(section_id: int) -> bytes:
    """The footer behind every section."""
    return struct.pack(">BI", SectionType.FOOTER, section_id)


def eof() -> bytes:
    """The end of the stream."""
    return bytes((SectionType.EOF,))


def vm_description(json: bytes) -> bytes:
    """The description of the device state that follows the end of a pre-copy stream."""
    return struct.pack(">BI", SectionType.VMDESCRIPTION, len(json)) + json


# RAM records.


def block_list(
    blocks: Iterable[RamBlock],
    *,
    host_page_size: int | None = TARGET_PAGE_SIZE,
    addresses: Sequence[int] | None = None,
) -> bytes:
    """The RAM setup record.

    :param host_page_size: blocks of another page size carry it; None: post-copy is not advised
        and no block does.
    :param addresses: guest address of each block, with ``x-ignore-shared``.
    """
    listed = tuple(blocks)
    parts = [_u64(sum(block.length for block in listed) | RamFlag.MEM_SIZE)]
    for index, block in enumerate(listed):
        parts += [counted(block.name), _u64(block.length)]
        if host_page_size is not None and block.page_size != host_page_size:
            parts.append(_u64(block.page_size))
        if addresses is not None:
            parts.append(_u64(addresses[index]))
    return b"".join(parts)


def page_header(offset: int, block: str | None = None) -> bytes:
    """What precedes the 4096 bytes of a page; without ``block`` the last one is continued."""
    return _record(offset, RamFlag.PAGE, block)


def zero_page(offset: int, block: str | None = None) -> bytes:
    """The record of a page of zeros; without ``block`` the last one is continued."""
    return _record(offset, RamFlag.ZERO, block) + b"\0"


def _record(offset: int, flag: int, block: str | None) -> bytes:
    if block is None:
        return _u64(offset | flag | RamFlag.CONTINUE)
    return _u64(offset | flag) + counted(block)


def ram_end() -> bytes:
    """The end of a section's RAM records, and of a preempt channel."""
    return _u64(RamFlag.EOS)


# The return path.


def shut(status: int = 0) -> bytes:
    """SHUT: the destination has all it needs (0) or failed."""
    return _message(ReturnPathType.SHUT, _u32(status))


def pong(value: int) -> bytes:
    """PONG: the answer to :func:`ping`."""
    return _message(ReturnPathType.PONG, _u32(value))


def request_pages(start: int, length: int, block: str | None = None) -> bytes:
    """REQ_PAGES, or REQ_PAGES_ID with ``block``; nothing is checked.

    To inject a request use :func:`.return_path.encode_request_pages`.
    """
    span = struct.pack(">QI", start, length)
    if block is None:
        return _message(ReturnPathType.REQ_PAGES, span)
    return _message(ReturnPathType.REQ_PAGES_ID, span + counted(block))


def recv_bitmap(block: str, bitmap: bytes) -> bytes:
    """RECV_BITMAP with its bitmap, whose length must be a multiple of 8 bytes."""
    if len(bitmap) % 8:
        raise ValueError(f"bitmap of {len(bitmap)} bytes")
    body = _u64(len(bitmap)) + bitmap + _u64(RECV_BITMAP_END_MARK)
    return _message(ReturnPathType.RECV_BITMAP, counted(block)) + body


def resume_ack() -> bytes:
    """RESUME_ACK."""
    return _message(ReturnPathType.RESUME_ACK, _u32(1))


def switchover_ack() -> bytes:
    """SWITCHOVER_ACK."""
    return _message(ReturnPathType.SWITCHOVER_ACK, b"")


def _message(kind: ReturnPathType, body: bytes) -> bytes:
    return struct.pack(">HH", kind, len(body)) + body
