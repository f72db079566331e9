# SPDX-License-Identifier: Apache-2.0
"""The agent of a compute host: puts its parts together and runs them until it is told to end.

Native threads, one for each thing that may have to wait: the bus, libvirt, placement, relays. A
part that waits or fails never holds up another.
"""

import dataclasses
import logging
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, Final

import oslo_messaging
from oslo_config import cfg
from oslo_utils import netutils

from nova_enlightened import exception, plugins, privsep, rpc
from nova_enlightened.conf import agent as agent_options
from nova_enlightened.contention.detector import Detector
from nova_enlightened.contention.report import HostReport, Level
from nova_enlightened.host import (
    capability,
    departure,
    files,
    hint_sources,
    procfs,
    provider_traits,
    recoveries,
)
from nova_enlightened.host.appliance_endpoint import ApplianceEndpoint
from nova_enlightened.host.appliances import Appliances
from nova_enlightened.host.armed import ArmedGuests
from nova_enlightened.host.arrivals import Arrivals
from nova_enlightened.host.collectors import reading as readings
from nova_enlightened.host.connection import Connection, translated
from nova_enlightened.host.endpoint import HostEndpoint
from nova_enlightened.host.far_sides import HostCalls
from nova_enlightened.host.metrics import Metrics
from nova_enlightened.host.orders import KeptOrders
from nova_enlightened.host.outbox import Outbox
from nova_enlightened.host.preparation import Domain, Preparation
from nova_enlightened.host.recovery_calls import RecoveryCalls
from nova_enlightened.host.relay_upkeep import RelayUpkeep
from nova_enlightened.host.sampling import Identity, Sampler, thresholds
from nova_enlightened.host.spare_relay import SpareRelay
from nova_enlightened.transfer.planning import POLICIES

LOG = logging.getLogger(__name__)

LOOK_S: Final = 5.0
"""Between two looks at relays and at what this host can do."""
ORDERS_FILE: Final = "orders.json"
WILDCARDS: Final = frozenset({"0.0.0.0", "::"})
LONGEST_SOCKET: Final = 107
"""Bytes of a unix socket's path (sockaddr_un)."""
LONGEST_NAME: Final = len("/-destination/control.sock") + 36
"""Of a relay's socket below the directory of migrations, with a UUID."""
KIB: Final = 1024
NOVA_OPTS: Final = [
    cfg.StrOpt("host"),
    cfg.IntOpt("reserved_host_cpus", default=0, min=0),
    cfg.IntOpt("reserved_host_memory_mb", default=512, min=0),
]
"""Nova's own, in its ``[DEFAULT]``, for an agent that is started with Nova's file too."""


def own_link_host(conf: cfg.ConfigOpts) -> str:
    """Address by which other hosts reach this one's relays."""
    configured = conf[agent_options.GROUP].link_host or conf.enlightened.link_address
    return str(netutils.get_my_ipv4() if configured in WILDCARDS else configured)


def make_run_directory(path: str, group: int | None) -> None:
    """Have the directory of migrations, with QEMU's group if that is known.

    :raises ConfigError: it cannot be made, or is too long for the sockets in it.
    """
    most = LONGEST_SOCKET - LONGEST_NAME
    if len(path.encode()) > most:
        raise exception.ConfigError(
            f"[enlightened] run_directory = {path} is longer than {most} bytes"
        )
    try:
        if privsep.privileged(privsep.directories):
            privsep.make_directory(path, os.geteuid(), group)
        else:
            pathlib.Path(path).mkdir(parents=True, exist_ok=True, mode=privsep.OWN_MODE)
    except OSError as error:
        raise exception.ConfigError(f"[enlightened] run_directory = {path}: {error}") from error


class Agent:
    """One host's agent. Made without I/O but for loading plugins.

    :param connection: to libvirt.
    :param calls: to other hosts' agents.
    :param cast: sends a report to all that listen.
    :raises ConfigError: a plugin or a value that is not there.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        connection: Connection,
        calls: HostCalls,
        cast: Callable[[HostReport], None],
    ) -> None:
        self._conf = conf
        conf.register_opts(NOVA_OPTS)
        self._options = options = conf[agent_options.GROUP]
        self._connection = connection
        top = conf.enlightened.run_directory
        self.host = options.host or conf.host or socket.gethostname()
        self._link_host = own_link_host(conf)
        self._link_name = options.link_name or self.host
        _check_names(conf)
        kinds = _hint_sources(conf)
        self.metrics = Metrics()
        self.orders = KeptOrders(os.path.join(top, ORDERS_FILE))
        preferred = os.geteuid() == 0 or privsep.privileged(privsep.scheduling)
        self._spare = SpareRelay(unhurried=preferred)
        self.upkeep = RelayUpkeep(top, options.keep_ended, spare=self._spare)
        self.armed = ArmedGuests(conf.enlightened, kinds, lambda uuid: self._domain(uuid).target)
        self._preparation = Preparation(
            conf.enlightened,
            self._link_name,
            self.orders,
            self.armed,
            kinds,
            self._domain,
            calls,
            self.upkeep,
        )
        self.recovery = RecoveryCalls(conf, connection, calls, self._link_name, self.upkeep)
        self.appliances = Appliances(conf, self._any_domain, self._qemu_group)
        surroundings = readings.Surroundings(options, conf.enlightened, connection.get)
        self._sampler = Sampler(
            readings.load(options.collectors, surroundings),
            Detector(thresholds(options)),
            self.armed.facts,
            self.metrics.collector_failed,
        )
        self._outbox = Outbox(cast, options.report_interval)
        self._traits: provider_traits.TraitKeeper | None = None
        self._obstacles: tuple[str, ...] = ("not looked at yet",)
        self._trouble: tuple[str, ...] = ()
        self._report: HostReport | None = None
        self._qemu_user: tuple[int, int] | None = None
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=arguments, name=arguments[0], daemon=True)
            for arguments in (
                ("sampling", options.sample_interval, self.sample),
                ("looking", LOOK_S, self._tend),
                ("recovering", recoveries.TURN_S, self.recovery.turn),
            )
        ]
        self.endpoint = self._endpoint()
        self.appliance_endpoint = ApplianceEndpoint(self.appliances)

    def _endpoint(self) -> HostEndpoint:
        return HostEndpoint(
            self.describe,
            self.armed,
            self.orders,
            self._preparation,
            Arrivals(self._conf, self._link_host, self.upkeep),
            self.upkeep,
            self.metrics,
            self.recovery,
            self.announce,
        )

    # -- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin. :raises ConfigError: a directory, port or credential that cannot be used."""
        options = self._options
        make_run_directory(self._conf.enlightened.run_directory, None)
        if options.metrics_port:
            self.metrics.serve(options.metrics_address, options.metrics_port)
        api = provider_traits.api(self._conf) if options.provider_traits else None
        if api is not None:
            self._traits = provider_traits.TraitKeeper(
                lambda: provider_traits.ProviderTraits(api(), self._connection.hostname())
            )
            self._traits.start()
        elif options.provider_traits:
            LOG.info("No traits are kept in placement: [placement] auth_type is not set")
        self.orders.load()
        self.recovery.load()
        self._outbox.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End everything but relays, which go on by themselves."""
        self._ending.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(LOOK_S)
        self._outbox.stop()
        self._spare.close()
        if self._traits is not None:
            self._traits.stop()
        self.appliances.close()
        self._preparation.close()
        self.armed.close()
        self.metrics.close()
        self._connection.close()

    def _repeat(self, what: str, interval: float, turn: Callable[[], None]) -> None:
        """Take turns at a steady pace; one that takes too long makes the next one late."""
        due = time.monotonic()
        while not self._ending.is_set():
            try:
                turn()
            except Exception:
                LOG.exception("%s", what.capitalize())
            due = max(due + interval, time.monotonic())
            self._ending.wait(due - time.monotonic())

    # -- turns ------------------------------------------------------------------------------

    def sample(self) -> None:
        """Sample, judge, report."""
        began = time.monotonic()
        reading = self._sampler.read(began)
        self._trouble = reading.trouble
        try:
            identity = Identity(self.host, self._connection.hostname())
            report = self._with_own(
                self._sampler.report(reading, identity, began, time.time(), not self._why_not())
            )
        except (exception.CollectorError, exception.LibvirtError) as error:
            LOG.debug("No report: %s", error)
            self._report = None
            self.metrics.reported(None)
            self.armed.turn()
            return
        last, self._report = self._report, report
        if last is None or last.level is not report.level:
            LOG.info("Contention %s: %s", report.level.name.lower(), report.reason)
        self._outbox.offer(report)
        self.armed.turn([one.uuid for one in report.domains])
        if self._traits is not None:
            self._traits.say(
                {
                    provider_traits.POST_COPY: report.capable,
                    provider_traits.CONTENDED: report.level is Level.ACT,
                    provider_traits.STREAMING: self.appliances.offered,
                }
            )
        self.metrics.reported(report, time.monotonic() - began)

    def _tend(self) -> None:
        self.look()
        if not self.upkeep.running():  # to load one would cost CPU that those are short of
            self._spare.start()

    def look(self) -> None:
        """See which relays run, and what this host can do."""
        if self._qemu_user is None:
            try:
                self._qemu_user = capability.qemu_user(self._connection.capabilities())
            except exception.LibvirtError as error:
                LOG.debug("QEMU's user: %s", error)
            if self._qemu_user is not None:
                make_run_directory(self._conf.enlightened.run_directory, self._qemu_user[1])
        found = tuple(capability.obstacles(self._conf.enlightened, self._qemu_user, files.read))
        if found != self._obstacles:
            for obstacle in found:
                LOG.warning("No guest can leave or arrive in its order: %s", obstacle)
        self._obstacles = found
        self.upkeep.look()
        self.appliances.look()
        self.metrics.looked(self.upkeep.running(), len(self.orders.standing()))

    # -- answers ----------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """See ``rpc.HostAPI.describe``."""
        report, options = self._report, self._conf.enlightened
        why_not = self._why_not()
        return {
            "rpc_version": rpc.HOST_VERSION,
            "version": _version(),
            "host": self.host,
            "node": report.node if report is not None else None,
            "capable": not why_not,
            "obstacles": list(why_not),
            "link_host": self._link_host,
            "link_name": self._link_name,
            "link_tls": options.link_tls,
            "run_directory": options.run_directory,
            "default_policy": options.default_policy,
            "level": None if report is None else int(report.level),
            "reason": None if report is None else report.reason,
            "armed": self.armed.states(),
            "orders": [
                {"instance": one.instance, "cause": one.cause, "until": one.until}
                for one in self.orders.standing()
            ],
            "memory_available": None if report is None else report.memory_available,
            "relays": list(self.upkeep.running()),
            "appliances": self.appliances.states(),
        }

    def announce(self) -> None:
        """Report now what has been ordered since the last sample: the scheduler, which is asked
        for a destination next, knows an urgent move by it.
        """
        report = self._report
        if report is not None:
            self._outbox.offer(self._with_own(dataclasses.replace(report, at=time.time())))

    def _with_own(self, report: HostReport) -> HostReport:
        """With what no sample tells."""
        return dataclasses.replace(
            report,
            urgent=tuple(one.instance for one in self.orders.standing()),
            reserved_cpus=self._conf.reserved_host_cpus,
            reserved_memory=self._conf.reserved_host_memory_mb * KIB,
        )

    def _why_not(self) -> tuple[str, ...]:
        return self._obstacles + self._trouble

    def _qemu_group(self) -> int | None:
        return None if self._qemu_user is None else self._qemu_user[1]

    def _any_domain(self, uuid: str) -> Any:
        """A domain, running or not. :raises LibvirtError: there is none."""
        connection = self._connection.get()
        with translated(f"domain {uuid}"):
            return connection.lookupByUUIDString(uuid)

    def _domain(self, uuid: str) -> Domain:
        domain = self._connection.domain(uuid)
        with translated(f"domain {uuid}"):
            name, xml, memory = domain.name(), domain.XMLDesc(), domain.maxMemory()
        command = hint_sources.libvirt_agent_command(domain)
        return Domain(xml, departure.hint_target(name, xml, memory, command))


class BusServer:
    """Serves an agent's endpoints on the bus, which may be down, or refuse, when this starts."""

    def __init__(self, transport: oslo_messaging.Transport, host: str, *endpoints: object) -> None:
        self._served = (transport, rpc.host_target(host), list(endpoints))
        self._server: Any = None
        self._ending = threading.Event()
        self._starting = threading.Thread(target=self._start, name="bus-server", daemon=True)

    def start(self) -> None:
        """Begin to listen, without waiting for the bus."""
        self._starting.start()

    def wait_until_listening(self, timeout: float) -> bool:
        """Whether it listens, at the latest after so many seconds."""
        self._starting.join(timeout)
        return self._server is not None

    def stop(self) -> None:
        """Finish what was asked, and listen no more. Returns at once if it never listened."""
        self._ending.set()
        if self._server is not None:
            self._server.stop()
            self._server.wait()

    def _start(self) -> None:
        while not self._ending.is_set():
            server = oslo_messaging.get_rpc_server(*self._served)
            try:
                server.start()
            except Exception as error:  # whatever the bus's driver raises; a new one is made then
                LOG.warning("Not listening on the message bus: %s", error)
                self._ending.wait(LOOK_S)
            else:
                self._server = server
                return


def _hint_sources(conf: cfg.ConfigOpts) -> list[type[hint_sources.HintSource]]:
    try:
        return hint_sources.load(conf.enlightened.hint_sources)
    except exception.HintError as error:
        names = ",".join(conf.enlightened.hint_sources)
        raise exception.ConfigError(f"[enlightened] hint_sources = {names}: {error}") from error


def _check_names(conf: cfg.ConfigOpts) -> None:
    """Refuse what only a relay, or each sample, would find out. :raises ConfigError: naming it."""
    policy = conf.enlightened.ordering_policy
    plugins.load(POLICIES, policy, f"[enlightened] ordering_policy = {policy}: there is none")
    cpus = conf[agent_options.GROUP].guest_cpus
    if cpus and procfs.cpu_set(cpus) is None:
        raise exception.ConfigError(f"[enlightened_agent] guest_cpus = {cpus}: no list of CPUs")


def _version() -> str:
    try:
        return metadata.version("nova-enlightened")
    except metadata.PackageNotFoundError:
        return "unknown"
