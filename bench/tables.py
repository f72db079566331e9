# SPDX-License-Identifier: Apache-2.0
"""The results as tables: figures against their bars, and what each way took by itself."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench import registry
from bench.registry import Measure

Entry = dict[str, Any]
Runs = Sequence[Mapping[str, Any]]

COLUMNS: Mapping[str, str] = {
    "recovery_s": "switchover to 90 % (s)",
    "lost_s": "work lost (s)",
    "lost_leaves_s": "by the VM that leaves",
    "lost_stays_s": "by the VM that stays",
    "blocked_s": "as good as stopped (s)",
    "start_s": "start to 90 % (s)",
    "first_answer_s": "to the first answer (s)",
    "executing_s": "to executing (s)",
    "fetched_mb": "MB fetched by then",
    "mb_per_s": "MB/s",
    "cpu_s": "relays' CPU (s)",
    "cpu_source_s": "source relay's CPU (s)",
    "cpu_destination_s": "destination relay's CPU (s)",
    "struck": "hosts contended",
    "nowhere": "with nowhere to go",
    "relief_median_s": "until relieved (s)",
    "relief_slowest_s": "slowest (s)",
    "evictions": "evictions",
    "most_at_once": "most at once",
    "simulation_cpu_s": "CPU to simulate (s)",
}


def markdown(latest: Mapping[str, Entry], samples: Mapping[str, Mapping[str, Any]]) -> str:
    """All tables, as a document of its own."""
    lines = [
        "# Measurements",
        "",
        "Written by `make bench`; do not edit. Median (least to most) of the rounds of one run.",
        "",
        *_table(
            ("measure", "median", "range", "n", "bar", "met"),
            (
                (f"{measure.title} (`{measure.id}`)", *cells(measure, latest[measure.id]))
                for measure in registry.MEASURES
                if measure.id in latest
            ),
        ),
    ]
    for name, found in samples.items():
        runs = found.get("runs", [])
        if runs:
            lines += ["", f"## {name}", "", *_by_way(runs), *_parts(runs)]
        lines += ["", *(f"- {note}" for note in found["notes"])] if found.get("notes") else []
    lines += ["", "## Versions", ""]
    lines += [f"- {text}: {', '.join(ids)}" for text, ids in _versions(latest).items()]
    return "\n".join(lines) + "\n"


def cells(measure: Measure, found: Entry) -> tuple[str, str, str, str, str]:
    """Median, range, n, bar and whether it is met, as a table shows them."""
    sign = "≥" if measure.better is registry.Better.HIGHER else "≤"
    met = measure.met(found["median"])
    return (
        f"{found['median']:.3g} {measure.unit}".rstrip(),
        f"{found['min']:.3g} to {found['max']:.3g}",
        str(found["n"]),
        "reported" if measure.bar is None else f"{sign} {measure.bar:g}",
        "" if met is None else "yes" if met else "**no**",
    )


def _by_way(runs: Runs) -> list[str]:
    """Medians of each way by itself, of what its runs tell."""
    flat = [{**run, **(run.get("relay") or {})} for run in runs]
    columns = [key for key in COLUMNS if any(isinstance(run.get(key), int | float) for run in flat)]
    rows = []
    for way in dict.fromkeys(str(run["way"]) for run in flat):
        of = [run for run in flat if run["way"] == way]
        rows.append((way, str(len(of)), *(_median(run.get(key) for run in of) for key in columns)))
    return _table(("way", "n", *(COLUMNS[key] for key in columns)), rows)


def _parts(runs: Runs) -> list[str]:
    """When each step was done, seconds from the order, medians of each way."""
    ways = list(dict.fromkeys(str(run["way"]) for run in runs if run.get("parts")))
    if not ways:
        return []
    steps = dict.fromkeys(step for run in runs for step in run.get("parts", {}))
    rows = []
    for step in steps:
        of = [[run["parts"].get(step) for run in runs if run["way"] == way] for way in ways]
        rows.append((step, *(_median(values) for values in of)))
    return ["", *_table(("seconds from the order to", *ways), sorted(rows, key=_soonest))]


def _soonest(row: Sequence[str]) -> float:
    return min((float(cell) for cell in row[1:] if cell), default=0.0)


def _median(values: Iterable[Any]) -> str:
    known = [float(value) for value in values if isinstance(value, int | float)]
    return f"{statistics.median(known):.2f}" if known else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        "| --- " * len(head) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _versions(latest: Mapping[str, Entry]) -> dict[str, list[str]]:
    together: dict[str, list[str]] = {}
    for id, found in latest.items():
        text = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        together.setdefault(text, []).append(f"`{id}`")
    return together
