# SPDX-License-Identifier: Apache-2.0
"""Work lost by two VMs, and what the relay's transfers come to."""

import numpy as np
import pytest

from bench import contention, relay
from bench.contention import Eviction, Loss, Pair
from bench.measures import RateSeries
from lab.way import Migration, Way

FULL = Pair(1000.0, 500.0)


def series(*stretches: tuple[float, float]) -> RateSeries:
    rates = np.concatenate([np.full(round(s / 0.05), rate) for s, rate in stretches])
    return RateSeries(-2.0, 0.05, rates)


def eviction(way: Way, number: int = 1, back: float = 3.0, full: Pair | None = FULL) -> Eviction:
    """Ordered at 0, switched at 1: half rate before; the leaving VM is back at ``back``."""
    switched = None if way is Way.PRECOPY else 1.0
    if switched is None:
        leaves, stays = series((22.0, 500.0)), series((22.0, 250.0))
    else:
        leaves = series((3.0, 500.0), (back - 1.0, 0.0), (10.0, 1000.0))
        stays = series((3.0, 250.0), (back + 9.0, 500.0))
    migration = Migration(way, "g", "host1", "host2", 0.0, switchover=switched, completed=switched)
    return Eviction(number, migration, leaves, stays, full, cap_s=15.0)


def test_both_losses_count_until_both_are_back() -> None:
    lost = contention.loss(eviction(Way.STOCK), FULL)
    assert lost.until == pytest.approx(3.0)
    assert lost.leaves_s == pytest.approx(0.5 + 2.0)
    assert lost.stays_s == pytest.approx(0.5)
    assert lost.total_s == pytest.approx(3.0)
    assert not lost.lower_bound


def test_the_last_to_recover_ends_the_count() -> None:
    run = eviction(Way.STOCK)
    late = Eviction(
        1, run.migration, run.leaves, series((3.0, 250.0), (6.0, 400.0), (5.0, 500.0)), FULL, 15.0
    )
    lost = contention.loss(late, FULL)
    assert lost.until == pytest.approx(7.0)
    assert lost.stays_s == pytest.approx(0.5 + 6 * 0.2)


def test_precopy_counts_up_to_its_cap_as_a_lower_bound() -> None:
    lost = contention.loss(eviction(Way.PRECOPY, full=None), FULL)
    assert lost.lower_bound
    assert lost.total_s == pytest.approx(15.0)


def test_all_runs_are_judged_by_the_median_full_rates() -> None:
    found = [
        eviction(Way.STOCK, 1, full=Pair(900.0, 400.0)),
        eviction(Way.ENLIGHTENED, 1, full=Pair(1000.0, 600.0)),
        eviction(Way.STOCK, 2, full=Pair(1100.0, 500.0)),
        eviction(Way.PRECOPY, 2, full=None),
    ]
    assert contention.full_rates(found) == FULL
    assert contention.full_rates(found[3:]) is None


def test_nobody_alone_is_no_figure() -> None:
    outcome = contention.judged([eviction(Way.PRECOPY, full=None)], ["why"], {})
    assert outcome.values == {"contention_precopy_ratio": [], "contention_postcopy_ratio": []}
    assert outcome.notes == ["why"]


def test_runs_are_kept_with_their_losses() -> None:
    found = [eviction(Way.STOCK, back=6.0), eviction(Way.ENLIGHTENED), eviction(Way.PRECOPY)]
    outcome = contention.judged(found, [], {"QEMU": "7.2"})
    assert outcome.values["contention_postcopy_ratio"] == pytest.approx([2.0])
    assert outcome.values["contention_precopy_ratio"] == pytest.approx([5.0])
    assert [run["way"] for run in outcome.runs] == ["stock_postcopy", "enlightened", "precopy"]
    assert "lower bound" in outcome.notes[0]


def test_ratios_are_within_rounds() -> None:
    losses = {
        (1, Way.STOCK): Loss(5.0, 1.0, 0.0, False),
        (1, Way.ENLIGHTENED): Loss(1.0, 1.0, 0.0, False),
        (2, Way.STOCK): Loss(9.0, 9.0, 0.0, False),  # ours failed in this round
        (3, Way.PRECOPY): Loss(10.0, 10.0, 0.0, True),
        (3, Way.ENLIGHTENED): Loss(2.0, 2.0, 0.0, False),
    }
    assert contention.ratios(losses, Way.STOCK) == [3.0]
    assert contention.ratios(losses, Way.PRECOPY) == [5.0]


def test_transfers_become_ratios_where_a_round_has_both_sides() -> None:
    found = [
        relay.Transfer(1, relay.DIRECT, 1_000_000_000, 1.0, 0.0),
        relay.Transfer(1, relay.PLAIN, 1_000_000_000, 1.25, 0.5),
        relay.Transfer(1, relay.TLS, 1_000_000_000, 2.5, 0.9),
        relay.Transfer(2, relay.PLAIN, 2_000_000_000, 2.0, 0.8),
    ]
    assert relay.values(found) == {
        "relay_over_direct": pytest.approx([0.8]),
        "relay_cpu_s_per_gb": pytest.approx([0.5, 0.4]),
        "relay_tls_over_plain": pytest.approx([0.5]),
        "hardened_over_plain_throughput": pytest.approx([0.5]),
    }
