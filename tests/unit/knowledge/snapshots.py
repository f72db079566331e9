# SPDX-License-Identifier: Apache-2.0
"""Snapshots as a guest would send them, made with the agent's own half of the format."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nova_enlightened.guest import wire

PRESENT = 1 << 63


@dataclass(frozen=True)
class Area:
    """Frames in virtual order, 0 where no page is; a history byte for each."""

    frames: Sequence[int]
    history: bytes = b""
    samples: int = 1
    read_share: int = 0

    def parts(self) -> list[bytes]:
        """As the agent encodes what /proc/PID/pagemap said."""
        entries = b"".join(
            (PRESENT | frame if frame else 0).to_bytes(8, "little") for frame in self.frames
        )
        planes = [entries[k::8] for k in (0, 1, 2, 3, 7)]
        head = wire.area_head(len(self.frames), self.read_share, 0, bool(self.history))
        # Any number of samples, also one that the agent would not send.
        return [head[:5] + bytes([self.samples]) + head[6:], *planes, self.history]


@dataclass(frozen=True)
class Process:
    """One watched process."""

    areas: Sequence[Area] = ()
    pid: int = 100
    name: bytes = b"redis-server"
    running: bool = True
    cpu: int = 500

    def parts(self) -> list[bytes]:
        head = wire.PROCESS_HEAD.pack(
            self.pid, int(self.running), self.cpu, len(self.name), len(self.areas)
        )
        return [head, self.name, *(part for area in self.areas for part in area.parts())]


@dataclass(frozen=True)
class Snapshot:
    """A whole snapshot; every field can be made a lie."""

    evidence: bytes = bytes(64)
    processes: Sequence[Process] = ()
    bitmaps: Sequence[bytes] = ()
    frames: int | None = None
    described: int | None = None
    source: bytes = b"soft-dirty"
    samples: int = 3
    taken_at: float = 12.5
    version: int = wire.SNAPSHOT_VERSION
    magic: bytes = wire.SNAPSHOT_MAGIC
    count: int | None = None
    zero: int = 0
    tail: bytes = field(default=b"")

    def encoded(self) -> bytes:
        described = len(self.evidence) if self.described is None else self.described
        head = wire.SNAPSHOT_HEAD.pack(
            self.magic,
            self.version,
            self.samples,
            self.taken_at,
            len(self.evidence) if self.frames is None else self.frames,
            described,
            len(self.processes) if self.count is None else self.count,
            len(self.bitmaps),
            self.zero,
            len(self.source),
        )
        parts = [head, self.source, self.evidence, *self.bitmaps]
        parts += [part for process in self.processes for part in process.parts()]
        return b"".join(parts) + self.tail


def bitmap(frames: int, used: Sequence[int]) -> bytes:
    """One sample of a source that sees frames."""
    bits = np.zeros(frames, dtype=np.uint8)
    bits[list(used)] = 1
    return np.packbits(bits, bitorder="little").tobytes()
