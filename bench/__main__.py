# SPDX-License-Identifier: Apache-2.0
"""``python -m bench``: measure, keep, show."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import (
    cloud,
    cloud_streaming,
    contention,
    faults,
    fleet,
    fuzz,
    monitor,
    plots,
    redis,
    registry,
    relay,
    restarts,
    results,
    scattered,
    soak,
    streaming,
    tables,
)
from bench.registry import Measure, UnknownMeasure
from bench.results import Outcome
from bench.session import FULL, QUICK, Options, Session

RESULTS = Path(__file__).parent / "results"
SCENARIOS: dict[str, Callable[[Session], Outcome]] = {
    "scattered_qemu7": scattered.qemu7,
    "scattered_qemu10": scattered.qemu10,
    "contiguous": scattered.contiguous,
    "redis": redis.redis,
    "contention": contention.contention,
    "relay": relay.relay,
    "faults": faults.faults_survived,
    "restarts": restarts.restarts,
    "fleet": fleet.fleet,
    "monitor": monitor.monitor,
    "streaming": streaming.streaming,
    "cloud": cloud.cloud,
    "cloud_streaming": cloud_streaming.cloud_streaming,
    "soak": soak.soak,
    "fuzz": fuzz.fuzz,
}
NOT_QUICK = frozenset(
    {
        "scattered_qemu10",
        "faults",
        "restarts",
        "streaming",
        "cloud",
        "cloud_streaming",
        "soak",
        "fuzz",
    }
)
"""Left out of a quick run that names nothing: they need a second Debian, OpenStack, or longer."""


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    ids = ", ".join(registry.BY_ID)
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure migrations of real guests side by side: stock ways and ours.",
        epilog=f"Measures: {ids}. QUICK=1 and ONLY=id,id in the environment do the same as the "
        "options. A full run takes hours, a quick one under 8 minutes.",
    )
    parser.add_argument(
        "--quick", action="store_true", default=bool(os.environ.get("QUICK")),
        help="one round of the engine's, results apart (results/quick): to see that it works; "
        "name others with --only",
    )  # fmt: skip
    parser.add_argument(
        "--only", default=os.environ.get("ONLY", ""), metavar="ID,ID",
        help="these measures (or scenarios) only; the others keep their results",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, help=f"rounds of each (default {FULL.rounds})")
    parser.add_argument("--into", type=Path, help="directory of the results")
    parser.add_argument("--list", action="store_true", help="say what would be measured, and end")
    parser.add_argument(
        "--plots", action="store_true", help="draw the plots and the table again, and end"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit status is 1 where a scenario failed, 2 where nothing could be begun."""
    wanted = _arguments(argv)
    console = Console()
    options = QUICK if wanted.quick else FULL
    if wanted.rounds:
        options = dataclasses.replace(options, rounds=wanted.rounds)
    try:
        measures = registry.chosen(wanted.only.split(","))
    except UnknownMeasure as error:
        console.print(f"[red]{error}[/]")
        return 2
    if wanted.quick and not wanted.only:
        measures = tuple(m for m in measures if m.scenario not in NOT_QUICK)
    directory = wanted.into or (RESULTS / "quick" if wanted.quick else RESULTS)
    if wanted.list:
        for measure in measures:
            console.print(f"{measure.id}: {measure.title}", highlight=False)
        return 0
    if wanted.plots:
        results.save(directory, (), {})
        plots.draw(directory)
        return 0
    return _measure(console, measures, options, directory)


def _measure(
    console: Console, measures: Sequence[Measure], options: Options, directory: Path
) -> int:
    began = time.monotonic()
    failed = False

    with console.status("starting") as line:

        def tell(text: str) -> None:
            at = f"{(time.monotonic() - began) / 60:4.1f} min  "
            line.update(at + text)
            if not console.is_terminal:
                console.print(at + text, highlight=False)

        with Session(options, tell) as session:
            session.wanted = frozenset(measure.id for measure in measures)
            for name in registry.scenarios(measures):
                console.print(f"[bold]{name}[/]", highlight=False)
                try:
                    outcome = SCENARIOS[name](session)
                except Exception as error:  # the other scenarios still have their say
                    failed = True
                    console.print(f"[red]{name} failed: {error}[/]")
                    console.print(traceback.format_exc(), markup=False, highlight=False)
                    session.close()
                    continue
                outcome = dataclasses.replace(outcome, notes=[*session.notes, *outcome.notes])
                session.notes.clear()
                results.save(directory, measures, {name: outcome})
                for note in outcome.notes:
                    console.print(f"  {note}", style="yellow", markup=False, highlight=False)
    plots.draw(directory)
    show(console, measures, directory, options)
    console.print(f"{(time.monotonic() - began) / 60:.1f} minutes; results in {directory}")
    return 1 if failed else 0


def show(console: Console, measures: Sequence[Measure], directory: Path, options: Options) -> None:
    """The closing table."""
    latest = results.load(directory)
    title = "Measurements" + (" (quick: one round is no measurement)" if options.quick else "")
    table = Table(title=title)
    for heading, side in (
        ("measure", "left"), ("median", "right"), ("range", "right"), ("n", "right"),
        ("bar", "right"), ("met", "left"),
    ):  # fmt: skip
        table.add_column(heading, justify="right" if side == "right" else "left")
    for measure in measures:
        if measure.id in latest:
            row = tables.cells(measure, latest[measure.id])
            met = row[-1].strip("*")
            style = {"yes": "green", "no": "red"}.get(met, "")
            table.add_row(measure.id, *row[:-1], f"[{style}]{met}[/]" if style else met)
        else:
            table.add_row(measure.id, "[red]not measured[/]", "", "", "", "")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
