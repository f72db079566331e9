# SPDX-License-Identifier: Apache-2.0
"""What is asked of an agent about recovery: of VMs that left this host, and that arrive."""

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

import libvirt
from oslo_config import cfg

from nova_enlightened import exception, privsep
from nova_enlightened.host import arrival_monitor, far_sides, relays, standing
from nova_enlightened.host import departure as leaving
from nova_enlightened.host.connection import translated
from nova_enlightened.host.departures import Departure, Departures
from nova_enlightened.host.recoveries import Recoveries
from nova_enlightened.host.recovering import GONE_S, Recovery
from nova_enlightened.host.recovery import AWAY, Carrier
from nova_enlightened.host.relay_upkeep import RelayUpkeep
from nova_enlightened.host.spare_monitor import monitor_path
from nova_enlightened.host.standing import Standing
from nova_enlightened.transfer.spec import RelaySpec

LOG = logging.getLogger(__name__)

_LOST: Final = libvirt.VIR_ERR_NO_CONNECT


class Connection(Protocol):
    """To this host's libvirt, see ``host.connection.Connection``."""

    def get(self) -> Any:
        """The open ``virConnect``. :raises LibvirtError: there is none now."""


class _NotConnected(libvirt.libvirtError):  # type: ignore[misc]
    """libvirt cannot be reached, as its own kind of error."""

    def __init__(self, words: str) -> None:
        Exception.__init__(self, words)
        self.err = None

    def get_error_code(self) -> int:
        return int(_LOST)


def lookup(connection: Connection, uuid: str) -> Callable[[], Any]:
    """Finds a domain each time anew, over whatever connection there is; raises ``libvirtError``."""

    def find() -> Any:
        try:
            opened = connection.get()
        except exception.LibvirtError as error:
            raise _NotConnected(str(error)) from error
        return opened.lookupByUUIDString(uuid)

    return find


class RecoveryCalls:
    """One agent's. Safe for threads; made without I/O.

    :param calls: to other hosts' agents.
    :param own_name: this host, as its certificate names it.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        connection: Connection,
        calls: far_sides.HostCalls,
        own_name: str,
        upkeep: RelayUpkeep,
    ) -> None:
        self._options = conf.enlightened
        self._top = str(conf.enlightened.run_directory)
        self._connection = connection
        self._calls = calls
        self._own_name = own_name
        self._upkeep = upkeep
        self._recoveries = Recoveries(Departures(self._top), self._make)

    def load(self) -> None:
        """Go on where an earlier process was."""
        self._recoveries.load()

    def turn(self) -> None:
        """Look after each migration that left."""
        self._recoveries.turn()

    # -- of VMs that left -------------------------------------------------------------------

    def follow(self, departure: Departure) -> None:
        """One was ordered."""
        self._recoveries.follow(departure)

    def ended(self, migration: str, moved: bool) -> None:
        """Who ordered it has seen its end."""
        self._recoveries.end_migration(migration, moved)

    def told(self) -> list[dict[str, Any]]:
        """All of them."""
        return self._recoveries.told()

    def state(self, instance: str) -> dict[str, Any]:
        """One of them, or nothing."""
        return self._recoveries.state(instance)

    def retry(self, instance: str) -> dict[str, Any]:
        """Try again now."""
        return self._recoveries.retry(instance)

    def stop(self, instance: str) -> dict[str, Any]:
        """Try nothing more."""
        return self._recoveries.stop(instance)

    # -- of VMs that arrive -----------------------------------------------------------------

    def arrival(self, instance: str, migration: str | None) -> dict[str, Any]:
        """How a domain and its relay stand here."""
        spec = relays.specification(self._top, migration, "destination")
        domain = standing.of(lookup(self._connection, instance))
        carrier = Carrier.GONE if spec is None else relays.carrier(spec)[0]
        said: dict[str, Any] = {"domain": domain.value, "relay": carrier.value}
        if migration is not None and (domain in AWAY or domain is Standing.SWITCHING):
            monitor = monitor_path(self._top, instance)
            said |= arrival_monitor.executed(monitor, migration)._asdict()
        return said

    def end_arrival(self, migration: str) -> None:
        """End the relay of one. :raises RelayError: it does not end."""
        spec = relays.specification(self._top, migration, "destination")
        if spec is not None:
            LOG.warning("Relay of migration %s is ended: that of its source is gone", migration)
            relays.end(spec, GONE_S)

    def recover_arrival(self, instance: str, migration: str) -> None:
        """Have QEMU of one listen again where a relay connects.

        :raises RelayError: it cannot be told so out of band.
        """
        monitor = monitor_path(self._top, instance)
        arrival_monitor.recover(monitor, f"unix:{leaving.Places(self._top, migration).socket}")

    def end_unstarted(self, instance: str, migration: str) -> None:
        """End a VM that arrives and never executed.

        :raises AgentRefused: it may have executed, or a relay may still bring what it waits for.
        :raises LibvirtError: libvirt does not end it.
        """
        said = self.arrival(instance, migration)
        unstarted = said.get("waits") and said["domain"] == Standing.SWITCHING
        if not unstarted or said["relay"] != Carrier.GONE:
            raise exception.AgentRefused(f"{instance} is not ended here: it may have executed")
        LOG.warning("%s never executed here and goes back: it is ended", instance)
        with translated("the end of a VM that never executed"):
            lookup(self._connection, instance)().destroy()

    # -- parts ------------------------------------------------------------------------------

    def _make(self, departure: Departure, keep: Callable[[Departure], None]) -> Recovery:
        far = far_sides.AgentFarSide(
            self._calls, departure.destination, self._options, self._own_name
        )
        return Recovery(
            departure,
            lookup(self._connection, departure.instance),
            far,
            self._start_here,
            self._top,
            keep,
            read_memory=privsep.read_memory,
        )

    def _start_here(self, there: RelaySpec, peer: leaving.Peer) -> relays.RunningRelay:
        started = leaving.start_carrier(self._options, there, peer)
        self._upkeep.adopt(started)
        return started
