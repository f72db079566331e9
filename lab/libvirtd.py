# SPDX-License-Identifier: Apache-2.0
"""One libvirtd in one host's namespaces, with files of its own."""

import os
import shutil
import subprocess
import uuid
from pathlib import Path

from lab.errors import LabError
from lab.namespaces import Holder
from lab.network import MIGRATION_ADDRESS
from lab.processes import wait_for_file

SOCKET = "/run/libvirt/libvirt-sock"
_PROBED = "var/cache/libvirt/qemu/capabilities"
#: Directories of libvirt's that each host has for itself.
_OWN = ("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")

# What differs from the defaults. Authentication is off because nothing but the two hosts is
# on this network. No cgroups and no mount namespaces: guests run as what they are, children
# of this libvirtd. Images are on no shared file system, and are never written.
_QEMU_CONF = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
migration_address = "{address}"
migration_host = "{address}"
"""
_LIBVIRTD_CONF = """
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
auth_tcp = "none"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_group = "root"
host_uuid = "{uuid}"
log_outputs = "2:stderr"
log_filters = "{filters}"
"""

# $1 the host's directory, $2 root of the system libvirtd comes from ("" is this one's).
_MOUNTS = """
set -e
if [ -n "$2" ]; then
    for at in dev proc sys run; do
        mkdir -p "$2/$at"
        mount --rbind "/$at" "$2/$at"
    done
fi
for own in etc/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt; do
    mkdir -p "$1/$own" "$2/$own"
    mount --bind "$1/$own" "$2/$own"
done
"""


class Libvirtd:
    """libvirtd of ``host``, from the system at ``root`` (None: this one).

    ``probed`` is where libvirt's probing of QEMU (seconds) is kept from run to run;
    ``shared`` directories are visible under the same path in ``root`` too.
    """

    def __init__(
        self, host: Holder, root: Path | None, probed: Path, shared: tuple[Path, ...]
    ) -> None:
        self._host = host
        self._root = root
        self._probed = probed
        self._shared = shared
        self.log = host.directory / "libvirtd.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """The unix socket of libvirtd, as seen from outside."""
        return self._host.outside(SOCKET)

    def inside(self, command: list[str]) -> list[str]:
        """``command`` for the system libvirtd comes from."""
        return command if self._root is None else ["chroot", str(self._root), *command]

    def prepare(self) -> None:
        """Lay out its files and mount them in its namespaces."""
        own = self._host.directory
        address = MIGRATION_ADDRESS[self._host.name]
        for path in _OWN:
            (own / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        filters = os.environ.get("LAB_LIBVIRT_LOG_FILTERS", "")
        (own / "etc/libvirt/libvirtd.conf").write_text(
            _LIBVIRTD_CONF.format(address=address, uuid=uuid.uuid4(), filters=filters)
        )
        (own / "etc/libvirt/qemu.conf").write_text(_QEMU_CONF.format(address=address))
        if self._probed.exists():
            shutil.copytree(self._probed, own / _PROBED)
        self._host.run(["sh", "-c", _MOUNTS, "sh", str(own), str(self._root or "")])
        if self._root is not None:
            for shared in self._shared:
                inside = self._root / shared.relative_to("/")
                self._host.run(["mkdir", "-p", str(inside)])
                if not shared.is_relative_to("/run"):
                    self._host.run(["mount", "--bind", str(shared), str(inside)])

    def start(self) -> None:
        """Start it; ``wait`` says when it answers."""
        self.socket.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._host.entered(self.inside(["libvirtd", "--listen"])),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, seconds: float = 60.0) -> None:
        """Until it accepts connections. Raises LabError if it does not in time."""
        if not wait_for_file(self.socket, seconds, self.process):
            tail = self.log.read_text(errors="replace")[-1500:]
            raise LabError(f"libvirtd on {self._host.name} did not start ({self.log}):\n{tail}")

    def keep_probed(self) -> None:
        """Keep what it found out about QEMU for the next time."""
        self._probed.mkdir(parents=True, exist_ok=True)
        for found in (self._host.directory / _PROBED).glob("*.xml"):
            kept = self._probed / found.name
            if not kept.exists() or kept.read_bytes() != found.read_bytes():
                partial = self._probed / f".{found.name}.{self._host.pid}"
                shutil.copyfile(found, partial)
                partial.replace(kept)

    def ended(self) -> None:
        """Its process was ended by number: take note."""
        process, self.process = self.process, None
        if process is not None:
            process.wait()
