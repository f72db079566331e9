# SPDX-License-Identifier: Apache-2.0
"""What is printed: a table for a person, or JSON for a program."""

import dataclasses
import datetime
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nova_enlightened.contention.report import Level
from nova_enlightened.host.installation import Finding, Grade

KIB_PER_MIB = 1024
NOTHING = "-"
GAP = 3
"""Between two columns."""
LAST = 24
"""Characters that the last column of a table has at least."""
STYLES = {
    Level.CALM.name: "green",
    Level.WARN.name: "yellow",
    Level.ACT.name: "bold red",
    Grade.OK.name: "green",
    Grade.FAIL.name: "bold red",
}


@dataclasses.dataclass(frozen=True)
class Column:
    """One column. :param right: aligned there, as numbers are."""

    title: str
    right: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print rows. Only the last column breaks its lines; nothing is left out where a terminal is
    narrow, its lines are longer than it then.
    """
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    last = columns[-1]
    for column in columns:
        shown.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=column is not last,
        )
    for row in rows:
        shown.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    fixed = [
        max(len(line[number]) for line in ([one.title for one in columns], *rows))
        for number in range(len(columns) - 1)
    ]
    needed = sum(fixed) + GAP * len(columns) + LAST
    console(max(console().width, needed)).print(shown)


def findings(found: Iterable[Finding]) -> None:
    """Print a line for each, and one below for what is to be done."""
    out = console()
    for one in found:
        grade = Text(f"{one.grade.name:<5}", style=STYLES.get(one.grade.name, "yellow"))
        out.print(grade, f"{one.what}: {one.words}", soft_wrap=True, markup=False)
        if one.remedy:
            out.print("     ", f"-> {one.remedy}", soft_wrap=True, markup=False)


def document(value: Any) -> None:
    """Print as JSON."""
    json.dump(value, sys.stdout, indent=2)
    print()


def say(line: str) -> None:
    """A line on what goes on, which is not part of the answer."""
    print(line, file=sys.stderr, flush=True)


def console(width: int | None = None) -> Console:
    """Of standard output as it is now. :param width: in place of the terminal's."""
    return Console(width=width, highlight=False)


def mebibytes(kib: float | None) -> str:
    """KiB as MiB."""
    return NOTHING if kib is None else f"{kib / KIB_PER_MIB:.0f}"


def seconds(value: float | None) -> str:
    """A time that something took."""
    return NOTHING if value is None else f"{value:.1f}"


def moment(at: float | None) -> str:
    """Seconds since the epoch, as local time."""
    if at is None:
        return NOTHING
    return datetime.datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
