# SPDX-License-Identifier: Apache-2.0
"""Fault traces: when the guest waited for which page, and for how long.

Every entry is a labelled miss of the plan. File format, little endian:

    header   4s magic 'NEFT', u16 version, u16 zero, u32 n, then n bytes of JSON:
             {"blocks": [[name, bytes], ...], "policy": str, "bandwidth": bytes/s or null}
    entries  f64 seconds since switchover, i64 page number,
             f64 seconds until the page was seen in the stream (NaN: it never was), u32 flags
"""

import enum
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from nova_enlightened.exception import PlanError
from nova_enlightened.knowledge.space import PageSpace

MAGIC: Final = b"NEFT"
VERSION: Final = 1
HEADER: Final = struct.Struct("<4sHHI")
MAX_HEADER: Final = 1 << 20
MAX_ENTRIES: Final = 1 << 24
"""448 MB of entries: more than a fault for every page of a 64 GiB guest."""
ENTRY: Final = np.dtype([("time", "<f8"), ("page", "<i8"), ("latency", "<f8"), ("flags", "<u4")])

Entries = npt.NDArray[np.void]


class FaultFlag(enum.IntFlag):
    """What was known of the page when the guest faulted on it."""

    ASKED = 1
    """It had been requested already, by the injector: only not yet served."""
    ON_ITS_WAY = 2
    """It had been seen in the stream: only not yet delivered."""


@dataclass(frozen=True, eq=False)
class FaultTrace:
    """One migration's faults.

    :ivar blocks: RAM blocks (name, bytes) that page numbers refer to.
    :ivar policy: ordering policy that was at work.
    :ivar bandwidth: bytes a second of the link, or None where nobody measured it.
    :ivar entries: dtype `ENTRY`, by time.
    """

    blocks: tuple[tuple[str, int], ...]
    policy: str
    bandwidth: float | None
    entries: Entries

    @property
    def space(self) -> PageSpace:
        """The page space of the page numbers."""
        return PageSpace(self.blocks)

    def blocked(self) -> float:
        """Seconds the guest waited in all, on one vCPU."""
        return float(np.nansum(self.entries["latency"]))

    def encode(self) -> bytes:
        """The file."""
        fields = {"blocks": self.blocks, "policy": self.policy, "bandwidth": self.bandwidth}
        header = json.dumps(fields).encode()
        return HEADER.pack(MAGIC, VERSION, 0, len(header)) + header + self.entries.tobytes()

    @classmethod
    def decode(cls, raw: bytes | memoryview) -> Self:
        """:raises PlanError: not such a file, damaged, cut short, or past a limit."""
        view = memoryview(raw)
        if len(view) < HEADER.size:
            raise PlanError(f"a fault trace of {len(view)} bytes has no header")
        magic, version, _, length = HEADER.unpack_from(view)
        if magic != MAGIC or version != VERSION:
            raise PlanError(f"not a fault trace of version {VERSION}: {magic!r} {version}")
        body = HEADER.size + length
        if length > MAX_HEADER or body > len(view):
            raise PlanError(f"fault trace: header of {length} bytes in {len(view)}")
        blocks, policy, bandwidth = _header(bytes(view[HEADER.size : body]))
        count, rest = divmod(len(view) - body, ENTRY.itemsize)
        if rest or count > MAX_ENTRIES:
            raise PlanError(f"fault trace: {len(view) - body} bytes of entries")
        trace = cls(blocks, policy, bandwidth, np.frombuffer(view, ENTRY, count, body))
        pages = trace.entries["page"]
        if count and (int(pages.min()) < 0 or int(pages.max()) >= trace.space.pages):
            raise PlanError("fault trace: a page is outside its RAM blocks")
        return trace


def _header(raw: bytes) -> tuple[tuple[tuple[str, int], ...], str, float | None]:
    try:
        fields: dict[str, Any] = json.loads(raw)
        blocks = tuple((str(name), int(size)) for name, size in fields["blocks"])
        bandwidth = fields["bandwidth"]
        return blocks, str(fields["policy"]), None if bandwidth is None else float(bandwidth)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise PlanError(f"fault trace: header is not as it should be: {error}") from error


class FaultRecorder:
    """Collects a trace while a migration runs. Times are seconds on the caller's clock.

    :param began: the time of switchover.
    :param limit: entries kept; later faults are counted in `dropped` only.
    """

    def __init__(self, began: float, limit: int = 1 << 20) -> None:
        self._began = began
        self._limit = limit
        self._entries: list[tuple[float, int, float, int]] = []
        self._waiting: dict[int, int] = {}
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Faults whose page was not seen yet."""
        return len(self._waiting)

    def fault(self, page: int, now: float, flags: int = 0) -> None:
        """The guest waits for `page`; `flags` of `FaultFlag`. Once only while it waits."""
        if page in self._waiting:
            return
        if len(self._entries) >= self._limit:
            self.dropped += 1
            return
        self._waiting[page] = len(self._entries)
        self._entries.append((now - self._began, page, float("nan"), flags))

    def seen(self, pages: npt.NDArray[np.int64], now: float) -> list[float]:
        """The stream carried these pages. :returns: latencies, in seconds, that ended."""
        if not self._waiting:
            return []
        arrived = list(self._waiting.keys() & set(pages.tolist()))
        latencies = []
        for page in arrived:
            index = self._waiting.pop(page)
            at, _, _, flags = self._entries[index]
            latencies.append(now - self._began - at)
            self._entries[index] = (at, page, latencies[-1], flags)
        return latencies

    def trace(
        self, blocks: Sequence[tuple[str, int]], policy: str, bandwidth: float | None
    ) -> FaultTrace:
        """What was collected so far."""
        entries = np.array(self._entries, ENTRY)
        return FaultTrace(tuple(blocks), policy, bandwidth, entries)
