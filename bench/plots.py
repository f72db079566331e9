# SPDX-License-Identifier: Apache-2.0
"""Plots of the results, drawn from what ``results`` keeps on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench import registry, results
from lab import palette
from lab.way import Way

DPI = 110
COLOURS = {
    Way.PRECOPY: palette.INK,
    Way.STOCK: "#0072B2",
    Way.STOCK_PREEMPT: "#56B4E9",
    Way.ENLIGHTENED: palette.LEAVES,
    Way.ENLIGHTENED_PREEMPT: palette.LEAVES,
}
TITLES = {
    "scattered_qemu7": "Hot pages scattered, QEMU 7.2",
    "scattered_qemu10": "Hot pages scattered, QEMU 10",
    "contiguous": "Hot pages contiguous, QEMU 7.2",
    "redis": "Redis under a zipf load, QEMU 7.2",
    "contention": "Two VMs on one core, one leaves, QEMU 7.2",
}

matplotlib.rcParams["font.family"] = ["DejaVu Sans"]


def draw(directory: Path) -> list[Path]:
    """Draw every plot the results there have data for; the files written."""
    latest = results.load(directory)
    samples = results.load(directory, results.SAMPLES)
    written = []
    if latest:
        written.append(_save(_summary(latest), directory / "summary.png"))
    for name, title in TITLES.items():
        runs = samples.get(name, {}).get("runs", [])
        if any("curve" in run for run in runs):
            written.append(_save(_curves(runs, title), directory / f"{name}.png"))
    return written


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI)
    return path


def _summary(latest: Mapping[str, results.Entry]) -> Figure:
    """Each median as a multiple of its bar, turned so that to the right of 1 is good."""
    # Nothing is a multiple of a bar of zero.
    shown = [m for m in registry.MEASURES if m.id in latest and m.bar]
    figure = Figure(figsize=(9, 0.62 * max(1, len(shown)) + 1.1), layout="constrained")
    plot = figure.subplots()
    for row, measure in enumerate(reversed(shown)):
        found = latest[measure.id]
        low, middle, high = (_over_bar(measure, found[key]) for key in ("min", "median", "max"))
        colour = STAYS if middle >= 1 else palette.LEAVES
        plot.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="round")
        plot.plot([middle], [row], "o", color=colour, markersize=8)
        plot.annotate(
            f"{found['median']:.3g}", (middle, row), textcoords="offset points", xytext=(0, 8),
            ha="center", size=9, color=palette.INK,
        )  # fmt: skip
    plot.axvline(1, color=palette.INK, linewidth=1)
    plot.set_xscale("log")
    ticks = [0.25, 0.5, 1, 2, 4, 8]
    plot.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    plot.minorticks_off()
    plot.set_yticks(range(len(shown)), [_row(measure) for measure in reversed(shown)], size=9)
    plot.set_ylim(-0.6, len(shown) - 0.2)
    plot.set_xlabel("times better than the bar (line: range of the rounds, number: the median)")
    _plain(plot)
    return figure


STAYS = palette.STAYS[0]


def _over_bar(measure: registry.Measure, value: float) -> float:
    assert measure.bar is not None, "only measures with a bar are drawn"
    better = value / measure.bar
    return better if measure.better is registry.Better.HIGHER else 1 / max(better, 1e-9)


def _row(measure: registry.Measure) -> str:
    sign = "≥" if measure.better is registry.Better.HIGHER else "≤"
    return f"{measure.id}  {sign} {measure.bar:g}"


def _curves(runs: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Throughput around the order: every run thin, the median over the rounds thick."""
    both = any("curve_stays" in run for run in runs)
    figure = Figure(figsize=(9, 6.2 if both else 3.6), layout="constrained")
    plots = figure.subplots(2 if both else 1, 1, sharex=True, squeeze=False)[:, 0]
    last = max(_interesting(run) for run in runs)
    for plot, key, whose in zip(
        plots, ("curve", "curve_stays"), ("the VM that leaves", "the VM that stays"), strict=False
    ):
        _curves_of(plot, runs, key, last)
        plot.set_ylabel(f"% of full rate,\n{whose}" if both else "% of baseline")
    plots[0].set_title(title, loc="left", weight="bold")
    plots[0].legend(frameon=False, fontsize=9, loc="lower right")
    plots[-1].set_xlabel("seconds from the order to migrate")
    return figure


def _curves_of(plot: Axes, runs: Sequence[Mapping[str, Any]], key: str, last: float) -> None:
    for way in Way:
        curves = [run[key] for run in runs if run["way"] == way and key in run]
        if not curves:
            continue
        for curve in curves:
            plot.plot(*_points(curve), color=COLOURS[way], linewidth=0.6, alpha=0.3)
        grid = np.arange(-3.0, last, 0.1)
        level = np.median([np.interp(grid, *_points(curve)) for curve in curves], axis=0)
        plot.plot(grid, level, color=COLOURS[way], linewidth=2, label=way.words)
    plot.axvline(0, color=palette.INK, linewidth=1)
    plot.axhline(100, color=palette.QUIET, linewidth=0.8)
    plot.set_xlim(-3.0, last)
    plot.set_ylim(0, 130)
    _plain(plot)


def _points(curve: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    percents = curve["percent"]
    return [curve["start"] + curve["bin_s"] * (n + 0.5) for n in range(len(percents))], percents


def _interesting(run: Mapping[str, Any]) -> float:
    """Where a plot may end for this run: a little after it recovered."""
    parts = run["parts"]
    if "until_s" in run:
        return float(min(run["until_s"], 25.0)) + 2.0
    recovery = run["recovery_s"]
    return 20.0 if recovery is None else float(parts.get("switchover", 0.0) + recovery) + 2.0


def _plain(plot: Axes) -> None:
    plot.grid(color=palette.GRID, linewidth=0.7)
    plot.set_axisbelow(True)
    for side in ("top", "right"):
        plot.spines[side].set_visible(False)
