# SPDX-License-Identifier: Apache-2.0
"""The source's side of post-copy for a VM that is stored: what is said when, and pages in bulk.

The order is that of ``migration/migration.c`` and ``migration/savevm.c`` (QEMU 7.2, 10.0). The
destination must have ``postcopy-ram`` set and places every page once: a page that is sent twice
is an error there (UFFDIO_COPY on a page that is present).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.stream import encode
from nova_enlightened.stream.events import RamBlock
from nova_enlightened.stream.wire import TARGET_PAGE_SIZE, CommandKind, RamFlag

ADVISED: Final = 1
"""PING behind POSTCOPY_ADVISE and the RAM setup: its PONG says that they were taken."""
LOADED: Final = 3
"""PING before POSTCOPY_RUN in the package: its PONG says that the devices are loaded."""

_RECORD: Final = 8 + TARGET_PAGE_SIZE


def opening(
    configuration: bytes, section_id: int, blocks: Sequence[RamBlock], device_state: bytes
) -> bytes:
    """Everything from the first byte to POSTCOPY_RUN; faults arrive before it is worked off.

    :param configuration: the captured configuration section, from its type byte on.
    :param section_id: the id of the captured RAM section.
    :param device_state: the captured device sections, back to back.
    """
    page_sizes = 0
    for block in blocks:
        page_sizes |= block.page_size
    setup = encode.ram_start(section_id) + encode.block_list(blocks) + encode.ram_end()
    return b"".join(
        (
            encode.header(),
            configuration,
            encode.command(CommandKind.OPEN_RETURN_PATH),
            encode.postcopy_advise(page_sizes),
            setup,
            encode.footer(section_id),
            encode.ping(ADVISED),
            # Without a single discard the destination never leaves its advised state.
            *(encode.ram_discard(block.name, [(0, block.length)]) for block in blocks),
            encode.postcopy_package(device_state),
            encode.ram_part(section_id),
        )
    )


def bitmap_requests(blocks: Sequence[RamBlock]) -> bytes:
    """The first words of a resumed stream: which pages of every block have arrived?"""
    return b"".join(encode.recv_bitmap_request(block.name) for block in blocks)


def resumption() -> bytes:
    """What is said once all bitmaps are there; the destination answers RESUME_ACK."""
    return encode.command(CommandKind.POSTCOPY_RESUME)


def closing(section_id: int) -> bytes:
    """The end of the open section, the last one and the end of the stream.

    The destination answers SHUT once it has taken it.
    """
    end = encode.ram_end() + encode.footer(section_id)
    return end + encode.ram_part(section_id, last=True) + end + encode.eof()


def page_records(
    block: str, offsets: npt.NDArray[np.uint64], pages: npt.NDArray[np.uint8]
) -> bytes:
    """Records of pages of one block; the first names it.

    :param offsets: bytes into the block, multiples of 4096, at least one.
    :param pages: u8[len(offsets), 4096], the contents in the same order.
    """
    records = np.empty((len(offsets), _RECORD), np.uint8)
    flags = np.uint64(RamFlag.PAGE | RamFlag.CONTINUE)
    records[:, :8] = (offsets | flags).astype(">u8")[:, None].view(np.uint8)
    records[:, 8:] = pages
    first = encode.page_header(int(offsets[0]), block)
    return first + records.reshape(-1).data[8:]


def zero_records(block: str, offsets: npt.NDArray[np.uint64]) -> bytes:
    """Records of pages of zeros of one block, at least one; the first names it."""
    first, *others = (int(offset) for offset in offsets)
    return encode.zero_page(first, block) + b"".join(encode.zero_page(other) for other in others)
