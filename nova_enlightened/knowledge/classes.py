# SPDX-License-Identifier: Apache-2.0
"""What a guest page is, from the flags the guest's kernel publishes of it.

`/proc/kpageflags` holds one little-endian u64 a frame (Linux
`Documentation/admin-guide/mm/pagemap.rst`, bit numbers in
`include/uapi/linux/kernel-page-flags.h`). What matters of it here fits in one byte, the
*evidence*: it is what the guest agent sends, and what flags read by other means are
reduced to first, so there is one classification.

In a compound page (huge page, slab, ...) only the head carries the telling flags. Tails are
marked as such in the evidence and take over what their head says.
"""

import enum
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.exception import HintError

Bytes = npt.NDArray[np.uint8]

FLAG_BYTES: Final = 8
"""Bytes of /proc/kpageflags a frame."""

_CHUNK: Final = 1 << 18
"""Frames worked on at a time, so that the intermediate arrays stay in the cache."""


class PageClass(enum.IntEnum):
    """What a page is to its guest."""

    UNKNOWN = 0
    """Nothing was said of it, or there is no memory behind it."""
    FREE = 1
    """In the guest's buddy allocator, or ballooned out: nobody will miss its contents."""
    ANON = 2
    """Swap-backed process memory: anonymous, shared or tmpfs."""
    FILE = 3
    """Page cache, mapped or not."""
    PAGE_TABLE = 4
    SLAB = 5
    KERNEL = 6
    """In use without a flag that says by whom: stacks, vmalloc, driver memory."""
    RESERVED = 7
    """Reserved at boot: the kernel's image, its array of struct page, firmware tables."""


class Evidence(enum.IntFlag):
    """One byte a frame, as the guest agent sends it."""

    MARKED = 1
    """The kernel holds the page for recently used (ACTIVE or REFERENCED)."""
    RESERVED = 2
    FILE = 4
    ANON = 8
    SLAB = 16
    PAGE_TABLE = 32
    FREE = 64
    TAIL = 128
    """Tail of a compound page: the other bits are the head's to say."""
    ABSENT = FREE | PAGE_TABLE
    """No page can be both: there is no usable memory at this frame."""


KPAGEFLAGS: Final = {
    2: Evidence.MARKED,  # REFERENCED
    3: Evidence.FILE,  # UPTODATE: cache pages on their way to the LRU list lack LRU
    5: Evidence.FILE,  # LRU
    6: Evidence.MARKED,  # ACTIVE
    7: Evidence.SLAB,
    10: Evidence.FREE,  # BUDDY
    11: Evidence.FILE,  # MMAP
    12: Evidence.ANON,
    14: Evidence.ANON,  # SWAPBACKED: shared memory and tmpfs are not ANON
    16: Evidence.TAIL,  # COMPOUND_TAIL
    17: Evidence.ANON,  # HUGE: hugetlbfs
    19: Evidence.ABSENT,  # HWPOISON: reading it could kill the VM
    20: Evidence.ABSENT,  # NOPAGE
    23: Evidence.FREE,  # OFFLINE: ballooned out
    26: Evidence.PAGE_TABLE,
    32: Evidence.RESERVED,
}
"""kpageflags bit -> what it is evidence of. The agent holds the same table."""


def _plane_tables() -> npt.NDArray[np.uint8]:
    """Per byte of the flags word, the evidence of each of its 256 values."""
    tables = np.zeros((FLAG_BYTES, 256), dtype=np.uint8)
    values = np.arange(256)
    for bit, evidence in KPAGEFLAGS.items():
        tables[bit // 8][(values >> bit % 8) & 1 == 1] |= np.uint8(evidence)
    return tables


def _class_of(evidence: int) -> PageClass:
    # Most telling first: slab pages, for one, may carry cache flags as well.
    if evidence & Evidence.ABSENT == Evidence.ABSENT:
        return PageClass.UNKNOWN
    for mark, page_class in (
        (Evidence.FREE, PageClass.FREE),
        (Evidence.PAGE_TABLE, PageClass.PAGE_TABLE),
        (Evidence.SLAB, PageClass.SLAB),
        (Evidence.ANON, PageClass.ANON),
        (Evidence.FILE, PageClass.FILE),
        (Evidence.RESERVED, PageClass.RESERVED),
    ):
        if evidence & mark:
            return page_class
    return PageClass.KERNEL


_PLANES: Final = _plane_tables()
_USED_PLANES: Final = tuple(int(k) for k in np.flatnonzero(_PLANES.any(axis=1)))
_CLASSES: Final = np.array([_class_of(e) for e in range(256)], dtype=np.uint8)
_PROCESS_MEMORY: Final = np.isin(_CLASSES, (PageClass.ANON, PageClass.FILE))


def evidence_from_flags(flags: npt.NDArray[np.uint64]) -> Bytes:
    """Reduce kpageflags words to evidence bytes (tails not yet resolved).

    :param flags: shape (frames,), one u64 a frame in host byte order.
    """
    words = np.ascontiguousarray(flags, dtype="<u8")
    found = np.empty(words.size, dtype=np.uint8)
    for start in range(0, words.size, _CHUNK):
        planes = words[start : start + _CHUNK].view(np.uint8).reshape(-1, FLAG_BYTES)
        into = found[start : start + _CHUNK]
        into.fill(0)
        for k in _USED_PLANES:
            into |= _PLANES[k][planes[:, k]]
    return found


def flags_from_bytes(raw: bytes | bytearray | memoryview) -> npt.NDArray[np.uint64]:
    """Interpret what was read from /proc/kpageflags.

    :raises HintError: not a whole number of 8-byte entries.
    """
    if len(raw) % FLAG_BYTES:
        raise HintError(f"{len(raw)} bytes of page flags are not whole 8-byte entries")
    return np.frombuffer(raw, dtype="<u8")


def resolve_tails(evidence: Bytes) -> Bytes:
    """Give every compound tail what its head says; a tail with no head before it says nothing.

    :param evidence: shape (frames,), as sent.
    :returns: shape (frames,), without TAIL bits. The input is left alone.
    """
    resolved = evidence.copy()
    head = np.uint8(0)  # carried over chunk edges: a 1 GiB page spans many chunks
    for start in range(0, evidence.size, _CHUNK):
        part = resolved[start : start + _CHUNK]
        tails = part >= Evidence.TAIL
        if tails.any():
            index = np.arange(1, part.size + 1, dtype=np.int32)
            index[tails] = 0
            np.maximum.accumulate(index, out=index)
            part[:] = np.concatenate((np.array([head]), part))[index]
        head = part[-1]
    return resolved


def classify_evidence(evidence: Bytes) -> tuple[Bytes, npt.NDArray[np.bool_]]:
    """Page classes, and which pages of processes or files the kernel marks as used.

    :param evidence: shape (frames,), as sent: tails not resolved.
    :returns: (PageClass values, marked), both of shape (frames,).
    """
    resolved = resolve_tails(evidence)
    marked = (resolved & np.uint8(Evidence.MARKED)).astype(np.bool_)
    marked &= _PROCESS_MEMORY[resolved]
    return _CLASSES[resolved], marked


def classify(flags: npt.NDArray[np.uint64]) -> Bytes:
    """Page flags -> PageClass values, tails classed as their heads.

    :param flags: shape (frames,), one u64 a frame.
    :returns: shape (frames,), uint8. 64 GiB of guest takes well under two seconds.
    """
    return classify_evidence(evidence_from_flags(flags))[0]
