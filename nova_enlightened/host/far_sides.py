# SPDX-License-Identifier: Apache-2.0
"""The destination of a recovery: another host's agent, or its libvirt and a command."""

import contextlib
import dataclasses
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import libvirt

from nova_enlightened import exception
from nova_enlightened.host import departure as leaving
from nova_enlightened.host import standing
from nova_enlightened.host.arrival_monitor import Told
from nova_enlightened.host.connection import translated
from nova_enlightened.host.departures import Departure
from nova_enlightened.host.recovering import There
from nova_enlightened.host.recovery import AWAY, Carrier
from nova_enlightened.host.standing import Standing
from nova_enlightened.transfer.spec import RelaySpec

COMMAND_TIMEOUT_S: Final = 20.0


class HostCalls(Protocol):
    """What is asked of the destination's agent, see ``rpc.HostAPI``."""

    def describe(self, host: str) -> dict[str, Any]:
        """Where its relays listen, among others."""

    def arrival(self, host: str, instance: str, migration: str | None) -> dict[str, Any]:
        """How a domain and its relay stand."""

    def end_arrival(self, host: str, migration: str) -> dict[str, Any]:
        """End a relay."""

    def start_destination_relay(self, host: str, spec: str) -> dict[str, Any]:
        """Where it listens."""

    def recover_arrival(self, host: str, instance: str, migration: str) -> dict[str, Any]:
        """Have QEMU listen again."""

    def end_unstarted(self, host: str, instance: str, migration: str) -> dict[str, Any]:
        """End a domain that never executed."""


class AgentFarSide:
    """The agent of the destination.

    :param options: the group ``[enlightened]``.
    :param own_name: this host, as its certificate names it.
    """

    def __init__(self, calls: HostCalls, host: str, options: Any, own_name: str) -> None:
        self._calls = calls
        self._host = host
        self._options = options
        self._own_name = own_name

    def look(self, departure: Departure) -> There:
        """See ``recovering.FarSide``, as for all that follow."""
        said = self._calls.arrival(self._host, departure.instance, departure.migration)
        return there(said)

    def end_relay(self, departure: Departure) -> None:
        """End it."""
        if departure.migration is not None:
            self._calls.end_arrival(self._host, departure.migration)

    def spec(self, migration: str) -> RelaySpec:
        """What a fresh relay is asked to be."""
        said = self._calls.describe(self._host)
        self._name = str(said.get("link_name", ""))
        return leaving.destination_spec(
            self._options, migration, self._own_name, str(said.get("link_host", ""))
        )

    def start_relay(self, spec: RelaySpec) -> leaving.Peer:
        """Start one."""
        said = self._calls.start_destination_relay(self._host, spec.to_json())
        try:
            return leaving.Peer(self._name, str(said["link_host"]), int(said["link_port"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise exception.AgentRefused(f"{self._host} answers nonsense: {error!r}") from error

    def listen_again(self, departure: Departure, migration: str) -> None:
        """Ask for it."""
        self._calls.recover_arrival(self._host, departure.instance, migration)

    def end_domain(self, departure: Departure) -> None:
        """Ask for it; it looks for itself."""
        if departure.migration is not None:
            self._calls.end_unstarted(self._host, departure.instance, departure.migration)


def there(said: Mapping[str, Any]) -> There:
    """What another agent said of an arrival. :raises AgentRefused: it is nonsense."""
    try:
        domain, relay = Standing(said["domain"]), Carrier(said["relay"])
        waits = said.get("waits") is True
        return There(domain, relay, never_executed=said.get("executed") is False, waits=waits)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise exception.AgentRefused(f"the other agent answers nonsense: {error!r}") from error


@dataclasses.dataclass(frozen=True)
class CommandFarSide:
    """A destination without an agent: its libvirt is asked directly, its relays by a command.

    :param name: as its certificate names it.
    :param address: of its links.
    :param command: what to put before a command to run it there, ssh for instance.
    :param top: ``[enlightened] run_directory``, which is the same on both hosts.
    :param destination_spec: makes the specification of a fresh relay from a migration's id.
    :param start: starts it; the port it listens on.
    """

    name: str
    address: str
    command: Sequence[str]
    top: str
    destination_spec: Callable[[str], RelaySpec]
    start: Callable[[RelaySpec], int]

    def look(self, departure: Departure) -> There:
        """As libvirt and the relay there say."""
        domain, told = _at(departure), Told()
        if domain in AWAY or domain is Standing.SWITCHING:
            told = self._executed(departure)
        carrier = self._carrier(departure.migration)
        return There(domain, carrier, told.executed is False, told.waits)

    def end_relay(self, departure: Departure) -> None:
        """End it."""
        if departure.migration is not None:
            self._run("stop", self.top, departure.migration)

    def spec(self, migration: str) -> RelaySpec:
        """What a fresh relay is asked to be."""
        return self.destination_spec(migration)

    def start_relay(self, spec: RelaySpec) -> leaving.Peer:
        """Start one."""
        return leaving.Peer(self.name, self.address, self.start(spec))

    def listen_again(self, departure: Departure, migration: str) -> None:
        """Ask for it."""
        self._run("recover", self.top, departure.instance, migration)

    def end_domain(self, departure: Departure) -> None:
        """End it."""
        with _domain_at(departure) as find:
            if self._executed(departure).waits:
                with translated("the end of a VM that never executed"):
                    find().destroy()

    def _executed(self, departure: Departure) -> Told:
        if departure.migration is None:
            return Told()
        try:
            words = self._run("executed", self.top, departure.instance, departure.migration)
            return Told(**json.loads(words))
        except (exception.RelayError, ValueError, TypeError):
            return Told()

    def _carrier(self, migration: str | None) -> Carrier:
        try:
            found = json.loads(self._run("status", self.top))
            alive = any(one["migration"] == migration for one in found if one)
        except (exception.RelayError, ValueError, TypeError, KeyError):
            return Carrier.UNKNOWN
        return Carrier.ALIVE if alive else Carrier.GONE

    def _run(self, *words: str) -> str:
        whole = [*self.command, "nova-enlightened-relay", *words]
        try:
            done = subprocess.run(
                whole, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise exception.RelayError(f"{self.name}: {error}") from error
        if done.returncode:
            raise exception.RelayError(f"{self.name}: {done.stderr.strip()[-500:]}")
        return done.stdout


def _at(departure: Departure) -> Standing:
    try:
        with _domain_at(departure) as find:
            return standing.of(find)
    except exception.LibvirtError:
        return Standing.UNKNOWN


@contextlib.contextmanager
def _domain_at(departure: Departure) -> Iterator[Callable[[], Any]]:
    """Finds the domain; raises ``libvirtError``.

    :raises LibvirtError: libvirt of the destination cannot be reached.
    """
    with translated(departure.control_uri):
        connection = libvirt.open(departure.control_uri)
    try:
        yield lambda: connection.lookupByUUIDString(departure.instance)
    finally:
        with contextlib.suppress(libvirt.libvirtError):  # it was lost meanwhile
            connection.close()
