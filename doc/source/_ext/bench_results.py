# SPDX-License-Identifier: Apache-2.0
"""The ``bench-results`` directive: a table of the committed benchmark results.

It is the only way a figure gets into these documents.
"""

import json
import pathlib
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.parsers.rst.directives.tables import ListTable
from docutils.statemachine import StringList
from sphinx.application import Sphinx

LATEST = pathlib.Path(__file__).parents[3] / "bench" / "results" / "latest.json"
HEADINGS = ("Measure", "Median", "Smallest", "Largest", "Runs", "Unit", "Bar", "Met")


def verdict(entry: dict[str, Any]) -> str:
    """Whether a measure reached its bar: "yes", "no", or a dash where it has none."""
    bar = entry.get("bar")
    if bar is None:
        return "–"
    reached = entry["median"] >= bar if entry["better"] == "higher" else entry["median"] <= bar
    return "yes" if reached else "no"


def figure(value: float | None) -> str:
    """Three significant digits, or a dash for no value."""
    return "–" if value is None else f"{value:.3g}"


def bar(entry: dict[str, Any]) -> str:
    """The bar with its direction."""
    if entry.get("bar") is None:
        return "–"
    word = "at least" if entry["better"] == "higher" else "at most"
    return f"{word} {figure(entry['bar'])}"


def row(measure: str, entry: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one measure, in the order of ``HEADINGS``."""
    return (
        f"``{measure}``",
        figure(entry["median"]),
        figure(entry["min"]),
        figure(entry["max"]),
        str(entry["n"]),
        str(entry["unit"]) or "–",
        bar(entry),
        verdict(entry),
    )


def versions(results: dict[str, Any]) -> list[str]:
    """What was measured: every "name version" in the results, each once."""
    return sorted(
        {
            f"{name} {version}"
            for entry in results.values()
            for name, version in (entry.get("versions") or {}).items()
        }
    )


def list_table(results: dict[str, Any]) -> list[str]:
    """The body of a ``list-table``: one bullet a row, one nested bullet a cell."""
    rows = [HEADINGS, *(row(measure, entry) for measure, entry in sorted(results.items()))]
    lines = []
    for cells in rows:
        lines += [f"{'* -' if number == 0 else '  -'} {cell}" for number, cell in enumerate(cells)]
    return lines


class BenchResults(Directive):
    """Renders ``bench/results/latest.json``, or says that there is none."""

    def run(self) -> list[nodes.Node]:
        """The table and the versions behind it."""
        environment = self.state.document.settings.env
        environment.note_dependency(str(LATEST))
        if not LATEST.exists():
            text = "No results are committed yet. 'make bench' makes them."
            return [nodes.paragraph(text, text)]
        results = json.loads(LATEST.read_text())
        table = ListTable(
            "list-table",
            [],
            {"header-rows": 1},
            StringList(list_table(results), str(LATEST)),
            self.lineno,
            self.content_offset,
            self.block_text,
            self.state,
            self.state_machine,
        )
        measured = "Measured with: " + (", ".join(versions(results)) or "not recorded") + "."
        return [*table.run(), nodes.paragraph(measured, measured)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's hook."""
    app.add_directive("bench-results", BenchResults)
    return {"parallel_read_safe": True}
