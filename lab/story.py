# SPDX-License-Identifier: Apache-2.0
"""What happened, as values: the timeline that the picture, the page and the table all show.

A story has acts. One act is one eviction: the throughput of every VM over time, the marks on
that time axis, figures, and what was decided and why. All times are seconds from the decision.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

FORMAT = 1


class StoryError(ValueError):
    """A story document that cannot be read, or a story that contradicts itself."""


class Moment(enum.StrEnum):
    """A kind of mark on the time axis, in the order in which they normally happen."""

    DECISION = "decision"
    SWITCHOVER = "switchover"
    EXECUTING = "executing"
    RECOVERED = "recovered"
    SOURCE_FREED = "source freed"
    DOWNLOADED = "downloaded"
    FIRST_ANSWER = "first answer"
    GIVEN_UP = "given up"


@dataclass(frozen=True)
class Mark:
    """Something that happened at ``at`` (s from the decision); ``note`` explains in a few words."""

    moment: Moment
    at: float
    note: str = ""


@dataclass(frozen=True)
class VmLine:
    """Throughput of one VM.

    ``start``: left edge of the first bin (s from the decision). ``bin_s``: bin length (s).
    ``rates``: work units a second in each bin. ``full_rate``: what the VM does alone on its
    core, the same unit. ``unit`` names it, such as "requests/s". ``moves``: it is the one that
    leaves, or the one the act is about. ``lost_s``: seconds of full-speed work it lost; None when
    not judged. ``does``: what it does in the act, where that is neither to leave nor to stay.
    """

    name: str
    moves: bool
    unit: str
    full_rate: float
    start: float
    bin_s: float
    rates: tuple[float, ...]
    lost_s: float | None = None
    does: str = ""

    def __post_init__(self) -> None:
        if not (self.full_rate > 0 and self.bin_s > 0):
            raise StoryError(f"{self.name}: full rate and bin length must be above zero")

    @property
    def words(self) -> str:
        """Its name, and what it does."""
        return f"{self.name} {self.does or ('leaves' if self.moves else 'stays')}"

    @property
    def full_words(self) -> str:
        """Its full rate."""
        return f"{self.full_rate:,.0f} {self.unit} {'at full rate' if self.does else 'alone'}"

    @property
    def times(self) -> tuple[float, ...]:
        """Middle of every bin (s from the decision)."""
        return tuple(self.start + self.bin_s * (n + 0.5) for n in range(len(self.rates)))

    @property
    def shares(self) -> tuple[float, ...]:
        """Rate of every bin as a share of the full rate."""
        return tuple(rate / self.full_rate for rate in self.rates)

    @property
    def end(self) -> float:
        """Right edge of the last bin."""
        return self.start + self.bin_s * len(self.rates)


@dataclass(frozen=True)
class Figure:
    """One number of an act. ``key`` joins the same figure of several acts into one table row."""

    key: str
    label: str
    value: float | None
    unit: str
    at_least: bool = False

    @property
    def text(self) -> str:
        """The value as a reader wants it: three digits and the unit, or a dash."""
        if self.value is None:
            return "–"
        size = abs(self.value)
        digits = 0 if size >= 100 else 1 if size >= 10 else 2
        bound = "≥ " if self.at_least else ""
        return f"{bound}{self.value:.{digits}f} {self.unit}".rstrip()


@dataclass(frozen=True)
class Act:
    """One eviction. ``way`` is its short name, ``title`` says it in words."""

    way: str
    title: str
    vms: tuple[VmLine, ...]
    marks: tuple[Mark, ...]
    figures: tuple[Figure, ...] = ()
    decided: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if sum(mark.moment is Moment.DECISION for mark in self.marks) != 1:
            raise StoryError(f"{self.way}: an act has exactly one decision")

    def mark(self, moment: Moment) -> Mark | None:
        """The first mark of that kind, None when it did not happen."""
        return next((mark for mark in self.marks if mark.moment is moment), None)

    def figure(self, key: str) -> Figure | None:
        """The figure of that key, None when this act has none."""
        return next((figure for figure in self.figures if figure.key == key), None)

    @property
    def last(self) -> float:
        """Time of the last mark (s from the decision)."""
        return max(mark.at for mark in self.marks)

    @property
    def lost_until(self) -> float:
        """Until when the leaving VM was losing work: its recovery, or where that was given up."""
        ends = [self.mark(Moment.RECOVERED), self.mark(Moment.GIVEN_UP)]
        return next((end.at for end in ends if end is not None), self.last)


EXPLAINED = (
    "Full rate is what a VM does alone on its core. Work lost is the area between a VM's rate and "
    "its full rate, from the decision until it is back at 90 % for half a second."
)


@dataclass(frozen=True)
class Story:
    """Everything the demo shows. ``setting`` and ``versions`` are name to text. ``origin``: what
    happened at time zero; ``explained``: how to read the figures.
    """

    title: str
    told_at: str
    acts: tuple[Act, ...]
    setting: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    origin: str = str(Moment.DECISION)
    explained: str = EXPLAINED

    def __post_init__(self) -> None:
        if not self.acts:
            raise StoryError("a story needs an act")

    @property
    def span(self) -> tuple[float, float]:
        """Time axis that fits every act: some seconds of before, and past the last mark."""
        first = min(vm.start for act in self.acts for vm in act.vms)
        last = max(act.last for act in self.acts)
        data = max(vm.end for act in self.acts for vm in act.vms)
        return max(first, -5.0), min(data, last + max(1.5, 0.08 * last))

    @property
    def ceiling(self) -> float:
        """Top of the share axis: a little above the highest share that lasts, at least 1.15."""
        first, last = self.span
        shares = sorted(
            share
            for act in self.acts
            for vm in act.vms
            for at, share in zip(vm.times, vm.shares, strict=True)
            if first <= at <= last
        )
        high = shares[int(0.99 * (len(shares) - 1))] if shares else 1.0
        return min(2.0, max(1.15, 1.05 * high))

    def label(self, mark: Mark) -> str:
        """What is written at a mark."""
        if mark.moment is Moment.DECISION:
            return self.origin
        return f"{mark.moment} {mark.at:.1f} s"

    def rows(self) -> list[tuple[str, tuple[Figure | None, ...]]]:
        """Figures by row: label, and that figure in each act. Rows keep their first order."""
        labels: dict[str, str] = {}
        for act in self.acts:
            for figure in act.figures:
                labels.setdefault(figure.key, figure.label)
        return [
            (label, tuple(act.figure(key) for act in self.acts)) for key, label in labels.items()
        ]

    def to_json(self) -> str:
        """The whole story as a JSON document."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote. Raises StoryError on anything else."""
        try:
            fields = json.loads(text)
            if fields.pop("format") != FORMAT:
                raise StoryError("a story of another format")
            return cls(acts=tuple(_act(act) for act in fields.pop("acts")), **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoryError(f"not a story: {error}") from error


def _act(fields: dict[str, Any]) -> Act:
    return Act(
        way=fields["way"],
        title=fields["title"],
        vms=tuple(VmLine(**{**vm, "rates": tuple(vm["rates"])}) for vm in fields["vms"]),
        marks=tuple(
            Mark(Moment(mark["moment"]), mark["at"], mark["note"]) for mark in fields["marks"]
        ),
        figures=tuple(Figure(**figure) for figure in fields["figures"]),
        decided=tuple(fields["decided"]),
    )
