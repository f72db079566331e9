# SPDX-License-Identifier: Apache-2.0
"""Fuzzing as a measurement: inputs that break a parser, after so many executions of each.

What ``make fuzz`` did before counts, as long as the parser has not changed since.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.measures import MeasureError
from bench.results import Outcome
from bench.session import Session, project_version

TOP = Path(__file__).resolve().parents[1]
FULL, QUICK = 2_000_000, 2_000


def fuzz(session: Session) -> Outcome:
    """Every target. Raises MeasureError where one could not be fuzzed for as long as told."""
    executions = QUICK if session.options.quick else FULL
    session.tell(f"{executions:,} executions of each parser")
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.json")
        words = ["--executions", str(executions), "--workers", "2", "--report", str(report)]
        if session.options.quick:
            words += ["--state", directory]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", *words],
            cwd=TOP, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not report.exists():
            raise MeasureError(f"fuzzing did not run: {done.stderr[-500:]}")
        return outcome(json.loads(report.read_text()), executions)


def outcome(results: Sequence[Mapping[str, Any]], executions: int) -> Outcome:
    """The figures. Raises MeasureError where a target ended early without an input to show."""
    short = [
        each["target"]
        for each in results
        if each["executions"] < executions and not each["crashes"]
    ]
    if short or not results:
        raise MeasureError(f"fewer than {executions:,} executions of {', '.join(short) or 'all'}")
    crashes = [path for each in results for path in each["crashes"]]
    seconds = sum(each["seconds"] for each in results)
    grown = max(each["growth"] for each in results) / (1 << 20)
    return Outcome(
        {"fuzz_crashes": [len(crashes)]},
        {
            "Python": platform.python_version(),
            "atheris": metadata.version("atheris"),
            "nova-enlightened": project_version(),
        },
        [{"way": "fuzzing", **each} for each in results],
        [
            f"{executions:,} executions of {len(results)} parsers took {seconds / 3600:.1f} hours "
            f"of one processor; no process grew by more than {grown:.0f} MiB",
            *(f"broken by {path}" for path in crashes),
        ],
    )
