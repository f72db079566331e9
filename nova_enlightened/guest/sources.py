# SPDX-License-Identifier: Apache-2.0
"""Ways to find out which pages are in use, best first in `SOURCES`.

| source      | kernel                    | sees                     | costs the guest           |
|-------------|---------------------------|--------------------------|---------------------------|
| idle-page   | CONFIG_IDLE_PAGE_TRACKING | reads and writes, frames | a walk over all mappings  |
| soft-dirty  | CONFIG_MEM_SOFT_DIRTY     | writes, process pages    | a fault a page written    |
| damon       | CONFIG_DAMON_SYSFS, PADDR | reads and writes, ranges | 1 to 2 % of a CPU         |
| referenced  | any                       | reads, a share an area   | next to nothing           |

All but idle-page and damon are helped out by `referenced`: the kernel counts per area how many
pages were referenced since it was last told to forget, which tells of code and of data that is
read. PAGEMAP_SCAN (Linux 6.7) finds the pages of sparse areas; its own write tracking works
only for memory a process has registered itself, so soft-dirty stays the source there.
"""

import array
import fcntl
import os
import struct
import time
from typing import Iterator, List, Optional, Tuple, Type

from nova_enlightened.guest import proc as procfs
from nova_enlightened.guest import wire

REFERENCED, SOFT_DIRTY = 1, 4
INVERT = bytes(255 - value for value in range(256))


class Source:
    """How pages in use are found. A source is used by one sampler at a time."""

    name = "none"
    page_wise = False
    """It tells of the pages of a process, from pagemap entries."""
    frame_wise = False
    """It tells of frames, as a bitmap."""
    counts_references = False
    """It has the kernel count referenced pages an area anew for each sample."""
    fault_s = 0.0
    """Measured price of a page written after `forget`, in seconds of CPU."""

    def __init__(self, proc: procfs.Proc, sysfs: str = "/sys") -> None:
        self.proc = proc
        self.sysfs = sysfs

    def probe(self, frames: int) -> bool:
        """Whether this kernel has it, for a guest of so many frames."""
        return True

    def start(self, frames: int) -> None:
        """Before the first sample. Raises OSError."""

    def stop(self) -> None:
        """After the last sample."""

    def forget(self, pid: int, references: bool, writes: bool) -> None:
        """Begin a new sample of a process: of what is referenced, of what is written. OSError.

        Forgetting writes costs the process a fault for each page it writes afterwards.
        """

    def used(self, entries: bytes) -> bytes:
        """From pagemap entries, a plane with 0x80 for each page in use; or nothing."""
        return b""

    def bitmap(self) -> Optional[bytes]:
        """Frames in use since the last call (or `start`), bit n % 8 of byte n / 8. OSError."""
        return None


class Referenced(Source):
    """Only the kernel's count of referenced pages an area."""

    name = "referenced"
    counts_references = True

    def probe(self, frames: int) -> bool:
        try:
            self.proc.clear_refs(os.getpid(), REFERENCED)
        except OSError:
            return False
        return True

    def forget(self, pid: int, references: bool, writes: bool) -> None:
        if references:
            self.proc.clear_refs(pid, REFERENCED)


class SoftDirty(Referenced):
    """Bit 55 of a pagemap entry: written since clear_refs was told 4."""

    name = "soft-dirty"
    page_wise = True

    def probe(self, frames: int) -> bool:
        """Try it on memory of our own; the kernel takes the 4 even when it lacks the feature."""
        try:
            pages = _OwnPages()
            pages.write()
            # The least of some: a guest is busy while it starts, and with a price ten times too
            # high the agent would hardly sample at all.
            faulting = min(self._faulting(pages) for _ in range(4))
            self.fault_s = max(0.0, faulting - min(pages.write() for _ in range(3))) / pages.count
            written = self._marked(pages)
            self.proc.clear_refs(os.getpid(), SOFT_DIRTY)
            return written == pages.count and self._marked(pages) == 0
        except OSError:
            return False

    def _faulting(self, pages: "_OwnPages") -> float:
        """Seconds for writing them with a fault each."""
        self.proc.clear_refs(os.getpid(), SOFT_DIRTY)
        return pages.write()

    def _marked(self, pages: "_OwnPages") -> int:
        descriptor = self.proc.open_pagemap(os.getpid())
        try:
            entries = procfs.pagemap(descriptor, pages.start, pages.end)
        finally:
            os.close(descriptor)
        return self.used(entries).count(0x80)

    def forget(self, pid: int, references: bool, writes: bool) -> None:
        # In this order: only the 4 flushes the TLB, which the referenced bits need as well.
        super().forget(pid, references, writes)
        if writes:
            self.proc.clear_refs(pid, SOFT_DIRTY)

    def used(self, entries: bytes) -> bytes:
        return entries[6 :: procfs.ENTRY].translate(wire.KEEP_TOP)


class _OwnPages:
    """Some memory of the agent itself, to try things on."""

    count = 256

    def __init__(self) -> None:
        self._bytes = array.array("B", bytes((self.count + 1) * procfs.PAGE))
        address = self._bytes.buffer_info()[0]
        self._first = -address % procfs.PAGE
        self.start = address + self._first
        self.end = self.start + self.count * procfs.PAGE

    def write(self) -> float:
        """Write to every page; how many seconds it took."""
        end = self._first + self.count * procfs.PAGE
        began = time.perf_counter()
        for at in range(self._first, end, procfs.PAGE):
            self._bytes[at] = 1
        return time.perf_counter() - began


class IdlePage(Source):
    """Documentation/admin-guide/mm/idle_page_tracking.rst: one bit a frame, set = not used."""

    name = "idle-page"
    frame_wise = True
    MOST = 4 << 20
    """Frames: beyond 16 GiB a walk over all mappings takes seconds of CPU."""

    def probe(self, frames: int) -> bool:
        self._path = os.path.join(self.sysfs, "kernel/mm/page_idle/bitmap")
        self._size = (frames + 63) // 64 * 8
        return frames <= self.MOST and os.access(self._path, os.R_OK | os.W_OK)

    def start(self, frames: int) -> None:
        descriptor = os.open(self._path, os.O_WRONLY)
        try:
            at = 0
            while at < self._size:  # a write ends at the last frame there is
                block = b"\xff" * min(1 << 20, self._size - at)
                written = os.pwrite(descriptor, block, at)
                if not written:
                    break
                at += written
        finally:
            os.close(descriptor)

    def bitmap(self) -> Optional[bytes]:
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            idle = os.pread(descriptor, self._size, 0)
        finally:
            os.close(descriptor)
        self.start(0)
        return idle.translate(INVERT)


class Damon(Source):
    """Documentation/admin-guide/mm/damon/usage.rst: a kernel thread samples address ranges."""

    name = "damon"
    frame_wise = True
    REGIONS = 500

    def probe(self, frames: int) -> bool:
        self._admin = os.path.join(self.sysfs, "kernel/mm/damon/admin/kdamonds")
        try:
            if int(self._read("nr_kdamonds")):
                return False  # somebody else's
            self._write("nr_kdamonds", 1)
            try:
                self._write("0/contexts/nr_contexts", 1)
                return "paddr" in self._read("0/contexts/0/avail_operations")
            finally:
                self._write("nr_kdamonds", 0)
        except (OSError, ValueError):
            return False

    def start(self, frames: int) -> None:
        self._size = (frames + 7) // 8
        self._write("nr_kdamonds", 1)
        self._write("0/contexts/nr_contexts", 1)
        context = "0/contexts/0/"
        self._write(context + "operations", "paddr")
        self._write(context + "monitoring_attrs/intervals/sample_us", 10000)
        self._write(context + "monitoring_attrs/intervals/aggr_us", 500000)
        self._write(context + "monitoring_attrs/nr_regions/max", self.REGIONS)
        self._write(context + "targets/nr_targets", 1)
        ranges = list(system_ram(self.proc))
        self._write(context + "targets/0/regions/nr_regions", len(ranges))
        for k, (start, end) in enumerate(ranges):
            self._write(context + "targets/0/regions/%d/start" % k, start)
            self._write(context + "targets/0/regions/%d/end" % k, end)
        scheme = context + "schemes/0/"
        self._write(context + "schemes/nr_schemes", 1)
        self._write(scheme + "action", "stat")
        for what, least in (("sz", 0), ("nr_accesses", 1), ("age", 0)):
            self._write(scheme + "access_pattern/%s/min" % what, least)
            self._write(scheme + "access_pattern/%s/max" % what, (1 << 32) - 1)
        self._write(scheme + "access_pattern/sz/max", (1 << 64) - 1)
        self._write("0/state", "on")

    def stop(self) -> None:
        for name, value in (("0/state", "off"), ("nr_kdamonds", 0)):
            try:
                self._write(name, value)
            except OSError:
                pass

    def bitmap(self) -> Optional[bytes]:
        self._write("0/state", "update_schemes_tried_regions")
        used = bytearray(self._size)
        tried = "0/contexts/0/schemes/0/tried_regions"
        for name in os.listdir(os.path.join(self._admin, tried)):
            if name.isdigit():
                first = int(self._read("%s/%s/start" % (tried, name))) // procfs.PAGE
                end = int(self._read("%s/%s/end" % (tried, name))) // procfs.PAGE
                _mark(used, first, min(end, self._size * 8))
        return bytes(used)

    def _read(self, name: str) -> str:
        with open(os.path.join(self._admin, name)) as file:
            return file.read().strip()

    def _write(self, name: str, value: object) -> None:
        with open(os.path.join(self._admin, name), "w") as file:
            file.write(str(value))


def _mark(used: bytearray, first: int, end: int) -> None:
    """Set the bits from `first` to `end`; ranges are widened to whole bytes inside."""
    if first < end:
        low, high = first // 8, (end + 7) // 8
        used[low:high] = b"\xff" * (high - low)


def system_ram(proc: procfs.Proc) -> Iterator[Tuple[int, int]]:
    """Byte ranges of RAM, from /proc/iomem. Raises OSError."""
    for line in proc.read("iomem").decode("ascii", "replace").splitlines():
        where, _, what = line.partition(" : ")
        if what == "System RAM" and not line.startswith(" "):
            first, _, last = where.partition("-")
            yield int(first, 16), int(last, 16) + 1


SOURCES: Tuple[Type[Source], ...] = (IdlePage, SoftDirty, Damon, Referenced, Source)


def offered(proc: procfs.Proc, frames: int, sysfs: str = "/sys") -> List[Source]:
    """The sources this kernel offers, best first; there is always the one that tells nothing."""
    made = [source(proc, sysfs) for source in SOURCES]
    return [source for source in made if source.probe(frames)]


class PagemapScan:
    """The PAGEMAP_SCAN ioctl (Linux 6.7): where in a sparse area there are pages."""

    REQUEST = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
    ARGUMENT = struct.Struct("=12Q")
    PRESENT = 1 << 3
    RANGES = 512
    ROUNDS = 256

    def __init__(self) -> None:
        self._vector = array.array("Q", bytes(self.RANGES * 24))

    def probe(self, descriptor: int) -> bool:
        """Whether the kernel behind this pagemap descriptor has it."""
        try:
            list(self.present(descriptor, 0, procfs.PAGE))
        except OSError:
            return False
        return True

    def present(self, descriptor: int, start: int, end: int) -> Iterator[Tuple[int, int]]:
        """Byte ranges with pages in them; the rest unsearched if there are absurdly many. OSError.

        The argument is struct pm_scan_arg of include/uapi/linux/fs.h: size, flags, start, end,
        walk_end, vec, vec_len, max_pages, category_inverted, category_mask,
        category_anyof_mask, return_mask.
        """
        vector = self._vector.buffer_info()[0]
        for _ in range(self.ROUNDS):
            argument = bytearray(
                self.ARGUMENT.pack(
                    self.ARGUMENT.size, 0, start, end, 0, vector, self.RANGES, 0, 0,
                    self.PRESENT, 0, self.PRESENT,
                )
            )  # fmt: skip
            count = fcntl.ioctl(descriptor, self.REQUEST, argument)
            for k in range(count):
                yield self._vector[3 * k], self._vector[3 * k + 1]
            start = self.ARGUMENT.unpack(bytes(argument))[4]
            if start >= end or not count:
                return
