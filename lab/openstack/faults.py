# SPDX-License-Identifier: Apache-2.0
"""What breaks in the middle of an urgent migration by Nova, and whether all is true afterwards."""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import libvirt

from lab import faults, relays
from lab.errors import LabError
from lab.openstack import services
from lab.openstack.agents import Agents
from lab.openstack.servers import Server
from lab.openstack.story import ENDED

if TYPE_CHECKING:
    from lab.openstack.cloud import Cloud

UP_S: Final = 90.0
DRIVER_S: Final = 90.0
SETTLED_S: Final = 180.0
ALIVE_S: Final = 30.0
ARM_S: Final = 4.0
CUT_S: Final = 33.0
"""libvirt gives up after 29."""
LOOK_S: Final = 0.3
WATCH_S: Final = 0.05


@dataclass(frozen=True)
class Case:
    """One of them. ``status``: of Nova's migration in the end. ``wrong``: why it did not go as it
    should; empty where it did.
    """

    after_s: float
    status: str
    source: str
    host: str
    wrong: str


@dataclass(frozen=True)
class Setting:
    """A migration under way, to break something of. ``source``: where its server was."""

    cloud: Cloud
    server: Server
    source: str

    def until_executing(self) -> None:
        """Until the server executes at its destination. Raises LabError where it does not."""
        (there,) = (name for name in self.cloud.lab.hosts if name != self.source)
        deadline = time.monotonic() + DRIVER_S
        while not _executes(self.cloud, there, self.server.uuid):
            if time.monotonic() > deadline:
                raise LabError(f"it does not execute on {there} after {DRIVER_S:.0f} s")
            time.sleep(WATCH_S)


Fault = Callable[[Setting], None]


def nova_compute_killed(setting: Setting) -> None:
    """That of the source is killed; another is started, and Nova hears of it.

    Raises LabError where it ends, or does not get there.
    """
    cloud, host = setting.cloud, setting.source
    (service,) = (
        one
        for one in services.workers(cloud.places, cloud.settings.driver)
        if one.where == host and one.name.endswith("-compute")
    )
    cloud.launch.kill(service)
    began = datetime.datetime.now(datetime.UTC).isoformat()
    cloud.launch.start(service)
    deadline = time.monotonic() + UP_S

    def heard(api: Any) -> bool:
        (told,) = api.compute.services(binary="nova-compute", host=host)
        return (told.updated_at or "") > began

    while not cloud.api.call(heard):
        cloud.launch.check(service)
        if time.monotonic() > deadline:
            raise LabError(f"nova-compute of {host} is not up after {UP_S:.0f} s")
        time.sleep(LOOK_S)


def link_cut(setting: Setting) -> None:
    """Nothing crosses the migration link for longer than libvirt is patient."""
    setting.until_executing()
    with faults.dropped(setting.cloud.lab):
        time.sleep(CUT_S)


def libvirtd_restarted(setting: Setting) -> None:
    """That of the source."""
    setting.until_executing()
    faults.restart_libvirtd(setting.cloud.lab.hosts[setting.source])


def relay_killed(setting: Setting) -> None:
    """That of the source, which may have ended by itself."""
    setting.until_executing()
    here = setting.cloud.lab.hosts[setting.source].outside(relays.DIRECTORY)
    newest = max(here.glob("*-source/state.json"), key=lambda path: path.stat().st_mtime)
    faults.kill(int(json.loads(newest.read_text())["pid"]))


def befallen(
    running: Cloud, agents: Agents, server: Server, fault: Fault, after_s: float = 0.0
) -> Case:
    """One urgent migration that something befalls so long after it was given to the driver.

    Before that Nova prepares the destination, and what an end of nova-compute leaves then is
    Nova's own: no driver is told of it. Raises LabError where it does not get so far.
    """
    source = server.host
    known = {int(one["id"]) for one in running.api.migrations(server.uuid)}
    began = server.boot_id()
    agents.arm(source, server.uuid)
    time.sleep(ARM_S)  # the guest looks for so long at what it uses
    agents.order(source, server.uuid, "the benchmark")
    with _Copies(running, server.uuid) as copies:
        server.live_migrate()
        _wait_for_driver(running, server, known)
        time.sleep(after_s)
        fault(Setting(running, server, source))
        wrong = _awaited(lambda: _untrue(running, server, source, known))
    if not wrong and copies.most > 1:
        wrong = f"{copies.most} copies at one time"
    if not wrong:
        wrong = _dead(server, began)
    new = [one for one in running.api.migrations(server.uuid) if int(one["id"]) not in known]
    return Case(after_s, str(new[0]["status"]) if new else "none", source, server.host, wrong)


def _wait_for_driver(running: Cloud, server: Server, known: set[int]) -> None:
    deadline = time.monotonic() + DRIVER_S
    while True:
        new = [one for one in running.api.migrations(server.uuid) if int(one["id"]) not in known]
        status = str(new[0]["status"]) if new else "none"
        if status.startswith("running") or status in ENDED:
            return
        if time.monotonic() > deadline:
            raise LabError(f"the migration is {status} after {DRIVER_S:.0f} s")
        time.sleep(WATCH_S)


def _untrue(running: Cloud, server: Server, source: str, known: set[int]) -> str:
    """What of Nova's record, or placement's, is not what libvirt says; empty where all is."""
    told = running.api.server(server.uuid)
    new = [one for one in running.api.migrations(server.uuid) if int(one["id"]) not in known]
    if not new or new[0]["status"] not in ENDED:
        return f"the migration is {new[0]['status'] if new else 'not known'}"
    if told.status != "ACTIVE" or told.task_state is not None:
        return f"the server is {told.status}, {told.task_state}"
    executes = [name for name in running.lab.hosts if _executes(running, name, server.uuid)]
    if executes != [told.compute_host]:
        return f"it executes at {executes}, Nova has it on {told.compute_host}"
    if (new[0]["status"] == "completed") != (told.compute_host != source):
        return f"the migration is {new[0]['status']}, the server on {told.compute_host}"
    held = running.api.allocations(server.uuid)
    if set(held) != {told.compute_host}:
        return f"placement has it on {sorted(held)}, Nova on {told.compute_host}"
    if left := running.api.allocations(str(new[0]["uuid"])):
        return f"placement keeps {sorted(left)} for the migration"
    return ""


def _awaited(untrue: Callable[[], str]) -> str:
    """What is still untrue when the time is over."""
    deadline = time.monotonic() + SETTLED_S
    while wrong := untrue():
        if time.monotonic() > deadline:
            return wrong
        time.sleep(LOOK_S)
    return ""


def _dead(server: Server, began: str) -> str:
    """Why it is not the VM that it was; empty where it is, and works on."""
    try:
        server.probe.wait_running(ALIVE_S)
        now = server.boot_id()
    except LabError as error:
        return str(error)
    return "" if now == began else "its guest was booted anew"


def _executes(running: Cloud, host: str, uuid: str) -> bool:
    try:
        domain: Any = running.lab.hosts[host].connection.lookupByUUIDString(uuid)
        return bool(domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        raise


class _Copies:
    """Asks both hosts all the time how many of them execute it; ``most`` is the greatest number."""

    def __init__(self, running: Cloud, uuid: str) -> None:
        self._running = running
        self._uuid = uuid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="copies", daemon=True)
        self.most = 0

    def __enter__(self) -> _Copies:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        """The source first: what is seen there and then at its destination may just have moved,
        so two copies count only where the first is seen again.
        """
        while not self._ended.wait(WATCH_S):
            try:
                names = [one for one in self._running.lab.hosts if self._at(one)]
                if len(names) > 1:
                    names = [one for one in names if self._at(one)]
            except libvirt.libvirtError:
                continue  # its libvirtd is busy: the next look is near
            self.most = max(self.most, len(names))

    def _at(self, host: str) -> bool:
        return _executes(self._running, host, self._uuid)
