# SPDX-License-Identifier: Apache-2.0
"""The memory of a played VM, towards the QEMU that executes it.

Speaks the source's side of post-copy on one unix socket. Bytes are handed to QEMU batch by
batch, and only while it takes them, so that a page the guest waits for overtakes all that is
queued. Every page goes once; the bitmap QEMU answers is all that a resumed player has to know.
"""

import collections
import enum
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened import exception
from nova_enlightened.knowledge.space import TARGET_PAGE, PageSpace
from nova_enlightened.stream import encode, playing
from nova_enlightened.stream import return_path as rp
from nova_enlightened.stream.events import NeedData, RamBlock
from nova_enlightened.transfer.qemu_socket import READ_SIZE, QemuSocket

LOG = logging.getLogger(__name__)

BATCH_PAGES: Final = 64
"""Pages written at once: what a page the guest waits for may have to wait behind, 256 KiB."""

SMALL_BUFFER: Final = 256 << 10
LARGE_BUFFER: Final = 2 << 20
"""Bytes the kernel holds for QEMU, half of what it accounts: with faults lately, and without."""
CALM_S: Final = 0.05

Pages = npt.NDArray[np.uint8]
Places = npt.NDArray[np.uint32]


class Step(enum.StrEnum):
    """Where the conversation with QEMU is."""

    CLOSED = "not connected"
    LOADING = "loading devices"
    BITMAPS = "received-bitmaps asked"
    RESUMING = "resuming"
    EXECUTING = "executing"
    ENDING = "all said"
    ENDED = "ended"


class Said(enum.StrEnum):
    """What moves it on."""

    OPENED = "opening sent"
    ASKED = "bitmaps asked for"
    LOADED = "PONG of the package"
    KNOWN = "last bitmap"
    RESUMED = "RESUME_ACK"
    CLOSING = "end sent"
    SHUT = "SHUT"


TRANSITIONS: Final[dict[tuple[Step, Said], Step]] = {
    (Step.CLOSED, Said.OPENED): Step.LOADING,
    (Step.CLOSED, Said.ASKED): Step.BITMAPS,
    (Step.LOADING, Said.LOADED): Step.EXECUTING,
    (Step.BITMAPS, Said.KNOWN): Step.RESUMING,
    (Step.RESUMING, Said.RESUMED): Step.EXECUTING,
    (Step.EXECUTING, Said.CLOSING): Step.ENDING,
    (Step.ENDING, Said.SHUT): Step.ENDED,
}
SERVING: Final = frozenset({Step.LOADING, Step.EXECUTING})
"""Steps in which pages may be sent."""


class Memory:
    """All RAM of one VM, by page number of `space`.

    :param space: its pages.
    :param blocks: as captured, in the same order.
    :param section_id: of the captured RAM section.
    :param zero: bool[pages]: contents are zero; such pages are sent only when asked for.
    :param touched: called with the page numbers of each fault.
    """

    def __init__(
        self,
        space: PageSpace,
        blocks: Sequence[RamBlock],
        section_id: int,
        zero: npt.NDArray[np.bool_],
        touched: Callable[[range], None],
    ) -> None:
        self._space = space
        self._blocks = tuple(blocks)
        self._section_id = section_id
        self._zero = zero
        self._touched = touched
        self._queued = np.zeros(space.pages, np.bool_)
        self._urgent: collections.deque[tuple[Places, Pages | None]] = collections.deque()
        self._background: collections.deque[tuple[Places, Pages | None]] = collections.deque()
        self._return = rp.ReturnPath()
        self._bitmaps: set[str] = set()
        self._buffer = memoryview(bytearray(READ_SIZE))
        self._left = int(np.count_nonzero(~zero))
        self._faulted_at = 0.0
        self._buffer_size = 0
        self.step = Step.CLOSED
        self.socket: QemuSocket | None = None
        self.faults = 0
        self.waiting: dict[int, float] = {}
        """Pages the guest waits for, and since when (monotonic)."""
        self.stalled_s = 0.0
        """Time during which it waited for at least one."""
        self.backlog = 0
        """Bytes of pages that are queued here."""
        self.lost = False
        """QEMU closed the connection before all was said."""

    @property
    def missing(self) -> int:
        """Pages that have contents and were not queued yet."""
        return self._left

    @property
    def sent(self) -> npt.NDArray[np.bool_]:
        """bool[pages]: those that QEMU has or that are queued. Not to be written to."""
        return self._queued

    # -- connecting -------------------------------------------------------------------------

    def open(self, path: str, configuration: bytes, device_state: bytes) -> QemuSocket:
        """Connect to QEMU and start the VM. :raises PlayerError: nobody listens there."""
        self._connect(path)
        opening = playing.opening(configuration, self._section_id, self._blocks, device_state)
        self._go(Said.OPENED)
        assert self.socket is not None
        self.socket.write(opening)
        return self.socket

    def resume(self, path: str) -> QemuSocket:
        """Connect to a QEMU that was told to recover. :raises PlayerError: nobody listens."""
        self._connect(path)
        self._go(Said.ASKED)
        assert self.socket is not None
        self.socket.write(playing.bitmap_requests(self._blocks))
        return self.socket

    def _connect(self, path: str) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            raise exception.PlayerError(f"QEMU does not listen at {path}: {error}") from error
        self.socket = QemuSocket.adopt(0, sock)

    def _size_buffer(self, now: float) -> None:
        """Let the kernel hold much for QEMU while the guest waits for nothing: on a busy host each
        turn of QEMU and of this process is waited for, and should be worth it. But what the
        guest asks for is behind it, so it is little for a while after each fault.
        """
        wanted = SMALL_BUFFER if now - self._faulted_at < CALM_S else LARGE_BUFFER
        if wanted == self._buffer_size or self.socket is None:
            return
        self._buffer_size = wanted
        try:
            self.socket.force_buffer(wanted)
        except OSError:  # not privileged
            self.socket.limit_buffer(wanted)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()

    # -- pages ------------------------------------------------------------------------------

    def put(self, places: Places, pages: Pages, *, urgent: bool) -> None:
        """Contents have come: queue those of them that were not queued before.

        When a VM is taken up, this is for after QEMU has told what it has.

        :param places: page numbers, distinct, none of them of zeros.
        :param pages: u8[len(places), 4096].
        :param urgent: ahead of all that is not. Pages that the guest waits for always are.
        """
        fresh = ~self._queued[places]
        if not fresh.all():
            places, pages = places[fresh], pages[fresh]
        if not places.size:
            return
        self._queued[places] = True
        self._left -= places.size
        self.backlog += places.size * TARGET_PAGE
        if self.waiting:
            awaited = np.isin(places, np.fromiter(self.waiting, np.uint32, len(self.waiting)))
            if awaited.any():
                self._urgent.append((places[awaited], pages[awaited]))
                places, pages = places[~awaited], pages[~awaited]
        (self._urgent if urgent else self._background).append((places, pages))

    def flush(self) -> None:
        """Give QEMU what it takes now."""
        sock = self.socket
        if sock is None or self.step is Step.ENDED:
            return
        self._size_buffer(time.monotonic())
        if sock.backlog:
            sock.flush()
        while not sock.backlog and self.step in SERVING:
            batch = self._next_batch()
            if batch is None:
                self._end_if_all_sent()
                break
            places, pages = batch
            sock.write(self._encoded(places, pages))
            self._answered(places)

    def _next_batch(self) -> tuple[Places, Pages | None] | None:
        """At most `BATCH_PAGES` pages of one block."""
        # Until the devices are loaded the guest does not execute: what they touch is all that
        # matters, and nothing should be ahead of it.
        queue = self._urgent or (self._background if self.step is Step.EXECUTING else None)
        while queue:
            places, pages = queue.popleft()
            if not places.size:
                continue
            end = self._same_block(places)
            if end < places.size:
                queue.appendleft((places[end:], pages if pages is None else pages[end:]))
                places, pages = places[:end], pages if pages is None else pages[:end]
            if pages is not None:
                self.backlog -= places.size * TARGET_PAGE
            return places, pages
        if self._urgent or (self._background and self.step is Step.EXECUTING):
            return self._next_batch()
        return None

    def _same_block(self, places: Places) -> int:
        """How many of the first `BATCH_PAGES` lie in the block of the first."""
        head = places[:BATCH_PAGES]
        name, _ = self._space.locate(int(head[0]))
        pages = self._space.block_range(name)
        outside = np.flatnonzero((head < pages.start) | (head >= pages.stop))
        return int(outside[0]) if outside.size else head.size

    def _encoded(self, places: Places, pages: Pages | None) -> bytes:
        name, _ = self._space.locate(int(places[0]))
        offsets = (places.astype(np.uint64) - np.uint64(self._space.base(name))) * np.uint64(
            TARGET_PAGE
        )
        if pages is None:
            return playing.zero_records(name, offsets)
        return playing.page_records(name, offsets, pages)

    def _answered(self, places: Places) -> None:
        if not self.waiting:
            return
        began = min(self.waiting.values())
        for place in places.tolist():
            self.waiting.pop(place, None)
        now = time.monotonic()
        # Time counts once however many pages are waited for.
        self.stalled_s += (min(self.waiting.values()) if self.waiting else now) - began

    def _end_if_all_sent(self) -> None:
        if self.step is Step.EXECUTING and not self._left:
            assert self.socket is not None
            self._go(Said.CLOSING)
            self.socket.write(playing.closing(self._section_id))

    # -- what QEMU says ---------------------------------------------------------------------

    def read(self) -> None:
        """Take what QEMU says.

        :raises PlayerError: it failed, or says what has no place.
        """
        assert self.socket is not None
        while (count := self.socket.read_into(self._buffer)) is not None:
            if count == 0:
                self.lost = self.step is not Step.ENDED
                return
            self._return.receive_data(self._buffer[:count])
            try:
                while not isinstance(event := self._return.next_event(), NeedData):
                    self._on_event(event)
            except exception.ReturnPathError as error:
                raise exception.PlayerError(f"QEMU's return path: {error}") from error

    def _on_event(self, event: rp.ReturnPathEvent) -> None:
        match event:
            case rp.RequestPages():
                self._on_request(event)
            case rp.Pong(value=value):
                if value == playing.LOADED:
                    self._go(Said.LOADED)
            case rp.RecvBitmap():
                self._on_bitmap(event)
            case rp.ResumeAck():
                self._go(Said.RESUMED)
            case rp.Shut(status=status):
                if status:
                    raise exception.PlayerError(f"QEMU gave up with error {status}")
                self._go(Said.SHUT)
                # What is left was never sent because it is zero, and QEMU knows by now.
                self.waiting.clear()
            case rp.SwitchoverAck():
                pass
            case rp.Unknown():
                raise exception.PlayerError("QEMU says something unknown on the return path")

    def _on_request(self, event: rp.RequestPages) -> None:
        if event.block is None or event.length % TARGET_PAGE or not event.length:
            raise exception.PlayerError("QEMU asks for pages of no block, or for no pages")
        try:
            first = self._space.number(event.block, event.start)
            self._space.number(event.block, event.start + event.length - TARGET_PAGE)
        except exception.PlanError as error:
            raise exception.PlayerError(f"QEMU asks for {error}") from error
        self._faulted(range(first, first + event.length // TARGET_PAGE))

    def _faulted(self, places: range) -> None:
        now = self._faulted_at = time.monotonic()
        self.faults += 1
        for place in places:
            if self._queued[place]:
                self._promote(place)
                continue
            self.waiting.setdefault(place, now)
            if self._zero[place]:
                self._queued[place] = True
                self._urgent.appendleft((np.array([place], np.uint32), None))
        self._touched(places)

    def _promote(self, place: int) -> None:
        """It waits in the queue: let it, and what came with it, go now."""
        for number, (places, _) in enumerate(self._background):
            if (places == place).any():
                self.waiting.setdefault(place, time.monotonic())
                self._urgent.append(self._background[number])
                del self._background[number]
                return

    def _on_bitmap(self, event: rp.RecvBitmap) -> None:
        if self.step is not Step.BITMAPS or event.block not in self._space:
            raise exception.PlayerError(f"QEMU tells of block {event.block!r}, out of place")
        pages = self._space.block_range(event.block)
        bits = np.frombuffer(event.bitmap, np.uint8)
        if bits.size * 8 < len(pages):
            raise exception.PlayerError(f"QEMU tells of too few pages of {event.block!r}")
        received = np.unpackbits(bits, count=len(pages), bitorder="little").view(np.bool_)
        self._queued[pages.start : pages.stop] = received
        self._bitmaps.add(event.block)
        if len(self._bitmaps) == len(self._blocks):
            self._left = int(np.count_nonzero(~(self._queued | self._zero)))
            self._go(Said.KNOWN)
            assert self.socket is not None
            self.socket.write(playing.resumption())

    def _go(self, said: Said) -> None:
        then = TRANSITIONS.get((self.step, said))
        if then is None:
            raise exception.PlayerError(f"{said.value} while {self.step.value}")
        LOG.info("QEMU: %s", then.value)
        self.step = then
        if said is Said.RESUMED:
            assert self.socket is not None
            self.socket.write(encode.ram_part(self._section_id))
