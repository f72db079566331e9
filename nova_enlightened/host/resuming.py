# SPDX-License-Identifier: Apache-2.0
"""Has QEMU at the source go on with a stream that paused, without libvirt's own migration.

libvirt takes a migration that QEMU ends while none of its threads follows it for an unattended one,
and ends it on its side too (``qemuMigrationProcessUnattended``, since 8.4).
"""

import socket
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.host import qemu_monitor, qemu_process

NAME: Final = "enlightened-resume"


def resume(domain: Any, path: str) -> None:
    """Have QEMU go on through the unix socket at `path`.

    This process connects, and hands QEMU the connection: QEMU need not be allowed to. But QEMU
    that has a second channel for what is urgent connects itself, to have two.

    :raises LibvirtError: QEMU declines, or nobody listens there.
    """
    if preempts(domain):
        to_listener(domain, path)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            raise exception.LibvirtError(f"{path}: {error}") from error
        through(domain, connection)


def preempts(domain: Any) -> bool:
    """Whether its migration has a second channel. :raises LibvirtError: QEMU does not tell."""
    return qemu_monitor.has_capability(domain, "postcopy-preempt")


def to_listener(domain: Any, path: str) -> None:
    """Have QEMU connect to `path` by itself, as often as it has channels, and go on.

    :raises LibvirtError: QEMU declines, or nobody listens there.
    """
    qemu_process.let_connect(domain, path)
    qemu_monitor.ask(domain, "migrate", uri=f"unix:{path}", resume=True)


def through(domain: Any, connection: socket.socket) -> None:
    """The same through a socket that is connected; QEMU has a duplicate of it.

    :raises LibvirtError: QEMU declines.
    """
    qemu_monitor.ask(domain, "getfd", [connection.fileno()], fdname=NAME)
    qemu_monitor.ask(domain, "migrate", uri=f"fd:{NAME}", resume=True)
