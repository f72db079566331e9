# SPDX-License-Identifier: Apache-2.0
"""The story as one PNG: throughput of every VM over time, the acts under each other."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from lab import palette
from lab.story import Act, Mark, Story, VmLine

DPI = 120
# Inches.
WIDTH, HEAD, FOOT = 11.0, 0.72, 0.12
TITLE, LABEL_ROW, PLOT, AXIS = 0.34, 0.17, 2.35, 0.62
LEFT, RIGHT = 0.72, 1.62
LETTER = 0.068

matplotlib.rcParams["font.family"] = ["DejaVu Sans"]


def draw(story: Story) -> bytes:
    """The picture as a PNG file's bytes."""
    rows = [_rows(act, story) for act in story.acts]
    heights = [TITLE + LABEL_ROW * (max(row, default=0) + 1) + PLOT + AXIS for row in rows]
    height = HEAD + sum(heights) + FOOT
    canvas = Canvas(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(canvas)
    _head(canvas, story, height)
    top = height - HEAD
    for act, row, tall in zip(story.acts, rows, heights, strict=True):
        bottom = top - tall + AXIS
        plot = canvas.add_axes(
            (LEFT / WIDTH, bottom / height, (WIDTH - LEFT - RIGHT) / WIDTH, PLOT / height)
        )
        _act(plot, act, story)
        _marks(plot, _shown(act, story), row)
        canvas.text(
            LEFT / WIDTH, (top - TITLE / 2) / height, act.title,
            size=11, weight="bold", va="center", color=palette.INK,
        )  # fmt: skip
        top -= tall
    out = io.BytesIO()
    canvas.savefig(out, format="png")
    return out.getvalue()


def _head(canvas: Canvas, story: Story, height: float) -> None:
    left = LEFT / WIDTH
    canvas.text(left, 1 - 0.3 / height, story.title, size=15, weight="bold", va="center")
    setting = "   ·   ".join(f"{name}: {text}" for name, text in story.setting.items())
    canvas.text(left, 1 - 0.58 / height, setting, size=8.5, va="center", color=palette.QUIET)


def _act(plot: Axes, act: Act, story: Story) -> None:
    plot.set_xlim(*story.span)
    plot.set_ylim(0, 100 * story.ceiling)
    plot.set_yticks([0, 25, 50, 75, 100])
    plot.set_ylabel("% of full rate", color=palette.INK)
    plot.set_xlabel(f"seconds from the {story.origin}", color=palette.INK, labelpad=2)
    plot.grid(axis="y", color=palette.GRID, linewidth=0.8)
    plot.set_axisbelow(True)
    plot.axhline(100, color=palette.QUIET, linewidth=0.8)
    plot.tick_params(colors=palette.QUIET, labelsize=9)
    for side in ("top", "right"):
        plot.spines[side].set_visible(False)
    for place, (vm, colour) in enumerate(zip(act.vms, palette.colours(act.vms), strict=True)):
        _vm(plot, vm, colour, act.lost_until)
        _name(plot, vm, colour, 0.87 - 0.30 * place)


def _vm(plot: Axes, vm: VmLine, colour: str, lost_until: float) -> None:
    times, shares = np.asarray(vm.times), 100 * np.asarray(vm.shares)
    plot.plot(times, shares, color=colour, linewidth=1.9 if vm.moves else 1.4, zorder=3)
    if vm.moves:
        lost = (times >= 0) & (times <= lost_until)
        plot.fill_between(
            times, np.minimum(shares, 100), 100, where=lost.tolist(),
            color=palette.LOST, alpha=0.24, linewidth=0, zorder=1,
        )  # fmt: skip


def _name(plot: Axes, vm: VmLine, colour: str, place: float) -> None:
    """Name a line at its right, with what it lost, in its colour: no legend to look up."""
    words = [vm.full_words]
    if vm.lost_s is not None:
        words.insert(0, f"{vm.lost_s:.1f} s of work lost")
    text = vm.words
    for row, (line, ink, weight, size) in enumerate(
        [(text, colour, "bold", 10.0), *((word, palette.INK, "normal", 8.0) for word in words)]
    ):
        plot.text(
            1.02, place - 0.075 * row, line, transform=plot.transAxes, color=ink,
            size=size, weight=weight, va="center", clip_on=False,
        )  # fmt: skip


def _shown(act: Act, story: Story) -> list[tuple[float, Mark, str]]:
    """Marks on the axis: place as a share of its width, the mark, its label."""
    first, last = story.span
    marks = sorted(act.marks, key=lambda mark: mark.at)
    return [
        ((mark.at - first) / (last - first), mark, story.label(mark))
        for mark in marks
        if first <= mark.at <= last
    ]


def _rows(act: Act, story: Story) -> list[int]:
    shown = _shown(act, story)
    letter = LETTER / (WIDTH - LEFT - RIGHT)
    return palette.label_rows(
        [place for place, _, _ in shown], [letter * len(text) for _, _, text in shown], 2 * letter
    )


def _marks(plot: Axes, shown: list[tuple[float, Mark, str]], rows: list[int]) -> None:
    step = LABEL_ROW / PLOT
    for (place, mark, text), row in zip(shown, rows, strict=True):
        dashes = palette.DASHES[mark.moment]
        foot = 1.0 + step * (row + 0.12)
        plot.plot(
            [place, place], [0, foot + 0.75 * step], transform=plot.transAxes, clip_on=False,
            color=palette.INK, linewidth=1.0, zorder=4,
            linestyle=(0, dashes) if dashes else "solid",
        )  # fmt: skip
        plot.text(
            place + 0.004, foot, text, transform=plot.transAxes, size=8.5, color=palette.INK,
            va="bottom", clip_on=False,
        )  # fmt: skip
