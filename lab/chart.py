# SPDX-License-Identifier: Apache-2.0
"""One act as an SVG element, complete without any script; the page adds the hover to it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from lab import palette
from lab.story import Act, Mark, Story, VmLine

# User units, which are CSS pixels at full width.
WIDTH, PLOT, AXIS = 960, 240, 44
LEFT, RIGHT, ROW = 52, 160, 17
LETTER = 6.4


@dataclass(frozen=True)
class Scale:
    """Seconds and shares to user units. ``top`` is the plot's upper edge."""

    first: float
    last: float
    ceiling: float
    top: float

    def x(self, at: float) -> float:
        """Horizontal place of a time."""
        return LEFT + (at - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, share: float) -> float:
        """Vertical place of a share of the full rate; above the ceiling is drawn at it."""
        return self.top + PLOT * (1 - min(share, self.ceiling) / self.ceiling)

    @property
    def floor(self) -> float:
        """Vertical place of zero."""
        return self.top + PLOT


def svg(act: Act, story: Story) -> str:
    """The act's chart as one ``<svg>`` element."""
    first, last = story.span
    marks = sorted((m for m in act.marks if first <= m.at <= last), key=lambda m: m.at)
    labels = [story.label(mark) for mark in marks]
    flat = Scale(first, last, story.ceiling, 0.0)
    rows = palette.label_rows(
        [flat.x(mark.at) for mark in marks], [LETTER * len(label) for label in labels], LETTER
    )
    scale = Scale(first, last, story.ceiling, ROW * (max(rows, default=0) + 1) + 4)
    names = ", ".join(vm.words for vm in act.vms)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {scale.floor + AXIS:.0f}" role="img" tabindex="0" '
        f'aria-label="{escape(act.title)}. Throughput over time: {escape(names)}.">',
        *_axes(scale, story.origin),
        *(_lost(vm, act, scale) for vm in act.vms if vm.moves),
        *(
            _line(vm, colour, scale)
            for vm, colour in zip(act.vms, palette.colours(act.vms), strict=True)
        ),
        *(
            _mark(mark, label, row, scale)
            for mark, label, row in zip(marks, labels, rows, strict=True)
        ),
        *_names(act, scale),
        f'<line class="cross" y1="{scale.top:.1f}" y2="{scale.floor:.1f}" visibility="hidden"/>',
        "</svg>",
    ]
    return "\n".join(parts)


def ticks(first: float, last: float, most: int = 12) -> list[float]:
    """Round times inside the span, at most ``most``, zero among them where it is inside."""
    step = next(s for s in _steps() if (last - first) / s <= most)
    start = -int(-first / step) if first < 0 else int(first / step) + (first % step > 0)
    return [step * n for n in range(start, int(last / step) + 1)]


def _steps() -> list[float]:
    return [base * 10.0**power for power in range(6) for base in (1, 2, 5)]


def _axes(scale: Scale, origin: str) -> list[str]:
    right = WIDTH - RIGHT
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = scale.y(percent / 100)
        kind = "full" if percent == 100 else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text("tick", LEFT - 7, y + 4, f"{percent} %", "end"))
    for at in ticks(scale.first, scale.last):
        parts.append(_text("tick", scale.x(at), scale.floor + 17, f"{at:g}", "middle"))
    middle = (LEFT + right) / 2
    parts.append(_text("tick", middle, scale.floor + 36, f"seconds from the {origin}", "middle"))
    return parts


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start", style: str = "") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{style}">'
        f"{escape(text)}</text>"
    )


def _points(vm: VmLine, scale: Scale, first: float, last: float) -> list[tuple[float, float]]:
    return [
        (scale.x(at), scale.y(share))
        for at, share in zip(vm.times, vm.shares, strict=True)
        if first <= at <= last
    ]


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""


def _line(vm: VmLine, colour: str, scale: Scale) -> str:
    points = _points(vm, scale, scale.first, scale.last)
    width = 2.2 if vm.moves else 1.7
    return f'<path class="vm" d="{_path(points)}" stroke="{colour}" stroke-width="{width}"/>'


def _lost(vm: VmLine, act: Act, scale: Scale) -> str:
    full = scale.y(1.0)
    points = [(x, max(y, full)) for x, y in _points(vm, scale, 0.0, act.lost_until)]
    if not points:
        return ""
    closed = f"{_path(points)}L{points[-1][0]:.1f} {full:.1f}L{points[0][0]:.1f} {full:.1f}Z"
    return f'<path class="lost" d="{closed}"/>'


def _mark(mark: Mark, label: str, row: int, scale: Scale) -> str:
    x, y = scale.x(mark.at), scale.top - 5 - ROW * row
    dashes = " ".join(f"{length:g}" for length in palette.DASHES[mark.moment])
    note = f"<title>{escape(mark.note)}</title>" if mark.note else ""
    return (
        f'<g>{note}<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 10:.1f}" '
        f'y2="{scale.floor:.1f}" stroke-dasharray="{dashes}"/>'
        f"{_text('label', x + 4, y, label)}</g>"
    )


def _names(act: Act, scale: Scale) -> list[str]:
    parts = []
    x = WIDTH - RIGHT + 14
    for place, (vm, colour) in enumerate(zip(act.vms, palette.colours(act.vms), strict=True)):
        y = scale.top + 34 + 72 * place
        parts.append(_text("name", x, y, vm.words, style=f"fill:{colour}"))
        words = [vm.full_words]
        if vm.lost_s is not None:
            words.insert(0, f"{vm.lost_s:.1f} s of work lost")
        parts += [_text("label", x, y + 18 + 16 * row, word) for row, word in enumerate(words)]
    return parts
