# SPDX-License-Identifier: Apache-2.0
"""What a migration cost the guest, computed from its throughput over time.

Values in, values out: no clock, no lab, no migration. Times are seconds on one axis (the
lab's host clock), rates are work units a second. Every way of migrating is judged by the
same functions with the same constants, so a definition that flatters one flatters all.

The definitions, in the order they are used:

*rate*
    Work counted in bins of ``BIN_S``. The guest sends a cumulative counter; between two
    samples the work is spread evenly, so the integral is exact and a guest that is silent
    does no work.
*baseline*
    The median of the rate over whole ``BASELINE_GROUP_S`` groups in the window before the
    order. Groups rather than bins, so that the median is not pulled off the mean by the
    skew that single bins have.
*recovered*
    The start of the first bin, at or after the switchover, that reaches ``RECOVERED_SHARE``
    of baseline and from which the share of baseline, each bin capped at 1, averages at least
    ``RECOVERED_SHARE`` over ``SUSTAIN_S``. The cap keeps one burst from paying for a stall;
    the average keeps one noisy bin from hiding a recovery.
*work lost*
    The integral of ``1 - rate / baseline`` dt from the order until recovery, in seconds of
    full-speed work, not below zero. Bins are not clipped at zero: clipping would turn noise
    around the baseline into lost work, in proportion to how long a way takes.
*blocked*
    Seconds in bins below ``BLOCKED_SHARE`` of baseline.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BIN_S = 0.05
BASELINE_GROUP_S = 0.5
RECOVERED_SHARE = 0.9
SUSTAIN_S = 0.5
BLOCKED_SHARE = 0.1

Floats = npt.NDArray[np.float64]


class MeasureError(ValueError):
    """The samples cannot support the measure that was asked of them."""


@dataclass(frozen=True)
class RateSeries:
    """Work per second of one VM, in equal bins.

    ``start``: time of the first bin's left edge (s). ``bin_s``: bin length (s).
    ``rates``: float64, one per bin, work units a second, finite and not negative.
    """

    start: float
    bin_s: float
    rates: Floats

    def __post_init__(self) -> None:
        if not self.bin_s > 0:
            raise MeasureError(f"a bin must last longer than zero, not {self.bin_s}")
        if self.rates.ndim != 1:
            raise MeasureError(f"rates must be a line of bins, not {self.rates.ndim}-dimensional")
        if not bool(np.all(np.isfinite(self.rates))) or bool(np.any(self.rates < 0)):
            raise MeasureError("rates must be finite and not negative")

    @property
    def end(self) -> float:
        """Right edge of the last bin (s)."""
        return self.start + self.bin_s * len(self.rates)

    @property
    def starts(self) -> Floats:
        """Left edge of every bin (s)."""
        return self.start + self.bin_s * np.arange(len(self.rates), dtype=np.float64)

    def overlap(self, first: float, last: float) -> Floats:
        """Seconds of every bin that lie inside ``[first, last)``."""
        left = np.maximum(self.starts, first)
        right = np.minimum(self.starts + self.bin_s, last)
        inside: Floats = np.maximum(right - left, 0.0)
        return inside

    def work(self, first: float, last: float) -> float:
        """Work units done inside ``[first, last)``."""
        return float(np.dot(self.rates, self.overlap(first, last)))


def rate_series(
    times: npt.ArrayLike,
    counts: npt.ArrayLike,
    start: float,
    end: float,
    bin_s: float = BIN_S,
    edge: float | None = None,
) -> RateSeries:
    """Bin samples of a cumulative work counter into rates.

    ``times``: receive time of each sample (s), not falling. ``counts``: the counter at each,
    not falling. ``start``, ``end``: the span to cover; a last partial bin is dropped. ``edge``:
    a time a bin must begin at (``start`` moves forward by less than a bin), so that recovery
    is counted from the switchover and not from wherever the bins happened to fall. Outside
    the samples the counter is taken to stand still, so silence reads as no work.

    Raises MeasureError when there are fewer than two samples or either column falls.
    """
    when = np.asarray(times, dtype=np.float64)
    total = np.asarray(counts, dtype=np.float64)
    if when.shape != total.shape or when.ndim != 1 or len(when) < 2:
        raise MeasureError("a rate needs two samples or more, each a time and a count")
    if bool(np.any(np.diff(when) < 0)) or bool(np.any(np.diff(total) < 0)):
        raise MeasureError("sample times and counts must not fall")
    if edge is not None:
        start = first_edge(start, edge, bin_s)
    bins = max(0, int((end - start) / bin_s + 1e-9))
    edges = start + bin_s * np.arange(bins + 1, dtype=np.float64)
    work = np.interp(edges, when, total)
    return RateSeries(start, bin_s, np.maximum(np.diff(work), 0.0) / bin_s)


def first_edge(start: float, edge: float, bin_s: float) -> float:
    """The first bin edge not before ``start`` when one edge lies at ``edge`` (s)."""
    ahead = (edge - start) % bin_s
    return start if bin_s - ahead < 1e-9 else start + ahead


def baseline_rate(
    series: RateSeries, first: float, last: float, group_s: float = BASELINE_GROUP_S
) -> float:
    """Median rate over the whole groups of ``group_s`` inside ``[first, last)``.

    Groups are counted back from ``last``. Raises MeasureError when not one group fits inside
    both the window and the series, or when the guest did no work there.
    """
    first, last = max(first, series.start), min(last, series.end)
    groups = int((last - first) / group_s + 1e-9)
    if groups < 1:
        raise MeasureError(f"no {group_s} s of samples in the baseline window")
    edges = [last - group_s * number for number in range(groups)]
    rates = [series.work(edge - group_s, edge) / group_s for edge in edges]
    baseline = statistics.median(rates)
    if not baseline > 0:
        raise MeasureError("the guest did no work in the baseline window")
    return baseline


def recovered_at(
    series: RateSeries,
    baseline: float,
    after: float,
    share: float = RECOVERED_SHARE,
    sustain_s: float = SUSTAIN_S,
) -> float | None:
    """Start of the first bin, not before ``after``, from which the rate is back and stays.

    None when that does not happen inside the series (the last ``sustain_s`` cannot start a
    recovery: what follows is not known). See the module's definition of *recovered*.
    """
    _positive(baseline)
    hold = max(1, round(sustain_s / series.bin_s))
    if len(series.rates) < hold:
        return None
    level = series.rates / baseline
    sums = np.concatenate(([0.0], np.cumsum(np.minimum(level, 1.0))))
    held = (sums[hold:] - sums[:-hold]) / hold
    first = level[: len(held)]
    tolerance = 1e-9
    good = (
        (first >= share - tolerance)
        & (held >= share - tolerance)
        & (series.starts[: len(held)] >= after - tolerance)
    )
    found = np.flatnonzero(good)
    return float(series.starts[found[0]]) if len(found) else None


def work_lost(series: RateSeries, baseline: float, ordered: float, until: float) -> float:
    """Seconds of full-speed work not done between ``ordered`` and ``until``; never below 0.

    Time that the series does not cover counts as no work done.
    """
    _positive(baseline)
    return max(0.0, (until - ordered) - series.work(ordered, until) / baseline)


def blocked_s(
    series: RateSeries, baseline: float, first: float, last: float, share: float = BLOCKED_SHARE
) -> float:
    """Seconds inside ``[first, last)`` in bins below ``share`` of baseline."""
    _positive(baseline)
    return float(np.sum(series.overlap(first, last)[series.rates < share * baseline]))


@dataclass(frozen=True)
class Cost:
    """What one migration cost one VM.

    ``baseline``: work units a second. ``recovered``: when (s), and ``recovery_s``: how long
    after the switchover, both None when it was not seen. ``lost_s``: work lost from the order
    until recovery, seconds of full-speed work. ``blocked_s``: seconds almost without work in
    that span. ``lower_bound``: recovery was not seen before the series or the limit ended, so
    that the true loss is larger.
    """

    baseline: float
    recovered: float | None
    recovery_s: float | None
    lost_s: float
    blocked_s: float
    lower_bound: bool


def cost(
    series: RateSeries,
    baseline: float,
    ordered: float,
    switchover: float | None,
    limit: float,
) -> Cost:
    """Judge one VM over one migration; ``limit`` is where counting stops without recovery.

    ``switchover`` None (a pre-copy that never converged, or a VM that stays behind and is
    judged on work lost alone) looks for recovery from the order on.
    """
    after = ordered if switchover is None else switchover
    back = recovered_at(series, baseline, after)
    seen = back is not None and back <= limit
    until = back if back is not None and seen else limit
    return Cost(
        baseline=baseline,
        recovered=back if seen else None,
        recovery_s=back - after if back is not None and seen else None,
        lost_s=work_lost(series, baseline, ordered, until),
        blocked_s=blocked_s(series, baseline, ordered, until),
        lower_bound=not seen,
    )


@dataclass(frozen=True)
class Summary:
    """Median, extremes and count of the runs of one measure."""

    median: float
    min: float
    max: float
    n: int


def summary(values: Iterable[float]) -> Summary:
    """Summarise the runs. Raises MeasureError when there are none or one is not finite."""
    runs = [float(value) for value in values]
    if not runs or not bool(np.all(np.isfinite(runs))):
        raise MeasureError(f"cannot summarise {runs}")
    return Summary(statistics.median(runs), min(runs), max(runs), len(runs))


def interleaved(ways: Sequence[str], rounds: int) -> list[tuple[str, ...]]:
    """The order of the ways in every round: rotated by one each time.

    Slow drift of the machine then falls on all ways alike, and over ``len(ways)`` rounds each
    way has been first, and last, once.
    """
    size = len(ways)
    return [tuple(ways[(turn + place) % size] for place in range(size)) for turn in range(rounds)]


def _positive(baseline: float) -> None:
    if not baseline > 0:
        raise MeasureError(f"the baseline must be above zero, not {baseline}")
