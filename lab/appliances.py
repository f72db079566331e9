# SPDX-License-Identifier: Apache-2.0
"""Appliances to publish and to stream: what is in each, and the users that give it its inputs.

An input is a seed: it draws what the users ask for. What is popular among them belongs to the
appliance and is the same for all. Traces are learned from the inputs ``LEARNED``, and an input of
``measured`` is what a start is judged by; no choice in this project is made by looking at those.
"""

import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lab.domain import GuestSpec
from lab.errors import LabError
from lab.laboratory import Lab
from lab.network import DATA_BRIDGE
from lab.probe import Probe, Report
from lab.programs import Program

SESSION_PORT = 5601
LEARNED = (11, 12, 13)
_NOT_LEARNED = 1000
_READY_S, _FILL_S, _AGAIN_S = 30.0, 300.0, 0.1


def measured(number: int) -> int:
    """The input of a round, counted from 1: none that anything was learned from."""
    return _NOT_LEARNED + number


@dataclass(frozen=True)
class Appliance:
    """A guest with a service in it.

    ``number`` makes its address. ``load``: the module of this package that plays its users, with
    ``words``; empty for a guest whose users are in it, as the desktop's. ``fill`` are words for
    the same module, used once, to give it its data. ``rate``: work units (``unit``) a second that
    the users ask for; 0 where the guest decides. ``bin_s``: the finest that its rate can be told.
    """

    name: str
    number: int
    title: str
    unit: str
    load: str
    rate: float
    bin_s: float
    memory_mib: int = 512
    fragment_mib: int = 320
    words: Mapping[str, object] = field(default_factory=dict)
    fill: tuple[str, ...] = ()
    think_ms: int = 400

    def spec(self, disk: Path) -> GuestSpec:
        """The guest, with its disk."""
        return GuestSpec(
            name=self.name, number=self.number, workload=self.name, memory_mib=self.memory_mib,
            fragment_mib=self.fragment_mib, disk=disk,
        )  # fmt: skip

    @property
    def address(self) -> str:
        """Its address on the data network."""
        return self.spec(Path("/")).address


ANYWHERE = 0.005
"""Share of requests for any key at all, which nothing can foretell: with it the traces of two
inputs have 97 % of the pages that another touches, and those of three 98 %."""

REDIS = Appliance(
    "redis", 201, "redis with a data set of 220 MB", "requests/s", "redis_load", 1000.0, 0.05,
    words={"keys": 110_000, "value_bytes": 2000, "exponent": 0.9, "active": 4000,
           "anywhere": ANYWHERE, "connections": 16, "pipeline": 1},
    fill=("--fill", "text"),
)  # fmt: skip
WEB = Appliance(
    "web", 202, "nginx and a Python web application", "requests/s", "web_load", 40.0, 0.25,
)  # fmt: skip
SESSION = Appliance(
    "session", 203, "a desktop-like session with think time", "actions/s", "", 0.0, 1.0,
)  # fmt: skip
APPLIANCES = {appliance.name: appliance for appliance in (REDIS, WEB, SESSION)}


class Users(Protocol):
    """Users who are ready, and begin when they are let in."""

    def let_in(self) -> None:
        """The service is there, they are told: now they ask."""

    def stop(self) -> None:
        """They leave."""

    def check(self) -> None:
        """Raises LabError when they gave up by themselves."""


class _LoadUsers:
    """A load program, which waits for a file."""

    def __init__(self, program: Program, word: Path) -> None:
        self._program = program
        self._word = word

    def let_in(self) -> None:
        self._word.touch()

    def stop(self) -> None:
        self._program.stop()
        self._word.unlink(missing_ok=True)

    def check(self) -> None:
        self._program.check()


class _SessionUser:
    """Asks the guest for a session until one runs."""

    def __init__(self, lab: Lab, appliance: Appliance, seed: int, probe: Probe) -> None:
        self._target = (appliance.address, SESSION_PORT)
        self._order = f"GO {seed} {appliance.think_ms}".encode()
        self._socket = lab.control.in_network(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        )
        self._probe = probe
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="session-user", daemon=True)

    def let_in(self) -> None:
        self._thread.start()

    def _ask(self) -> None:
        while not self._enough.is_set():
            latest = self._probe.latest
            if latest is not None and latest.running:
                return
            try:
                self._socket.sendto(self._order, self._target)
            except OSError:
                pass  # the guest's card is not there yet
            self._enough.wait(_AGAIN_S)

    def stop(self) -> None:
        self._enough.set()
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()

    def check(self) -> None:
        """It never gives up."""


def users(
    lab: Lab, appliance: Appliance, seed: int, *, patience_s: float = 300.0, fill: bool = False
) -> tuple[Users, Probe]:
    """Users with the input ``seed``; their work is seen on the probe.

    They are ready when this returns, and wait to be let in. Then they are patient for
    ``patience_s``. With ``fill`` they have brought the data set before.
    """
    know_address(lab, appliance)
    probe = lab.collector.probe(appliance.name)
    probe.restart()
    if not appliance.load:
        return _SessionUser(lab, appliance, seed, probe), probe
    word = lab.run_dir / f"let-in-{appliance.name}"
    word.unlink(missing_ok=True)
    words = [appliance.address, "--name", appliance.name, "--patience", str(patience_s),
             "--after", str(word)]  # fmt: skip
    for key, value in {**appliance.words, "seed": seed, "rate": appliance.rate}.items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    if appliance.fill:
        words += appliance.fill if fill else (appliance.fill[0], "nothing")
    program = Program(lab.control, appliance.load, words).start()
    deadline = time.monotonic() + (_FILL_S if fill else _READY_S)
    while probe.latest is None:
        if probe.wait_next(0.5) is None and time.monotonic() > deadline:
            program.stop()
            raise LabError(f"the users of {appliance.name} do not come: {program.log}")
    return _LoadUsers(program, word), probe


def know_address(lab: Lab, appliance: Appliance) -> None:
    """Spare the users to ask who has the address: nobody does before the guest runs, and the
    kernel would ask again only after a second.
    """
    mac = appliance.spec(Path("/")).mac
    lab.control.run(["ip", "neigh", "replace", appliance.address, "lladdr", mac,
                     "dev", DATA_BRIDGE, "nud", "permanent"])  # fmt: skip


def is_ready(lab: Lab, appliance: Appliance) -> bool:
    """Whether its service, just booted, can take users."""
    if appliance.name == SESSION.name:
        latest = lab.collector.probe(appliance.name).latest
        return latest is not None and latest.detail > 0
    if appliance.name == WEB.name:
        return b" 200 " in _asked(lab, appliance, 80, b"GET /token HTTP/1.0\r\n\r\n")[:20]
    return _asked(lab, appliance, 6379, b"PING\r\n").startswith(b"+PONG")


def _asked(lab: Lab, appliance: Appliance, port: int, words: bytes) -> bytes:
    def ask() -> bytes:
        with socket.create_connection((appliance.address, port), timeout=2.0) as connection:
            connection.sendall(words)
            return connection.recv(4096)

    try:
        return lab.control.in_network(ask)
    except OSError:
        return b""


def first_answer(probe: Probe) -> float | None:
    """When the users had their first answer (monotonic s); None as long as they have none."""
    times, operations = probe.counts()
    answered = operations > 0
    return float(times[answered][0]) if answered.any() else None


def busy_s(report: Report) -> float:
    """Seconds that a session's user has spent waiting for actions to end."""
    return report.detail / 1e6
