# SPDX-License-Identifier: Apache-2.0
"""The policy at scale: a simulated fleet under a surge, decided on by the package's own code.

No laboratory, and no host's speed, has a part in the figures. Each round is another seed, that is
another fleet and another trace.
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from bench.measures import MeasureError
from bench.results import Outcome
from bench.session import Session, project_version
from nova_enlightened.contention.evictions import EvictionLimits
from nova_enlightened.contention.fleet import Fleet, FleetResult
from nova_enlightened.contention.fleet_load import FleetSpec

FULL = FleetSpec()
QUICK = FleetSpec(hosts=200)
AT_ONCE = 0.03
"""Evictions at once, for each host of the fleet: what an operator of such a fleet might allow."""
LONGEST_S = 120.0
"""CPU time that a round may take."""


def fleet(session: Session) -> Outcome:
    """Hosts relieved of those that have anywhere to go; VMs moved when they should not be.

    Raises MeasureError where more evictions ran at once than the limits allow.
    """
    spec = QUICK if session.options.quick else FULL
    runs: list[dict[str, Any]] = []
    notes: list[str] = []
    for number in range(1, session.options.rounds + 1):
        session.tell(f"round {number} of {session.options.rounds}: {spec.hosts} hosts")
        limits = EvictionLimits(total=round(spec.hosts * AT_ONCE))
        result, cpu_s = one_round(spec, limits, number)
        check(result, limits)
        runs.append(kept(number, result, cpu_s))
        if cpu_s > LONGEST_S:
            notes.append(f"round {number} took {cpu_s:.0f} s of CPU time, not {LONGEST_S:.0f}")
    return Outcome(
        {
            "fleet_relieved_percent": [run["relieved_percent"] for run in runs],
            "fleet_repeat_moves": [run["repeat_moves"] + run["returns"] for run in runs],
        },
        {
            "Python": platform.python_version(),
            "numpy": np.__version__,
            "nova-enlightened": project_version(),
        },
        runs,
        notes,
    )


def one_round(spec: FleetSpec, limits: EvictionLimits, seed: int) -> tuple[FleetResult, float]:
    """What came of one trace, and the CPU seconds it took to simulate."""
    # Millions of samples and reports are made and none is part of a cycle: searching them for
    # cycles would be a fifth of the time.
    collecting = gc.isenabled()
    gc.disable()
    began = time.process_time()
    try:
        result = Fleet(spec, limits, np.random.default_rng(seed)).run()
    finally:
        if collecting:
            gc.enable()
    return result, time.process_time() - began


def check(result: FleetResult, limits: EvictionLimits) -> None:
    """Raises MeasureError for a storm."""
    if result.most_at_once > limits.total or result.most_per_host > limits.per_host:
        raise MeasureError(
            f"a storm: {result.most_at_once} evictions at once of {limits.total}, "
            f"{result.most_per_host} from one host of {limits.per_host}"
        )


def kept(number: int, result: FleetResult, cpu_s: float) -> dict[str, Any]:
    """A run as JSON values; of the times to relief, what sums them up."""
    values = asdict(result)
    relief = sorted(values.pop("relief_s"))
    return {
        "round": number,
        "way": "simulated fleet",
        **values,
        "relieved_percent": round(result.relieved_percent, 2),
        "relief_median_s": statistics.median(relief) if relief else None,
        "relief_slowest_s": relief[-1] if relief else None,
        "simulation_cpu_s": round(cpu_s, 1),
    }
