# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.appliance.clusters import find_clusters
from nova_enlightened.appliance.trace import merge
from tests.unit.appliance.test_trace import trace_of


def clusters_of(runs, **options):
    merged = merge([trace_of(sorted(run)) for run in runs])
    clusters = find_clusters(merged, **options)
    places = merged.places[clusters.members].tolist()
    edges = [*clusters.starts.tolist(), len(places)]
    return [places[a:b] for a, b in itertools.pairwise(edges)]


def burst(at, places):
    return [(at + n / 1000, place) for n, place in enumerate(places)]


def test_a_pause_ends_a_cluster():
    run = burst(1.0, [5, 9, 7]) + burst(2.0, [1, 2])
    assert clusters_of([run]) == [[5, 9, 7], [1, 2]]


def test_places_used_together_in_all_runs_are_together_whenever_that_is():
    one = burst(1.0, [5, 6]) + burst(2.0, [1, 2])
    other = burst(5.0, [6, 5]) + burst(3.0, [1, 2])
    assert sorted(map(sorted, clusters_of([one, other]))) == [[1, 2], [5, 6]]


def test_places_that_one_of_three_runs_had_together_by_chance_are_apart():
    together = burst(1.0, [5, 6])
    apart = burst(1.0, [5]) + burst(3.0, [6])
    assert len(clusters_of([together, apart, apart])) == 2


def test_a_place_that_some_runs_left_out_stays_with_the_others():
    runs = [burst(1.0, [5, 6, 7]), burst(1.0, [5, 6, 7]), burst(1.0, [5, 6])]
    assert [sorted(cluster) for cluster in clusters_of(runs)] == [[5, 6, 7]]


def test_a_place_of_one_run_only_is_apart_from_what_every_run_has():
    runs = [burst(1.0, [5, 6, 7]), burst(1.0, [5, 6]), burst(1.0, [5, 6])]
    assert [sorted(cluster) for cluster in clusters_of(runs)] == [[5, 6], [7]]


def test_a_long_burst_is_cut():
    sizes = [len(cluster) for cluster in clusters_of([burst(0.0, range(100))], limit=30)]
    assert sizes == [30, 30, 30, 10]


def test_no_places_no_clusters():
    assert clusters_of([[]]) == []


RUNS = st.lists(
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 49)), unique_by=lambda touch: touch[1]),
    min_size=1,
    max_size=4,
)


@settings(deadline=None)
@given(RUNS, st.integers(1, 10))
def test_every_place_is_in_one_cluster_and_none_is_too_large(runs, limit):
    clusters = clusters_of(runs, limit=limit)
    places = [place for cluster in clusters for place in cluster]
    assert sorted(places) == sorted({place for run in runs for _, place in run})
    assert all(0 < len(cluster) <= limit for cluster in clusters)


@settings(deadline=None)
@given(RUNS)
def test_the_same_runs_give_the_same_clusters(runs):
    assert clusters_of(runs) == clusters_of(runs)


def test_many_places_take_no_time_worth_mentioning():
    rng = np.random.default_rng(1)
    runs = [
        list(
            zip(
                np.sort(rng.random(900)).tolist(), rng.permutation(1000)[:900].tolist(), strict=True
            )
        )
        for _ in range(8)
    ]
    assert sum(map(len, clusters_of(runs))) == 1000
