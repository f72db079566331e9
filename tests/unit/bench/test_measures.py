# SPDX-License-Identifier: Apache-2.0
"""The measures, on series whose answers are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import measures
from bench.measures import RateSeries


def series(*stretches: tuple[float, float], start: float = 0.0, bin_s: float = 0.05) -> RateSeries:
    """Stretches of (seconds, rate)."""
    rates = np.concatenate([np.full(round(s / bin_s), rate) for s, rate in stretches])
    return RateSeries(start, bin_s, rates)


def test_counter_is_spread_evenly_between_samples() -> None:
    got = measures.rate_series([0, 1, 2], [0, 10, 40], 0.0, 2.0, 0.5)
    assert got.rates.tolist() == pytest.approx([10, 10, 30, 30])


def test_silence_is_no_work() -> None:
    got = measures.rate_series([1, 2], [5, 15], 0.0, 4.0, 1.0)
    assert got.rates.tolist() == pytest.approx([0, 10, 0, 0])


def test_a_bin_begins_at_the_edge_asked_for() -> None:
    got = measures.rate_series([0, 10], [0, 100], 0.0, 10.0, 0.5, edge=3.3)
    assert got.start == pytest.approx(0.3)
    assert np.min(np.abs(got.starts - 3.3)) < 1e-9


@pytest.mark.parametrize(
    "times, counts",
    [([0.0], [1.0]), ([0.0, 1.0], [1.0]), ([1.0, 0.0], [1.0, 2.0]), ([0.0, 1.0], [2.0, 1.0])],
)
def test_samples_that_make_no_rate_are_refused(times: list[float], counts: list[float]) -> None:
    with pytest.raises(measures.MeasureError):
        measures.rate_series(times, counts, 0.0, 1.0)


@pytest.mark.parametrize("rates", [[-1.0], [float("nan")], [float("inf")], [[1.0]]])
def test_impossible_rates_are_refused(rates: list[float]) -> None:
    with pytest.raises(measures.MeasureError):
        RateSeries(0.0, 0.05, np.asarray(rates))


def test_baseline_is_the_median_of_half_second_groups() -> None:
    got = series((2.0, 100.0), (0.5, 0.0), (0.5, 1000.0))
    assert measures.baseline_rate(got, 0.0, 3.0) == pytest.approx(100.0)


def test_baseline_of_alternating_bins_is_their_mean() -> None:
    got = RateSeries(0.0, 0.05, np.tile([50.0, 150.0], 40))
    assert measures.baseline_rate(got, 0.0, 4.0) == pytest.approx(100.0)


def test_baseline_needs_a_whole_group() -> None:
    with pytest.raises(measures.MeasureError):
        measures.baseline_rate(series((5.0, 1.0)), 0.0, 0.4)


def test_baseline_of_an_idle_guest_is_refused() -> None:
    with pytest.raises(measures.MeasureError):
        measures.baseline_rate(series((5.0, 0.0)), 0.0, 5.0)


def test_recovery_is_where_the_rate_comes_back() -> None:
    got = series((2.0, 100.0), (1.5, 0.0), (1.0, 50.0), (3.0, 95.0))
    assert measures.recovered_at(got, 100.0, 2.0) == pytest.approx(4.5)


def test_a_burst_does_not_count_as_recovery() -> None:
    got = series((1.0, 0.0), (0.1, 1000.0), (1.0, 0.0), (2.0, 100.0))
    assert measures.recovered_at(got, 100.0, 0.0) == pytest.approx(2.1)


def test_one_noisy_bin_does_not_hide_recovery() -> None:
    got = series((1.0, 0.0), (0.1, 100.0), (0.05, 70.0), (2.0, 100.0))
    assert measures.recovered_at(got, 100.0, 0.0) == pytest.approx(1.0)


def test_a_guest_that_never_stopped_recovers_at_the_switchover() -> None:
    assert measures.recovered_at(series((5.0, 10.0)), 10.0, 2.0) == pytest.approx(2.0)


def test_recovery_too_close_to_the_end_is_not_known() -> None:
    got = series((1.0, 0.0), (0.4, 100.0))
    assert measures.recovered_at(got, 100.0, 0.0) is None


def test_recovery_below_the_share_is_none() -> None:
    assert measures.recovered_at(series((10.0, 89.0)), 100.0, 0.0) is None


def test_work_lost_is_the_missing_area() -> None:
    got = series((1.0, 100.0), (2.0, 0.0), (2.0, 50.0))
    assert measures.work_lost(got, 100.0, 1.0, 5.0) == pytest.approx(3.0)


def test_work_lost_counts_parts_of_bins() -> None:
    assert measures.work_lost(series((1.0, 0.0)), 100.0, 0.02, 0.51) == pytest.approx(0.49)


def test_time_without_samples_is_lost() -> None:
    assert measures.work_lost(series((1.0, 100.0)), 100.0, 0.0, 3.0) == pytest.approx(2.0)


def test_noise_about_the_baseline_is_not_lost_work() -> None:
    noise = np.random.default_rng(1).normal(100.0, 20.0, 4000).clip(min=0)
    got = RateSeries(0.0, 0.05, noise)
    assert measures.work_lost(got, float(noise.mean()), 0.0, 200.0) < 0.01


def test_blocked_counts_only_near_silence() -> None:
    got = series((1.0, 100.0), (0.7, 0.0), (1.0, 20.0), (0.2, 5.0))
    assert measures.blocked_s(got, 100.0, 0.0, 2.9) == pytest.approx(0.9)


def test_cost_of_a_recovery() -> None:
    got = series((2.0, 100.0), (0.5, 0.0), (1.0, 50.0), (5.0, 100.0))
    cost = measures.cost(got, 100.0, ordered=1.8, switchover=2.0, limit=60.0)
    assert cost.recovered == pytest.approx(3.5)
    assert cost.recovery_s == pytest.approx(1.5)
    assert cost.lost_s == pytest.approx(1.0)
    assert cost.blocked_s == pytest.approx(0.5)
    assert not cost.lower_bound


def test_cost_without_recovery_is_a_lower_bound_at_the_limit() -> None:
    cost = measures.cost(series((20.0, 50.0)), 100.0, ordered=2.0, switchover=None, limit=12.0)
    assert cost.lower_bound
    assert cost.recovery_s is None
    assert cost.lost_s == pytest.approx(5.0)


def test_recovery_after_the_limit_does_not_count() -> None:
    got = series((5.0, 0.0), (5.0, 100.0))
    cost = measures.cost(got, 100.0, ordered=0.0, switchover=None, limit=3.0)
    assert cost.lower_bound
    assert cost.lost_s == pytest.approx(3.0)


def test_summary() -> None:
    got = measures.summary([3.0, 1.0, 2.0, 10.0])
    assert (got.median, got.min, got.max, got.n) == (2.5, 1.0, 10.0, 4)


@pytest.mark.parametrize("runs", [[], [float("nan")], [1.0, float("inf")]])
def test_summary_of_nothing_is_refused(runs: list[float]) -> None:
    with pytest.raises(measures.MeasureError):
        measures.summary(runs)


def test_every_way_takes_every_place() -> None:
    rounds = measures.interleaved(("a", "b", "c"), 3)
    assert rounds == [("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b")]


levels = st.lists(st.floats(0.0, 2.0), min_size=1, max_size=200)


@given(levels, st.floats(0.1, 1e6))
def test_scale_of_the_counter_changes_nothing(shares: list[float], unit: float) -> None:
    one = RateSeries(0.0, 0.05, np.asarray(shares))
    scaled = RateSeries(0.0, 0.05, np.asarray(shares) * unit)
    a = measures.cost(one, 1.0, 0.0, 0.0, one.end)
    b = measures.cost(scaled, unit, 0.0, 0.0, one.end)
    assert a.lost_s == pytest.approx(b.lost_s, abs=1e-6)
    assert a.lower_bound == b.lower_bound


@given(levels, st.floats(0.0, 10.0), st.floats(0.0, 10.0))
def test_work_lost_is_between_nothing_and_the_whole_span(
    shares: list[float], ordered: float, span: float
) -> None:
    lost = measures.work_lost(
        RateSeries(0.0, 0.05, np.asarray(shares)), 1.0, ordered, ordered + span
    )
    assert 0.0 <= lost <= span + 1e-9


@given(levels, st.floats(0.0, 10.0))
def test_recovery_is_a_bin_edge_not_before_the_switchover(
    shares: list[float], after: float
) -> None:
    got = RateSeries(0.0, 0.05, np.asarray(shares))
    back = measures.recovered_at(got, 1.0, after)
    if back is not None:
        assert back >= after - 1e-6
        assert got.rates[round(back / 0.05)] >= 0.9 - 1e-6


@given(st.lists(st.tuples(st.floats(0.001, 0.5), st.integers(0, 1000)), min_size=2, max_size=100))
def test_binning_keeps_the_work(steps: list[tuple[float, int]]) -> None:
    times = np.cumsum([gap for gap, _ in steps])
    counts = np.cumsum([work for _, work in steps])
    got = measures.rate_series(times, counts, 0.0, float(times[-1]) + 1.0, 0.05)
    assert got.work(got.start, got.end) == pytest.approx(float(counts[-1] - counts[0]), abs=1e-6)
