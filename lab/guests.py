# SPDX-License-Identifier: Apache-2.0
"""A guest of the laboratory, wherever it runs."""

import socket
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt

from lab.domain import CHANNEL, GuestSpec
from lab.errors import LabError
from lab.hosts import Host
from lab.probe import Probe

if TYPE_CHECKING:
    from lab.laboratory import Lab

REDIS_PORT = 6379


class Guest:
    """Made by ``Lab.guest``. ``xml`` is the domain as it was first given to libvirt."""

    def __init__(self, lab: "Lab", spec: GuestSpec, host: Host, xml: str, console: Path) -> None:
        self._lab = lab
        self._host = host
        self.spec = spec
        self.name = spec.name
        self.address = spec.address
        self.xml = xml
        self.console = console

    @property
    def probe(self) -> Probe:
        """Its throughput by time. For redis: of the load, once there is one."""
        return self._lab.collector.probe(self.name)

    @property
    def host(self) -> Host:
        """Where its processor runs: during post-copy that is the destination already."""
        active = {
            host.name: states[self.name]
            for host in self._lab.hosts.values()
            if self.name in (states := host.domains())
        }
        running = [name for name, state in active.items() if state.startswith("running")]
        for name in (running or list(active))[:1]:
            self._host = self._lab.hosts[name]
        return self._host

    @property
    def domain(self) -> libvirt.virDomain:
        """The domain on the host where it runs."""
        return self.host.connection.lookupByName(self.name)

    def start(self) -> None:
        """Define nothing, start it: a transient domain, gone when it ends."""
        self._host.connection.createXML(self.xml, 0)

    def wait_ready(self, seconds: float = 90.0) -> None:
        """Until its workload runs. Raises LabError with the end of its console if it does not."""
        try:
            if self.spec.workload == "redis":
                self._wait_for_redis(seconds)
            else:
                self.probe.wait_running(seconds)
        except LabError as error:
            raise LabError(f"{error}; {self.console} ends:\n{self.console_tail()}") from error

    def _wait_for_redis(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                self._lab.control.in_network(lambda: ping_redis(self.address))
            except OSError:
                time.sleep(0.1)  # nothing tells from outside when a server listens
            else:
                return
        raise LabError(f"redis in {self.name} does not answer after {seconds:.0f} s")

    def console_tail(self, size: int = 1500) -> str:
        """The end of what it wrote on its console."""
        try:
            return self.console.read_text(errors="replace")[-size:]
        except OSError:
            return "(no console)"

    def channel(self, name: str = CHANNEL, host: Host | None = None) -> Path:
        """The unix socket of a virtio-serial channel, as seen from outside the host."""
        where = self.host if host is None else host
        tree = ElementTree.fromstring(where.connection.lookupByName(self.name).XMLDesc(0))
        for channel in tree.iterfind("./devices/channel[@type='unix']"):
            target, source = channel.find("target"), channel.find("source")
            if target is not None and source is not None and target.get("name") == name:
                return where.outside(source.get("path", ""))
        raise LabError(f"{self.name} has no channel {name}")

    def qemu_pid(self) -> int:
        """Its QEMU on the host where it runs."""
        return self.host.qemu_pid(self.name)

    def destroy(self) -> None:
        """End it on every host, and forget it; nothing happens where it is not."""
        for host in self._lab.hosts.values():
            try:
                domain = host.connection.lookupByName(self.name)
                persistent = domain.isPersistent()
                if domain.isActive():
                    domain.destroy()
                if persistent:  # as Nova's are, and what a migration leaves of them
                    domain.undefine()
            except libvirt.libvirtError as error:
                gone = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
                if error.get_error_code() not in gone:
                    raise
        self._lab.forget(self)


def ping_redis(address: str) -> None:
    """Ask redis there whether it lives. Raises OSError where nobody says so in time."""
    if redis_says(address, "PING") != "+PONG":
        raise ConnectionError("redis answers something else")


def redis_says(address: str, *words: str) -> str:
    """What redis there answers to a command: a status with its sign, or a string. OSError."""
    with socket.create_connection((address, REDIS_PORT), timeout=2.0) as connection:
        connection.sendall(" ".join(words).encode() + b"\r\n")
        with connection.makefile("r", encoding="utf-8", newline="\r\n") as answer:
            line = answer.readline().rstrip("\r\n")
            return answer.readline().rstrip("\r\n") if line.startswith("$") else line
