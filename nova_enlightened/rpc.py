# SPDX-License-Identifier: Apache-2.0
"""Calls between this project's services over Nova's message bus.

Each compute host's agent serves :class:`HostAPI` on a queue of its own. Reports are cast to
everybody who listens: remediators and schedulers.

Versions follow oslo.messaging: a new method or optional argument raises the minor number, and a
client says with ``version_cap`` what it needs; anything else raises the major number.
"""

import concurrent.futures
import contextlib
import importlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import oslo_messaging
from oslo_config import cfg
from oslo_utils import versionutils

from nova_enlightened import exception
from nova_enlightened.contention.report import HostReport
from nova_enlightened.contention.report_cache import ReportCache

LOG = logging.getLogger(__name__)

EXCHANGE: Final = "nova_enlightened"
HOST_TOPIC: Final = "nova-enlightened-host"
REPORT_TOPIC: Final = "nova-enlightened-report"
HOST_VERSION: Final = "1.3"
"""What an agent serves. 1.1: appliances, and recovery. 1.2: arrivals are monitored. 1.3: and ended,
where they never executed."""
MONITORED_ARRIVALS: Final = "1.2"
"""Since when an agent keeps a second monitor of a VM that arrives."""
FIRST_HOST_VERSION: Final = "1.0"
"""What a call asks for unless it needs more: an agent that is older serves that."""
REPORT_VERSION: Final = "1.0"

CALL_TIMEOUT_S: Final = 5.0
"""A host that does not answer within this is treated as one without an agent."""
PREPARE_TIMEOUT_S: Final = 10.0
ARRIVAL_TIMEOUT_S: Final = 15.0
"""A relay is given time to end by itself before it is killed."""
MANIFEST_TIMEOUT_S: Final = 60.0
"""A manifest is small; the store may be far away, and tries again."""
ALIVE_S: Final = 3
"""An agent at work on a call says so at half this interval (the bus counts in whole seconds): one
that is silent for longer is not there, however long the call may take."""
GRACE_S: Final = 1.0
"""Given to a call beyond its timeout, before it is left to itself."""
RETRIES: Final = 1
"""Of a message that the bus does not take; by default oslo.messaging goes on for ever."""
MOST_CALLS: Final = 32
"""Calls of one process that may be under way, or stuck, at once."""


def serves(described: Mapping[str, Any], wanted: str) -> bool:
    """Whether an agent understands calls of version `wanted`; not where it tells no version.

    :param described: what :meth:`HostAPI.describe` answers.
    """
    try:
        return versionutils.is_compatible(wanted, str(described.get("rpc_version")))
    except ValueError:
        return False


def get_transport(conf: cfg.ConfigOpts, url: str | None = None) -> oslo_messaging.Transport:
    """The bus of ``transport_url``, or of `url`; no connection is made yet.

    The default exchange is left alone: in a process of Nova it is Nova's. Targets here name theirs.
    """
    register_library_opts(conf)
    return oslo_messaging.get_rpc_transport(conf, url=url)


def register_library_opts(conf: cfg.ConfigOpts) -> None:
    """Register the options that oslo.messaging reads from `conf` but registers, when it is
    imported, on the global object only.
    """
    for name in ("metrics", "tracing"):
        group = f"oslo_messaging_{name}"
        # Older releases lack one or both, and do not read it then.
        with contextlib.suppress(ImportError, AttributeError):
            module = importlib.import_module(f"oslo_messaging._{name}.client")
            conf.register_opts(getattr(module, group), group=group)


def host_target(host: str | None = None) -> oslo_messaging.Target:
    """Where a host's agent listens."""
    return oslo_messaging.Target(
        exchange=EXCHANGE, topic=HOST_TOPIC, server=host, version=FIRST_HOST_VERSION
    )


def report_target(server: str | None = None) -> oslo_messaging.Target:
    """Where reports go; a listener names itself, a sender casts to all."""
    return oslo_messaging.Target(
        exchange=EXCHANGE,
        topic=REPORT_TOPIC,
        server=server,
        fanout=server is None,
        version=REPORT_VERSION,
    )


class HostAPI:
    """Client of the agents on compute hosts.

    Every method raises ``AgentUnreachable`` where the host's agent does not answer, and
    ``AgentRefused`` with the agent's own words where it declines.
    """

    def __init__(self, transport: oslo_messaging.Transport) -> None:
        self._client = oslo_messaging.get_rpc_client(
            transport,
            host_target(),
            serializer=None,
            version_cap=HOST_VERSION,
            retry=RETRIES,
        )
        self._bounded = Bounded()

    def describe(self, host: str) -> dict[str, Any]:
        """Versions, capabilities, link address and certificate name of a host's agent."""
        return self._call(host, "describe")

    def arm(self, host: str, instances: list[str]) -> dict[str, Any]:
        """Have guests begin to sample; renews a lease. Answers uuid -> how, in words."""
        return self._call(host, "arm", instances=instances)

    def disarm(self, host: str, instances: list[str]) -> dict[str, Any]:
        """Have guests stop sampling."""
        return self._call(host, "disarm", instances=instances)

    def order_urgent(self, host: str, instance: str, cause: str, ttl: float) -> dict[str, Any]:
        """Have the next live migration of an instance leave by ordered post-copy, switched at
        once. The order is void after `ttl` seconds, or once a migration has taken it.
        """
        return self._call(host, "order_urgent", instance=instance, cause=cause, ttl=ttl)

    def withdraw_urgent(self, host: str, instance: str) -> dict[str, Any]:
        """Take an urgent order back; harmless where there is none."""
        return self._call(host, "withdraw_urgent", instance=instance)

    def prepare_eviction(
        self, host: str, instance: str, destination: str, tls_required: bool
    ) -> dict[str, Any]:
        """Asked by nova-compute of its own host's agent, right before libvirt migrates.

        Starts the relays of both hosts where an urgent order, or the policy of the host, wants
        the instance to leave in its guest's order.

        :param destination: the compute service that receives it.
        :param tls_required: refuse where the link would be less protected than Nova promises.
        :returns: ``wanted`` (bool), ``ordered`` (bool), ``reason`` (words) and, where ordered,
            ``migrate_uri`` and ``migration`` (the relays' id). ``wanted`` without ``ordered``
            means: post-copy, switched at once, in QEMU's own order.
        """
        return self._call(
            host,
            "prepare_eviction",
            PREPARE_TIMEOUT_S,
            instance=instance,
            destination=destination,
            tls_required=tls_required,
        )

    def end_eviction(self, host: str, migration: str, outcome: str) -> dict[str, Any]:
        """Asked by nova-compute when libvirt's migration has ended: the relays' last state."""
        return self._call(host, "end_eviction", migration=migration, outcome=outcome)

    def note_decision(self, host: str, instance: str, kind: str, reason: str) -> None:
        """Have the host's agent count what nova-compute decided of a live migration; not answered.

        :param kind, reason: values of ``virt.decision.Kind`` and ``virt.decision.Reason``.
        """
        prepared = self._client.prepare(server=host)
        noted = {"instance": instance, "kind": kind, "reason": reason}
        try:
            self._bounded(lambda: prepared.cast({}, "note_decision", **noted), CALL_TIMEOUT_S)
        except Exception as error:
            raise exception.AgentUnreachable(f"agent of {host}: {error}") from error

    def start_destination_relay(self, host: str, spec: str) -> dict[str, Any]:
        """Asked by the source's agent of the destination's.

        :param spec: ``transfer.spec.RelaySpec`` as JSON; the destination puts its own
            certificates and address in.
        :returns: ``link_host`` and ``link_port``.
        """
        return self._call(host, "start_destination_relay", spec=spec)

    # --- recovery, since 1.1 ---------------------------------------------------------------------

    def follow_eviction(self, host: str, **departure: Any) -> dict[str, Any]:
        """Told by nova-compute to its own host's agent, before libvirt migrates: from the switch on
        the agent recovers the migration where it has to.

        :param departure: ``instance``, ``destination``, ``control_uri`` and ``migration``, see
            ``host.departures.Departure``.
        """
        return self._call(host, "follow_eviction", version="1.1", **departure)

    def recovery(self, host: str, instance: str) -> dict[str, Any]:
        """How a migration stands that the agent follows: ``state`` (a value of
        ``host.recovery.State``), ``why``, ``attempts``, ``trouble``; empty where it knows of none.
        """
        return self._call(host, "recovery", version="1.1", instance=instance)

    def recoveries(self, host: str) -> dict[str, Any]:
        """``departures``: each migration that this host's agent follows, as :meth:`recovery`."""
        return self._call(host, "recoveries", version="1.1")

    def retry_recovery(self, host: str, instance: str) -> dict[str, Any]:
        """Try again now, also after a stop."""
        return self._call(host, "retry_recovery", version="1.1", instance=instance)

    def stop_recovery(self, host: str, instance: str) -> dict[str, Any]:
        """Try nothing more until `retry_recovery`."""
        return self._call(host, "stop_recovery", version="1.1", instance=instance)

    def arrival(self, host: str, instance: str, migration: str | None) -> dict[str, Any]:
        """Asked by the source's agent: ``domain`` (a value of ``host.standing.Standing``) and
        ``relay`` (of ``host.recovery.Carrier``) of a VM that arrives, or has.
        """
        return self._call(host, "arrival", version="1.1", instance=instance, migration=migration)

    def end_arrival(self, host: str, migration: str) -> dict[str, Any]:
        """Asked by the source's agent, whose relay is gone: end the destination's."""
        return self._call(
            host, "end_arrival", ARRIVAL_TIMEOUT_S, version="1.1", migration=migration
        )

    def recover_arrival(self, host: str, instance: str, migration: str) -> dict[str, Any]:
        """Asked by the source's agent, whose fresh relay stands: have QEMU listen again where that
        of the destination connects, past a main loop that waits for a page. Since 1.2.
        """
        arriving = {"instance": instance, "migration": migration}
        return self._call(
            host, "recover_arrival", ARRIVAL_TIMEOUT_S, version=MONITORED_ARRIVALS, **arriving
        )

    def end_unstarted(self, host: str, instance: str, migration: str) -> dict[str, Any]:
        """Asked by the source's agent, which has all of the VM: end it there, as it never executed
        and waits for what cannot reach it. Refused where it may have. Since 1.3.
        """
        arriving = {"instance": instance, "migration": migration}
        return self._call(host, "end_unstarted", ARRIVAL_TIMEOUT_S, version="1.3", **arriving)

    # --- appliances, since 1.1: asked by nova-compute of its own host's agent --------------------

    def prepare_appliance(
        self, host: str, instance: str, appliance: dict[str, Any]
    ) -> dict[str, Any]:
        """Have an appliance's manifest read and checked, and its player begin to buffer.

        Asked again, also after the host was restarted, it has the same sockets served again.

        :param appliance: ``store`` (URL), ``manifest`` (sha256), ``plan`` (sha256 or None),
            ``memory`` (bool: false where only the disks are wanted, for a domain that boots) and
            ``traced`` (bool: its owner lets a trace be kept).
        :returns: ``sockets`` (of the disks' NBD exports, by target), ``monitor`` (the socket that
            the domain's QEMU connects a second monitor to) and of the ``manifest``:
            ``machine``, ``qemu_version``, ``cpu``, ``domain_xml``, ``disks`` (target, bytes).
        """
        return self._call(
            host,
            "prepare_appliance",
            MANIFEST_TIMEOUT_S,
            version="1.1",
            instance=instance,
            appliance=appliance,
        )

    def play_appliance(
        self, host: str, instance: str, identity: dict[str, Any], within: float
    ) -> dict[str, Any]:
        """Have a domain that waits for an incoming migration filled, and let it execute once
        enough is there. Answers at once; `appliance_state` tells how it goes.

        :param identity: what the clone is told of itself: ``hostname`` and ``interfaces``, see
            ``host.clones``.
        :param within: seconds in which it has to execute.
        """
        wanted: dict[str, Any] = {"identity": identity, "within": within}
        return self._call(host, "play_appliance", version="1.1", instance=instance, **wanted)

    def appliance_state(self, host: str, instance: str) -> dict[str, Any]:
        """``phase`` (a value of ``host.appliances.Phase``), ``percent`` of what `phase` waits for,
        ``error`` (words, or None) and ``words`` for a person.
        """
        return self._call(host, "appliance_state", version="1.1", instance=instance)

    def end_appliance(self, host: str, instance: str, kept: bool) -> dict[str, Any]:
        """Have the player end, and its sockets go.

        :param kept: the domain only stops: its disk is still needed, and goes on being fetched.
        """
        return self._call(host, "end_appliance", version="1.1", instance=instance, kept=kept)

    def _call(
        self,
        host: str,
        method: str,
        timeout: float = CALL_TIMEOUT_S,
        version: str = FIRST_HOST_VERSION,
        **arguments: Any,
    ) -> dict[str, Any]:
        prepared = self._client.prepare(
            server=host, timeout=timeout, call_monitor_timeout=ALIVE_S, version=version
        )
        try:
            answer = self._bounded(
                lambda: prepared.call({}, method, **arguments), timeout + GRACE_S
            )
        except oslo_messaging.RemoteError as error:
            raise exception.AgentRefused(f"{host}: {error.value}") from error
        except exception.AgentUnreachable:
            raise
        except (exception.EnlightenedError, oslo_messaging.UnsupportedVersion) as error:
            # A bus within one process raises it as it is.
            raise exception.AgentRefused(f"{host}: {error}") from error
        except Exception as error:  # the driver's own too: kombu's pass through untranslated
            raise exception.AgentUnreachable(f"agent of {host}: {error}") from error
        return cast("dict[str, Any]", answer)


class Bounded:
    """Runs calls in threads of their own and waits for each only so long.

    The bus's client waits without end for the first connection to a broker that is down, whatever
    timeout the call has (oslo.messaging, impl_rabbit.Connection.ensure_connection).
    """

    def __init__(self, most: int = MOST_CALLS) -> None:
        self._free = threading.BoundedSemaphore(most)

    def __call__(self, call: Callable[[], Any], timeout: float) -> Any:
        """What `call` answers or raises. :raises AgentUnreachable: it does neither in time."""
        if not self._free.acquire(blocking=False):
            raise exception.AgentUnreachable("message bus: too many calls wait for it")
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            try:
                answer.set_result(call())
            except Exception as error:  # it is raised where the answer is awaited
                answer.set_exception(error)
            finally:
                self._free.release()

        threading.Thread(target=run, name="bus-call", daemon=True).start()
        try:
            return answer.result(timeout)
        except concurrent.futures.TimeoutError as error:
            if answer.done():
                raise
            raise exception.AgentUnreachable("message bus: not reached in time") from error


class ReportAPI:
    """Casts a host's reports to all that listen. Losing one is harmless: the next follows."""

    def __init__(self, transport: oslo_messaging.Transport) -> None:
        self._client = oslo_messaging.get_rpc_client(transport, report_target(), retry=RETRIES)

    def cast(self, report: HostReport) -> None:
        """Send a report; may wait for as long as the bus is down.

        :raises AgentUnreachable: the bus does not take it now.
        """
        try:
            self._client.cast({}, "host_report", report=report.to_dict())
        except Exception as error:
            raise exception.AgentUnreachable(f"message bus: {error}") from error


class ReportListener:
    """Hears every host's reports and holds the newest of each; safe for threads.

    :param server: names this listener on the bus: host and service, different for each process.
    :param clock: seconds since the epoch.
    :param heard: called with each report, in a thread of the bus.
    """

    target = oslo_messaging.Target(version=REPORT_VERSION)

    def __init__(
        self,
        transport: oslo_messaging.Transport,
        server: str,
        cache: ReportCache,
        clock: Callable[[], float] = time.time,
        heard: Callable[[HostReport], None] = lambda report: None,
    ) -> None:
        self._cache = cache
        self._clock = clock
        self._heard = heard
        self._lock = threading.Lock()
        # Only what is exposed: the bus must not call what this process calls, such as `stop`.
        self._server = oslo_messaging.get_rpc_server(
            transport,
            report_target(server),
            [self],
            access_policy=oslo_messaging.ExplicitRPCAccessPolicy,
        )
        self._starting: threading.Thread | None = None

    def start(self) -> None:
        """Begin to listen, without waiting for the bus: it may be down for long."""
        self._starting = threading.Thread(
            target=self._server.start, name="report-listener", daemon=True
        )
        self._starting.start()

    def stop(self) -> None:
        """Stop listening; returns at once where the bus was never reached."""
        if self._starting is not None and not self._starting.is_alive():
            self._server.stop()
            self._server.wait()

    @oslo_messaging.expose  # type: ignore[untyped-decorator]
    def host_report(self, context: dict[str, Any], report: dict[str, Any]) -> None:
        """Called from the bus, see :meth:`ReportAPI.cast`."""
        try:
            made = HostReport.from_dict(report)
        except ValueError as error:
            LOG.warning("A report was dropped: %s", error)
            return
        with self._lock:
            self._cache.add(made, self._clock())
        self._heard(made)

    def get(self, host: str) -> HostReport | None:
        """What a host last said of itself; None where that is nothing, or too old."""
        with self._lock:
            return self._cache.get(host, self._clock())

    def current(self) -> list[HostReport]:
        """What every host last said that is not too old, by name."""
        with self._lock:
            return self._cache.current(self._clock())
