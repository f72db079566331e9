# SPDX-License-Identifier: Apache-2.0
"""nova-enlightened-agent on both hosts, on a message bus of the laboratory's, without a cloud.

A guest that leaves is ordered by :mod:`lab.ordering`, which asks the agents as nova-compute does.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from oslo_config import cfg
from oslo_service import backend

from lab import ordering, relays
from lab.errors import LabError
from lab.faults import BIN, LOOK_S, Departure, kill
from lab.guests import Guest
from lab.hosts import Host
from lab.network import CONTROL_ADDRESS, DATA_BRIDGE, PREFIX
from nova_enlightened import exception
from nova_enlightened.host.standing import Standing

if TYPE_CHECKING:
    from lab.laboratory import Lab
    from nova_enlightened.rpc import HostAPI

PORT: Final = 5672
ADDRESS: Final = {"host1": "10.78.0.2", "host2": "10.78.0.3"}
READY_S: Final = 60.0
RECORDS_S: Final = 60.0
BEGUN_S: Final = 150.0
_BROKER: Final = f"""\
listeners.tcp.1 = {CONTROL_ADDRESS}:{PORT}
loopback_users = none
disk_free_limit.absolute = 50MB
log.console = true
log.console.level = warning
log.file = false
"""


class HostAgents:
    """The bus and an agent on each host of a laboratory that is up; it ends them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._own = lab.run_dir / "bus"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._restarting = {name: threading.Lock() for name in lab.hosts}
        self._calls: HostAPI | None = None

    def start(self) -> Self:
        """Bring all up. Raises LabError where one does not answer."""
        self._own.mkdir(exist_ok=True)
        self.start_bus()
        for host in self.lab.hosts.values():
            address = f"{ADDRESS[host.name]}/{PREFIX}"
            host.run(["ip", "addr", "add", address, "dev", DATA_BRIDGE])
            self._start_agent(host)
        for host in self.lab.hosts.values():
            self.wait_until_able(host)
        return self

    def configuration(self, host: Host) -> str:
        """The file of a host's agent, which those that ask it read too."""
        tls = relays.certificates(self.lab.run_dir / "tls", list(self.lab.hosts.values()))
        path = self.lab.run_dir / f"agent-{host.name}.conf"
        path.write_text(
            f"[DEFAULT]\nhost = {host.name}\n"
            f"transport_url = rabbit://guest:guest@{CONTROL_ADDRESS}:{PORT}/\n"
            f"[enlightened]\nlink_address = {host.address}\ndefault_policy = ordered\n"
            f"run_directory = {relays.DIRECTORY}\nlink_tls_ca = {tls}/ca.pem\n"
            f"link_tls_certificate = {tls}/{host.name}.pem\nlink_tls_key = {tls}/{host.name}.key\n"
            f"[enlightened_agent]\nlibvirt_uri = {host.local_uri()}\n"
            "collectors = libvirt,memory\nprovider_traits = false\n"
        )
        return str(path)

    def restart(self, host: Host) -> None:
        """``kill -9`` and start again, as systemd does; one at a time on a host."""
        with self._restarting[host.name]:
            process = self._running.pop(host.name)
            kill(process.pid)
            process.wait()
            self._start_agent(host)

    def stop_bus(self) -> None:
        """The message broker ends, as for an update."""
        process = self._running.pop("bus")
        process.terminate()
        process.wait()

    def ask(self, call: Callable[[HostAPI], dict[str, Any]]) -> dict[str, Any]:
        """What an agent answers. Raises EnlightenedError where it does not."""
        return self.lab.control.in_network(lambda: call(self._connected()))

    def wait_until_able(self, host: Host, seconds: float = READY_S) -> None:
        """Until its agent says that guests can leave and arrive. Raises LabError if not."""
        deadline = time.monotonic() + seconds
        said: object = "nothing"
        while time.monotonic() < deadline:
            with suppress(exception.EnlightenedError):
                told = self.ask(lambda agents: agents.describe(host.name))
                if told["capable"]:
                    return
                said = told["obstacles"]
            time.sleep(LOOK_S)
        log = (self.lab.run_dir / f"agent-{host.name}.log").read_text(errors="replace")
        raise LabError(f"the agent of {host.name} says {said}: {log[-1500:]}")

    def wrong_of(self, departure: OrderedDeparture) -> str:
        """What the agents still hold of a guest that has moved; empty where that is right.

        No record is left on disk, and the source's agent follows it no more, or says that it has
        moved.
        """
        uuid = departure.uuid
        kept = departure.source.outside(f"{relays.DIRECTORY}/departures/{uuid}.json")
        self.wait_until_able(departure.source)
        deadline = time.monotonic() + RECORDS_S
        while True:
            told = self.ask(lambda agents: agents.recovery(departure.source.name, uuid))
            if not kept.exists() and told.get("state", "moved") == "moved":
                return ""
            if time.monotonic() > deadline:
                return f"its record is {'kept' if kept.exists() else 'gone'}, and says {told}"
            time.sleep(LOOK_S)

    def stop(self) -> None:
        """End all, the agents first."""
        calls, self._calls = self._calls, None
        if calls is not None:
            self.lab.control.in_network(self._transport.cleanup)
        for process in reversed(self._running.values()):
            process.terminate()
        for process in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(READY_S)
            kill(process.pid)
            process.wait()
        self._running.clear()

    # -- parts ------------------------------------------------------------------------------

    def start_bus(self) -> None:
        """The message broker. Raises LabError if it does not listen."""
        (self._own / "rabbitmq.conf").write_text(_BROKER)
        (self._own / "plugins").write_text("[].\n")
        words = {
            "HOME": self._own,
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": "rabbit@localhost",
            "RABBITMQ_MNESIA_BASE": self._own / "mnesia",
            "RABBITMQ_LOG_BASE": self._own / "log",
            "RABBITMQ_CONFIG_FILE": self._own / "rabbitmq",
            "RABBITMQ_CONF_ENV_FILE": self._own / "none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self._own / "plugins",
            "RABBITMQ_PID_FILE": self._own / "pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        log = self.lab.run_dir / "bus.log"
        with log.open("ab") as stream:
            self._running["bus"] = subprocess.Popen(
                self.lab.control.entered(["/usr/lib/rabbitmq/bin/rabbitmq-server"]),
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, cwd="/",
                start_new_session=True, env={key: str(value) for key, value in words.items()},
            )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while not self.lab.control.in_network(_listens):
            if time.monotonic() > deadline or self._running["bus"].poll() is not None:
                raise LabError(f"no message bus: {log.read_text(errors='replace')[-1500:]}")
            time.sleep(LOOK_S)

    def _start_agent(self, host: Host) -> None:
        self._running[host.name] = host.start(
            [str(BIN / "nova-enlightened-agent"), "--config-file", self.configuration(host)],
            self.lab.run_dir / f"agent-{host.name}.log",
        )

    def _connected(self) -> HostAPI:
        if self._calls is None:
            backend.init_backend(backend.BackendType.THREADING)
            # Imports oslo.messaging, which takes the kind of threads as it is chosen by then.
            from nova_enlightened import rpc

            conf = cfg.ConfigOpts()
            file = self.configuration(self.lab.hosts["host1"])
            conf([], project="lab", default_config_files=[file])
            self._transport = rpc.get_transport(conf)
            self._calls = rpc.HostAPI(self._transport)
        return self._calls


def _listens() -> bool:
    try:
        socket.create_connection((CONTROL_ADDRESS, PORT), 1.0).close()
    except OSError:
        return False
    return True


class OrderedDeparture(Departure):
    """A guest that leaves through the hosts' agents, as under nova-compute."""

    def __init__(self, agents: HostAgents, guest: Guest) -> None:
        super().__init__(agents.lab, guest)
        self.agents = agents
        self.uuid = guest.domain.UUIDString()
        self._top = relays.DIRECTORY
        self._earlier = {path.name for path in self._states()}

    def start(self) -> Self:
        """Order it to leave."""
        here, there = self.source, self.destination
        words = [
            sys.executable, "-P", ordering.__file__, self.uuid, "--connect", here.local_uri(),
            "--to", there.libvirt_uri(remote=True), "--host", here.name,
            "--destination", there.name, "--config-file", self.agents.configuration(here),
        ]  # fmt: skip
        with self._errors.open("wb") as errors, self._output.open("wb") as output:
            self.process = here.popen(words, stdout=output, stderr=errors)
        return self

    def until_begun(self) -> None:
        """Until libvirt has begun to migrate. The agents may take a while to have all ready."""
        self.until(lambda: self.there() is not Standing.GONE, BEGUN_S)
