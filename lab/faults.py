# SPDX-License-Identifier: Apache-2.0
"""What breaks while a guest moves: the link, a relay, libvirtd, who ordered it. And whether it
mattered: two running copies are looked for all the time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import libvirt

from lab import relays
from lab.errors import LabError
from lab.guests import Guest
from lab.hosts import Host
from lab.migration import other
from lab.network import MIGRATION_DEVICE, PREFIX
from lab.processes import wait_for_end
from nova_enlightened.host import standing
from nova_enlightened.host.standing import Standing

if TYPE_CHECKING:
    from lab.laboratory import Lab

BIN: Final = Path(sys.executable).parent
LOOK_S: Final = 0.02
"""Neither libvirt nor a relay tells of what is waited for here: they are asked this often."""
WORKING_REPORTS: Final = 2
RELAY_S: Final = 10.0


class Departure:
    """``nova-enlightened-evict`` of one guest, as an operator would call it.

    The guest has a directory of migrations of its own, so that several can move at once.
    """

    def __init__(self, lab: Lab, guest: Guest, *, arm_s: float = 1.0) -> None:
        self.lab = lab
        self.guest = guest
        self.source = guest.host
        self.destination = other(lab, self.source)
        self._arm_s = arm_s
        self._top = f"/run/nova-enlightened/{guest.name}"
        self._errors = lab.run_dir / f"evict-{guest.name}.log"
        self._output = lab.run_dir / f"evict-{guest.name}.json"
        self._earlier = {path.name for path in self._states()}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Order it to leave."""
        here, there = self.source, self.destination
        tls = relays.certificates(self.lab.run_dir / "tls", [here, there])
        for host in (here, there):
            host.make_directory(self._top)
            self._configuration(host).write_text(
                f"[enlightened]\nlink_address = {host.address}\nrun_directory = {self._top}\n"
                f"link_tls_ca = {tls}/ca.pem\nlink_tls_certificate = {tls}/{host.name}.pem\n"
                f"link_tls_key = {tls}/{host.name}.key\n"
            )
        words = [
            f"{BIN}/nova-enlightened-evict", self.guest.name, "--connect", here.local_uri(),
            "--to", there.libvirt_uri(remote=True), "--peer-command", self._peer_command(),
            "--peer-name", there.name, "--own-name", here.name, "--arm", str(self._arm_s),
            "--config-file", str(self._configuration(here)), "--json",
        ]  # fmt: skip
        with self._errors.open("wb") as errors, self._output.open("wb") as output:
            self.process = here.popen(words, stdout=output, stderr=errors)
        return self

    def _configuration(self, host: Host) -> Path:
        return self.lab.run_dir / f"{self.guest.name}-{host.name}.conf"

    def _peer_command(self) -> str:
        """What stands for ssh: the peer finds its own configuration."""
        script = self.lab.run_dir / f"peer-{self.guest.name}.sh"
        script.write_text(
            f'case "$2" in start) set -- "$@" --config-file '
            f'{self._configuration(self.destination)};; esac\nexec "$@"\n'
        )
        path = f"PATH={BIN}:{os.environ['PATH']}"
        return " ".join([*self.destination.holder.entered(["env", path]), "sh", str(script)])

    # -- how far it is ----------------------------------------------------------------------

    def until(
        self, holds: Callable[[], bool], seconds: float = 60.0, *, alone: bool = False
    ) -> None:
        """Wait. Raises LabError if it does not come, or, not `alone`, the command has ended."""
        deadline = time.monotonic() + seconds
        while not holds():
            ended = not alone and self.process is not None and self.process.poll() is not None
            if time.monotonic() > deadline or (ended and not holds()):
                raise LabError(f"{self.guest.name}: {'ended' if ended else 'late'}: {self.said()}")
            time.sleep(LOOK_S)

    @contextlib.contextmanager
    def held_before_the_switch(self) -> Iterator[None]:
        """Both relays were started and the command stands still, while the block lasts.

        It takes tenths of a second from there until the guest stands still: too few to break
        something before it without holding it.
        """
        self.until(lambda: "  order: " in self.said())
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def until_begun(self) -> None:
        """Until libvirt has begun to migrate: the destination has the domain."""
        self.until(lambda: self.there() is not Standing.GONE)

    def until_switched(self) -> None:
        """Until the source stands still."""
        self.until(lambda: self.here() in (Standing.POSTCOPY, Standing.FAILED, Standing.GONE))

    def until_executing(self) -> None:
        """Until the guest executes at its destination."""
        arrived = (Standing.POSTCOPY, Standing.FAILED, Standing.EXECUTES)
        self.until(lambda: self.there() in arrived)

    def until_working(self, seconds: float = 20.0) -> None:
        """Until the guest has told twice from its destination that it works.

        Raises LabError when it does not.
        """
        self.until_executing()
        deadline = time.monotonic() + seconds
        began = self.guest.probe.wait_running(seconds).operations
        told = 0
        while told < WORKING_REPORTS:
            report = self.guest.probe.wait_next(max(0.0, deadline - time.monotonic()))
            if report is None:
                raise LabError(f"{self.guest.name} does not work at its destination")
            told += report.operations > began

    def here(self) -> Standing:
        """At the source."""
        return standing_at(self.source, self.guest.name, standing.at_source)

    def there(self) -> Standing:
        """At the destination."""
        return standing_at(self.destination, self.guest.name)

    def report(self, seconds: float = 120.0) -> dict[str, Any]:
        """What the command says at its end. Raises LabError if it failed, or does not end."""
        assert self.process is not None
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LabError(f"{self.guest.name} did not arrive: {self.said()}") from None
        if status:
            raise LabError(f"{self.guest.name}, status {status}: {self.said()}")
        told: dict[str, Any] = json.loads(self._output.read_text().splitlines()[-1])
        return told

    def said(self) -> str:
        """The end of what the command told."""
        return self._errors.read_text(errors="replace")[-1500:]

    # -- what breaks ------------------------------------------------------------------------

    def relay(self, role: str) -> tuple[int, dict[str, Any]]:
        """The newest relay of a side: its process and its state, once it has told of itself.

        Those of earlier migrations do not count, though they left their directories. Raises
        LabError where none comes.
        """
        self.until(lambda: bool(self._told(role)), RELAY_S)
        state = json.loads(max(self._told(role))[1].read_text())
        return int(state["pid"]), state

    def _told(self, role: str) -> list[tuple[float, Path]]:
        """State files of this migration's relays of a side, and when each was written."""
        host = self.source if role == "source" else self.destination
        states = [path / "state.json" for path in host.outside(self._top).glob(f"*-{role}")]
        return [
            (path.stat().st_mtime, path)
            for path in states
            if path.parent.name not in self._earlier and path.exists()
        ]

    def _states(self) -> Iterator[Path]:
        for host in (self.source, self.destination):
            yield from host.outside(self._top).glob("*-*")

    def kill_relay(self, role: str) -> int:
        """``kill -9``, and it is gone; its process."""
        pid, _ = self.relay(role)
        kill(pid)
        return pid

    def kill(self) -> None:
        """End the command as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


def standing_at(
    host: Host, name: str, of: Callable[[Callable[[], Any]], Standing] = standing.of
) -> Standing:
    """How a guest stands on a host."""
    return of(lambda: host.connection.lookupByName(name))


def kill(pid: int) -> None:
    """``kill -9`` and wait until it is gone; nothing happens where it is already."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        wait_for_end({handle}, 10.0)
    finally:
        os.close(handle)


def restart_libvirtd(host: Host, down_s: float = 0.5) -> None:
    """As a crash, and systemd starting it again after so many seconds."""
    assert host.libvirtd.process is not None
    host.libvirtd.process.kill()
    host.libvirtd.process.wait()
    threading.Event().wait(down_s)
    host.libvirtd.start()
    host.libvirtd.wait()


# --- the link ----------------------------------------------------------------------------------


@contextlib.contextmanager
def dropped(lab: Lab) -> Iterator[None]:
    """Nothing crosses the link while the block lasts, and nobody is told."""
    with contextlib.ExitStack() as stack:
        for host in lab.hosts.values():
            rule = ["INPUT", "-i", MIGRATION_DEVICE, "-j", "DROP"]
            host.run(["iptables", "-w", "-I", *rule])
            stack.callback(host.run, ["iptables", "-w", "-D", *rule])
        yield


@contextlib.contextmanager
def address_gone(lab: Lab) -> Iterator[None]:
    """The destination of the link, host2, has no address while the block lasts."""
    host = lab.hosts["host2"]
    address = ["addr", "{}", f"{host.address}/{PREFIX}", "dev", MIGRATION_DEVICE]
    host.run(["ip", *[word.format("del") for word in address]])
    try:
        yield
    finally:
        host.run(["ip", *[word.format("add") for word in address]])


def connections(departure: Departure) -> list[tuple[int, int]]:
    """(port here, port there) of the TCP connections between the relays."""
    _, state = departure.relay("source")
    shown = departure.source.run(["ss", "-tnpH", "state", "established"]).stdout
    found = []
    for line in shown.splitlines():
        if f"pid={state['pid']}," in line:
            here, there = line.split()[2:4]
            found.append((int(here.rpartition(":")[2]), int(there.rpartition(":")[2])))
    return found


def reset(departure: Departure) -> int:
    """Have the kernel reset the connections between the relays (RST); how many there were."""
    found = connections(departure)
    for here, there in found:
        departure.source.run(["ss", "-K", "-tn", f"sport = :{here} and dport = :{there}"])
    return len(found)


@contextlib.contextmanager
def hung(departure: Departure) -> Iterator[int]:
    """The connections that stand now carry nothing while the block lasts; new ones do."""
    found = connections(departure)
    with contextlib.ExitStack() as stack:
        for here, there in found:
            rule = ["OUTPUT", "-p", "tcp", "--sport", str(here), "--dport", str(there)]
            rule += ["-j", "DROP"]
            departure.source.run(["iptables", "-w", "-I", *rule])
            stack.callback(departure.source.run, ["iptables", "-w", "-D", *rule])
        yield len(found)


# --- what has to hold ----------------------------------------------------------------------------


class Copies:
    """Looks for two running copies of a guest, all the time while the block lasts.

    The destination is asked first. A source that executes after its destination did is a second
    copy: from the first instruction there on the source must stand still for ever.
    """

    def __init__(self, departure: Departure) -> None:
        self._departure = departure
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="copies", daemon=True)
        self.second: str | None = None
        self.looks = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        ran_there = False
        while not self._ended.wait(LOOK_S):
            ran_there = ran_there or self._executes(self._departure.destination)
            if ran_there and self._executes(self._departure.source):
                self.second = f"{self._departure.guest.name} executes at its source again"
                return
            self.looks += 1

    def _executes(self, host: Host) -> bool:
        try:
            domain = host.connection.lookupByName(self._departure.guest.name)
            return bool(domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING)
        except libvirt.libvirtError:
            return False


def assert_whole(guest: Guest, token_hash: int, seconds: float = 60.0) -> None:
    """It is the same VM, has checked all of its memory since now, and no page differs.

    Raises LabError where that is not so, or it does not go on.
    """
    before = guest.probe.latest
    if before is None:
        raise LabError(f"{guest.name} never said a word")
    deadline = time.monotonic() + seconds
    while (seen := guest.probe.wait_next(1.0)) is None or seen.detail < before.detail + 2:
        if time.monotonic() > deadline:
            raise LabError(f"{guest.name} does not go on: {guest.console_tail(300)}")
    if seen.mismatches:
        raise LabError(f"{guest.name}: {seen.mismatches} pages differ")
    if seen.token_hash != token_hash:
        raise LabError(f"{guest.name} was started anew")
