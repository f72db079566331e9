# SPDX-License-Identifier: Apache-2.0
"""Which Debian release the hosts' QEMU and libvirt come from."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab import image
from lab.errors import LabError
from lab.processes import run

_PACKAGES = (
    "iproute2",
    "libvirt-clients",
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "libvirt-daemon-system",
    "qemu-system-x86",
)


@dataclass(frozen=True)
class Release:
    """``root`` is a whole system of that release; None means this machine's own programs."""

    name: str
    root: Path | None

    @classmethod
    def named(cls, name: str, cache: Path) -> "Release":
        """Raises LabError for a name that is not a release the laboratory knows."""
        if name == "bookworm":
            return cls(name, None)
        if name == "trixie":
            return cls(name, cache / "hosts-trixie")
        raise LabError(f"unknown release {name!r}: bookworm or trixie")

    @property
    def describe(self) -> str:
        """In words."""
        return "this machine's QEMU and libvirt" if self.root is None else f"Debian {self.name}"

    def prepare(self, progress: image.Progress) -> None:
        """Fetch the system if it is not there yet. Raises CommandFailed where that fails."""
        if self.root is None:
            for program in ("libvirtd", "qemu-system-x86_64", "nsenter", "tc"):
                if shutil.which(program) is None and not Path("/usr/sbin", program).exists():
                    raise LabError(f"{program} is missing: tools/install-debian-packages.sh lab")
            return
        if self.root.exists():
            return
        progress(f"Fetching Debian {self.name} for the hosts (once, about a minute)")
        self.root.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{self.root.name}.", dir=self.root.parent))
        try:
            image.debian_root(work / "root", self.name, _PACKAGES)
            run(["sh", "-c", f"rm -rf {work}/root/var/lib/apt/lists/* {work}/root/boot"])
            (work / "root").rename(self.root)
        finally:
            shutil.rmtree(work, ignore_errors=True)
