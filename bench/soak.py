# SPDX-License-Identifier: Apache-2.0
"""An hour of evictions to and fro with faults at random: VMs lost, memory not given back."""

from __future__ import annotations

import os
from pathlib import Path

from bench.results import Outcome
from bench.session import Session, project_version
from lab import soak as lab_soak

FULL_MINUTES, QUICK_MINUTES = 60.0, 2.0


def soak(session: Session) -> Outcome:
    """One soak. Raises LabError where the laboratory does not come up."""
    report = lab_soak.soak(
        QUICK_MINUTES if session.options.quick else FULL_MINUTES,
        Path(f"/run/nel-s-{os.getpid()}"),
        tell=session.tell,
    )
    return outcome(report)


def outcome(report: lab_soak.Report) -> Outcome:
    """The figures of a report."""
    moved = sum(each.outcome == "moved" for each in report.rounds)
    return Outcome(
        {
            "soak_vms_lost": [report.lost],
            "soak_rss_growth_mib": [round(report.growth / (1 << 20), 2)],
        },
        {"nova-enlightened": project_version()},
        [
            {
                "way": "soak",
                "round": each.number,
                "fault": each.fault,
                "phase": each.phase,
                "outcome": each.outcome,
                "seconds": each.seconds,
                "notes": each.notes,
                "wrong": list(each.wrong),
            }
            for each in report.rounds
        ],
        [
            f"{len(report.rounds)} rounds in {report.minutes:.0f} minutes, {moved} moved; "
            f"grown most: {report.grown or 'nothing'}",
            *report.wrong,
        ],
    )
