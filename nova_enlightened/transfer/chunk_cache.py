# SPDX-License-Identifier: Apache-2.0
"""What was read of a store, kept on this host's disk for all players on it.

For each pack there is a sparse file with the bytes at their own offsets, and beside it a log
of the ranges that are in it (u32 offset, u32 length; the top bit of the length takes the range
out again), little endian. Other objects are kept whole. Nothing here is trusted: whoever reads
verifies by digest, so a file that a crash left behind with holes costs a fetch, no more. Several
processes use one cache at once; a lock file keeps eviction and opening apart.

No method fails for want of space, or for what the disk does: the cache then merely holds less.
"""

import contextlib
import errno
import fcntl
import logging
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from nova_enlightened.transfer.byte_ranges import ByteRanges

LOG = logging.getLogger(__name__)

LARGEST_PACK: Final = 1 << 31
"""Bytes: offset and length are 31 bits in the log."""
CHECK_EVERY: Final = 16 << 20
"""Bytes written between two looks at how large the cache is."""
LOW_WATER: Final = 0.9
"""Eviction goes on to this part of the limit."""
TOUCH_S: Final = 30.0
AGAIN_S: Final = 60.0
"""After a full disk, when writing is tried again."""

_RECORD: Final = struct.Struct("<II")
_REMOVED: Final = 1 << 31
_PACK, _HAVE, _WHOLE = ".pack", ".have", ".whole"


class _Entry(NamedTuple):
    """An object in the cache, by what eviction looks at."""

    used: float
    size: int
    names: tuple[str, ...]


class _Pack:
    """The open files of one pack."""

    def __init__(self, data: int, log: int) -> None:
        self.data = data
        self.log = log
        self.ranges = ByteRanges()
        self.touched = 0.0
        self._read_up_to = 0

    def refresh(self) -> None:
        """Take in what was logged since, by whomever."""
        while data := os.pread(self.log, 1 << 20, self._read_up_to):
            whole = len(data) - len(data) % _RECORD.size
            for offset, length in _RECORD.iter_unpack(data[:whole]):
                end = offset + (length & ~_REMOVED)
                change = self.ranges.remove if length & _REMOVED else self.ranges.add
                change(offset, end)
            self._read_up_to += whole
            if whole < len(data):
                break

    @property
    def orphaned(self) -> bool:
        """Whether it was evicted meanwhile."""
        return os.fstat(self.log).st_nlink == 0

    def close(self) -> None:
        os.close(self.data)
        os.close(self.log)


class ChunkCache:
    """One directory; its methods may be called by several threads at once.

    :param directory: of this cache alone; made when it is opened.
    :param limit: bytes on disk, beyond which what was used least recently goes. 0: keep nothing.
    """

    def __init__(self, directory: str, limit: int) -> None:
        self.directory = directory
        self.limit = limit
        self.trouble: str | None = None
        """Why nothing can be kept now, if that is so."""
        self._packs: dict[str, _Pack] = {}
        self._mutex = threading.Lock()
        self._lock: int | None = None
        self._unchecked = 0
        self._pause_until = 0.0

    def open(self) -> None:
        """Make the directory and bring it within its limit."""
        if not self.limit:
            return
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            path = os.path.join(self.directory, "lock")
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._suffer(error)
            return
        self._evict()

    def close(self) -> None:
        """Close its files; what is kept stays."""
        with self._mutex:
            for pack in self._packs.values():
                pack.close()
            self._packs.clear()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    # -- ranges of packs --------------------------------------------------------------------

    def read(self, pack: str, offset: int, length: int) -> bytes | None:
        """A range of a pack, not verified; None where it is not here whole."""
        try:
            with self._mutex:
                entry = self._pack(pack, make=False)
                if entry is None:
                    return None
                if not entry.ranges.covers(offset, offset + length):
                    entry.refresh()
                    if not entry.ranges.covers(offset, offset + length):
                        return None
                self._touch(entry)
                data = os.pread(entry.data, length, offset)
        except OSError as error:
            self._suffer(error)
            return None
        return data if len(data) == length else None

    def holds(self, pack: str, ranges: Iterable[tuple[int, int]]) -> list[bool]:
        """Which of some ranges (offset, length) of a pack are here whole."""
        listed = list(ranges)
        with contextlib.suppress(OSError), self._mutex:
            entry = self._pack(pack, make=False)
            if entry is not None:
                entry.refresh()
                return [entry.ranges.covers(begin, begin + size) for begin, size in listed]
        return [False] * len(listed)

    def write(self, pack: str, offset: int, data: bytes | memoryview) -> None:
        """Keep a range of a pack, if there is room."""
        end = offset + len(data)
        if not data or end > LARGEST_PACK or not self._may_write():
            return
        try:
            with self._mutex:
                entry = self._pack(pack, make=True)
                if entry is None or entry.ranges.covers(offset, end):
                    return
                _write_all(entry.data, data, offset)
                _append(entry.log, offset, len(data))
                entry.ranges.add(offset, end)
                self._unchecked += len(data)
                self.trouble = None
                check = self._unchecked >= min(CHECK_EVERY, max(self.limit // 8, 1))
        except OSError as error:
            self._suffer(error)
            return
        if check:
            self._evict()

    def forget(self, pack: str, offset: int, length: int) -> None:
        """A range turned out not to be what it should be."""
        LOG.warning("Cached bytes %d+%d of pack %s are damaged", offset, length, pack)
        with contextlib.suppress(OSError), self._mutex:
            entry = self._pack(pack, make=False)
            if entry is not None:
                _append(entry.log, offset, length | _REMOVED)
                entry.ranges.remove(offset, offset + length)

    # -- whole objects ----------------------------------------------------------------------

    def object(self, name: str) -> bytes | None:
        """An object kept whole, not verified; None where it is not here.

        :param name: its SHA-256, hexadecimal.
        """
        if self._lock is None:
            return None
        path = os.path.join(self.directory, name + _WHOLE)
        try:
            with open(path, "rb") as file:
                data = file.read()
            os.utime(path)
        except OSError:
            return None
        return data

    def keep_object(self, name: str, data: bytes) -> None:
        """Keep an object whole, if there is room."""
        if not self._may_write():
            return
        path = os.path.join(self.directory, name + _WHOLE)
        draft = f"{path}.{os.getpid()}-{threading.get_ident()}.new"
        try:
            with open(draft, "xb") as file:
                file.write(data)
            os.replace(draft, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            self._suffer(error)
            return
        self._unchecked += len(data)

    # -- inside -----------------------------------------------------------------------------

    def _may_write(self) -> bool:
        return self._lock is not None and time.monotonic() >= self._pause_until

    def _suffer(self, error: OSError) -> None:
        """The disk does not do what is asked: go on without it for a while."""
        self._pause_until = time.monotonic() + AGAIN_S
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        self.trouble = "the cache's disk is full" if full else f"the cache's disk: {error}"
        LOG.warning("Going on without caching: %s", error)

    def _pack(self, name: str, *, make: bool) -> _Pack | None:
        if self._lock is None:
            return None
        pack = self._packs.get(name)
        if pack is not None:
            if not pack.orphaned:
                return pack
            del self._packs[name]
            pack.close()
        with _held(self._lock, fcntl.LOCK_SH):
            pack = self._opened(os.path.join(self.directory, name), make)
        if pack is not None:
            pack.refresh()
            self._packs[name] = pack
            self._touch(pack)
        return pack

    @staticmethod
    def _opened(path: str, make: bool) -> _Pack | None:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0)
        try:
            log = os.open(path + _HAVE, flags | os.O_APPEND, 0o600)
        except FileNotFoundError:
            return None
        try:
            return _Pack(os.open(path + _PACK, flags | os.O_CREAT, 0o600), log)
        except OSError:
            os.close(log)
            raise

    def _touch(self, pack: _Pack) -> None:
        """Note that it is used, for whoever evicts."""
        now = time.monotonic()
        if now - pack.touched > TOUCH_S:
            pack.touched = now
            os.utime(pack.log)

    def _evict(self) -> None:
        """Bring the directory within its limit, unless another process is about it."""
        self._unchecked = 0
        if self._lock is None:
            return
        try:
            with self._mutex, _held(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                self._evict_locked()
        except BlockingIOError:
            return
        except OSError as error:
            self._suffer(error)

    def _evict_locked(self) -> None:
        entries = self._entries()
        size = sum(entry.size for entry in entries)
        if size <= self.limit:
            return
        for entry in sorted(entries):
            if size <= self.limit * LOW_WATER:
                break
            for name in entry.names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.directory, name))
            size -= entry.size
            pack = self._packs.pop(entry.names[0].partition(".")[0], None)
            if pack is not None:
                pack.close()

    def _entries(self) -> list[_Entry]:
        """Everything in the directory; drafts that a dead process left count by themselves."""
        found: dict[str, list[tuple[str, os.stat_result]]] = {}
        with os.scandir(self.directory) as listing:
            for item in listing:
                if item.name == "lock":
                    continue
                stem, extension = os.path.splitext(item.name)
                key = stem if extension in (_PACK, _HAVE) else item.name
                with contextlib.suppress(FileNotFoundError):
                    found.setdefault(key, []).append((item.name, item.stat()))
        # The log goes first: without it the data count for nothing.
        return [
            _Entry(
                max(stat.st_mtime for _, stat in files),
                sum(stat.st_blocks * 512 for _, stat in files),
                tuple(sorted(name for name, _ in files)),
            )
            for files in found.values()
        ]


def _append(log: int, offset: int, length: int) -> None:
    # One write of 8 bytes at the end of a file: never torn, never between another's.
    os.write(log, _RECORD.pack(offset, length))


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, offset)
        left, offset = left[count:], offset + count


@contextlib.contextmanager
def _held(descriptor: int, how: int) -> Iterator[None]:
    fcntl.flock(descriptor, how)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
