# SPDX-License-Identifier: Apache-2.0
"""Has QEMU at the source go on with a VM that was handed over and never executed elsewhere.

What was sent of the memory is still there. QEMU starts no processors while its migration is not
over (``qmp_cont``). One that is cancelled ends at once, unless one of its threads sees the socket
closed before it sees the cancelling: then that waits for a recovery for good. Which comes first is
chance while there is a return path (``migrate_fd_cancel`` of 7.2), so that has to have ended. One
that has paused already is recovered first, see :mod:`.stand_in`. QEMU from 10.0 on does not cancel
a post-copy; but from 8.2 on one fails that has sent all it has and is given no last word.

libvirt 9.0 goes on holding its migration job for such a domain, also when it
is started anew: the domain can be looked at, suspended and ended, and is an ordinary one again when
it was started again, by a hard reboot for instance.
"""

import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import libvirt

from nova_enlightened import exception
from nova_enlightened.host import qemu_monitor, stand_in
from nova_enlightened.host.switch import STARTS_AGAIN

ENDS_S: Final = 5.0
"""How long QEMU may take to end a migration that is cancelled."""
HEARD_S: Final = 0.5
"""How long QEMU may take to hear that its return path ends, of which it tells nobody."""
_PAUSED: Final = "postcopy-paused"
_FAILED: Final = "failed"
_HANDING_OVER: Final = "finish-migrate"
_EXECUTES: Final = "running"


class Relay(Protocol):
    """The one at the source, which may have ended. Its methods raise ``EnlightenedError``."""

    @property
    def path(self) -> str:
        """Of its unix socket."""

    def take_leave(self) -> None:
        """Have QEMU hear the last word of its destination."""

    def end(self) -> None:
        """End it; harmless when done before."""


def go_on(domain: Any, relay: Relay) -> None:
    """Have its processors execute here.

    To be called only where it is certain that they never will elsewhere.

    :param domain: at the source, ``libvirt.virDomain``.
    :raises LibvirtError: QEMU does not let it, and the domain goes on standing still.
    """
    if _status(domain) == _HANDING_OVER:
        try:
            if domain.connect().getVersion() < STARTS_AGAIN:
                _cancel(domain, relay)
            else:
                _fail(domain, relay)
        except OSError as error:
            raise exception.LibvirtError(f"QEMU at the source: {error}") from error
        if not qemu_monitor.until(lambda: _status(domain) != _HANDING_OVER, ENDS_S):
            raise exception.LibvirtError("QEMU at the source does not end its migration")
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


def _cancel(domain: Any, relay: Relay) -> None:
    """End a migration that can be cancelled."""
    relay.take_leave()
    if qemu_monitor.migration_status(domain) != _PAUSED:
        _cancel_towards(domain, relay.end)
        return
    with stand_in.recovered(domain, relay.path) as destination:
        destination.say_last_word()
        _cancel_towards(domain, destination.close)


def _cancel_towards(domain: Any, close: Callable[[], None]) -> None:
    """The same with a return path that is about to end.

    :param close: of what QEMU writes to. It may be writing, on a socket that it has closed itself
        with its return path: nothing else wakes it then.
    """
    time.sleep(HEARD_S)
    qemu_monitor.ask(domain, "migrate_cancel")
    close()


def _fail(domain: Any, relay: Relay) -> None:
    """Have a migration fail that cannot be cancelled: it sends all it has, and no word comes."""
    relay.end()
    if not qemu_monitor.until(
        lambda: qemu_monitor.migration_status(domain) in (_FAILED, _PAUSED), ENDS_S
    ):
        raise exception.LibvirtError("QEMU at the source does not notice that its stream has ended")
    if qemu_monitor.migration_status(domain) == _PAUSED:
        with stand_in.recovered(domain, relay.path) as destination:
            destination.take_all()


def _status(domain: Any) -> str:
    return str(qemu_monitor.ask(domain, "query-status").get("status"))
