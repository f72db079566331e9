# SPDX-License-Identifier: Apache-2.0
"""Watching which pages the busy processes use, within a budget of CPU time.

Only processes that use CPU are watched: their pages are what is missed first when a guest
moves. The agent is one of them: it wakes as soon as its guest has moved, and all wait with it.
Large areas are cut into windows; of each window the agent keeps the pagemap entries of the last
sample and a history byte a page (bit 7: used in the newest sample).
"""

import os
import time
from typing import Dict, Iterator, List, Optional, Set, Tuple, Union

from nova_enlightened.guest import proc as procfs
from nova_enlightened.guest import wire
from nova_enlightened.guest.sources import PagemapScan, Source

Part = Union[bytes, wire.Packed]
WORTH_PACKING = 1024
"""Pages of a window from which on its frame numbers are kept compressed between samples."""
FULL_EVERY = 4
"""Samples that look at all areas of a process and what was read there; those between ask only
which pages were written, for a fifth of the price. More than `wire.HISTORY` makes no sense."""
WATCHED = 8
"""Processes watched at a time."""
LEAST_SHARE = 0.01
"""Share of a vCPU below which a process is not worth watching."""
FORGET_AFTER = wire.HISTORY
"""Samples without CPU use after which a process is no longer watched: nothing of it is left."""
WINDOW = 128 << 20
SPARSE = 64
"""An area this many times larger than what is in memory of it is searched, not read whole."""
SPARSE_WINDOW = 2 << 20
LARGE = 1 << 30
"""Bytes an area has at least for that."""
MOST_PAGES = 4 << 20
"""Pages looked at in one sample; at 9 bytes a page this also bounds the agent's memory."""
MOST_AREAS = 1 << 15
NEWEST = [bytes(value >> (8 - n) for value in range(256)) for n in range(wire.HISTORY + 1)]
"""[n][history] is not zero if the page was in use in one of the newest n samples."""
MOST_FAULT_S = 15.0
"""CPU seconds of faults a sample may cause at worst; larger processes are sampled cheaply."""


class Window:
    """Part of an area: where its pages are and when they were used."""

    __slots__ = ("frames", "history", "packed", "read_share", "samples", "state")

    def __init__(self) -> None:
        self.frames = b""
        """Four planes of frame numbers, as in pagemap entries."""
        self.packed: Optional[wire.Packed] = None
        self.state = b""
        self.history = b""
        self.samples = 0
        self.read_share = 0

    def take(self, entries: bytes, used: bytes) -> None:
        """One more sample: pagemap entries, and a plane of what was in use or nothing."""
        frames = b"".join(entries[k :: procfs.ENTRY] for k in range(4))
        if frames != self.frames:
            self.frames = frames
            self.packed = None
        self.state = entries[7 :: procfs.ENTRY].translate(wire.KEEP_TOP)
        self.samples += 1
        if used:
            used = wire.both(used, self.state)
            aged = self.history.translate(wire.OLDER)[: len(used)]
            aged += bytes(len(used) - len(aged))
            self.history = wire.either(aged, used)

    def parts(self) -> Iterator[Part]:
        """For a snapshot."""
        pages = len(self.state)
        history = self.history.ljust(pages, b"\0")[:pages]
        written = history.count(0) != pages
        yield wire.area_head(pages, self.read_share, self.samples, written)
        if pages < WORTH_PACKING:
            yield self.frames
        else:
            self.packed = self.packed or wire.pack(self.frames)
            yield self.packed
        yield self.state
        if written:
            yield history

    def used(self, samples: int) -> int:
        """How many pages were in use in any of the last so many samples."""
        return len(self.history) - self.history.translate(NEWEST[samples]).count(0)


class Area:
    """An area of a process and its windows, by address."""

    __slots__ = ("mapping", "windows")

    def __init__(self, mapping: procfs.Mapping) -> None:
        self.mapping = mapping
        self.windows: List[Tuple[int, int, Window]] = []


class Watched:
    """One process that is sampled."""

    def __init__(self, usage: procfs.Usage, descriptor: int) -> None:
        self.usage = usage
        self.descriptor = descriptor
        self.cpu = 0.0
        self.idle = 0
        self.areas: List[Area] = []
        self.since_full = 0
        """Samples since the kernel was last told to forget what was referenced."""
        self.forgotten = False
        """The kernel was told to forget what was written: what it says now is of this sample."""

    @property
    def windows(self) -> List[Tuple[int, Window]]:
        """By address."""
        found = [(start, window) for area in self.areas for start, _, window in area.windows]
        return sorted(found, key=lambda each: each[0])

    def parts(self) -> Iterator[Part]:
        """For a snapshot."""
        name = self.usage.name[:64]
        windows = self.windows
        yield wire.PROCESS_HEAD.pack(
            self.usage.pid,
            int(self.usage.running or self.idle == 0),
            int(self.cpu * 1000),
            len(name),
            len(windows),
        )
        yield name
        for _, window in windows:
            yield from window.parts()


class Sampler:
    """Samples the busy processes; one is made for each time the agent is armed."""

    def __init__(self, proc: procfs.Proc, source: Source, frames: int, now: float) -> None:
        self._proc = proc
        self._source = source
        self._frames = frames
        self._scan = PagemapScan()
        self._can_scan: Optional[bool] = None
        self._ticks = float(os.sysconf("SC_CLK_TCK"))
        self._last = proc.processes()
        self._at = now
        self._pages = self._areas = 0
        self.watched: Dict[int, Watched] = {}
        self.bitmaps: List[bytes] = []
        self.samples = 0
        self.skipped = 0
        source.start(frames)
        # Nothing is known of what they do now: take those that did most in their lives.
        uptime = time.monotonic() * self._ticks
        ages = {u.pid: max(1.0, uptime - u.started) for u in self._last.values()}
        self._watch({u.pid: u.ticks / ages[u.pid] for u in self._last.values()})

    def sample(self, now: float) -> float:
        """Take one sample. Returns CPU seconds it has cost others: faults after the last one."""
        current = self._proc.processes()
        elapsed = max(1e-3, now - self._at)
        self._at = now
        shares = {}
        for pid, usage in current.items():
            before = self._last.get(pid)
            same = before is not None and before.started == usage.started
            ticks = usage.ticks - before.ticks if before is not None and same else usage.ticks
            shares[pid] = ticks / self._ticks / elapsed
        self._last = current
        self._pages = min(MOST_PAGES, 3 * self._frames + (1 << 15))
        self._areas = MOST_AREAS
        faults = 0
        for pid in list(self.watched):
            faults += self._renew(pid, current.get(pid), shares.get(pid, 0.0))
        bitmap = self._source.bitmap()
        if bitmap is not None:
            size = (self._frames + 7) // 8
            self.bitmaps.insert(0, bitmap[:size].ljust(size, b"\0"))
            del self.bitmaps[wire.HISTORY :]
        self.samples += 1
        self._watch(shares)
        return faults * self._source.fault_s

    def stop(self) -> None:
        """Leave the guest as it was."""
        for pid in list(self.watched):
            self._drop(pid)
        self._source.stop()

    def _watch(self, shares: Dict[int, float]) -> None:
        """Begin to watch the busiest processes that are not watched yet."""
        busy = sorted(shares, key=lambda pid: -shares[pid])
        for pid in busy[:WATCHED]:
            if pid in self.watched or shares[pid] < LEAST_SHARE:
                continue
            if len(self.watched) >= WATCHED:
                idlest = min(self.watched, key=lambda known: self.watched[known].cpu)
                if self.watched[idlest].cpu >= shares[pid]:
                    return
                self._drop(idlest)
            try:
                descriptor = self._proc.open_pagemap(pid)
            except OSError:
                continue
            watched = Watched(self._last[pid], descriptor)
            watched.cpu = min(shares[pid], 4096.0)
            self.watched[pid] = watched
            try:
                self._forget(watched)
            except OSError:
                self._drop(pid)

    def _renew(self, pid: int, usage: Optional[procfs.Usage], share: float) -> int:
        """Sample one watched process. Returns the faults it had since the last time."""
        watched = self.watched[pid]
        if usage is None or usage.started != watched.usage.started:
            self._drop(pid)
            return 0
        faults = max(0, usage.faults - watched.usage.faults)
        moved = usage.size != watched.usage.size
        watched.usage = usage
        watched.cpu = (watched.cpu + share) / 2
        watched.idle = watched.idle + 1 if share < LEAST_SHARE / 10 else 0
        watched.since_full += 1
        full = not watched.areas or moved or watched.since_full >= FULL_EVERY
        try:
            if full or not self._source.frame_wise:
                self._look(watched, full or not self._source.page_wise)
            self._forget(watched)
        except OSError:
            watched.idle = FORGET_AFTER + 1
        if watched.idle > FORGET_AFTER:
            self._drop(pid)
        return faults

    def _drop(self, pid: int) -> None:
        os.close(self.watched.pop(pid).descriptor)

    def _forget(self, watched: Watched) -> None:
        """Begin the next sample of a process. Raises OSError if it is gone."""
        worst = watched.usage.rss * self._source.fault_s
        watched.forgotten = worst <= MOST_FAULT_S
        self._source.forget(watched.usage.pid, watched.since_full == 0, watched.forgotten)

    def _look(self, watched: Watched, full: bool) -> None:
        """Take the sample of one process. Raises OSError if it is gone."""
        if not full:
            for area in watched.areas:
                if area.mapping.writable:
                    self._look_again(watched, area)
            return
        before = {start: window for area in watched.areas for start, _, window in area.windows}
        watched.areas = []
        # Should they be too many, the small ones (code, stacks) are worth more a page.
        mappings = self._proc.mappings(watched.usage.pid)
        for mapping in sorted(mappings, key=lambda m: m.end - m.start):
            area = Area(mapping)
            self._look_at(watched, area, before)
            watched.areas.append(area)
            if self._source.counts_references:
                self._note_reads(area, watched.since_full)
        watched.since_full = 0

    def _look_again(self, watched: Watched, area: Area) -> None:
        for start, end, window in area.windows:
            entries = procfs.pagemap(watched.descriptor, start, end)
            window.take(entries, self._source.used(entries) if watched.forgotten else b"")

    def _look_at(self, watched: Watched, area: Area, before: Dict[int, Window]) -> None:
        for start, end in self._windows(watched.descriptor, area.mapping):
            self._pages -= (end - start) // procfs.PAGE
            self._areas -= 1
            if self._pages < 0 or self._areas < 0:
                self.skipped += 1
                break
            entries = procfs.pagemap(watched.descriptor, start, end)
            if entries.strip(b"\0"):
                window = before.get(start) or Window()
                written = area.mapping.writable and watched.forgotten
                window.take(entries, self._source.used(entries) if written else b"")
                area.windows.append((start, end, window))

    def _note_reads(self, area: Area, samples: int) -> None:
        """How likely pages of the area that were not written were referenced meanwhile."""
        used = sum(window.used(samples) for _, _, window in area.windows)
        others = area.mapping.rss // procfs.PAGE - used
        read = area.mapping.referenced // procfs.PAGE - used
        share = min(255, 255 * read // others) if others > 0 and read > 0 else 0
        for _, _, window in area.windows:
            first = window.samples <= samples
            window.read_share = share if first else (window.read_share + share) // 2

    def _windows(self, descriptor: int, mapping: procfs.Mapping) -> Iterator[Tuple[int, int]]:
        """Cut an area into windows; leave out those without pages where that can be found out."""
        size = mapping.end - mapping.start
        if size < LARGE or size <= SPARSE * mapping.rss:
            for start in range(mapping.start, mapping.end, WINDOW):
                yield start, min(start + WINDOW, mapping.end)
            return
        if self._can_scan is None:
            self._can_scan = self._scan.probe(descriptor)
        if not self._can_scan:
            self.skipped += 1
            return
        found: Set[int] = set()
        for low, high in self._scan.present(descriptor, mapping.start, mapping.end):
            found.update(range(low // SPARSE_WINDOW, (high - 1) // SPARSE_WINDOW + 1))
        for start in sorted(k * SPARSE_WINDOW for k in found):
            yield max(start, mapping.start), min(start + SPARSE_WINDOW, mapping.end)
