# SPDX-License-Identifier: Apache-2.0
"""QEMU without libvirt on the lab's hosts.

For what libvirt offers no way to do (postcopy-preempt with libvirt 9.0, no preempt with
libvirt 10.1 and later), and for the relay's throughput, where libvirt would only be in the way.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen

from bench.qmp import Monitor, MonitorError
from lab import Lab
from lab.domain import GuestSpec, kernel_command_line
from lab.hosts import Host
from lab.network import DATA_BRIDGE
from lab.probe import PORT
from lab.way import Migration, Way

_DIRECTORY = "/run/nova-enlightened"
_numbers = itertools.count(1)
UNLIMITED = 1 << 40


class BareQemu:
    """One QEMU process on a host, with a monitor."""

    def __init__(self, host: Host, arguments: Sequence[str]) -> None:
        self.host = host
        number = next(_numbers)
        socket = f"{_DIRECTORY}/qemu-{number}.qmp"
        self.log = host.outside(f"{_DIRECTORY}/qemu-{number}.log")
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
            *arguments, "-qmp", f"unix:{socket},server=on,wait=off",
        ]  # fmt: skip
        self._process: Popen[bytes] = host.start(host.libvirtd.inside(command), self.log)
        self.monitor = Monitor(host.outside(socket))

    def open(self) -> None:
        """Wait for the monitor. Raises MonitorError with what QEMU said if it does not come."""
        try:
            self.monitor.open()
        except MonitorError as error:
            said = self.log.read_text()[-1000:] if self.log.exists() else "(no log)"
            raise MonitorError(f"{error}\n{said}") from error

    def set(self, *, preempt: bool, postcopy: bool) -> None:
        """Set the capabilities of the next migration, and no limit on its rate."""
        wanted = {"postcopy-ram": postcopy, "postcopy-preempt": preempt, "events": True}
        states = [{"capability": name, "state": state} for name, state in wanted.items()]
        self.monitor.command("migrate-set-capabilities", capabilities=states)
        self.monitor.command("migrate-set-parameters", max_bandwidth=UNLIMITED)

    def end(self) -> None:
        """End the process."""
        self.monitor.close()
        self._process.terminate()
        self._process.wait(10)


class BareGuest:
    """A guest like the lab's, in a QEMU of its own, to be migrated by monitor commands."""

    def __init__(self, lab: Lab, spec: GuestSpec) -> None:
        self._lab = lab
        self.spec = spec
        self.name = spec.name
        self.probe = lab.collector.probe(spec.name)
        self._place = 0
        self._ports = itertools.count(4900)
        for host in lab.hosts.values():
            host.run(["ip", "tuntap", "add", "dev", self._tap, "mode", "tap"], check=False)
            host.run(["ip", "link", "set", self._tap, "master", DATA_BRIDGE, "up"])
        self._qemu = BareQemu(self._host(0), self._arguments(0))
        self._qemu.open()

    @property
    def _tap(self) -> str:
        return f"bare{self.spec.number}"

    def _host(self, place: int) -> Host:
        return list(self._lab.hosts.values())[place]

    def _arguments(self, place: int) -> list[str]:
        image = self._lab.image
        assert image is not None, "the laboratory is up"
        console = self._host(place).outside(f"{_DIRECTORY}/{self.name}.console")
        return [
            "-machine", self.spec.machine, "-accel", self._lab.acceleration.lower(),
            "-cpu", "host" if self._lab.acceleration == "KVM" else "qemu64",
            "-m", str(self.spec.memory_mib), "-smp", str(self.spec.vcpus),
            "-kernel", str(image.kernel), "-initrd", str(image.initrd),
            "-append", kernel_command_line(self.spec, PORT),
            "-drive", f"file={image.root},format=raw,if=virtio,readonly=on",
            "-netdev", f"tap,id=net0,ifname={self._tap},script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev=net0,mac={self.spec.mac}",
            "-device", "virtio-balloon-pci,free-page-reporting=on",
            "-device", "virtio-rng-pci", "-serial", f"file:{console}",
        ]  # fmt: skip

    def pause(self) -> None:
        """Stop its processors."""
        self._qemu.monitor.command("stop")

    def resume(self) -> None:
        """Let its processors run."""
        self._qemu.monitor.command("cont")

    def end(self) -> None:
        """End it."""
        self._qemu.end()

    def migrate(self, way: Way, limit_s: float) -> Migration:
        """Post-copy, switched at once, to the other host. Raises MonitorError."""
        there = self._host(1 - self._place)
        old, new = self._qemu, BareQemu(there, [*self._arguments(1 - self._place), "-incoming",
                                                "defer"])  # fmt: skip
        new.open()
        for side in (old, new):
            side.set(preempt=way.preempt, postcopy=True)
        uri = f"tcp:{there.address}:{next(self._ports)}"
        new.monitor.command("migrate-incoming", uri=uri)
        old.monitor.forget()
        ordered = time.monotonic()
        old.monitor.command("migrate", uri=uri)
        old.monitor.command("migrate-start-postcopy")
        switchover = old.monitor.wait("STOP", limit_s)
        executing = new.monitor.wait("RESUME", limit_s)
        self._wait_completed(old, ordered + limit_s)
        completed = time.monotonic()
        self._place, self._qemu = 1 - self._place, new
        source = old.host.name
        old.end()
        return Migration(
            way, self.name, source, there.name, ordered,
            prepared=ordered, switch_accepted=ordered, switchover=switchover,
            executing=executing, source_freed=time.monotonic(), completed=completed,
        )  # fmt: skip

    def _wait_completed(self, qemu: BareQemu, deadline: float) -> None:
        while True:
            status = qemu.monitor.command("query-migrate").get("status")
            if status == "completed":
                return
            if status in ("failed", "cancelled", "postcopy-paused"):
                raise MonitorError(f"migration of {self.name}: {status}")
            if time.monotonic() > deadline:
                raise MonitorError(f"migration of {self.name} did not end in time")
            time.sleep(0.1)  # completion is asked for; the event tells no more


def guest_ram(path: Path, size: int) -> None:
    """A file of ``size`` bytes without a zero page, for a QEMU whose RAM it becomes."""
    block = bytes(range(1, 251)) * 4195
    with path.open("wb") as file:
        left = size
        while left:
            left -= file.write(block[:left])
