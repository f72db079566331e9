# SPDX-License-Identifier: Apache-2.0
"""What the scenarios share: the options of this run, one laboratory at a time, progress."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

from lab import Lab, relays
from lab.watch import event_loop

LINK_MBIT = 400.0
LINK_BYTES_S = LINK_MBIT * 1e6 / 8
BUSY = 0.1
"""With more of the processors in use by others the figures are not to be believed."""


@dataclass(frozen=True)
class Options:
    """How long and how often. Seconds, MiB."""

    rounds: int = 5
    limit_s: float = 60.0
    precopy_cap_s: float = 90.0
    relay_mib: int = 1024
    quick: bool = False


FULL = Options()
QUICK = Options(rounds=1, limit_s=40.0, precopy_cap_s=20.0, relay_mib=512, quick=True)


class Session:
    """One run of the benchmarks. Ends its laboratory when the block ends."""

    def __init__(self, options: Options, tell: Callable[[str], None]) -> None:
        self.options = options
        self.tell = tell
        self.notes: list[str] = []
        self.wanted: frozenset[str] = frozenset()
        """Ids of the measures that were asked for; a long scenario leaves out the others."""
        self._lab: Lab | None = None
        self._wanted: tuple[str, bool] | None = None

    def __enter__(self) -> Self:
        event_loop()  # before any connection to libvirt is made
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the laboratory that is up, if one is."""
        lab, self._lab, self._wanted = self._lab, None, None
        if lab is not None:
            lab.down()

    def lab(self, release: str = "bookworm", *, one_core_each: bool = False) -> Lab:
        """A laboratory without guests: the one that is up where it fits, or a new one.

        ``one_core_each`` gives host1 processor 0 and host2 processor 1 for all they do.
        """
        if self._lab is not None and self._wanted == (release, one_core_each):
            for guest in list(self._lab.guests.values()):
                guest.destroy()
            self._lab.link.shape(LINK_MBIT)
            return self._lab
        self.close()
        busy = busy_share()
        if busy > BUSY:
            self.notes.append(f"this machine was {busy:.0%} busy with other things at the start")
        cpus = {"host1": {0}, "host2": {1}} if one_core_each else None
        lab = Lab(release=release, link_mbit=LINK_MBIT, cpus=cpus, progress=self.tell)
        self._lab, self._wanted = lab.up(), (release, one_core_each)
        return lab


def busy_share(seconds: float = 1.0) -> float:
    """Share of this machine's processors that something uses now, 0 to 1."""
    busy, total = _processor_ticks()
    time.sleep(seconds)
    busy_then, total_then = _processor_ticks()
    return (busy_then - busy) / max(1, total_then - total)


def _processor_ticks() -> tuple[int, int]:
    """Ticks spent, and ticks passed, on all processors (proc(5), the first line of stat)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def certificates(lab: Lab) -> Path:
    """The certificates of the lab's hosts: ours runs with TLS, as it does by default."""
    return relays.certificates(lab.run_dir / "tls", list(lab.hosts.values()))


def versions(lab: Lab) -> Mapping[str, str]:
    """What ran, by name."""
    host = lab.status()["hosts"]["host1"]
    return {
        "QEMU": host["qemu"],
        "libvirt": host["libvirt"],
        "accelerator": lab.acceleration,
        "Linux": platform.release(),
        "Python": platform.python_version(),
        "nova-enlightened": project_version(),
    }


def project_version() -> str:
    """Version of this project as installed; its commit is in the history of the results."""
    try:
        return metadata.version("nova-enlightened")
    except metadata.PackageNotFoundError:
        return f"source, Python {sys.version_info.major}"
