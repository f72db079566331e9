# SPDX-License-Identifier: Apache-2.0
"""Whether a server may be started on the host Nova has it on, although it may have left."""

from typing import Final

import libvirt

from nova_enlightened.host.standing import Standing
from nova_enlightened.virt.journal import Entry

LEFT: Final = frozenset(
    {
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED),
    }
)
"""States of a source after its switch. At a destination libvirt says *running* in both cases."""

_AWAY: Final = frozenset({Standing.GONE, Standing.ENDED})


def refusal(
    state: tuple[int, int] | None, entry: Entry | None, there: Standing, resumes: bool = False
) -> str | None:
    """Why it may not be started or resumed here, in words; None where it may be.

    :param state: the domain's state and reason here; None where there is none, or none is told.
    :param entry: of the journal.
    :param there: how it stands at the entry's destination; asked only where it is lost.
    :param resumes: what is here is to go on, as opposed to being started anew.
    """
    buried = entry is not None and entry.lost is not None and there in _AWAY
    if entry is not None and not buried:
        if entry.lost is None:
            return f"it is leaving for {entry.destination}, where it may execute already"
        return (
            f"it left for {entry.destination} and is lost ({entry.lost}), but {entry.destination} "
            f"does not say that nothing of it is left there ({there})"
        )
    if state in LEFT and (resumes or not buried):
        return "its processors stand still for post-copy: it executes at its destination"
    return None
