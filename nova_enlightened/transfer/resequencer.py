# SPDX-License-Identifier: Apache-2.0
"""The post-copy part of a main channel, with the pages the guest needs first put first.

QEMU answers requests in the order they come and fills every gap with pages of its own choice,
so what was asked for stands behind what was not. Page records do not depend on each other: after
the switch each page is sent once, and the destination places it whenever it comes. So they may
cross in any order, as long as each crosses exactly once and none crosses after the section that
ends the migration. (Before the switch that is not so: a page may be sent again.)

Input is read into :meth:`Resequencer.buffer`; output comes from :meth:`Resequencer.take`::

    ...PART id| record record record EOS |footer|PART id| record... EOS |footer|END id ...
       stripped  `--- runs, by urgency --'          stripped             `-- barrier: verbatim,
       in between                                                            after all runs

What is not understood is a barrier: everything held crosses before it, and it crosses as it is.
"""

import collections
import struct
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened import exception
from nova_enlightened.knowledge.space import TARGET_PAGE, PageSpace
from nova_enlightened.plan.transfer_plan import Pages
from nova_enlightened.plan.worth import Worth
from nova_enlightened.stream.wire import FLAGS_MASK, RamFlag, SectionType
from nova_enlightened.transfer.held_pages import STRIDES, HeldPages, Run

Judge = Callable[[Pages], npt.NDArray[np.uint8]]
"""Pages to the `Worth` of each."""

READ_SIZE: Final = 256 * 1024
SMALL_READ: Final = 32 * 1024
MARK_SIZE: Final = 5
_MARKS: Final = (SectionType.FOOTER, SectionType.PART, SectionType.END)
_WORD: Final = struct.Struct(">Q")
_CONTINUED: Final = np.dtype(">u8")
# Plain numbers: arithmetic on enumerations, and looking them up, costs more than all else here.
_CONTINUE: Final = int(RamFlag.CONTINUE)
_EOS: Final = int(RamFlag.EOS)


class Resequencer:
    """Holds runs of page records and gives them out by urgency.

    :param space: the guest's pages.
    :param section: id of the RAM section, which is open at this point of the stream.
    :param block: the block named last in the stream, which a continued record means.
    """

    def __init__(self, space: PageSpace, section: int, block: str | None, judge: Judge) -> None:
        self._space = space
        self._section = struct.pack(">I", section)
        self._footer = b""
        self._judge = judge
        self._held = HeldPages(space.pages)
        self._in_block = self._out_block = block
        self._in_section = True
        self._footer_due = False
        self._end: bytes | None = None  # the mark of the section that ends the migration
        self._buffer = bytearray(READ_SIZE)
        self._long_held: list[Run] = []
        self._tail = 0
        self._barrier: collections.deque[memoryview] | None = None
        self._behind = 0  # bytes of it

    @property
    def held(self) -> int:
        """Bytes read and not given out."""
        return self._held.size + self._behind

    # -- input ------------------------------------------------------------------------------

    def buffer(self) -> memoryview:
        """Memory to read the channel into; say with :meth:`receive` how much was read."""
        return memoryview(self._buffer)[self._tail :]

    def receive(self, count: int) -> memoryview:
        """`count` bytes were read into :meth:`buffer`; answers them, as the buffer goes on.

        :raises StreamError: a record names a page or a block that does not exist, or a kind of
            record that cannot be told from its neighbours.
        """
        begin, end = self._tail, self._tail + count
        if end < SMALL_READ:  # a view would keep the whole buffer from being used again
            whole = memoryview(bytes(self._buffer[:end]))
        else:
            whole = memoryview(self._buffer)
            self._buffer = bytearray(READ_SIZE)
        position = self._parse(whole, end) if self._barrier is None else 0
        self._settle()
        self._tail = 0
        if self._barrier is not None:
            self._keep(whole[position:end])
        else:
            self._tail = end - position
            self._buffer[: self._tail] = whole[position:end]
        return whole[begin:end]

    def _settle(self) -> None:
        """Let few pages that will be held for long not keep the buffer of many."""
        parts, self._long_held = self._long_held, []
        if sum(part.size for part in parts) < READ_SIZE // 2:
            for part in parts:
                part.copy_body()

    def end(self) -> None:
        """QEMU sends no more: what is left of a record crosses too, behind all that is held."""
        if self._barrier is None:
            self._barrier = collections.deque()
            self._keep(memoryview(bytes(self._buffer[: self._tail])))

    def promote(self, pages: Pages, worth: int) -> None:
        """Pages became worth more, `DEMANDED` or `NEAR`: those that are held go sooner."""
        self._held.promote(pages, worth)

    # -- output -----------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """The barrier was met and everything was given out: the rest may be carried as it is."""
        return self._barrier is not None and not self.held

    @property
    def can_leave(self) -> bool:
        """Whether the rest of the channel may be carried as it is, from this very byte."""
        aligned = self._in_section and not self._tail and self._barrier is None
        return aligned and not self.held and self._in_block == self._out_block

    def ready(self, horizon: int) -> int:
        """Bytes held of pages that are worth no more than `horizon`."""
        return self._held.ready(horizon)

    def take(self, room: int, horizon: int) -> tuple[bytes, Pages]:
        """What to send next, in order of worth, of about `room` bytes; and the pages in it.

        :param horizon: the largest `Worth` that may be sent.
        """
        out: list[memoryview] = []
        runs = self._held.take(room, Worth.BACKGROUND if self._barrier is not None else horizon)
        for run in runs:
            room -= run.size
            self._emit(run, out)
        if self._barrier is not None and not self._held.size:
            while self._barrier and room > 0:
                part = self._barrier.popleft()
                self._behind -= len(part)
                room -= len(part)
                out.append(part)
        pages = [run.pages for run in runs]
        return b"".join(out), np.concatenate(pages) if pages else np.empty(0, np.int64)

    def _emit(self, run: Run, out: list[memoryview]) -> None:
        _, offset = self._space.locate(int(run.pages[0]))
        if run.block == self._out_block:
            header = _WORD.pack(offset | run.flag | _CONTINUE)
        else:
            name = run.block.encode("utf-8", "surrogateescape")
            header = _WORD.pack(offset | run.flag) + bytes((len(name),)) + name
            self._out_block = run.block
        out += (memoryview(header), run.body)

    # -- parsing ----------------------------------------------------------------------------

    def _parse(self, view: memoryview, end: int) -> int:
        """Take whole records and section marks; the position of what is not whole."""
        position = 0
        while position < end and self._barrier is None:
            step = self._records if self._in_section else self._mark
            used = step(view, position, end)
            if not used:
                break
            position += used
        return position

    def _mark(self, view: memoryview, position: int, end: int) -> int:
        """A footer, or the beginning of the next part; anything else is the barrier."""
        kind = view[position]
        if kind not in _MARKS:
            self._begin_barrier()
            return 0
        if end - position < MARK_SIZE:
            return 0
        mark = bytes(view[position : position + MARK_SIZE])
        if kind == SectionType.FOOTER and self._footer_due:
            self._footer, self._footer_due = mark, False
        elif kind != SectionType.FOOTER and mark[1:] == self._section and self._end is None:
            self._in_section = True
            self._end = mark if kind == SectionType.END else None
        else:
            self._begin_barrier()
            return 0
        return MARK_SIZE

    def _records(self, view: memoryview, position: int, end: int) -> int:
        if end - position < 8:
            return 0
        (word,) = _WORD.unpack_from(view, position)
        flags = word & FLAGS_MASK
        if flags == _EOS:
            self._in_section, self._footer_due = False, True
            return 8
        flag = flags & ~_CONTINUE
        if flag not in STRIDES:
            raise exception.StreamError(f"page record with flags {flags:#x} after the switch")
        if flags & _CONTINUE:
            return self._continued(view, position, end, flag)
        return self._named(view, position, end, word, flag)

    def _named(self, view: memoryview, position: int, end: int, word: int, flag: int) -> int:
        if end - position < 9:
            return 0
        body = position + 9 + view[position + 8]
        after = body + STRIDES[flag] - 8
        if after > end:
            return 0
        self._in_block = str(view[position + 9 : body], "utf-8", "surrogateescape")
        page = self._number(word & ~FLAGS_MASK)
        self._hold(Run(self._in_block, flag, np.array([page]), view[body:after]))
        return after - position

    def _continued(self, view: memoryview, position: int, end: int, flag: int) -> int:
        stride = STRIDES[flag]
        most = (end - position) // stride
        if not most:
            return 0
        words = np.ndarray((most,), _CONTINUED, view, position, (stride,))
        same = (words & np.uint64(FLAGS_MASK)) == np.uint64(flag | _CONTINUE)
        count = most if same.all() else int(same.argmin())
        offsets = (words[:count] & ~np.uint64(FLAGS_MASK)).astype(np.int64)
        self._number(int(offsets.min()))
        self._number(int(offsets.max()))
        assert self._in_block is not None
        pages = self._space.base(self._in_block) + offsets // TARGET_PAGE
        self._hold(Run(self._in_block, flag, pages, view[position + 8 : position + count * stride]))
        return count * stride

    def _number(self, offset: int) -> int:
        if self._in_block is None:
            raise exception.StreamError("page record of no block after the switch")
        try:
            return self._space.number(self._in_block, offset)
        except exception.PlanError as error:
            raise exception.StreamError(f"page record after the switch: {error}") from error

    def _hold(self, run: Run) -> None:
        parts = self._held.add(run, self._judge(run.pages))
        self._long_held += [part for part, worth in parts if worth > Worth.ASKED]

    def _begin_barrier(self) -> None:
        """From here on the stream is carried as it is, behind all that is held.

        :raises StreamError: records that follow would continue another block than the last
            that is given out. (Records do follow, unless the migration is at its end.)
        """
        self._barrier = collections.deque()
        close = _WORD.pack(_EOS) + self._footer
        self._keep(memoryview(close + (self._end + close if self._end else b"")))
        if self._end is None:
            self._end_with(self._in_block)

    def _end_with(self, block: str | None) -> None:
        """Give out runs of `block` last."""
        held = self._held.runs()
        last = [run for run in held if run.block == block]
        if not last and (held[-1].block if held else self._out_block) != block:
            raise exception.StreamError(f"the order of RAM block {block!r} cannot be kept")
        self._held.fix_order([*(run for run in held if run.block != block), *last])

    def _keep(self, data: memoryview) -> None:
        assert self._barrier is not None
        if data:
            self._barrier.append(data)
            self._behind += len(data)
