# SPDX-License-Identifier: Apache-2.0
"""Has QEMU at the source go on with a stream that paused, without libvirt's own migration.

libvirt takes a migration that QEMU ends while none of its threads follows it for an unattended one,
and ends it on its side too (``qemuMigrationProcessUnattended``, since 8.4).
"""

import json
import socket
from typing import Any, Final

import libvirt
import libvirt_qemu

from nova_enlightened import exception

NAME: Final = "enlightened-resume"


def resume(domain: Any, path: str) -> None:
    """Have QEMU go on through the unix socket at `path`.

    This process connects, and hands QEMU the connection: QEMU need not be allowed to.

    :raises LibvirtError: QEMU declines, or nobody listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            raise exception.LibvirtError(f"{path}: {error}") from error
        _ask(domain, "getfd", [connection.fileno()], fdname=NAME)
    _ask(domain, "migrate", [], uri=f"fd:{NAME}", resume=True)


def _ask(domain: Any, command: str, descriptors: list[int], **words: Any) -> None:
    said = json.dumps({"execute": command, "arguments": words})
    try:
        told, _ = libvirt_qemu.qemuMonitorCommandWithFiles(domain, said, descriptors, 0)
    except libvirt.libvirtError as error:
        raise exception.LibvirtError(f"{command}: {error}") from error
    answer = json.loads(told)
    if "error" in answer:
        raise exception.LibvirtError(f"{command}: {answer['error'].get('desc')}")
