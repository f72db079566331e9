# SPDX-License-Identifier: Apache-2.0
"""Start a service of the cloud in its namespaces, wait until it answers, say why it does not."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from typing import Any

from lab.errors import CommandFailed, LabError
from lab.namespaces import Holder
from lab.network import CONTROL_ADDRESS
from lab.openstack.places import PORTS, Places
from lab.openstack.services import Service
from lab.processes import run, started_at

_LOOK_S = 0.2
_TAIL = 2500


class Launch:
    """What was started, by (where, name).

    ``holders``: ctl and the hosts. A host's guests have one processor; OpenStack's services run
    on all, as on hosts that keep some processors from the guests.
    """

    def __init__(self, places: Places, holders: Mapping[str, Holder]) -> None:
        self._places = places
        self._holders = holders
        self._processes: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        self._began: dict[tuple[str, str], int] = {}
        self._cpus = ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0)))

    def environment(self, where: str) -> dict[str, str]:
        """What everything is started with: nothing of the caller's, such as proxies."""
        own = self._places.run / where
        return {
            "PATH": f"{self._places.programs}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(own),
            "TMPDIR": str(own / "tmp"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(self._places.run / "python"),
            "PYTHONWARNINGS": "ignore",
        }

    def _entered(self, where: str, command: Iterable[str]) -> list[str]:
        return self._holders[where].entered(["taskset", "-c", self._cpus, *command])

    def run(self, where: str, command: Iterable[str], log: str, timeout: float = 180.0) -> None:
        """Run a command to its end. Raises LabError with the end of what it said."""
        words = self._entered(where, command)
        path = self._places.log(log, where)
        try:
            done = run(words, timeout=timeout, env=self.environment(where), cwd="/")
        except CommandFailed as error:
            path.write_text(error.output)
            raise LabError(
                f"{' '.join(command)} failed ({path}):\n{error.output[-_TAIL:]}"
            ) from error
        with path.open("a") as file:
            file.write(done.stdout)

    def start(self, service: Service) -> None:
        """Start it; ``wait`` says when it is ready."""
        with self._places.log(service.name, service.where).open("ab") as log:
            self._began[service.where, service.name] = log.tell()
            self._processes[service.where, service.name] = subprocess.Popen(
                self._entered(service.where, service.command),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
                env={**self.environment(service.where), **service.environment},
            )  # fmt: skip

    def wait(self, service: Service, seconds: float = 120.0) -> None:
        """Until it is ready. Raises LabError with the end of its log if it does not get there."""
        deadline = time.monotonic() + seconds
        while not self._is_ready(service):
            self.check(service)
            if time.monotonic() > deadline:
                raise self.failure(service, f"is not ready after {seconds:.0f} s")
            time.sleep(_LOOK_S)

    def stop(self, service: Service) -> None:
        """End it, if it runs, and wait until it has ended."""
        process = self._processes.pop((service.where, service.name), None)
        if process is not None:
            process.terminate()
            process.wait()

    def kill(self, service: Service) -> None:
        """End it as a machine's trouble would, if it runs, with all that it started; wait."""
        process = self._processes.pop((service.where, service.name), None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def check(self, service: Service) -> None:
        """Raise LabError if its process has ended."""
        process = self._processes.get((service.where, service.name))
        if process is not None and process.poll() is not None:
            raise self.failure(service, f"ended with status {process.returncode}")

    def check_all(self, services: Iterable[Service]) -> None:
        """``check`` of each."""
        for service in services:
            self.check(service)

    def failure(self, service: Service, what: str) -> LabError:
        """An error that says ``what`` of the service, and shows the end of its log."""
        path = self._places.log(service.name, service.where)
        tail = path.read_text(errors="replace")[-_TAIL:]
        return LabError(
            f"{service.name} in {service.where} {what}. Its log, {path}, ends:\n{tail}\n"
            "`python -m lab.openstack wipe` removes what was kept, if that is broken."
        )

    def _is_ready(self, service: Service) -> bool:
        if service.socket is not None:
            return service.socket.exists()
        if service.says:
            written = self._places.log(service.name, service.where).read_bytes()
            return service.says.encode() in written[self._began[service.where, service.name] :]
        port = PORTS[service.serves] if service.serves else service.port
        if not port:
            return True
        control = self._holders["ctl"]
        try:
            return control.in_network(lambda: _answers(port, speaks_http=bool(service.serves)))
        except OSError:
            return False

    # --- from one process to the next -----------------------------------------------------

    def describe(self) -> list[list[Any]]:
        """Where, name, pid and start time of each, to be kept in a file."""
        return [
            [where, name, process.pid, started_at(process.pid)]
            for (where, name), process in self._processes.items()
        ]

    def ended(self) -> None:
        """All were ended by number: take note."""
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def release(self) -> None:
        """They outlive this process: others end them, by what ``describe`` said."""
        for process in self._processes.values():
            process.returncode = 0
        self._processes.clear()


def _answers(port: int, *, speaks_http: bool) -> bool:
    """Whether somebody listens there, and answers without a fault of its own."""
    if not speaks_http:
        with socket.create_connection((CONTROL_ADDRESS, port), timeout=2.0):
            return True
    connection = http.client.HTTPConnection(CONTROL_ADDRESS, port, timeout=60.0)
    try:
        connection.request("GET", "/")
        return bool(connection.getresponse().status < 500)
    except http.client.HTTPException:
        return False
    finally:
        connection.close()
