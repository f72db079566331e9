# SPDX-License-Identifier: Apache-2.0
"""A /proc of regular files, so that the agent can be shown any guest."""

import pathlib
from dataclasses import dataclass, field

from nova_enlightened.guest import proc as procfs

PRESENT, SWAPPED, SOFT_DIRTY = 1 << 63, 1 << 62, 1 << 55
SMAPS = """\
{start:08x}-{end:08x} {access} 00000000 00:00 0 {name}
Size:           {size:8} kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:            {rss:8} kB
Pss:            {rss:8} kB
Shared_Clean:          0 kB
Referenced:     {referenced:8} kB
Anonymous:      {rss:8} kB
VmFlags: rd wr mr mw me ac sd
"""


@dataclass
class FakeArea:
    """Consecutive pages of a process: entries of its pagemap."""

    start: int
    entries: list[int]
    access: str = "rw-p"
    name: str = ""
    referenced: int = 0
    pages: int = 0
    """More than `entries` for an area of which little is in memory."""

    @property
    def end(self) -> int:
        return self.start + max(self.pages, len(self.entries)) * procfs.PAGE

    def smaps(self) -> str:
        present = sum(1 for entry in self.entries if entry & PRESENT)
        return SMAPS.format(
            start=self.start,
            end=self.end,
            access=self.access,
            name=self.name,
            size=(self.end - self.start) // 1024,
            rss=4 * present,
            referenced=4 * self.referenced,
        )


@dataclass
class FakeProcess:
    """One directory of /proc; write it again after a change."""

    pid: int
    name: str = "work"
    state: str = "S"
    ticks: int = 0
    faults: int = 0
    started: int = 50
    rss: int = 10
    size: int = 1 << 20
    kernel: bool = False
    areas: list[FakeArea] = field(default_factory=list)

    def stat(self) -> str:
        fields = [
            *(self.state, 1, 1, 1, 0, -1, 0x00208040 if self.kernel else 0x400000),
            *(self.faults, 0, 0, 0, self.ticks // 2, self.ticks - self.ticks // 2),
            *(0, 0, 20, 0, 1, 0, self.started, self.size, self.rss, 0, 0),
        ]
        return f"{self.pid} ({self.name}) {' '.join(map(str, fields))}\n"


class FakeProc:
    """Writes processes and page flags below a directory."""

    def __init__(self, root: pathlib.Path, frames: int = 64) -> None:
        self.root = root
        self.frames(bytes(8 * frames))

    def frames(self, flags: bytes) -> None:
        """The contents of kpageflags."""
        (self.root / "kpageflags").write_bytes(flags)

    def put(self, process: FakeProcess) -> None:
        """Write a process as it is now. What was written to clear_refs is kept."""
        place = self.root / str(process.pid)
        place.mkdir(exist_ok=True)
        (place / "stat").write_text(process.stat())
        (place / "smaps").write_text("".join(area.smaps() for area in process.areas))
        with (place / "pagemap").open("wb") as pagemap:
            for area in process.areas:
                pagemap.seek(area.start // procfs.PAGE * 8)
                pagemap.write(b"".join(e.to_bytes(8, "little") for e in area.entries))
        (place / "clear_refs").touch()

    def cleared(self, pid: int) -> str:
        """What was last written to a process's clear_refs."""
        return (self.root / str(pid) / "clear_refs").read_text()

    def end(self, pid: int) -> None:
        """The process is gone."""
        place = self.root / str(pid)
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
