# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.fuzz``: fuzz every parser, or those named, and say how it went."""

import argparse
import concurrent.futures
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.fuzz.campaign import TOP, Campaign, Progress
from tests.fuzz.targets import TARGETS

EXECUTIONS = 2_000_000
LONGEST_KEPT = 4700
"""Bytes: a page of RAM with what stands before it."""


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Fuzz the parsers with Atheris (libFuzzer). What was done is kept: the same "
        "command goes on where an earlier one ended. An input that breaks a parser belongs in "
        "tests/fuzz/crashes/TARGET, where the tests replay it for ever; until the parser is "
        "mended it waits in tests/fuzz/open/TARGET.",
        epilog=f"Targets: {', '.join(TARGETS)}.",
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="these only")
    parser.add_argument(
        "--executions", type=int, default=EXECUTIONS, help="of each target (default %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=1, help="targets at a time")
    parser.add_argument("--seed", type=int, default=0, help="make it repeatable")
    parser.add_argument("--state", type=pathlib.Path, default=TOP / ".fuzz", help="directory")
    parser.add_argument("--report", type=pathlib.Path, help="write the figures there too, as JSON")
    parser.add_argument(
        "--keep", action="store_true", help="no fuzzing: make the kept corpus of what was found"
    )
    wanted = parser.parse_args(argv)
    if unknown := set(wanted.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    return wanted


def _line(progress: Progress) -> tuple[str, ...]:
    return (
        progress.target,
        f"{progress.executions:,}",
        f"{progress.rate:,.0f}",
        str(progress.coverage),
        str(progress.features),
        f"{progress.growth / (1 << 20):.0f}",
        "none" if not progress.crashes else ", ".join(progress.crashes),
    )


def _show(console: Console, done: Sequence[Progress]) -> None:
    table = Table(title="Fuzzing")
    for heading in ("target", "executions", "a second", "coverage", "features", "MiB grown"):
        table.add_column(heading, justify="left" if heading == "target" else "right")
    table.add_column("broken by", overflow="fold")
    for progress in done:
        table.add_row(*_line(progress), style="red" if progress.crashes else "")
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit status is 1 where an input broke a parser."""
    wanted = _arguments(argv)
    console = Console()

    def one(name: str) -> Progress:
        target = TARGETS[name]
        if target.findings() and not wanted.keep:
            return Progress(name, crashes=[str(path) for path in target.findings()])
        campaign = Campaign(target, wanted.state.resolve(), wanted.seed)
        campaign.open()
        if wanted.keep:
            console.print(f"{name}: {campaign.keep(LONGEST_KEPT)} inputs kept", highlight=False)
            return campaign.progress
        return campaign.run(
            wanted.executions, lambda now: console.print("  ".join(_line(now)), highlight=False)
        )

    with concurrent.futures.ThreadPoolExecutor(wanted.workers) as pool:
        done = list(pool.map(one, wanted.targets or TARGETS))
    _show(console, done)
    if wanted.report:
        wanted.report.write_text(json.dumps([dataclasses.asdict(each) for each in done]))
    return 1 if any(each.crashes for each in done) else 0


if __name__ == "__main__":
    sys.exit(main())
