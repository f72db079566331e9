# SPDX-License-Identifier: Apache-2.0
"""A short soak: evictions to and fro with faults at random. ``make soak`` is the long one."""

import os
from pathlib import Path

import pytest

from lab import soak

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root"),
]
MINUTES = 0.5
SEED = 5


def test_faults_at_random_lose_no_vm_and_leave_nothing_behind() -> None:
    run = Path(f"/run/nel-st-{os.getpid()}")
    report = soak.soak(MINUTES, run, guests=1, seed=SEED)
    assert report.rounds
    assert report.wrong == []
    assert report.lost == 0
    assert report.growth < 24 << 20
    assert not run.exists()
