# SPDX-License-Identifier: Apache-2.0
"""Runs of one guest, migrated to and fro by several ways in turn.

The flow is here, the lab is behind ``Stage``: the same flow runs on a simulated stage in the
unit tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bench import measures
from bench.measures import Cost, RateSeries
from lab.way import Migration, Way

BASELINE_S = 4.0
SETTLE_S = 1.5
AFTER_S = 1.0
SHOWN_BEFORE_S = 3.0
CURVE_BIN_S = 0.1


class StageError(Exception):
    """The stage could not do its part; this run is lost, not the measurement."""


class Stage(Protocol):
    """A working guest, and two hosts to migrate it between."""

    def now(self) -> float:
        """Monotonic seconds, the axis of all samples."""

    def wait(self, seconds: float) -> None:
        """Let the guest work."""

    def prepare(self, way: Way) -> None:
        """The guest that this way needs runs, and no other. Raises StageError."""

    def arm(self) -> None:
        """Have knowledge of the guest ready. Raises StageError when none comes."""

    def migrate(self, way: Way, limit_s: float) -> Migration:
        """Migrate to the other host; given up after ``limit_s``. Raises StageError."""

    def rates(self, first: float, last: float, edge: float, bin_s: float) -> RateSeries:
        """What the guest did in ``[first, last)``, a bin beginning at ``edge``."""

    def recover(self) -> None:
        """After a failure: a working guest again, whatever it takes. Raises StageError."""


@dataclass(frozen=True)
class Run:
    """One migration and what it cost. ``curve`` is for plots: coarser bins around the order."""

    round: int
    migration: Migration
    cost: Cost
    curve: RateSeries
    armed_share: float | None = None

    @property
    def way(self) -> Way:
        """How it was migrated."""
        return self.migration.way

    @property
    def planned(self) -> bool:
        """Whether the relay had a plan, that is, knowledge of the guest."""
        marks = self.migration.relay.get("marks") or {}
        return marks.get("planned") is not None

    @property
    def recovery_s(self) -> float:
        """Switchover to 90 % of baseline; the time watched where that was not seen."""
        if self.cost.recovery_s is not None:
            return self.cost.recovery_s
        return self.curve.end - (self.migration.switchover or self.migration.ordered)

    @property
    def order_to_executing_s(self) -> float | None:
        """From the order to executing at the destination."""
        executing = self.migration.executing
        return None if executing is None else executing - self.migration.ordered

    def to_dict(self) -> dict[str, Any]:
        """Everything worth keeping, as JSON values; times count from the order."""
        ordered = self.migration.ordered
        return {
            "round": self.round,
            "way": str(self.way),
            "to": self.migration.destination,
            "baseline": round(self.cost.baseline, 3),
            "recovery_s": rounded(self.cost.recovery_s),
            "lost_s": rounded(self.cost.lost_s),
            "blocked_s": rounded(self.cost.blocked_s),
            "lower_bound": self.cost.lower_bound,
            "armed_share": rounded(self.armed_share),
            "parts": {name: rounded(at) for name, at in self.migration.parts().items()},
            "failure": self.migration.failure,
            "relay": dict(self.migration.relay),
            "curve": curve(self.curve, ordered, self.cost.baseline),
        }


@dataclass(frozen=True)
class Series:
    """All runs of one scenario, and what went wrong in between."""

    runs: tuple[Run, ...]
    failures: tuple[str, ...]

    def by_round(self) -> dict[int, dict[Way, Run]]:
        """Round to way to run; a failed run is missing."""
        found: dict[int, dict[Way, Run]] = {}
        for run in self.runs:
            found.setdefault(run.round, {})[run.way] = run
        return found

    def ratios(self, ratio: Callable[[Mapping[Way, Run]], float | None]) -> list[float]:
        """``ratio`` of every round in which it can be told."""
        told = []
        for runs in self.by_round().values():
            try:
                value = ratio(runs)
            except KeyError:  # a way of this round failed
                continue
            if value is not None:
                told.append(value)
        return told


def one_run(stage: Stage, way: Way, number: int, limit_s: float) -> Run:
    """Measure one migration. Raises StageError, MeasureError."""
    stage.prepare(way)
    stage.wait(SETTLE_S)
    first = stage.now()
    stage.wait(BASELINE_S)
    last = stage.now()
    if way.enlightened:
        stage.arm()
    migration = stage.migrate(way, limit_s)
    ordered, switchover = migration.ordered, migration.switchover
    if way.postcopy and switchover is None:
        raise StageError(f"{way.words} did not switch: {migration.failure}")
    before = stage.rates(first, last, first, measures.BIN_S)
    baseline = measures.baseline_rate(before, first, last)
    edge = ordered if switchover is None else switchover
    limit = ordered + limit_s
    while True:
        stage.wait(AFTER_S)
        series = stage.rates(ordered - measures.BIN_S, stage.now(), edge, measures.BIN_S)
        cost = measures.cost(series, baseline, ordered, switchover, min(limit, series.end))
        if not cost.lower_bound or stage.now() > limit or migration.failure:
            break
    armed = None
    if way.enlightened and ordered - last > measures.BASELINE_GROUP_S:
        while_armed = stage.rates(last, ordered, last, measures.BIN_S)
        armed = while_armed.work(last, ordered) / (ordered - last) / baseline
    shown = stage.rates(ordered - SHOWN_BEFORE_S, stage.now(), ordered, CURVE_BIN_S)
    return Run(number, migration, cost, shown, armed)


def all_rounds(
    stage: Stage,
    ways: Sequence[Way],
    rounds: int,
    limit_s: float,
    tell: Callable[[str], None] = lambda text: None,
) -> Series:
    """Every way in every round, the order rotated from round to round."""
    runs: list[Run] = []
    failures: list[str] = []
    for number, turn in enumerate(measures.interleaved(ways, rounds), 1):
        for way in turn:
            tell(f"round {number} of {rounds}: {Way(way).words}")
            try:
                run = one_run(stage, Way(way), number, limit_s)
                runs.append(run)
                if run.migration.failure:
                    raise StageError(run.migration.failure)
            except (StageError, measures.MeasureError) as error:
                failures.append(f"round {number}, {Way(way).words}: {error}")
                tell(failures[-1])
                stage.recover()
    return Series(tuple(runs), tuple(failures))


def best_stock(runs: Mapping[Way, Run]) -> Run:
    """The better of the round's stock runs, preempt on and off. KeyError without any."""
    stock = [runs[way] for way in (Way.STOCK, Way.STOCK_PREEMPT) if way in runs]
    if not stock:
        raise KeyError(Way.STOCK)
    return min(stock, key=lambda run: run.recovery_s)


def curve(series: RateSeries, zero: float, baseline: float) -> dict[str, Any]:
    """A series for the plots: per cent of baseline, times from ``zero``."""
    shares = [round(100 * float(rate) / baseline) for rate in series.rates]
    return {"start": round(series.start - zero, 3), "bin_s": series.bin_s, "percent": shares}


def coarser(series: RateSeries, bin_s: float = CURVE_BIN_S) -> RateSeries:
    """The series in bins of ``bin_s``, a multiple of its own; a last partial bin is dropped."""
    each = round(bin_s / series.bin_s)
    whole = len(series.rates) // each * each
    return RateSeries(
        series.start, series.bin_s * each, series.rates[:whole].reshape(-1, each).mean(axis=1)
    )


def rounded(value: float | None) -> float | None:
    """Milliseconds are all that these clocks and bins support."""
    return None if value is None else round(value, 3)
