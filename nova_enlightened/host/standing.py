# SPDX-License-Identifier: Apache-2.0
"""How a domain that migrates stands on one host, in the words that recovery is decided by."""

import enum
from collections.abc import Callable, Mapping
from typing import Any, Final

import libvirt


class Standing(enum.StrEnum):
    """What one host's libvirt says of a domain that leaves, or arrives."""

    EXECUTES = "executes"
    """All of it is here: it has not left, or has arrived. A guest its owner paused counts too."""
    SWITCHING = "switching"
    """Its processors stand still, for the switch or for what precedes the start."""
    POSTCOPY = "post-copy"
    """Part of its memory is on the other host."""
    FAILED = "post-copy failed"
    """The same, and libvirt does not follow it any more. Its memory may flow all the same."""
    GONE = "gone"
    """No such domain, or shut off because it has migrated."""
    ENDED = "ended"
    """Shut off for another reason: it crashed, or somebody ended it."""
    UNKNOWN = "unknown"
    """libvirt does not answer."""


SWITCHED: Final = frozenset({Standing.POSTCOPY, Standing.FAILED})
"""At the source: the switch was made, whether or not libvirt has told who asked for it."""

_BY_STATE: Final[Mapping[tuple[int, int], Standing]] = {
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY): Standing.POSTCOPY,
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED): Standing.FAILED,
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY): Standing.POSTCOPY,
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED): Standing.FAILED,
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION): Standing.SWITCHING,
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP): Standing.SWITCHING,
    # libvirt that was restarted may not know: nobody may conclude that it never left.
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_UNKNOWN): Standing.SWITCHING,
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED): Standing.GONE,
}
_ENDED: Final = (
    libvirt.VIR_DOMAIN_SHUTOFF,
    libvirt.VIR_DOMAIN_CRASHED,
    libvirt.VIR_DOMAIN_SHUTDOWN,
)


def of_state(state: int, reason: int) -> Standing:
    """From ``virDomainGetState``."""
    known = _BY_STATE.get((state, reason))
    if known is not None:
        return known
    return Standing.ENDED if state in _ENDED else Standing.EXECUTES


def of(lookup: Callable[[], Any]) -> Standing:
    """How the domain stands that `lookup` finds, which may raise ``libvirtError``."""
    return _read(lookup, of_state)


def at_source(lookup: Callable[[], Any]) -> Standing:
    """The same of a domain that leaves.

    Its processors stand still from the switch on. One that executes has all its memory, though
    libvirt may still call its post-copy failed; see :mod:`.staying`.
    """
    return _read(lookup, _of_leaving)


def _of_leaving(state: int, reason: int) -> Standing:
    running = state == libvirt.VIR_DOMAIN_RUNNING
    return Standing.EXECUTES if running else of_state(state, reason)


def _read(lookup: Callable[[], Any], judge: Callable[[int, int], Standing]) -> Standing:
    try:
        state, reason = lookup().state()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return Standing.GONE
        return Standing.UNKNOWN
    return judge(state, reason)
