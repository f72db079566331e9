# SPDX-License-Identifier: Apache-2.0
"""How much of a short CPU a relay gets: much while a guest waits for pages, then its fair share."""

import contextlib
import os
import pathlib
from typing import Final

WAITED_FOR: Final = -10
"""A guest waits for every page, and the host it leaves is short of CPU."""
FAIR: Final = 0
UNHURRIED: Final = 19
"""It gets ready for what may come much later."""


def set_niceness(niceness: int, pid: int | None = None) -> None:
    """Set a process's niceness, and that of its autogroup.

    Where the kernel schedules by autogroups (sched(7)), a process's own niceness only counts
    within its session, and a relay is alone in its session. Without the right to do so, nothing
    changes: then it is as any other process.

    :param pid: None for this one.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid or 0, niceness)
    with contextlib.suppress(OSError):
        pathlib.Path(f"/proc/{pid or 'self'}/autogroup").write_text(str(niceness))
