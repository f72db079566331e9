# SPDX-License-Identifier: Apache-2.0
"""Commands to a domain's QEMU through libvirt, on the monitor that libvirt uses itself."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import libvirt_qemu

from nova_enlightened import exception
from nova_enlightened.host.connection import translated

LOOK_S: Final = 0.05


def ask(domain: Any, command: str, descriptors: Sequence[int] = (), **arguments: Any) -> Any:
    """What QEMU returns.

    :param domain: ``libvirt.virDomain``.
    :param descriptors: handed to QEMU with the command.
    :raises LibvirtError: QEMU declines, or the domain does not run.
    """
    said = json.dumps({"execute": command, "arguments": arguments})
    with translated(command):
        # libvirt has the second call since 8.2, and over a local socket only.
        if descriptors:
            told, _ = libvirt_qemu.qemuMonitorCommandWithFiles(domain, said, list(descriptors), 0)
        else:
            told = libvirt_qemu.qemuMonitorCommand(domain, said, 0)
    answer = json.loads(told)
    if "error" in answer:
        raise exception.LibvirtError(f"{command}: {answer['error'].get('desc')}")
    return answer["return"]


def migration_status(domain: Any) -> str:
    """QEMU's ``MigrationStatus`` of its last migration; ``none`` where there was none.

    :raises LibvirtError: as :func:`ask`.
    """
    return str(ask(domain, "query-migrate").get("status", "none"))


def has_capability(domain: Any, name: str) -> bool:
    """Whether its migration has one of QEMU's ``MigrationCapability``.

    :raises LibvirtError: as :func:`ask`.
    """
    told = ask(domain, "query-migrate-capabilities")
    return any(one["capability"] == name and one["state"] for one in told)


def until(there: Callable[[], bool], seconds: float) -> bool:
    """Wait for what QEMU tells in an event, which only libvirt hears. :returns: whether it came."""
    deadline = time.monotonic() + seconds
    while not (came := there()) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    return came


def ask_in_words(domain: Any, words: str) -> str:
    """The same of a command that only QEMU's monitor for people has.

    :raises LibvirtError: the domain does not run.
    """
    with translated(words):
        flags = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        return str(libvirt_qemu.qemuMonitorCommand(domain, words, flags))
