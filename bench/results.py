# SPDX-License-Identifier: Apache-2.0
"""Results on disk: the figures, the samples they come from, the table.

``latest.json`` maps a measure id to ``median``, ``min``, ``max``, ``n``, ``unit``, ``bar``,
``better`` and ``versions``. ``samples.json`` beside it maps a scenario to everything that was
seen: one value of each measure for each round, and the runs with their throughput.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import measures, registry, tables
from bench.registry import Measure

LATEST, SAMPLES, TABLE = "latest.json", "samples.json", "latest.md"

Entry = tables.Entry


@dataclass(frozen=True)
class Outcome:
    """What one scenario gave.

    ``values``: one number a round for each measure id. ``versions``: name to version, of what
    ran. ``runs``: everything worth keeping of every run, as JSON values. ``notes``: what a
    reader of the figures must know, such as that a value is a lower bound.
    """

    values: Mapping[str, Sequence[float]]
    versions: Mapping[str, str]
    runs: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = field(default=())


def entry(measure: Measure, values: Iterable[float], versions: Mapping[str, str]) -> Entry:
    """The results entry of one measure."""
    summary = measures.summary(values)
    return {
        **{key: _digits(value) for key, value in asdict(summary).items()},
        "unit": measure.unit,
        "bar": measure.bar,
        "better": str(measure.better),
        "versions": dict(versions),
    }


def merged(
    old: Mapping[str, Entry], wanted: Iterable[Measure], outcomes: Mapping[str, Outcome]
) -> dict[str, Entry]:
    """``old`` with the entries of ``wanted`` that the outcomes (by scenario) give.

    What was not measured stays as it was; ids that no longer exist are dropped. The registry's
    order is kept.
    """
    new = {
        measure.id: entry(measure, outcome.values[measure.id], outcome.versions)
        for measure in wanted
        if (outcome := outcomes.get(measure.scenario)) and outcome.values.get(measure.id)
    }
    everything = {**old, **new}
    return {id: everything[id] for id in registry.BY_ID if id in everything}


def load(directory: Path, name: str = LATEST) -> dict[str, Any]:
    """The JSON object of a results file; empty when there is none."""
    try:
        found = json.loads((directory / name).read_text())
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{directory / name} holds no JSON object")
    return found


def save(directory: Path, wanted: Iterable[Measure], outcomes: Mapping[str, Outcome]) -> None:
    """Merge the outcomes into the files of ``directory``; each file changes at once or not."""
    directory.mkdir(parents=True, exist_ok=True)
    latest = merged(load(directory), wanted, outcomes)
    samples = load(directory, SAMPLES)
    for name, outcome in outcomes.items():
        samples[name] = _beside(samples.get(name, {}), asdict(outcome))
    _replace(directory / LATEST, json.dumps(latest, indent=2) + "\n")
    _replace(directory / SAMPLES, compact(samples) + "\n")
    _replace(directory / TABLE, tables.markdown(latest, samples))


def _beside(old: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What a scenario gave now, and the values and runs of its parts that were not measured now."""
    ways = {run["way"] for run in new["runs"]}
    kept = [run for run in old.get("runs", ()) if run["way"] not in ways]
    return {
        **new,
        "values": {**old.get("values", {}), **new["values"]},
        "runs": [*kept, *new["runs"]],
    }


def compact(value: Any, depth: int = 0) -> str:
    """JSON with one line for each run: readable, and small where the throughput is long."""
    pad = " " * (depth + 1)
    if depth < 4 and isinstance(value, dict) and value:
        rows = (f"{pad}{json.dumps(k)}: {compact(v, depth + 1)}" for k, v in value.items())
        return "{\n" + ",\n".join(rows) + "\n" + " " * depth + "}"
    if depth < 3 and isinstance(value, list | tuple) and value:
        rows = (f"{pad}{json.dumps(v, separators=(',', ':'))}" for v in value)
        return "[\n" + ",\n".join(rows) + "\n" + " " * depth + "]"
    return json.dumps(value, separators=(",", ":"))


def _digits(value: float) -> float:
    """Four digits: more than the spread of any measure here supports."""
    return value if isinstance(value, int) else float(f"{value:.4g}")


def _replace(path: Path, text: str) -> None:
    half = path.with_suffix(path.suffix + ".new")
    half.write_text(text)
    os.replace(half, path)
