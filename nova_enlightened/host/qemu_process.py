# SPDX-License-Identifier: Apache-2.0
"""The process that a domain's QEMU is."""

import contextlib
import os
import pathlib
from typing import Any, Final

from nova_enlightened import exception

PID_DIRECTORY: Final = "/run/libvirt/qemu"
_FOR_ITS_GROUP: Final = 0o660


def pid(domain: Any) -> int:
    """Its number, as libvirt keeps it. :raises LibvirtError: it does not run, or libvirt hides it.

    :param domain: ``libvirt.virDomain``.
    """
    path = pathlib.Path(PID_DIRECTORY, f"{domain.name()}.pid")
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise exception.LibvirtError(f"which process is QEMU? {error}") from error


def let_connect(domain: Any, path: str) -> None:
    """Have QEMU reach a unix socket of this process's, for which it is another user, as a rule.

    :raises LibvirtError: as :func:`pid`.
    """
    number = pid(domain)
    with contextlib.suppress(OSError):  # then it shows when it connects
        qemu = os.stat(f"/proc/{number}")
        try:
            os.chown(path, qemu.st_uid, qemu.st_gid)
        except PermissionError:
            os.chown(path, -1, qemu.st_gid)
            os.chmod(path, _FOR_ITS_GROUP)
