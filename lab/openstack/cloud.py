# SPDX-License-Identifier: Apache-2.0
"""The cloud: up, stopped, wiped."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from lab import processes, relays
from lab.errors import LabError
from lab.laboratory import HOSTS, Lab
from lab.namespaces import require_root
from lab.network import CONTROL_ADDRESS, DATA_BRIDGE, PREFIX
from lab.openstack import configuration, furnish, openrc, services, storage
from lab.openstack.api import Api
from lab.openstack.configuration import Driver, Sections, Settings
from lab.openstack.launch import Launch
from lab.openstack.places import ALL, HOST_ADDRESS, TOP, Places
from lab.openstack.services import Service

LINK_MBIT = 400.0
_HERE = Path(__file__).resolve().parent
_STATE = "openstack.json"
_WHERE = ("ctl", *HOSTS)
_DATABASE_S = 15.0
_METADATA = "Metadata-Version: 2.1\nName: lab-plugins\nVersion: 1\n"
_ENTRY_POINTS = """\
[neutron.ml2.mechanism_drivers]
lab_tap = lab_tap:TapMechanismDriver
[nova_enlightened.collectors]
lab-guests = lab_guests:GuestsOnly
"""

# $1 the file that becomes /etc/hosts, $2 the address on the data network, "" where there is one.
_JOIN = """
set -e
mount --bind "$1" /etc/hosts
mkdir -p /run/tmp
if [ -n "$2" ]; then ip addr add "$2" dev "$3"; fi
"""


class Cloud:
    """OpenStack on the laboratory ``lab``, whose hosts its compute hosts are.

    ``driver``, ``mode`` and ``extra``: see ``configuration.Settings``. ``remediated``: whether the
    remediator is started with the rest, or by ``launch``. ``progress`` is told of every step.
    """

    def __init__(
        self,
        *,
        driver: Driver = Driver.STOCK,
        mode: str = "audit",
        extra: Sections | None = None,
        remediated: bool = True,
        run: Path | None = None,
        cache: Path | None = None,
        link_mbit: float | None = LINK_MBIT,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.places = Places.default(run, cache)
        self._progress = progress or (lambda _: None)
        first, *_, last = sorted(os.sched_getaffinity(0)) * 2
        self.settings = Settings(driver, mode, link_mbit, extra or {})
        self.lab = Lab(
            cache=cache, run=self.places.run, link_mbit=link_mbit, progress=self._progress,
            cpus={"host1": {first}, "host2": {last}},
        )  # fmt: skip
        holders = {name: host.holder for name, host in self.lab.hosts.items()}
        self.launch = Launch(self.places, {"ctl": self.lab.control, **holders})
        self.api = Api(self.lab.control)
        self._remediated = remediated
        self.missing: list[str] = []
        self._began = 0.0

    # --- up and down ----------------------------------------------------------------------

    def up(self) -> Self:
        """Start everything; it stays when this process ends.

        Raises LabError, leaving nothing but the logs, below the data.
        """
        require_root()
        self._require_programs()
        self.lab.up(keep=True)  # and so, from here on, everything in the run directory is ours
        try:
            fresh = self._lay_out_data()
            self._lay_out_run()
            self._start(fresh)
        except BaseException:
            kept = self.places.data / "log-of-failure"
            self.keep_logs(kept)
            self._progress(f"Failed; the services' logs are in {kept}")
            self.stop()
            raise
        return self

    def keep_logs(self, directory: Path) -> None:
        """Copy the services' logs, which end with the cloud."""
        shutil.rmtree(directory, ignore_errors=True)
        if (self.places.run / "log").exists():
            shutil.copytree(self.places.run / "log", directory)

    def _require_programs(self) -> None:
        for path in (self.places.program("nova-compute"), self.places.program("gunicorn")):
            if not Path(path).exists():
                raise LabError(f"{path} is missing: run `make openstack`")
        for program in ("mariadbd", "glusterd", "glusterfs", "rabbitmqctl", "mount.glusterfs"):
            if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
                raise LabError(f"{program} is missing: tools/install-debian-packages.sh openstack")

    def _lay_out_data(self) -> bool:
        """Whether the data is to be made. What another recipe, or half a run, made goes first."""
        kept = self.places.data / "recipe"
        if kept.exists() and kept.read_text() == self.places.recipe():
            return False
        if kept.exists():
            self._progress("What was kept is of another recipe: making it anew")
        self._remove_data()
        for name in ("mysql", "images", "glusterd", "keystone", *(f"nova/{at}" for at in _WHERE)):
            (self.places.data / name).mkdir(parents=True, exist_ok=True)
        return True

    def _remove_data(self) -> None:
        shutil.rmtree(self.places.data, ignore_errors=True)

    def _lay_out_run(self) -> None:
        """Every file that is not data, and the hosts' part in the control network."""
        places, run = self.places, self.places.run
        for where in _WHERE:
            for name in ("tmp", "locks"):
                (run / where / name).mkdir(parents=True, exist_ok=True)
        for name in ("ctl/rabbitmq", "ctl/staging", "ctl/tasks", "ctl/neutron", "log", "instances"):
            (run / name).mkdir(parents=True, exist_ok=True)
        (run / "ctl/rabbitmq/plugins").write_text("[].\n")
        relays.certificates(run / "tls", list(self.lab.hosts.values()))
        self._write_configuration()
        self._install_plugins()
        addresses = {"ctl": CONTROL_ADDRESS, **HOST_ADDRESS}
        names = "".join(f"{address} {name}\n" for name, address in addresses.items())
        (run / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        for holder in (self.lab.control, *(host.holder for host in self.lab.hosts.values())):
            address = HOST_ADDRESS.get(holder.name, "")
            holder.run(["sh", "-c", _JOIN, "sh", str(run / "hosts"),
                        f"{address}/{PREFIX}" if address else "", DATA_BRIDGE])  # fmt: skip
            storage.own_directories(places, holder, serves=holder is self.lab.control)
        self.lab.control.run(["ip", "route", "add", ALL, "dev", DATA_BRIDGE])

    def _write_configuration(self) -> None:
        etc = self.places.configuration
        etc.mkdir(parents=True, exist_ok=True)
        for name, sections in configuration.files(self.places, self.settings).items():
            (etc / name).write_text(configuration.text(sections))
        # Nova's API looks for this beside its own file, whatever that says.
        shutil.copy(self.places.programs.parent / "etc/nova/api-paste.ini", etc)
        (etc / "rabbitmq.conf").write_text(configuration.RABBITMQ)
        for each in services.interfaces(self.places):
            text = configuration.gunicorn(each.serves, each.loaded)
            (etc / f"{each.name}.gunicorn.py").write_text(text)

    def _install_plugins(self) -> None:
        """Plugins are found by entry point only: so they are a distribution, on PYTHONPATH."""
        python = self.places.run / "python"
        described = python / "lab_plugins-1.dist-info"
        described.mkdir(parents=True)
        for module in (_HERE / "plugins").glob("*.py"):
            shutil.copy(module, python)
        (described / "METADATA").write_text(_METADATA)
        (described / "entry_points.txt").write_text(_ENTRY_POINTS)

    # --- the start ------------------------------------------------------------------------

    def _start(self, fresh: bool) -> None:
        launch, places = self.launch, self.places
        self._began = time.time()
        bus, shared = services.bus(places), services.storage(places)
        self._progress("Starting MariaDB, RabbitMQ and GlusterFS")
        for service in (bus, shared):
            launch.start(service)
        keystone, placement, *others = services.interfaces(places)
        working, self.missing = services.installed(services.workers(places, self.settings.driver))
        conductor, *rest = working
        if not self._remediated:
            rest.remove(services.remediator(places))
        if self.missing:
            self._progress(f"Not installed, and left out: {', '.join(self.missing)}")
        with ThreadPoolExecutor(1) as pool:
            stored = pool.submit(self._share_storage, shared)
            self._start_database(fresh)
            if fresh:
                self._make_schemas(keystone)
            else:
                launch.start(keystone)
            launch.start(placement)
            for service in (bus, keystone):
                launch.wait(service)
            if fresh:
                furnish.catalogue(self.api)
                (places.data / "recipe").write_text(places.recipe())
            launch.wait(placement)  # the conductor ends where it does not answer
            self._progress("Starting Nova and what it needs")
            for service in (conductor, *others, *(one for one in rest if one.where == "ctl")):
                launch.start(service)
            stored.result()
        launch.wait(conductor)
        for service in rest:
            if service.where != "ctl":
                launch.start(service)
        for service in others:
            launch.wait(service)
        self._progress("The APIs answer; waiting for the compute hosts")
        self._furnish(working)
        self._write_state()

    def _furnish(self, working: list[Service]) -> None:
        furnish.network_and_flavors(self.api)
        assert self.lab.image is not None
        furnish.image(self.api, self.lab.image)
        self._wait_for_hosts(working)
        openrc.write(self.places, self.lab.control.pid)
        self._progress("Ready")

    def _share_storage(self, shared: Service) -> None:
        self.launch.wait(shared)
        storage.volume(self.places, self.lab.control)
        storage.mount(self.places, [host.holder for host in self.lab.hosts.values()])

    def _start_database(self, fresh: bool) -> None:
        service = services.database(self.places)
        data = f"--datadir={self.places.data / 'mysql'}"
        if fresh:
            self.launch.run("ctl", ["mariadb-install-db", "--no-defaults", "--user=root", data,
                                     "--skip-test-db"], "mariadb-install-db")  # fmt: skip
        self.launch.start(service)
        self.launch.wait(service, 60.0)
        if fresh:
            made = "".join(f"CREATE DATABASE {name};" for name in services.DATABASES)
            socket = f"--socket={self.places.database_socket}"
            self.launch.run("ctl", ["mariadb", "--no-defaults", socket, "-e", made], "mariadb")

    def _make_schemas(self, keystone: Service) -> None:
        """All tables, two services at a time; keystone starts as soon as it has its own."""
        self._progress("Making the databases' tables (once)")

        def make(name: str, commands: Iterable[tuple[str, ...]]) -> None:
            began = time.monotonic()
            for command in commands:
                self.launch.run("ctl", command, f"{name}-tables")
            if name == "keystone":
                self.launch.start(keystone)
            self._progress(f"  {name}'s are made ({time.monotonic() - began:.0f} s)")

        with ThreadPoolExecutor(2) as pool:
            making: list[Future[None]] = [
                pool.submit(make, name, commands)
                for name, commands in services.schemas(self.places).items()
            ]
        for each in making:
            each.result()

    # --- while it is up ---------------------------------------------------------------------

    def drive(self, driver: Driver) -> None:
        """Have nova-compute of both hosts run another driver; all else goes on. Raises LabError."""
        for service in self._computes():
            self.launch.kill(service)  # one that lingers is in the way of the next
        self.settings = dataclasses.replace(self.settings, driver=driver)
        self._write_configuration()
        for service in self._computes():
            self.launch.start(service)
        self.wait_for_hosts()
        self._write_state()

    def _computes(self) -> list[Service]:
        every, _ = services.installed(services.workers(self.places, self.settings.driver))
        return [one for one in every if one.where != "ctl" and one.name.endswith("-compute")]

    def own_storage(self) -> AbstractContextManager[None]:
        """Instances on a disk of each host's own, until the block ends."""
        return storage.own(self.places, [host.holder for host in self.lab.hosts.values()])

    def wait_for_hosts(self) -> None:
        """Until both hosts say anew that they are up. Raises LabError."""
        self._began = time.time()
        self._wait_for_hosts(self._computes())

    def _wait_for_hosts(self, working: list[Service], seconds: float = 120.0) -> None:
        """Until Nova has both hosts in its cell and their services are up."""
        deadline = time.monotonic() + seconds
        # Services of the last run count as up for a minute.
        began = datetime.datetime.fromtimestamp(self._began, datetime.UTC).isoformat()

        def missing(cloud: Any) -> set[str]:
            up = {service.host for service in cloud.compute.services(binary="nova-compute")
                  if service.state == "up" and (service.updated_at or "") > began}  # fmt: skip
            mapped = {each.name for each in cloud.compute.hypervisors() if each.state == "up"}
            return set(HOSTS) - (up & mapped)

        while absent := self.api.call(missing):
            self.launch.check_all(working)
            if time.monotonic() > deadline:
                late = next(each for each in working
                            if each.where in absent and each.name.endswith("-compute"))  # fmt: skip
                raise self.launch.failure(late, f"is not up after {seconds:.0f} s")
            time.sleep(0.5)

    # --- from one process to the next ------------------------------------------------------

    def _write_state(self) -> None:
        state = {"driver": self.settings.driver, "mode": self.settings.mode,
                 "missing": self.missing, "services": self.launch.describe()}  # fmt: skip
        (self.places.run / _STATE).write_text(json.dumps(state, indent=1))

    @classmethod
    def running(cls, *, run: Path | None = None, cache: Path | None = None) -> Cloud:
        """The cloud that is up in the run directory. Raises LabError where there is none."""
        where = Places.default(run, cache).run
        try:
            state = json.loads((where / _STATE).read_text())
        except (OSError, ValueError) as error:
            raise LabError(
                f"no cloud is up in {where}: run `python -m lab.openstack up`"
            ) from error
        cloud = cls(driver=Driver(state["driver"]), mode=state["mode"], run=run, cache=cache)
        cloud.lab.attach()
        cloud.missing = state["missing"]
        return cloud

    def release(self) -> None:
        """Leave it running when this process ends."""
        self.api.close()
        self.launch.release()

    def stop(self) -> int:
        """End every process; the data stays. Returns how many were ended."""
        self.api.close()
        self._end_database()
        ended = self.lab.down(force=True)
        self.launch.ended()
        return ended

    def _end_database(self) -> None:
        """By itself, before everybody's three seconds: it has something to write."""
        try:
            pid = int((self.places.run / "mariadb.pid").read_text())
            handle = os.pidfd_open(pid)
        except (OSError, ValueError):
            return
        try:
            if pid in processes.belonging_to(self.token()):
                signal.pidfd_send_signal(handle, signal.SIGTERM)
                processes.wait_for_end({handle}, _DATABASE_S)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)

    def token(self) -> str:
        """What marks every process of the cloud that is up, see ``lab.processes``; else ""."""
        try:
            return str(json.loads((self.places.run / "state.json").read_text())["token"])
        except (OSError, ValueError, KeyError):
            return ""

    def wipe(self) -> None:
        """``stop``, and remove the data."""
        self.stop()
        self._remove_data()

    def status(self) -> dict[str, Any]:
        """The first floor's status, every service and whether it lives, and the servers."""
        state = json.loads((self.places.run / _STATE).read_text())
        alive = {
            f"{where}/{name}": processes.started_at(pid) == started
            for where, name, pid, started in state["services"]
        }
        servers = self.api.call(
            lambda cloud: {
                server.name: {"id": server.id, "host": server.compute_host, "is": server.status}
                for server in cloud.compute.servers(all_projects=True)
            }
        )
        return {**self.lab.status(), "driver": state["driver"], "mode": state["mode"],
                "not installed": self.missing, "services": alive, "servers": servers}  # fmt: skip


__all__ = ["TOP", "Cloud"]
