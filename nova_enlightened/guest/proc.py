# SPDX-License-Identifier: Apache-2.0
"""Reading what Linux says of memory and processes, without looking at single pages.

A guest has many pages and this is Python: per-page work is left to slicing, `translate` and
large integers, all of which run in C. Formats: Linux Documentation/admin-guide/mm/pagemap.rst
and Documentation/filesystems/proc.rst.
"""

import os
import re
from typing import Dict, List, NamedTuple, Optional, Set

from nova_enlightened.guest import wire

ENTRY = 8
PAGE = 4096
SMALL = 1 << 16
KERNEL_THREAD = 0x00200000  # PF_KTHREAD of the flags field of /proc/PID/stat

# Bit of /proc/kpageflags -> evidence; see nova_enlightened.knowledge.classes, where the same
# table is explained. 1 marked, 2 reserved, 4 file, 8 anon, 16 slab, 32 page table, 64 free,
# 128 compound tail, 96 absent.
KPAGEFLAGS = {
    2: 1,
    3: 4,
    5: 4,
    6: 1,
    7: 16,
    10: 64,
    11: 4,
    12: 8,
    14: 8,
    16: 128,
    17: 8,
    19: 96,
    20: 96,
    23: 64,
    26: 32,
    32: 2,
}


def _plane_table(plane: int) -> bytes:
    table = bytearray(256)
    for bit, evidence in KPAGEFLAGS.items():
        if bit // 8 == plane:
            for value in range(256):
                if value >> bit % 8 & 1:
                    table[value] |= evidence
    return bytes(table)


PLANES = [(plane, _plane_table(plane)) for plane in sorted({bit // 8 for bit in KPAGEFLAGS})]

AREA = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) (....) [0-9a-f]+ \S+ \d+ *(.*)\n"
    rb"(?:.*\n)*?Rss: +(\d+) kB\n(?:.*\n)*?Referenced: +(\d+) kB\n",
    re.MULTILINE,
)
# Pages of these are the kernel's, and [vsyscall] has no entry in pagemap.
NOT_MEMORY = (b"[vsyscall]", b"[vvar]", b"[vdso]", b"[vvar_vclock]", b"[uprobes]")


class Usage(NamedTuple):
    """One process in /proc/PID/stat. Times in clock ticks, faults and rss in pages, size bytes."""

    pid: int
    name: bytes
    running: bool
    ticks: int
    faults: int
    started: int
    size: int
    rss: int


class Mapping(NamedTuple):
    """One area of /proc/PID/smaps, in bytes."""

    start: int
    end: int
    writable: bool
    rss: int
    referenced: int


class Proc:
    """The /proc file system, or a copy of some of it."""

    def __init__(self, root: str = "/proc") -> None:
        self.root = root
        self._kernel_threads: Set[int] = set()
        self._seen = 0

    def read(self, path: str) -> bytes:
        """A small file. Raises OSError."""
        with open(os.path.join(self.root, path), "rb", 0) as file:
            parts: List[bytes] = []
            while True:
                part = file.read(SMALL)
                if not part:
                    return b"".join(parts)
                parts.append(part)

    def write(self, path: str, text: bytes) -> None:
        """Raises OSError."""
        descriptor = os.open(os.path.join(self.root, path), os.O_WRONLY)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)

    def processes(self) -> Dict[int, Usage]:
        """Every process that is not a kernel thread."""
        self._seen += 1
        if self._seen % 64 == 0:
            self._kernel_threads.clear()  # numbers are used again
        found = {}
        for name in os.listdir(self.root):
            if not name.isdigit() or int(name) in self._kernel_threads:
                continue
            usage = self.usage(int(name))
            if usage is not None:
                found[usage.pid] = usage
        return found

    def usage(self, pid: int) -> Optional[Usage]:
        """One process; None if it is gone or a kernel thread."""
        try:
            raw = self.read("%d/stat" % pid)
            before, _, after = raw.rpartition(b")")
            fields = after.split()
            if int(fields[6]) & KERNEL_THREAD:
                self._kernel_threads.add(pid)
                return None
            return Usage(
                pid,
                before.partition(b"(")[2],
                fields[0] == b"R",
                int(fields[11]) + int(fields[12]),
                int(fields[7]),
                int(fields[19]),
                int(fields[20]),
                int(fields[21]),
            )
        except (OSError, IndexError, ValueError):
            return None

    def mappings(self, pid: int) -> List[Mapping]:
        """Areas with anything in memory, by address. Raises OSError."""
        found = []
        for match in AREA.finditer(self.read("%d/smaps" % pid)):
            start, end, access, name, rss, referenced = match.groups()
            if rss != b"0" and name not in NOT_MEMORY:
                found.append(
                    Mapping(
                        int(start, 16),
                        int(end, 16),
                        access[1:2] == b"w",
                        int(rss) * 1024,
                        int(referenced) * 1024,
                    )
                )
        return found

    def open_pagemap(self, pid: int) -> int:
        """A descriptor of /proc/PID/pagemap. Raises OSError."""
        return os.open(os.path.join(self.root, "%d/pagemap" % pid), os.O_RDONLY)

    def clear_refs(self, pid: int, what: int) -> None:
        """1: forget which pages were referenced; 4: which were written. Raises OSError."""
        self.write("%d/clear_refs" % pid, b"%d" % what)

    def frames(self) -> int:
        """How many frames /proc/kpageflags describes. Raises OSError."""
        descriptor = os.open(os.path.join(self.root, "kpageflags"), os.O_RDONLY)
        try:
            low, high = 0, 1 << 36
            while low < high:
                middle = (low + high) // 2
                if len(os.pread(descriptor, ENTRY, middle * ENTRY)) == ENTRY:
                    low = middle + 1
                else:
                    high = middle
            return low
        finally:
            os.close(descriptor)

    def evidence(self, first: int, count: int) -> bytes:
        """One byte a frame; zeros where there is no frame any more. Raises OSError."""
        descriptor = os.open(os.path.join(self.root, "kpageflags"), os.O_RDONLY)
        try:
            flags = os.pread(descriptor, count * ENTRY, first * ENTRY)
        finally:
            os.close(descriptor)
        flags = flags[: len(flags) // ENTRY * ENTRY].ljust(count * ENTRY, b"\0")
        return wire.either(*(flags[k::ENTRY].translate(table) for k, table in PLANES))


def pagemap(descriptor: int, start: int, end: int) -> bytes:
    """The pagemap entries of the pages from `start` to `end`, short if the area shrank."""
    entries = os.pread(descriptor, (end - start) // PAGE * ENTRY, start // PAGE * ENTRY)
    return entries[: len(entries) // ENTRY * ENTRY]
