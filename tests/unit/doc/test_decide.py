# SPDX-License-Identifier: Apache-2.0
"""The figures that "How it decides" gives are those of the code."""

import pathlib
import re

import pytest

from nova_enlightened.contention.destinations import DestinationLimits
from nova_enlightened.contention.detector import Thresholds
from nova_enlightened.contention.evictions import EvictionLimits
from nova_enlightened.contention.fleet_load import FleetSpec
from nova_enlightened.contention.victims import USUAL_PRIORITY

PAGE = pathlib.Path(__file__).parents[3] / "doc" / "source" / "decide.rst"
TEXT = re.sub(r"\s+", " ", PAGE.read_text())
CODE = Thresholds()
LIMITS = EvictionLimits()
FITS = DestinationLimits()
FLEET = FleetSpec()


def percent(share: float) -> str:
    return f"{share * 100:g} %"


@pytest.mark.parametrize(
    "said",
    [
        f"waiting share {percent(CODE.cpu.warn)} {percent(CODE.cpu.act)}",
        f"lost by one guest {CODE.cpu_least} CPUs",
        f"CPU PSI *some* – ≥ {percent(CODE.cpu_stall)}",
        f"memory PSI *some* {percent(CODE.memory_some.warn)} {percent(CODE.memory_some.act)}",
        f"memory PSI *full* {percent(CODE.memory_full.warn)} {percent(CODE.memory_full.act)}",
        f"pages swapped in /s {CODE.swap_in.warn:g} {CODE.swap_in.act:g}",
        f"memory available < {percent(CODE.memory_scarce)} ≤ {percent(CODE.memory_ample)}",
        f"asked for during {CODE.holds.warn:g} s {CODE.holds.act:g} s",
        f"left after {CODE.holds.lower:g} s",
        f"After a gap of {CODE.gap:g} s",
        f"below {percent(FITS.cpu)} of its CPUs wanted and above {percent(FITS.memory)}",
        f"older than {FITS.age:g} s says nothing",
        f"missing to {percent(LIMITS.victims.memory_wanted)} available",
        f"frees less than {LIMITS.victims.least_memory // 1024} MiB",
        f"Priority is 0 to 100, {USUAL_PRIORITY} where",
        f"{LIMITS.host_cooldown:g} s after one ended",
        f"{LIMITS.into_host} towards a host, {LIMITS.total} in all",
        f"{LIMITS.victims.cooldown:g} s before a VM is moved again",
        f"{LIMITS.return_after:g} s before a VM returns",
        f"simulates {FLEET.hosts:,} hosts of {FLEET.cpus} CPUs",
        f"with {FLEET.hosts * FLEET.vms_per_host:,} VMs",
        f"between {FLEET.surge[0]:g} and {FLEET.surge[1]:g} times their CPUs",
    ],
)
def test_a_figure_on_the_page_is_the_one_in_the_code(said: str) -> None:
    assert said in TEXT
