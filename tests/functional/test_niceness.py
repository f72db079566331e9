# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import subprocess
import sys

import pytest

from nova_enlightened import niceness

PROGRAM = """
import os, pathlib
from nova_enlightened import niceness
niceness.ask({})
print(os.nice(0), pathlib.Path("/proc/self/autogroup").read_text().split()[-1])
"""


def niceness_after(asked: int) -> list[str]:
    """(process's, autogroup's) of a process that asks for one, in a session of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(asked)],
        start_new_session=True, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.skipif(
    not os.path.exists("/proc/self/autogroup"), reason="the kernel has no autogroups"
)
def test_a_relay_is_less_nice_to_other_sessions_too() -> None:
    if os.geteuid():
        pytest.skip("only root may")
    assert niceness_after(-10) == ["-10", "-10"]


@pytest.mark.skipif(
    not os.path.exists("/proc/self/autogroup"), reason="the kernel has no autogroups"
)
def test_it_can_go_back_to_its_fair_share() -> None:
    assert niceness_after(0) == ["0", "0"]


def test_a_process_in_no_autogroup_has_only_a_niceness_of_its_own() -> None:
    """The kernel refuses to weigh what it has in the group of all others."""
    for one in (1, 2):
        autogroup = pathlib.Path(f"/proc/{one}/autogroup")
        if os.geteuid() == 0 and autogroup.exists() and not autogroup.read_text():
            break
    else:
        pytest.skip("every process here has an autogroup, or only root may")
    with pytest.raises(OSError):
        autogroup.write_text("0")
    before = os.getpriority(os.PRIO_PROCESS, one)
    niceness.renice(one, before)
    assert os.getpriority(os.PRIO_PROCESS, one) == before
