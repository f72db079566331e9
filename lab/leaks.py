# SPDX-License-Identifier: Apache-2.0
"""What a laboratory holds of its machine, to see whether a round of it left anything behind.

Processes, descriptors, sockets, namespaces, files and memory. A guest is on one host or the other,
so everything is counted over both.
"""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lab import processes

if TYPE_CHECKING:
    from lab.laboratory import Lab

TIME_WAIT: Final = "06"
"""State of a TCP connection that the kernel keeps for a while after both sides closed it."""
NAMESPACES: Final = ("mnt", "net", "uts")
_NUMBERS: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]+")


@dataclass(frozen=True)
class Holdings:
    """Counts by kind. ``memory``: resident bytes of each long-lived process, by its name.
    ``relays``: how many of the processes carry a migration, or wait to.
    """

    processes: Mapping[str, int]
    descriptors: Mapping[str, int]
    sockets: int
    namespaces: int
    files: Mapping[str, int]
    memory: Mapping[str, int] = field(compare=False)
    relays: int = 0

    def beyond(self, before: Holdings) -> list[str]:
        """What is here and was not before, in words; memory is judged over many rounds."""
        found = [
            f"{more} more {what} {name}"
            for what, now, then in (
                ("process", self.processes, before.processes),
                ("descriptors of", self.descriptors, before.descriptors),
                ("file", self.files, before.files),
            )
            for name, count in now.items()
            if (more := count - then.get(name, 0)) > 0
        ]
        if self.sockets > before.sockets:
            found.append(f"{self.sockets - before.sockets} more sockets")
        if self.namespaces > before.namespaces:
            found.append(f"{self.namespaces - before.namespaces} more namespaces")
        return found


def held(lab: Lab) -> Holdings:
    """What there is now."""
    pids = sorted(processes.belonging_to(lab.control.token))
    lasting = {"this process": os.getpid()}
    for host in lab.hosts.values():
        if host.libvirtd.process is not None:
            lasting[f"libvirtd of {host.name}"] = host.libvirtd.process.pid
    holders = (lab.control, *(host.holder for host in lab.hosts.values()))
    return Holdings(
        collections.Counter(name for pid in pids if (name := _command(pid))),
        # A guest's are its host's: they go where it goes.
        {
            "this process": _descriptors(os.getpid()),
            "libvirtd": sum(_descriptors(pid) for pid in lasting.values() if pid != os.getpid()),
        },
        sum(_sockets(holder.pid) for holder in holders),
        len({link for pid in pids for link in _namespaces(pid)}),
        collections.Counter(_files(lab)),
        {name: resident(pid) for name, pid in lasting.items()},
        sum(_is_relay(pid) for pid in pids),
    )


def resident(pid: int) -> int:
    """Bytes of a process that are in memory. Raises OSError where there is none."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _is_relay(pid: int) -> bool:
    """Whether it carries a migration, or waits to; a spare one is no relay yet."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"nova_enlightened.cmd.relay" in words and b"spare" not in words


def _descriptors(pid: int) -> int:
    # To look into one's own takes one.
    return len(os.listdir(f"/proc/{pid}/fd")) - (pid == os.getpid())


def _sockets(pid: int) -> int:
    """TCP and unix sockets of the network that a process is in."""
    count = 0
    for kind in ("tcp", "tcp6"):
        lines = Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]
        count += sum(line.split()[3] != TIME_WAIT for line in lines)
    return count + len(Path(f"/proc/{pid}/net/unix").read_text().splitlines()) - 1


def _namespaces(pid: int) -> Iterator[str]:
    for kind in NAMESPACES:
        with suppress(OSError):
            yield os.readlink(f"/proc/{pid}/ns/{kind}")


def _files(lab: Lab) -> Iterator[str]:
    """Paths below the hosts' ``/run``, numbers taken out: libvirt counts the domains it starts."""
    for host in lab.hosts.values():
        for top, _, names in os.walk(host.run_directory):
            where = os.path.relpath(top, host.run_directory)
            for name in names:
                if not name.endswith((".log", ".new")):
                    yield _NUMBERS.sub("N", f"{where}/{name}")
