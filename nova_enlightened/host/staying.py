# SPDX-License-Identifier: Apache-2.0
"""Has QEMU at the source go on with a VM that was handed over and never executed elsewhere.

What was sent of the memory is still there. QEMU starts no processors while its migration is not
over (``qmp_cont``). One that is cancelled ends at once, unless one of its threads sees the socket
closed before it sees the cancelling: then that waits for a recovery for good. Which comes first is
chance while there is a return path (``migrate_fd_cancel`` of 7.2), so that has to have ended. One
that has paused already is recovered first, see :mod:`.stand_in`.

libvirt 9.0 goes on holding its migration job for such a domain, also when it
is started anew: the domain can be looked at, suspended and ended, and is an ordinary one again when
it was started again, by a hard reboot for instance.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import libvirt

from nova_enlightened import exception
from nova_enlightened.host import qemu_monitor, stand_in
from nova_enlightened.stream import encode

ENDS_S: Final = 5.0
"""How long QEMU may take to end a migration that is cancelled."""
HEARD_S: Final = 0.5
"""How long QEMU may take to hear that its return path ends, of which it tells nobody."""
_PAUSED: Final = "postcopy-paused"
_FAILED: Final = "failed"
_HANDING_OVER: Final = "finish-migrate"
_EXECUTES: Final = "running"


def go_on(domain: Any, end_relay: Callable[[], None]) -> None:
    """Have its processors execute here.

    To be called only where it is certain that they never will elsewhere, after the relay took leave
    of QEMU (:meth:`.relays.RunningRelay.take_leave`).

    :param domain: at the source, ``libvirt.virDomain``.
    :param end_relay: ends the relay.
    :raises LibvirtError: QEMU does not let it, and the domain goes on standing still.
    """
    if _status(domain) == _HANDING_OVER:
        if qemu_monitor.migration_status(domain) == _PAUSED:
            with stand_in.recovered(domain) as destination:
                destination.sendall(encode.shut())
                _cancel(domain, destination.close)
        else:
            _cancel(domain, end_relay)
    if _status(domain) != _EXECUTES:
        qemu_monitor.ask(domain, "cont")


def sends_no_more(lookup: Callable[[], Any]) -> bool:
    """Whether QEMU at the source sends nothing of its own accord any more: its migration has failed
    or paused. False too where it is not told.

    :param lookup: finds the domain; raises ``libvirtError``.
    """
    return _ended_with(lookup) in (_FAILED, _PAUSED)


def gave_up(lookup: Callable[[], Any]) -> bool:
    """Whether QEMU at the source will not resume its migration. False too where it is not told.

    :param lookup: finds the domain; raises ``libvirtError``.
    """
    return _ended_with(lookup) == _FAILED


def _ended_with(lookup: Callable[[], Any]) -> str:
    try:
        return qemu_monitor.migration_status(lookup())
    except (exception.LibvirtError, libvirt.libvirtError):
        return ""


def _cancel(domain: Any, end_reader: Callable[[], None]) -> None:
    """End its migration, whose return path is about to end.

    :param end_reader: closes what QEMU writes to. It may be writing, on a socket that it has closed
        itself with its return path: nothing else wakes it then.
    """
    time.sleep(HEARD_S)
    qemu_monitor.ask(domain, "migrate_cancel")
    end_reader()
    if not qemu_monitor.until(lambda: _status(domain) != _HANDING_OVER, ENDS_S):
        raise exception.LibvirtError("QEMU at the source does not end its migration")


def _status(domain: Any) -> str:
    return str(qemu_monitor.ask(domain, "query-status").get("status"))
