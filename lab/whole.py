# SPDX-License-Identifier: Apache-2.0
"""Start an appliance as it is done without streaming: download it, then ``virsh restore``.

The download is what a careful operator would offer: memory compressed once with zstd, the disk a
qcow2 of zstd clusters that is used as it is. Both come at the same time and are unpacked while
they come. It can also be the two files as ``virsh save`` and ``qemu-img`` leave them unless told
otherwise, and the disk can stay where it is, behind QEMU's own http driver with copy on read.
"""

import enum
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import libvirt

from lab.errors import LabError
from lab.far import STORE_ADDRESS, FarStore
from lab.hosts import Host
from lab.processes import run
from lab.saved import Saved, with_disk

_LEVEL = "-9"


class Download(enum.StrEnum):
    """What is brought before the guest runs."""

    PACKED = "packed"
    """Memory and disk, compressed."""
    PLAIN = "plain"
    """Memory and disk, as they were written."""
    HTTP = "http"
    """Memory, compressed; the disk stays where it is."""


@dataclass(frozen=True)
class WholeImage:
    """What is offered to download, below the root of the far store.

    ``memory_bytes``, ``disk_bytes``: how long the two files are.
    """

    saved: Saved
    memory_bytes: int
    disk_bytes: int

    @property
    def name(self) -> str:
        """Of the appliance, and of the directory of its files."""
        return self.saved.appliance.name

    @property
    def size(self) -> int:
        """Bytes to download."""
        return self.memory_bytes + self.disk_bytes


def offer(saved: Saved, store: FarStore) -> WholeImage:
    """Compress the appliance, and lay it into the far store. Kept beside the saved files."""
    name = saved.appliance.name
    packed, disk = saved.memory.with_name("memory.zst"), saved.disk.with_name("disk-packed.qcow2")
    if not packed.exists():
        half = packed.with_suffix(".new")
        run(["zstd", "-q", _LEVEL, "-T0", "-f", str(saved.memory), "-o", str(half)], timeout=600)
        half.rename(packed)
    if not disk.exists():
        half = disk.with_suffix(".new")
        run(["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd",
             str(saved.disk), str(half)], timeout=600)  # fmt: skip
        half.rename(disk)
    there = store.root / "whole" / name
    there.mkdir(parents=True, exist_ok=True)
    for file in (packed, disk, saved.memory, saved.disk):
        shutil.copyfile(file, there / file.name)
    return WholeImage(saved, packed.stat().st_size, disk.stat().st_size)


@dataclass(frozen=True)
class Restored:
    """When the steps of a start were done (monotonic s)."""

    ordered: float
    downloaded: float
    executing: float


def start(host: Host, store: FarStore, image: WholeImage, how: Download, work: Path) -> Restored:
    """Download what is to be downloaded, and restore. ``work`` is an empty directory for it.

    Raises LabError where that fails.
    """
    ordered = time.monotonic()
    memory = work / "memory.save"
    url = f"{store.url}whole/{image.name}/"
    fetches = [f"curl -sSf {url}memory.zst | zstd -dcq > {memory}"]
    if how is Download.PACKED:
        fetches.append(f"curl -sSf -o {work}/disk.qcow2 {url}disk-packed.qcow2")
    elif how is Download.PLAIN:
        files = ((image.saved.memory, memory), (image.saved.disk, work / "disk.qcow2"))
        fetches = [f"curl -sSf -o {there} {url}{file.name}" for file, there in files]
    started = [
        host.popen(["bash", "-c", f"set -o pipefail; {fetch}"], stderr=subprocess.PIPE)
        for fetch in fetches
    ]
    for process in started:
        _, said = process.communicate(timeout=900)
        if process.returncode:
            raise LabError(f"the download failed: {said.decode(errors='replace')[-500:]}")
    downloaded = time.monotonic()
    restore(host, memory, _disk(host, image, how, work), work / "console.log")
    return Restored(ordered, downloaded, time.monotonic())


def restore(host: Host, memory: Path, disk: str, console: Path) -> None:
    """``virsh restore`` with another disk. Raises LabError."""
    xml = with_disk(host, memory, disk, console)
    try:
        host.connection.restoreFlags(str(memory), xml, libvirt.VIR_DOMAIN_SAVE_RUNNING)
    except libvirt.libvirtError as error:
        raise LabError(f"{memory} is not restored: {error}") from error


def local_disk(host: Host, base: Path, work: Path) -> str:
    """An overlay on ``base``, as the inside of a disk element."""
    overlay = work / "overlay.qcow2"
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base),
              str(overlay)])  # fmt: skip
    return f"<driver name='qemu' type='qcow2'/><source file='{overlay}'/>"


def _disk(host: Host, image: WholeImage, how: Download, work: Path) -> str:
    if how is not Download.HTTP:
        return f"<driver name='qemu' type='qcow2'/><source file='{work}/disk.qcow2'/>"
    overlay, path = work / "overlay.qcow2", f"whole/{image.name}/disk-packed.qcow2"
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2",
              "-b", f"http://{STORE_ADDRESS}/{path}", str(overlay)])  # fmt: skip
    return f"""\
<driver name='qemu' type='qcow2' copy_on_read='on'/><source file='{overlay}'/>
<backingStore type='network'><format type='qcow2'/>
  <source protocol='http' name='{path}'><host name='{STORE_ADDRESS}' port='80'/></source>
  <backingStore/>
</backingStore>"""
