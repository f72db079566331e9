# SPDX-License-Identifier: Apache-2.0
"""Speaks for a source that stands still and takes no part in post-copy's recovery any more.

Its memory is all there, and the destination says which pages it lacks. So whoever can read that
memory can send them in its place.
"""

import collections
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened import exception
from nova_enlightened.stream import encode
from nova_enlightened.stream.events import NEED_DATA, RamBlock
from nova_enlightened.stream.return_path import (
    RecvBitmap,
    RequestPages,
    ResumeAck,
    ReturnPath,
    ReturnPathEvent,
    Shut,
    Unknown,
)
from nova_enlightened.stream.wire import TARGET_PAGE_SIZE, CommandKind, RamFlag

STEP: Final = 512
"""Pages sent at once at most, where the block has no larger ones."""
_CONTINUED_PAGE: Final = int(RamFlag.PAGE | RamFlag.CONTINUE)
_HEADER: Final = 8
_BYTE: Final = 8


class StoppedSource:
    """The source's part of ``postcopy_do_resume`` (``migration/migration.c`` of QEMU), and the
    pages behind it.

    :meth:`ask`, :meth:`receive_data` until :attr:`told`, :meth:`resume`, :meth:`receive_data` until
    :attr:`resumed`; then :meth:`next_pages` and :meth:`records` until nothing is left, :meth:`end`,
    and :meth:`receive_data` until :attr:`status` is told.

    :param section: the id that the first stream gave its RAM section.
    :param blocks: those that it listed.
    :ivar resumed: the destination takes pages.
    :ivar status: its last word, 0 where it has all and nothing is wrong; None before that.
    """

    def __init__(self, section: int, blocks: Iterable[RamBlock]) -> None:
        self.resumed = False
        self.status: int | None = None
        self._section = section
        self._blocks = {block.name: block for block in blocks}
        self._lacks: dict[str, npt.NDArray[np.bool_]] = {}
        self._behind = dict.fromkeys(self._blocks, 0)  # no page before this one is lacking
        self._asked: collections.OrderedDict[tuple[str, int], None] = collections.OrderedDict()
        self._return_path = ReturnPath()
        self._in_part = False

    def ask(self) -> bytes:
        """Ask what has arrived."""
        return b"".join(map(encode.recv_bitmap_request, self._blocks))

    def resume(self) -> bytes:
        """Have the destination go on."""
        return encode.command(CommandKind.POSTCOPY_RESUME)

    @property
    def told(self) -> bool:
        """Whether the destination has said of all blocks what has arrived."""
        return len(self._lacks) == len(self._blocks)

    @property
    def lacking(self) -> int:
        """Pages that the destination lacks."""
        return sum(int(lacks.sum()) for lacks in self._lacks.values())

    def receive_data(self, data: bytes) -> None:
        """The next bytes of the return path.

        :raises StreamError: the destination breaks the format, or says what it cannot know.
        """
        self._return_path.receive_data(data)
        while (event := self._return_path.next_event()) is not NEED_DATA:
            self._hear(event)

    def next_pages(self) -> tuple[str, int, int] | None:
        """What to send next, what is waited for first: block, first page, and how many.

        They count as sent. None: the destination lacks nothing.
        """
        while self._asked:
            (name, page), _ = self._asked.popitem(last=False)
            if self._lacks[name][page]:
                return self._take(name, page)
        for name, lacks in self._lacks.items():
            behind = self._behind[name]
            page = behind + int(lacks[behind:].argmax()) if behind < len(lacks) else behind
            self._behind[name] = page
            if page < len(lacks) and lacks[page]:
                return self._take(name, page)
            self._behind[name] = len(lacks)
        return None

    def records(self, block: str, first: int, contents: bytes) -> bytes:
        """The page records of pages that lie behind each other.

        :param contents: theirs, 4096 bytes each.
        """
        pages = np.frombuffer(contents, np.uint8).reshape(-1, TARGET_PAGE_SIZE)
        # The first names the block, of which the others are then taken to be.
        begin = b"" if self._in_part else encode.ram_part(self._section)
        self._in_part = True
        offset = first * TARGET_PAGE_SIZE
        head = encode.page_header(offset, block) + contents[:TARGET_PAGE_SIZE]
        rest = np.empty((len(pages) - 1, _HEADER + TARGET_PAGE_SIZE), np.uint8)
        offsets = offset + TARGET_PAGE_SIZE * np.arange(1, len(pages), dtype=np.uint64)
        words = (offsets | np.uint64(_CONTINUED_PAGE)).astype(">u8")
        rest[:, :_HEADER] = words.view(np.uint8).reshape(-1, _HEADER)
        rest[:, _HEADER:] = pages[1:]
        return begin + head + rest.tobytes()

    def end(self) -> bytes:
        """The end of the migration."""
        footer = encode.ram_end() + encode.footer(self._section)
        last = encode.ram_part(self._section, last=True) + footer
        return (footer if self._in_part else b"") + last + encode.eof()

    def _take(self, name: str, page: int) -> tuple[str, int, int]:
        # A page of the host's is placed whole, so nothing may come between its parts.
        step = max(STEP, self._blocks[name].page_size // TARGET_PAGE_SIZE)
        window = self._lacks[name][page : page - page % step + step]
        count = len(window) if window.all() else int(window.argmin())
        window[:count] = False
        return name, page, count

    def _hear(self, event: ReturnPathEvent) -> None:
        match event:
            case RecvBitmap():
                self._learn(event)
            case RequestPages():
                self._note(event)
            case ResumeAck():
                self.resumed = True
            case Shut():
                self.status = event.status
            case Unknown():
                raise exception.ReturnPathError(f"message of unknown type {event.type}")

    def _learn(self, told: RecvBitmap) -> None:
        block = self._blocks.get(told.block)
        if block is None or told.block in self._lacks:
            raise exception.ReturnPathError(f"an unasked bitmap, of block {told.block!r}")
        pages = block.length // TARGET_PAGE_SIZE
        if len(told.bitmap) * _BYTE < pages:
            raise exception.ReturnPathError(
                f"{len(told.bitmap)} bytes of bitmap for {pages} pages of block {told.block!r}"
            )
        arrived = np.unpackbits(np.frombuffer(told.bitmap, np.uint8), bitorder="little")
        self._lacks[told.block] = arrived[:pages] == 0

    def _note(self, asked: RequestPages) -> None:
        lacks = self._lacks.get(asked.block or "")
        page = asked.start // TARGET_PAGE_SIZE
        if lacks is None or not 0 <= page < len(lacks):
            raise exception.ReturnPathError(f"page {page} of block {asked.block!r} is asked for")
        if lacks[page]:
            self._asked[asked.block or "", page] = None
