# SPDX-License-Identifier: Apache-2.0
"""Page records of a RAM section: runs of equal records found with numpy, pages in batches.

A page record is a big-endian word (offset | flags), the block's name unless CONTINUE is set,
and 4096 bytes (PAGE) or one (ZERO). QEMU names a block once and then continues it, over section
boundaries too, so a busy stream is long runs of records 4104 or 9 bytes apart
(``migration/ram.c``, save_page_header).
"""

import struct
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.stream.events import OpaqueReason, RamPages
from nova_enlightened.stream.reader import Reader, Refused, text
from nova_enlightened.stream.wire import FLAGS_MASK, TARGET_PAGE_SIZE, RamFlag

PAGE_STRIDE: Final = 8 + TARGET_PAGE_SIZE
ZERO_STRIDE: Final = 8 + 1

_PAGE: Final = int(RamFlag.PAGE)
_ZERO: Final = int(RamFlag.ZERO)
_CONTINUE: Final = int(RamFlag.CONTINUE)
_CONTINUED_PAGE: Final = _CONTINUE | _PAGE
_CONTINUED_ZERO: Final = _CONTINUE | _ZERO
_MASK: Final = np.uint64(FLAGS_MASK)
_UNBOUNDED: Final = 1 << 63

_SINGLES_BEFORE_PROBE: Final = 16
_WORTH_PROBING: Final = 8
_FIRST_PROBE: Final = 128
_PROBE_GROWTH: Final = 4

_word = struct.Struct(">Q").unpack_from

Offsets = npt.NDArray[np.uint64]


def run_offsets(
    view: memoryview, start: int, limit: int, stride: int, flags: int, bound: int
) -> Offsets:
    """Offsets of the leading records in ``view`` that carry exactly ``flags``.

    Looks at up to ``limit`` records, ``stride`` bytes apart from byte ``start`` on; all of them
    must lie in ``view``. Stops before the first word with other flags or with an offset of
    ``bound`` or more. Probes grow fourfold: a short run costs little, a long one few calls.
    """
    parts: list[Offsets] = []
    bound = max(0, bound - flags)
    done, probe = 0, _FIRST_PROBE
    while done < limit:
        count = min(probe, limit - done)
        words = np.ndarray(
            (count,), ">u8", buffer=view, offset=start + done * stride, strides=(stride,)
        ).astype(np.uint64)
        words ^= np.uint64(flags)  # of records that fit, offsets are left
        if not int(np.bitwise_or.reduce(words)) & FLAGS_MASK and int(words.max()) < bound:
            length = count
        else:
            fits = ((words & _MASK) == 0) & (words < bound)
            length = int(fits.argmin())
        parts.append(words[:length])
        done += length
        if length < count:
            break
        probe *= _PROBE_GROWTH
    return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, np.uint64)])


class PageBatch:
    """Offsets of one kind of page, gathered one by one or by the run."""

    __slots__ = ("_arrays", "singles")

    def __init__(self) -> None:
        self._arrays: list[Offsets] = []
        self.singles: list[int] = []
        """Offsets gathered one by one since the last run; append to it."""

    def extend(self, offsets: Offsets) -> None:
        """Append a run."""
        self._settle()
        self._arrays.append(offsets)

    def take(self) -> Offsets | None:
        """Everything gathered, in order, or None; the batch is empty afterwards."""
        if not self._arrays and not self.singles:
            return None
        self._settle()
        arrays, self._arrays = self._arrays, []
        return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]

    def _settle(self) -> None:
        if self.singles:
            self._arrays.append(np.array(self.singles, np.uint64))
            self.singles.clear()


class RamRecords:
    """The page records of one channel.

    :param blocks: length in bytes of every block, by name; None: unknown, nothing is checked.
    """

    def __init__(self, blocks: Mapping[str, int] | None) -> None:
        self.blocks = blocks
        self.block: str | None = None
        """The block named last, which a continued record means."""
        self._bound = 0
        self._normal = PageBatch()
        self._zero = PageBatch()
        self._finished: list[RamPages] = []
        self._pending = 0
        self._streak = (0, 0)  # flags of the last record, and how many before it had the same
        self.owed = 0
        """Payload bytes that follow the last header read, for the caller to skip."""

    def read(self, view: memoryview, position: int, end: int) -> int:
        """Read page records from ``view[position:end]`` until one is none, or incomplete.

        Returns the bytes used; 0: the next record is not a page. May leave :attr:`owed` set.

        :raises Incomplete: nothing was used because the first record's header is cut off.
        :raises Refused: the first record is a page of no known place.
        """
        used = self._read_continued(view, position, end)
        return used or self._read_other(view, position, end)

    def settle_payload(self) -> None:
        """The payload of the last header has been skipped: its page is complete."""
        self.owed = 0
        self._normal.singles.append(self._pending)

    def take(self) -> list[RamPages]:
        """The pages gathered since the last call, by block."""
        self._close()
        if not self._finished:
            return []
        finished, self._finished = self._finished, []
        return finished

    def _read_continued(self, view: memoryview, begin: int, end: int) -> int:
        """The hot loop: records that continue the current block."""
        position, bound = begin, self._bound
        normal, zero = self._normal.singles, self._zero.singles
        last_whole_page, last_zero = end - PAGE_STRIDE, end - ZERO_STRIDE
        last_probe = {
            _CONTINUED_PAGE: end - _WORTH_PROBING * PAGE_STRIDE,
            _CONTINUED_ZERO: end - _WORTH_PROBING * ZERO_STRIDE,
        }
        last, streak = self._streak
        while position <= last_zero:
            word: int = _word(view, position)[0]
            if word >= bound:
                break
            flags = word & FLAGS_MASK
            streak = streak + 1 if flags == last else 0
            last = flags
            if streak >= _SINGLES_BEFORE_PROBE and position <= last_probe[flags]:
                position += self._read_run(view, position, end, flags)
            elif flags == _CONTINUED_PAGE:
                if position > last_whole_page:
                    self._owe(word - _CONTINUED_PAGE)
                    position += 8
                    break
                normal.append(word - _CONTINUED_PAGE)
                position += PAGE_STRIDE
            elif flags == _CONTINUED_ZERO:
                zero.append(word - _CONTINUED_ZERO)
                position += ZERO_STRIDE
            else:
                streak = 0
                break
        self._streak = last, streak
        return position - begin

    def _read_run(self, view: memoryview, position: int, end: int, flags: int) -> int:
        """As many whole records with these flags as follow; the bytes used, perhaps 0."""
        page = flags == _CONTINUED_PAGE
        stride = PAGE_STRIDE if page else ZERO_STRIDE
        limit = (end - position) // stride
        offsets = run_offsets(view, position, limit, stride, flags, self._bound)
        (self._normal if page else self._zero).extend(offsets)
        return len(offsets) * stride

    def _read_other(self, view: memoryview, position: int, end: int) -> int:
        """One record that names its block, is cut off, out of bounds, or not a page (0)."""
        reader = Reader(view, position, end)
        word = reader.number(8)
        flags = word & FLAGS_MASK
        if flags & ~_CONTINUE not in (_PAGE, _ZERO):
            return 0
        if flags & _CONTINUE:
            name = self.block
            if name is None:
                raise Refused(OpaqueReason.NO_BLOCK, f"offset {word - flags:#x}")
        else:
            name = text(reader.counted())
        if flags & _ZERO:
            reader.take(1)
        self._enter(name, word - flags)
        if flags & _PAGE:
            self._owe(word - flags)
        else:
            self._zero.singles.append(word - flags)
        return reader.position - position

    def check(self, name: str, end: int) -> int:
        """The length of a block, as far as known.

        :raises Refused: there is no such block, or byte ``end`` is beyond its end.
        """
        bound = _UNBOUNDED if self.blocks is None else self.blocks.get(name)
        if bound is None:
            raise Refused(OpaqueReason.UNKNOWN_BLOCK, repr(name))
        if end > bound:
            raise Refused(OpaqueReason.OUTSIDE_BLOCK, f"{name!r} up to byte {end:#x}")
        return bound

    def _enter(self, name: str, offset: int) -> None:
        """Make ``name`` the current block, if a page at ``offset`` is inside it."""
        bound = self.check(name, offset + TARGET_PAGE_SIZE)
        if name != self.block:
            self._close()
            self.block, self._bound = name, bound

    def _owe(self, offset: int) -> None:
        self._pending = offset
        self.owed = TARGET_PAGE_SIZE

    def _close(self) -> None:
        for batch, zero in ((self._normal, False), (self._zero, True)):
            offsets = batch.take()
            if offsets is not None and self.block is not None:
                self._finished.append(RamPages(self.block, offsets, zero))
