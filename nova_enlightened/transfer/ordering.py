# SPDX-License-Identifier: Apache-2.0
"""What the source relay does with the bytes it carries; no sockets, no clock.

The forward stream is only observed. The return path is passed on with two changes: every
page request is rewritten into the form that names its block (QEMU resolves the short form in
the block last named, which may be one of ours), and further requests are put between messages.
"""

import collections
import dataclasses
import enum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nova_enlightened import exception
from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.space import TARGET_PAGE, PageSpace
from nova_enlightened.plan.fault_trace import FaultRecorder, FaultTrace
from nova_enlightened.plan.injector import Injector, Worth
from nova_enlightened.plan.transfer_plan import TransferPlan, empty_plan
from nova_enlightened.plan.window import InjectionWindow, WindowLimits
from nova_enlightened.stream import events as ev
from nova_enlightened.stream import return_path as rp
from nova_enlightened.stream.migration import MigrationStream
from nova_enlightened.transfer.resequencer import Resequencer

UNSETTLED: Final = 8 * 1024 * 1024
"""Bytes in QEMU's own order whose pages are noted together: each time costs the same."""
RECENT: Final = 8
"""Faults whose times are kept."""


class Phase(enum.StrEnum):
    """How far the migration is, as the forward stream tells."""

    WAITING = "waiting"  # QEMU has not connected, or said nothing yet
    PRECOPY = "pre-copy"
    POSTCOPY = "post-copy"  # the destination was told to run
    COMPLETED = "completed"
    OPAQUE = "opaque"  # carried, not understood: nothing is injected


_AFTER: Final[dict[tuple[Phase, type], Phase]] = {
    (Phase.WAITING, ev.Header): Phase.PRECOPY,
    (Phase.WAITING, ev.Opaque): Phase.OPAQUE,
    (Phase.PRECOPY, ev.PostcopyRun): Phase.POSTCOPY,
    (Phase.PRECOPY, ev.EndOfStream): Phase.COMPLETED,
    (Phase.PRECOPY, ev.Opaque): Phase.OPAQUE,
    (Phase.POSTCOPY, ev.EndOfStream): Phase.COMPLETED,
    (Phase.POSTCOPY, ev.Opaque): Phase.OPAQUE,
}


@dataclasses.dataclass
class Marks:
    """When things were first seen, by the relay's monotonic clock; None where not yet."""

    first_byte: float | None = None
    planned: float | None = None
    switchover: float | None = None
    urgent_done: float | None = None
    completed: float | None = None


class OrderedMigration:
    """One source's streams, their page space and the injector that orders it.

    :param limits: of the injection window.
    """

    def __init__(self, limits: WindowLimits | None = None) -> None:
        self.phase = Phase.WAITING
        self.opaque_reason: str | None = None
        self.space: PageSpace | None = None
        self.marks = Marks()
        self.faulted_at: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._faults: FaultRecorder | None = None
        self._latencies: list[float] = []
        self._limits = limits
        self._streams: dict[int, MigrationStream] = {}
        self._return_path = rp.ReturnPath()
        self._injector: Injector | None = None
        self._resequencer: Resequencer | None = None
        self._unsettled = 0  # bytes whose pages were not noted
        self._named: str | None = None  # the block the destination named last
        self._ram: dict[str, Any] = {}

    @property
    def pulling(self) -> bool:
        """Pages are asked for in plan order: what nobody asked for can wait."""
        return (
            self.phase is Phase.POSTCOPY
            and self.marks.planned is not None
            and self.marks.urgent_done is None
            and self._injector is not None
        )

    @property
    def horizon(self) -> int:
        """The largest `Worth` that need not wait for others."""
        if self._injector is None or not self.pulling:
            return Worth.BACKGROUND
        return self._injector.horizon

    @property
    def outstanding(self) -> int:
        """Pages asked for, by the guest or the plan, that QEMU has not sent yet."""
        self._settle()
        return self._injector.outstanding if self._injector is not None else 0

    @property
    def awaited(self) -> int:
        """Pages the guest waits for that QEMU has not sent yet."""
        self._settle()
        return self._injector.awaited if self._injector is not None else 0

    @property
    def handing_over(self) -> bool:
        """The source's processors stand still, and the order to run has not been read."""
        return self.phase is Phase.PRECOPY and any(
            stream.in_package for stream in self._streams.values()
        )

    def distance(self, channel: int) -> int | None:
        """Bytes to read at most before :meth:`resequence` is tried again; None: any number."""
        stream = self._streams.get(channel)
        if self.phase is not Phase.POSTCOPY or stream is None or self._resequencer is not None:
            return None
        return stream.distance or 1

    def resequence(self, channel: int) -> Resequencer | None:
        """What orders the channel's pages from here on, once the stream is at such a place."""
        stream = self._streams.get(channel)
        if (
            self.phase is not Phase.POSTCOPY
            or stream is None
            or stream.distance
            or not stream.in_ram
            or stream.ram_section_id is None
            or self.space is None
            or self._injector is None
        ):
            return None
        self._settle()
        self._resequencer = Resequencer(
            self.space, stream.ram_section_id, stream.block, self._injector.worth
        )
        return self._resequencer

    def boundary(self, channel: int) -> int:
        """Bytes of the channel to read to where one of its records ends; 0: one has just ended.

        A record's length may show only as it is read: ask again.
        """
        stream = self._streams[channel]
        return stream.distance or (0 if stream.in_ram else 1)

    def leave(self) -> None:
        """The channel's pages are carried in QEMU's order again."""
        self._resequencer = None

    def emitted(self, pages: npt.NDArray[np.int64], now: float) -> None:
        """These pages were given to the link: faults on them have ended."""
        if self._faults is not None and self._faults.waiting:
            self._latencies += self._faults.seen(pages, now)

    def forward(self, channel: int, data: memoryview, now: float) -> None:
        """Observe bytes that QEMU sends. :raises StreamError: impossible lengths."""
        stream = self._streams.get(channel)
        if stream is None:
            if self.marks.first_byte is None:
                self.marks.first_byte = now
            stream = self._streams[channel] = self._new_stream()
        self._unsettled += len(data)
        together = (
            self._resequencer is None
            and self._unsettled < UNSETTLED
            and not (self._faults is not None and self._faults.waiting)
        )
        stream.receive_data(data, report_pages=not together)
        if not together:
            self._unsettled = 0
        while (event := stream.next_event()) is not ev.NEED_DATA:
            self._observe(event, now)
            if isinstance(event, ev.RamBlocks):
                # All that one has to know who sends the rest of it in QEMU's place.
                self._ram = {"section": stream.ram_section_id, "blocks": list(event.blocks)}

    def forward_ended(self, channel: int) -> None:
        """QEMU closed a channel. :raises StreamError: in the middle of something."""
        if channel in self._streams:
            self._streams[channel].end_of_data()

    def back(self, data: bytes | memoryview, now: float) -> bytes:
        """Return-path bytes from the destination; the bytes to give to QEMU instead.

        :raises ReturnPathError: the destination breaks the format.
        """
        self._return_path.receive_data(data)
        out = bytearray()
        while (event := self._return_path.next_event()) is not ev.NEED_DATA:
            out += self._answer(event, now)
        return bytes(out)

    def inject(self, now: float, *, planned: bool) -> bytes:
        """Further requests, as return-path messages; empty when there is nothing to ask.

        :param planned: pages of the plan too, not only neighbours of faults.
        """
        if self.phase is not Phase.POSTCOPY or self._injector is None or self.space is None:
            return b""
        self._settle()
        out = bytearray()
        for first, count in self._injector.next_requests(now, planned=planned):
            block, offset = self.space.locate(first)
            out += rp.encode_request_pages(block, offset, count * TARGET_PAGE)
        has_plan = self.marks.planned is not None
        if has_plan and self.marks.urgent_done is None and not self._injector.urgent_left:
            self.marks.urgent_done = now
        return bytes(out)

    def adopt(self, plan: TransferPlan, now: float) -> None:
        """Order what is left by a plan. :raises PlanError: it is of another guest."""
        if self._injector is not None:
            self._settle()
            self._injector.replan(plan)
            self.marks.planned = now

    def statistics(self) -> dict[str, Any]:
        """What a person or a program asks of a running migration, ready for JSON."""
        self._settle()
        known: dict[str, Any] = {
            "phase": self.phase.value,
            "opaque_reason": self.opaque_reason,
            "marks": dataclasses.asdict(self.marks),
            "fault_latency_s": _summary(self._latencies),
            "ram": self._ram or None,
        }
        if self._injector is not None:
            pages = dataclasses.asdict(self._injector.statistics())
            for key in [key for key in pages if key.endswith("_by_class")]:
                pages[key] = {c.name.lower(): pages[key][c] for c in PageClass if pages[key][c]}
            known["pages"] = pages
        return known

    def trace(self, bandwidth: float | None) -> FaultTrace | None:
        """The faults so far; None before switchover.

        :param bandwidth: bytes a second of the link, where somebody measured it.
        """
        if self._faults is None or self.space is None or self._injector is None:
            return None
        self._settle()
        policy = self._injector.statistics().policy
        return self._faults.trace(self.space.blocks(), policy, bandwidth)

    def _new_stream(self) -> MigrationStream:
        blocks = dict(self.space.blocks()) if self.space is not None else None
        return MigrationStream(blocks=blocks)

    def _observe(self, event: ev.Event, now: float) -> None:
        self.phase = _AFTER.get((self.phase, type(event)), self.phase)
        match event:
            case ev.RamPages():
                self._sent(event, now)
            case ev.RamBlocks():
                self._lay_out(event)
            case ev.RamDiscard() if self._injector is not None and self.space is not None:
                base = self.space.base(event.block)
                for start, length in event.ranges:
                    first = base + start // TARGET_PAGE
                    self._injector.discarded(first, first + length // TARGET_PAGE)
            case ev.PostcopyRun():
                self.marks.switchover = now
                self._faults = FaultRecorder(now)
                if self._injector is not None:
                    self._injector.start()
            case ev.EndOfStream():
                self.marks.completed = now
            case ev.Opaque():
                self.opaque_reason = f"{event.reason.value}: {event.detail}"

    def _lay_out(self, setup: ev.RamBlocks) -> None:
        self.space = PageSpace(
            [(block.name, block.length) for block in setup.blocks if block.length]
        )
        self._injector = Injector(
            empty_plan("stock", self.space.pages),
            self.space,
            InjectionWindow(self._limits),
            host_pages={
                block.name: block.page_size // TARGET_PAGE
                for block in setup.blocks
                if block.page_size > TARGET_PAGE
            },
        )

    def _sent(self, event: ev.RamPages, now: float) -> None:
        if self._injector is None or self.space is None:
            return
        pages = self.space.base(event.block) + event.offsets.astype(np.int64) // TARGET_PAGE
        self._injector.sent(pages, zero=event.zero)
        if self._resequencer is None:
            self.emitted(pages, now)

    def _settle(self) -> None:
        """Note what crossed unnoted, before anything is asked of the injector."""
        if not self._unsettled:
            return
        self._unsettled = 0
        for stream in self._streams.values():
            for event in stream.unreported():
                self._sent(event, 0.0)  # no fault waits for them

    def _answer(self, event: rp.ReturnPathEvent, now: float) -> bytes:
        if not isinstance(event, rp.RequestPages):
            return event.raw
        self._named = event.block or self._named
        if self._named is None:
            return event.raw  # no block was ever named, which QEMU itself refuses
        self._note_fault(self._named, event, now)
        return rp.encode_request_pages(self._named, event.start, event.length)

    def _note_fault(self, block: str, event: rp.RequestPages, now: float) -> None:
        if self._injector is None or self.space is None:
            return
        self._settle()
        try:
            page = self.space.number(block, event.start)
            flags = self._injector.fault(page, max(1, event.length // TARGET_PAGE), now)
        except exception.PlanError:
            return  # QEMU judges a request we cannot place.
        self.faulted_at.append(now)
        if self._faults is not None:
            self._faults.fault(page, now, flags)
        if self._resequencer is not None:
            self._resequencer.promote(np.array([page], np.int64), Worth.DEMANDED)
            self._resequencer.promote(self._injector.promotions(), Worth.NEAR)


def _summary(latencies: list[float]) -> dict[str, float | int]:
    """Seconds from a fault's request to its page in the stream: median, 99th percentile, most."""
    if not latencies:
        return {"count": 0}
    # As np.percentile, which loads numpy's masked arrays when first called: 60 ms in which no page
    # crosses.
    ordered, last = sorted(latencies), len(latencies) - 1
    median, high, most = (round(ordered[last * part // 100], 6) for part in (50, 99, 100))
    return {"count": len(latencies), "p50": median, "p99": high, "max": most}
