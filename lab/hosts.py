# SPDX-License-Identifier: Apache-2.0
"""One compute host: namespaces, a libvirtd, and ways in."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import libvirt

from lab.errors import LabError
from lab.libvirtd import SOCKET, Libvirtd
from lab.namespaces import Holder
from lab.network import MIGRATION_ADDRESS
from nova_enlightened.host.spare_relay import SpareRelay


class Host:
    """host1 or host2. ``address`` is on the migration link.

    Its ``/run`` (``/run/nova-enlightened`` too) is its own, and seen from outside below
    ``run_directory``: equal paths on both hosts are different sockets.
    """

    def __init__(self, holder: Holder, libvirtd: Libvirtd) -> None:
        self.name = holder.name
        self.address = MIGRATION_ADDRESS[holder.name]
        self.holder = holder
        self.libvirtd = libvirtd
        self.run_directory = holder.run_directory
        self.log = libvirtd.log
        self._connection: libvirt.virConnect | None = None
        self.spare_relay = SpareRelay(unhurried=True)

    def libvirt_uri(self, *, remote: bool = False) -> str:
        """The URI to connect to from outside, or (``remote``) from the other host."""
        if remote:
            return f"qemu+tcp://{self.address}/system"
        return f"qemu+unix:///system?socket={self.libvirtd.socket}"

    def local_uri(self) -> str:
        """The URI to connect to from inside this host."""
        return f"qemu+unix:///system?socket={SOCKET}"

    def connect(self) -> libvirt.virConnect:
        """A new connection to its libvirtd; the caller closes it."""
        return libvirt.open(self.libvirt_uri())

    @property
    def connection(self) -> libvirt.virConnect:
        """A connection kept by the laboratory."""
        if self._connection is None or not self._connection.isAlive():
            self._connection = self.connect()
        return self._connection

    def have_spare_relay(self) -> None:
        """Start a relay's process for the next migration, as this host's agent would."""
        self.spare_relay.start(self.holder.entered([]))

    def disconnect(self) -> None:
        """Close the kept connection, and end the spare relay."""
        self.spare_relay.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except libvirt.libvirtError:
                pass  # it was gone already

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 120.0,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in this host, on its processors, to its end. See ``processes.run``."""
        return self.holder.run(command, check=check, timeout=timeout, stdin=stdin)

    def popen(self, command: Sequence[str], **kwargs: Any) -> "subprocess.Popen[bytes]":
        """Start a command in this host; keywords are Popen's. Its pid is the command's own."""
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        kwargs.setdefault("start_new_session", True)
        return subprocess.Popen(self.holder.entered(command), **kwargs)

    def start(
        self, command: Sequence[str], log: Path | None = None, **kwargs: Any
    ) -> "subprocess.Popen[bytes]":
        """``popen`` with both outputs appended to ``log``."""
        path = self.holder.directory / "processes.log" if log is None else log
        stream: IO[bytes]
        with path.open("ab") as stream:
            return self.popen(command, stdout=stream, stderr=stream, **kwargs)

    def virsh(self, *words: str, check: bool = True, timeout: float = 120.0) -> str:
        """What virsh says in this host."""
        return self.run(["virsh", "-c", self.local_uri(), *words], check=check,
                        timeout=timeout).stdout  # fmt: skip

    def outside(self, path: str | Path) -> Path:
        """Where a path of this host, below /run or one of libvirt's own, is seen from outside."""
        inside = Path(path)
        for own in ("/var/lib/libvirt", "/var/log/libvirt", "/etc/libvirt"):
            if inside.is_relative_to(own):
                return self.holder.directory / inside.relative_to("/")
        return self.holder.outside(inside)

    def qemu_pid(self, name: str) -> int:
        """The process of the domain ``name``. Raises LabError if it does not run here."""
        try:
            return int(self.outside(f"/run/libvirt/qemu/{name}.pid").read_text())
        except (OSError, ValueError) as error:
            raise LabError(f"{name} does not run on {self.name}") from error

    def domains(self) -> dict[str, str]:
        """State and reason, in virsh's words, by name of every active domain."""
        rows = {}
        for domain in self.connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            rows[domain.name()] = _STATES.get(tuple(domain.state()), str(domain.state()))
        return rows

    def make_directory(self, path: str | Path, mode: int = 0o755) -> Path:
        """Make a directory of this host (below /run); returns where it is seen from outside."""
        at = self.outside(path)
        at.mkdir(parents=True, exist_ok=True)
        os.chmod(at, mode)
        return at


_STATES = {
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED): "running",
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_MIGRATED): "running (migrated)",
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY): "running (post-copy)",
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED): (
        "running (post-copy failed)"
    ),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION): "paused (migrating)",
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY): "paused (post-copy)",
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED): (
        "paused (post-copy failed)"
    ),
}
