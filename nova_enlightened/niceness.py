# SPDX-License-Identifier: Apache-2.0
"""How much of a short CPU a relay gets: much while a guest waits for pages, then its fair share."""

import contextlib
import os
import pathlib
import time
from typing import Final

WAITED_FOR: Final = -10
"""A guest waits for every page, and the host it leaves is short of CPU."""
FAIR: Final = 0
UNHURRIED: Final = 19
"""It gets ready for what may come much later."""
AUTOGROUP_INTERVAL_S: Final = 0.1
"""The kernel refuses who is not root for so long after anybody's (``autogroup.c``)."""
_LOOK_S: Final = 0.02


def renice(pid: int, value: int) -> None:
    """Set a process's niceness, and that of its autogroup.

    Where the kernel schedules by autogroups (sched(7)), a process's own niceness only counts
    within its session, and a relay is alone in its session. A process in no autogroup, as what
    the first process starts without a session, has its own niceness count at once. Takes up to
    twice ``AUTOGROUP_INTERVAL_S`` where others do the same.

    :raises OSError: there is no such process, or this one may not.
    """
    os.setpriority(os.PRIO_PROCESS, pid, value)
    autogroup = pathlib.Path(f"/proc/{pid}/autogroup")
    if not autogroup.exists() or not autogroup.read_text():
        return
    deadline = time.monotonic() + 2 * AUTOGROUP_INTERVAL_S
    while True:
        try:
            autogroup.write_text(str(value))
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_S)


def ask(value: int, pid: int | None = None) -> None:
    """As :func:`renice`; without the right to do so, the process stays as any other.

    :param pid: None for this one.
    """
    with contextlib.suppress(OSError):
        renice(pid or os.getpid(), value)
