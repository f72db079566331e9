# SPDX-License-Identifier: Apache-2.0
"""Watching which pages the busy processes use, within a budget of CPU time.

Only processes that use CPU are watched: their pages are what is missed first when a guest
moves. Large areas are cut into windows; of each window the agent keeps the pagemap entries of
the last sample and a history byte a page (bit 7: used in the newest sample).
"""

import os
import time
from typing import Dict, Iterator, List, Optional, Set, Tuple

from nova_enlightened.guest import proc as procfs
from nova_enlightened.guest import wire
from nova_enlightened.guest.sources import PagemapScan, Source

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
MOST_FAULT_S = 2.0
"""CPU seconds of faults a sample may cause at worst; larger processes are sampled cheaply."""


class Budget:
    """CPU time that may be used: a share of one vCPU, and a little ahead of it."""

    BURST_S = 60.0
    """What a minute allows may be used at once: the first samples come quickly that way."""

    def __init__(self, share: float, now: float) -> None:
        self.share = share
        self.spent = 0.0
        self._credit = share * self.BURST_S
        self._at = now

    def _accrue(self, now: float) -> None:
        most = self.share * self.BURST_S
        self._credit = min(most, self._credit + (now - self._at) * self.share)
        self._at = now

    def spend(self, seconds: float, now: float) -> None:
        """Note CPU time used."""
        self._accrue(now)
        self._credit -= seconds
        self.spent += seconds

    def wait(self, now: float) -> float:
        """Seconds until there is credit again; 0 while there is some."""
        self._accrue(now)
        return max(0.0, -self._credit / self.share)


class Window:
    """Part of an area: what its pages were and when they were used."""

    __slots__ = ("entries", "history", "read_share", "samples")

    def __init__(self) -> None:
        self.entries = b""
        self.history = b""
        self.samples = 0
        self.read_share = 0

    def take(self, entries: bytes, used: bytes) -> int:
        """One more sample. Returns how many pages were in use."""
        self.entries = entries
        self.samples += 1
        if not used:
            return 0
        present = entries[7 :: procfs.ENTRY]
        used = wire.both(used, present)
        aged = self.history.translate(wire.OLDER)[: len(used)]
        aged += bytes(len(used) - len(aged))
        self.history = wire.either(aged, used)
        return used.count(0x80)


class Watched:
    """One process that is sampled."""

    def __init__(self, usage: procfs.Usage, descriptor: int) -> None:
        self.usage = usage
        self.descriptor = descriptor
        self.cpu = 0.0
        self.idle = 0
        self.windows: Dict[int, Window] = {}
        self.faults = 0

    def parts(self) -> Iterator[bytes]:
        """For a snapshot."""
        name = self.usage.name[:64]
        yield wire.PROCESS_HEAD.pack(
            self.usage.pid,
            int(self.usage.running),
            int(self.cpu * 1000),
            len(name),
            len(self.windows),
        )
        yield name
        for start in sorted(self.windows):
            window = self.windows[start]
            yield from wire.area(window.entries, window.history, window.samples, window.read_share)


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
            if pid in self.watched or shares[pid] < LEAST_SHARE or pid == os.getpid():
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
            if not self._forget(watched):
                self._drop(pid)

    def _renew(self, pid: int, usage: Optional[procfs.Usage], share: float) -> int:
        """Sample one watched process. Returns the faults it had since the last time."""
        watched = self.watched[pid]
        if usage is None or usage.started != watched.usage.started:
            self._drop(pid)
            return 0
        faults = max(0, usage.faults - watched.usage.faults)
        watched.usage = usage
        watched.cpu = (watched.cpu + share) / 2
        watched.idle = watched.idle + 1 if share < LEAST_SHARE / 10 else 0
        if watched.idle > FORGET_AFTER or not self._look(watched) or not self._forget(watched):
            self._drop(pid)
        return faults

    def _drop(self, pid: int) -> None:
        os.close(self.watched.pop(pid).descriptor)

    def _forget(self, watched: Watched) -> bool:
        """Begin the next sample of a process; False if it is gone."""
        worst = watched.usage.rss * self._source.fault_s
        try:
            self._source.forget(watched.usage.pid, worst > MOST_FAULT_S)
        except OSError:
            return False
        return True

    def _look(self, watched: Watched) -> bool:
        """Take the sample of one process; False if it is gone."""
        before, watched.windows = watched.windows, {}
        try:
            mappings = self._proc.mappings(watched.usage.pid)
            # Should they be too many, the small ones (code, stacks) are worth more a page.
            for mapping in sorted(mappings, key=lambda m: m.end - m.start):
                self._look_at(watched, mapping, before)
        except OSError:
            return False
        return True

    def _look_at(
        self, watched: Watched, mapping: procfs.Mapping, before: Dict[int, Window]
    ) -> None:
        windows = []
        used_pages = 0
        for start, end in self._windows(watched.descriptor, mapping):
            self._pages -= (end - start) // procfs.PAGE
            self._areas -= 1
            if self._pages < 0 or self._areas < 0:
                self.skipped += 1
                break
            entries = procfs.pagemap(watched.descriptor, start, end)
            if not entries.strip(b"\0"):
                continue
            window = before.get(start) or Window()
            used = self._source.used(entries) if mapping.writable else b""
            used_pages += window.take(entries, used)
            watched.windows[start] = window
            windows.append(window)
        if not self._source.counts_references:
            return
        share = _read_share(mapping, used_pages)
        for window in windows:
            window.read_share = share if window.samples < 2 else (window.read_share + share) // 2

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


def _read_share(mapping: procfs.Mapping, used_pages: int) -> int:
    """How likely a page of the area that was not written was referenced, 255 = certainly."""
    others = mapping.rss // procfs.PAGE - used_pages
    read = mapping.referenced // procfs.PAGE - used_pages
    if others <= 0 or read <= 0:
        return 0
    return min(255, 255 * read // others)
