# SPDX-License-Identifier: Apache-2.0
"""A guest's snapshot of its own memory: the wire format the agent sends, and what it means.

All numbers are big endian, all arrays are *byte planes* (byte k of every entry, laid end to
end): the agent makes them by slicing what the kernel gave it, without looking at a page, and
numpy puts them together here.

    header   4s magic 'NES1', u16 version, u16 samples, f64 guest monotonic seconds,
             u64 frames, u64 described, u16 processes, u8 bitmaps, u8 zero, u16 n, then n bytes
             of source name
    evidence `described` bytes, one a frame from frame 0 (see `classes.Evidence`)
    bitmap   one a sample, newest first: frame n was used = bit n % 8 of byte n / 8;
             `frames` bits rounded up to bytes. For sources that see frames, not processes
    process  u32 pid, u8 flags (bit 0: running), u32 thousandths of a vCPU, u16 n, u32 areas,
             then n bytes of name, then the areas, by virtual address
    area     u32 pages, u8 read share, u8 samples, u8 planes, u8 zero, then the planes that
             bit k of `planes` announces, `pages` bytes each; a plane not sent is all zero:
             0-3 frame number (low byte first), 4 state (bit 7: present),
             5 history (bit 7: written in the newest sample, bit 6: in the one before, ...)

`read share` is how likely a page of the area that was not written was read between two
samples, 255 = certainly: the kernel only counts these per area.
"""

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nova_enlightened.exception import HintError
from nova_enlightened.knowledge import classes, heat
from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.guest_pages import GuestKnowledge, ProcessPages

MAGIC: Final = b"NES1"
VERSION: Final = 1
HEADER: Final = struct.Struct(">4sHHdQQHBBH")
PROCESS: Final = struct.Struct(">IBIHI")
AREA: Final = struct.Struct(">IBBBB")
FRAME_PLANES: Final = 4
PLANE_STATE: Final = 4
PLANE_HISTORY: Final = 5
PLANES: Final = 6
RUNNING: Final = 1
PRESENT: Final = 0x80
MAX_STRAY_SHARE: Final = 1 / 16
"""Device memory mapped by a process has frame numbers past the end of RAM; more than this
share of a snapshot's pages there is not a driver but nonsense."""


@dataclass(frozen=True)
class SnapshotLimits:
    """The most a snapshot may claim; each is checked before anything is allocated."""

    payload: int = 256 << 20
    """Bytes, uncompressed."""
    frames: int = 1 << 28
    process_pages: int = 1 << 25
    """Pages of all processes together, present or not."""
    processes: int = 256
    areas: int = 1 << 16
    name: int = 256

    @classmethod
    def for_memory(cls, size: int) -> "SnapshotLimits":
        """Limits for a guest with `size` bytes of RAM.

        Frame numbers go past the RAM size (the hole below 4 GiB, memory devices), and
        processes share pages and have holes, hence the generous factors.
        """
        pages = max(1, size // 4096)
        frames = min(2 * pages + (1 << 20), 1 << 28)
        process_pages = min(4 * pages + (1 << 16), 1 << 25)
        payload = frames + PLANES * process_pages + (1 << 20)
        return cls(payload=min(payload, 256 << 20), frames=frames, process_pages=process_pages)


class _Reader:
    """Takes bounded pieces off a payload; says where it fell short."""

    def __init__(self, payload: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(payload)
        self._at = 0

    def bytes(self, count: int, what: str) -> memoryview:
        if count > len(self._view) - self._at:
            raise HintError(
                f"snapshot ends inside {what}: {count} bytes wanted at {self._at},"
                f" {len(self._view) - self._at} left"
            )
        piece = self._view[self._at : self._at + count]
        self._at += count
        return piece

    def plane(self, count: int, what: str) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self.bytes(count, what), dtype=np.uint8)

    def text(self, count: int, limit: int, what: str) -> str:
        if count > limit:
            raise HintError(f"{what} of {count} bytes is longer than the limit of {limit}")
        raw = bytes(self.bytes(count, what))
        # Names come from inside the guest and go into logs: nothing unprintable.
        return "".join(c if c.isprintable() else "?" for c in raw.decode("utf-8", "replace"))

    def end(self) -> None:
        if self._at != len(self._view):
            raise HintError(f"{len(self._view) - self._at} bytes follow the snapshot's end")


class _Header(NamedTuple):
    samples: int
    taken_at: float
    frames: int
    described: int
    processes: int
    bitmaps: int
    zero: int
    name_size: int


@dataclass
class _Budget:
    areas: int
    pages: int
    stray: int = 0
    seen: int = 0

    def spend(self, areas: int = 0, pages: int = 0) -> None:
        self.areas -= areas
        self.pages -= pages
        if self.areas < 0 or self.pages < 0:
            raise HintError("snapshot claims more process memory than its limits allow")


def decode_snapshot(
    payload: bytes | bytearray | memoryview, limits: SnapshotLimits | None = None
) -> GuestKnowledge:
    """Check and decode one snapshot.

    :param payload: uncompressed, as carried by the guest channel.
    :raises HintError: malformed, inconsistent, or over a limit.
    """
    limits = limits or SnapshotLimits()
    if len(payload) > limits.payload:
        raise HintError(f"snapshot of {len(payload)} bytes is over {limits.payload}")
    reader = _Reader(payload)
    header = _header(reader, limits)
    source = reader.text(header.name_size, limits.name, "source name")
    page_classes, heats = _described(reader.plane(header.described, "evidence"), header.frames)
    _bitmaps(reader, header, page_classes, heats)
    budget = _Budget(limits.areas, limits.process_pages)
    processes = [_process(reader, heats, limits, budget) for _ in range(header.processes)]
    reader.end()
    if budget.stray > MAX_STRAY_SHARE * budget.seen:
        raise HintError(f"{budget.stray} of {budget.seen} pages are in frames that do not exist")
    processes.sort(key=lambda process: -process.cpu)
    return GuestKnowledge(
        source,
        header.frames,
        page_classes,
        heats,
        tuple(processes),
        header.samples,
        header.taken_at,
    )


def _header(reader: _Reader, limits: SnapshotLimits) -> _Header:
    magic, version, *rest = HEADER.unpack(reader.bytes(HEADER.size, "header"))
    if magic != MAGIC or version != VERSION:
        raise HintError(f"snapshot has magic {magic!r} and version {version}")
    header = _Header(*rest)
    if not 0 < header.frames <= limits.frames:
        raise HintError(f"snapshot claims {header.frames} frames, the limit is {limits.frames}")
    if header.described > header.frames:
        raise HintError(f"snapshot describes {header.described} of {header.frames} frames")
    if header.processes > limits.processes:
        raise HintError(f"{header.processes} processes, the limit is {limits.processes}")
    if header.bitmaps > heat.HISTORY or header.zero:
        raise HintError(f"snapshot announces {header.bitmaps} bitmaps and {header.zero:#x}")
    if not (np.isfinite(header.taken_at) and header.taken_at >= 0):
        raise HintError(f"snapshot was taken at {header.taken_at} s")
    return header


def from_flags(flags: npt.NDArray[np.uint64], source: str, taken_at: float) -> GuestKnowledge:
    """Knowledge from page flags alone: classes and the kernel's own marks, no samples."""
    evidence = classes.evidence_from_flags(flags)
    page_classes, heats = _described(evidence, flags.size)
    return GuestKnowledge(source, flags.size, page_classes, heats, (), 0, taken_at)


def _described(
    evidence: npt.NDArray[np.uint8], frames: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    page_classes = np.zeros(frames, dtype=np.uint8)
    heats = np.zeros(frames, dtype=np.uint8)
    found, marked = classes.classify_evidence(evidence)
    page_classes[: found.size] = found
    heats[: found.size][marked] = heat.KERNEL_MARK
    return page_classes, heats


def _bitmaps(
    reader: _Reader,
    header: _Header,
    page_classes: npt.NDArray[np.uint8],
    heats: npt.NDArray[np.uint8],
) -> None:
    """Note the heat of frames from bitmaps of their use."""
    if not header.bitmaps:
        return
    history = np.zeros(header.frames, dtype=np.uint8)
    for k in range(header.bitmaps):
        packed = reader.plane((header.frames + 7) // 8, f"bitmap {k}")
        used = np.unpackbits(packed, count=header.frames, bitorder="little")
        history |= used << np.uint8(heat.HISTORY - 1 - k)
    # Frames of the kernel have no idle mark, which reads as "in use".
    history[~np.isin(page_classes, (PageClass.ANON, PageClass.FILE))] = 0
    np.maximum(heats, heat.from_samples(history, header.bitmaps, 0, heats.size), out=heats)


def _process(
    reader: _Reader,
    heats: npt.NDArray[np.uint8],
    limits: SnapshotLimits,
    budget: _Budget,
) -> ProcessPages:
    pid, flags, cpu, name_size, areas = PROCESS.unpack(reader.bytes(PROCESS.size, "process"))
    budget.spend(areas=areas)
    name = reader.text(name_size, limits.name, "process name")
    parts = [_area(reader, heats, budget) for _ in range(areas)]
    found = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    return ProcessPages(
        pid, name, bool(flags & RUNNING), cpu / 1000, _first_of_each(found, heats.size)
    )


def _area(reader: _Reader, heats: npt.NDArray[np.uint8], budget: _Budget) -> npt.NDArray[np.int64]:
    """One area's frames in virtual order; their heat is noted on the way."""
    pages, read_share, samples, mask, zero = AREA.unpack(reader.bytes(AREA.size, "area"))
    if mask >> PLANES or zero:
        raise HintError(f"area announces planes {mask:#x} and {zero:#x}")
    budget.spend(pages=pages)
    planes = [reader.plane(pages, f"plane {k}") if mask >> k & 1 else None for k in range(PLANES)]
    state = planes[PLANE_STATE]
    if state is None:
        return np.empty(0, dtype=np.int64)
    present = np.flatnonzero(state & np.uint8(PRESENT))
    frames = np.zeros(present.size, dtype=np.int64)
    for k in range(FRAME_PLANES):
        plane = planes[k]
        if plane is not None:
            frames |= plane[present].astype(np.int64) << (8 * k)
    # Frame 0 is never a process's: it stands for a frame number the guest could not see.
    real = (frames > 0) & (frames < heats.size)
    budget.seen += frames.size
    budget.stray += frames.size - int(np.count_nonzero(real))
    frames = frames[real]
    history = planes[PLANE_HISTORY]
    written = None if history is None else history[present[real]]
    warmth = heat.from_samples(written, samples, read_share, frames.size)
    heats[frames] = np.maximum(heats[frames], warmth)
    lost = heats[frames] < warmth  # a frame that occurs twice (merged pages) got the last one's
    if lost.any():
        np.maximum.at(heats, frames[lost], warmth[lost])
    return frames


def _first_of_each(frames: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """Drop repeats (a page mapped twice), keeping each frame's first place."""
    if not frames.size:
        return frames
    order = np.arange(frames.size, dtype=np.int32)
    first = np.empty(total, dtype=np.int32)
    first[frames[::-1]] = order[::-1]  # the last write to a place is its first occurrence
    kept: npt.NDArray[np.int64] = frames[first[frames] == order]
    return kept
