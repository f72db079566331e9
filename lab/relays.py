# SPDX-License-Identifier: Apache-2.0
"""A pair of relays between the laboratory's hosts."""

import dataclasses
import secrets
import uuid
from pathlib import Path
from typing import Any

from lab import ca
from lab.hosts import Host
from nova_enlightened.host import relays
from nova_enlightened.knowledge import stored
from nova_enlightened.knowledge.guest_pages import GuestKnowledge
from nova_enlightened.transfer import unix_socket
from nova_enlightened.transfer.spec import RelaySpec, TlsFiles

DIRECTORY = "/run/nova-enlightened"


@dataclasses.dataclass(frozen=True)
class RelayPair:
    """Both relays of one migration. ``migrate_uri`` is what libvirt is given."""

    source: relays.RunningRelay
    destination: relays.RunningRelay
    migrate_uri: str

    def stop(self) -> None:
        """End both; a migration that still needs them is interrupted."""
        self.source.stop()
        self.destination.stop()


def certificates(directory: Path, hosts: list[Host]) -> Path:
    """The laboratory's own CA and a certificate for each host; made once."""
    ca.make_ca(directory, {host.name: [host.name, host.address] for host in hosts})
    return directory


def start_pair(
    source: Host,
    destination: Host,
    *,
    knowledge: GuestKnowledge | None = None,
    layout: dict[str, Any] | None = None,
    policy: str = "heat",
    tls: Path | None = None,
    **options: Any,
) -> RelayPair:
    """Start both relays; neither is waited for, their listening sockets are there at once.

    :param tls: directory of :func:`certificates`; None for a plaintext link.
    :param options: further fields of the relay specification.
    """
    migration = str(uuid.uuid4())
    path = f"{DIRECTORY}/{migration[:8]}.sock"
    link = destination.holder.in_network(lambda: relays.listen_link(destination.address, 0))
    common: dict[str, Any] = {
        "migration": migration,
        "socket": path,
        "link_host": destination.address,
        "link_port": link.getsockname()[1],
        "secret": secrets.token_hex(32),
        **options,
    }
    there = RelaySpec(
        role="destination",
        run_directory=f"{DIRECTORY}/{migration}-destination",
        tls=_files(tls, destination, source),
        **common,
    )
    here = RelaySpec(
        role="source",
        run_directory=f"{DIRECTORY}/{migration}-source",
        tls=_files(tls, source, destination),
        policy=policy,
        layout=layout,
        knowledge=_store(knowledge, source, f"{DIRECTORY}/{migration}-source"),
        **common,
    )
    return RelayPair(
        source=relays.start(
            here,
            unix_socket.listen(str(source.outside(path))),
            source.holder.entered([]),
            source.outside,
            source.spare_relay,
        ),
        destination=relays.start(
            there,
            link,
            destination.holder.entered([]),
            destination.outside,
            destination.spare_relay,
        ),
        migrate_uri=f"unix://{path}",
    )


def _files(directory: Path | None, own: Host, peer: Host) -> TlsFiles | None:
    if directory is None:
        return None
    return TlsFiles(
        ca=str(directory / "ca.pem"),
        cert=str(directory / f"{own.name}.pem"),
        key=str(directory / f"{own.name}.key"),
        peer_name=peer.name,
    )


def _store(knowledge: GuestKnowledge | None, host: Host, directory: str) -> str | None:
    if knowledge is None:
        return None
    host.make_directory(directory, 0o700)
    path = f"{directory}/knowledge.npz"
    host.outside(path).write_bytes(stored.dump(knowledge))
    return path
