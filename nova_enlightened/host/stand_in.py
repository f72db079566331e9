# SPDX-License-Identifier: Apache-2.0
"""Stands in for a destination that has ended, so that QEMU at the source leaves its pause.

QEMU whose post-copy has paused waits for a recovery, and for nothing else: cancelled then, it waits
for good (``postcopy_pause`` of 7.2). So it gets one. Afterwards its migration is one that is under
way, of which nothing has crossed and nothing is read, and can be ended.
"""

import contextlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.host import qemu_monitor, ram_places, resuming
from nova_enlightened.stream.empty_destination import EmptyDestination

RECOVERS_S: Final = 5.0
_READ: Final = 64 << 10


@contextlib.contextmanager
def recovered(domain: Any) -> Iterator[socket.socket]:
    """QEMU's post-copy is under way again, towards the socket that is given.

    To be called only where it is certain that the VM never executes elsewhere.

    :param domain: at the source, ``libvirt.virDomain``; its post-copy has paused.
    :raises LibvirtError: QEMU declines, or does not recover.
    """
    blocks = {name: place.length for name, place in ram_places.of(domain).items()}
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            resuming.through(domain, theirs)
        ours.settimeout(RECOVERS_S)
        try:
            _answer(ours, blocks)
        except (OSError, exception.StreamError) as error:
            raise exception.LibvirtError(f"QEMU at the source does not recover: {error}") from error
        if not qemu_monitor.until(lambda: _is_active(domain), RECOVERS_S):
            raise exception.LibvirtError("QEMU at the source does not recover: it stays paused")
        yield ours


def _answer(peer: socket.socket, blocks: Mapping[str, int]) -> None:
    destination = EmptyDestination(blocks)
    while not destination.resumed:
        data = peer.recv(_READ)
        if not data:
            raise exception.StreamError("it has closed its connection")
        peer.sendall(destination.receive_data(data))


def _is_active(domain: Any) -> bool:
    return qemu_monitor.migration_status(domain) == "postcopy-active"
