# SPDX-License-Identifier: Apache-2.0
"""What an ordered migration needs on its source host before libvirt is asked to migrate.

Knowledge of the guest becomes a file, the file and both hosts' addresses become the
specifications of two relays, and the relay of this host is started.
"""

import dataclasses
import pathlib
import secrets
from collections.abc import Callable
from typing import Any

from nova_enlightened import exception
from nova_enlightened.host import relays
from nova_enlightened.host.hint_sources import HintTarget
from nova_enlightened.host.spare_monitor import monitor_path
from nova_enlightened.host.spare_relay import SpareRelay
from nova_enlightened.knowledge import domain_xml, stored
from nova_enlightened.knowledge.guest_pages import GuestKnowledge
from nova_enlightened.knowledge.layout import MemoryLayout
from nova_enlightened.stream.guest_channel import PORT_NAME
from nova_enlightened.transfer import unix_socket
from nova_enlightened.transfer.spec import RelaySpec

KIB = 1024


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the files of a migration are. The same on both hosts, but for what one side has.

    :param top: ``[enlightened] run_directory``.
    """

    top: str
    migration: str

    def directory(self, role: str) -> str:
        """The run directory of one side's relay."""
        return str(pathlib.Path(self.top, f"{self.migration}-{role}"))

    @property
    def socket(self) -> str:
        """QEMU's unix socket, of both sides: libvirt has one ``migrate_uri``."""
        return str(pathlib.Path(self.top, f"{self.migration[:8]}.sock"))


def guest_channel(xml: str) -> str | None:
    """QEMU's unix socket for this project's port, from the domain's XML; None without one.

    :raises HintError: not the XML of a domain.
    """
    for channel in domain_xml.root(xml).iterfind("./devices/channel"):
        target, source = channel.find("target"), channel.find("source")
        if target is not None and target.get("name") == PORT_NAME and source is not None:
            return source.get("path")
    return None


def hint_target(
    name: str, xml: str, memory: int, agent_command: Callable[[str, int], str] | None
) -> HintTarget:
    """Where a guest is asked. :param memory: KiB of RAM. :raises HintError: as `guest_channel`."""
    return HintTarget(name, memory * KIB, guest_channel(xml), agent_command)


def destination_spec(
    options: Any, migration: str, own_name: str, link_host: str, monitored: str | None = None
) -> RelaySpec:
    """What the destination's relay is asked to be; its port is its own to choose.

    :param own_name: this host, as its certificate names it.
    :param monitored: UUID of the VM where its QEMU is to have a second monitor there.
    """
    places = Places(options.run_directory, migration)
    return RelaySpec(
        role="destination",
        migration=migration,
        run_directory=places.directory("destination"),
        socket=places.socket,
        link_host=link_host,
        link_port=0,
        secret=secrets.token_hex(32),
        tls=relays.tls_files(options, own_name),
        window_floor=options.injection_window_floor * KIB,
        window_cap=options.injection_window_cap * KIB,
        monitor=None if monitored is None else monitor_path(options.run_directory, monitored),
    )


@dataclasses.dataclass(frozen=True)
class Peer:
    """Where the destination's relay listens, and the name its certificate must carry."""

    name: str
    link_host: str
    link_port: int


def start_source(
    options: Any,
    there: RelaySpec,
    peer: Peer,
    known: GuestKnowledge,
    domain_xml: str,
    spare: SpareRelay | None = None,
) -> relays.RunningRelay:
    """Start the relay of this host.

    :param there: what the destination's was asked to be.
    :param spare: a relay process that has started already, where there is one.
    :raises HintError: where the guest's memory lies is not known.
    :raises RelayError: the relay could not be started, or its directory not be written.
    """
    layout = MemoryLayout.from_domain_xml(domain_xml)
    places = Places(options.run_directory, there.migration)
    directory = pathlib.Path(places.directory("source"))
    try:
        directory.mkdir(parents=True, mode=0o700)
        file = directory / "knowledge.npz"
        file.write_bytes(stored.dump(known))
        listener = unix_socket.listen(there.socket)
    except OSError as error:
        raise exception.RelayError(f"run directory: {error}") from error
    here = dataclasses.replace(
        there,
        role="source",
        monitor=None,
        run_directory=str(directory),
        link_host=peer.link_host,
        link_port=peer.link_port,
        tls=relays.tls_files(options, peer.name),
        policy=options.ordering_policy,
        layout=layout.to_dict(),
        knowledge=str(file),
    )
    return relays.start(here, listener, spare=spare)


def start_carrier(options: Any, there: RelaySpec, peer: Peer) -> relays.RunningRelay:
    """Start the relay of this host for a stream that is resumed; it carries, and orders nothing.

    :param there: what the destination's was asked to be.
    :raises RelayError: it could not be started, or its directory not be written.
    """
    directory = pathlib.Path(Places(options.run_directory, there.migration).directory("source"))
    try:
        directory.mkdir(parents=True, mode=0o700)
        listener = unix_socket.listen(there.socket)
    except OSError as error:
        raise exception.RelayError(f"run directory: {error}") from error
    here = dataclasses.replace(
        there,
        role="source",
        monitor=None,
        run_directory=str(directory),
        link_host=peer.link_host,
        link_port=peer.link_port,
        tls=relays.tls_files(options, peer.name),
    )
    return relays.start(here, listener)
