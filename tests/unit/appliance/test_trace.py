# SPDX-License-Identifier: Apache-2.0
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.appliance import trace as traces
from nova_enlightened.appliance.trace import Trace, TraceRecorder, merge
from nova_enlightened.exception import TraceError

PLACES = 1000
MANIFEST = "ab" * 32


def trace_of(touches, *, learning=True, places=PLACES, manifest=MANIFEST):
    """:param touches: (seconds, place), by time."""
    times = [round(at * 1e6) for at, _ in touches]
    return Trace(
        manifest,
        places,
        max(times, default=0),
        learning,
        np.array(times, np.uint64),
        np.array([place for _, place in touches], np.uint32),
    )


def same(one, other):
    return (
        (one.manifest, one.space_places, one.duration_us, one.learning)
        == (other.manifest, other.space_places, other.duration_us, other.learning)
        and np.array_equal(one.times_us, other.times_us)
        and np.array_equal(one.places, other.places)
    )


TRACE = trace_of([(n / 100, (n * 37) % PLACES) for n in range(300)])
FILE = TRACE.encode()


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 49)), unique_by=lambda t: t[1]))
def test_reads_whatever_it_wrote(touches):
    written = trace_of(sorted(touches), places=50)
    assert same(Trace.decode(written.encode(), 50), written)


def test_keeps_whether_it_shows_every_place():
    assert not Trace.decode(trace_of([], learning=False).encode(), PLACES).learning


@given(st.integers(0, len(FILE) - 1))
def test_refuses_a_truncated_file(length):
    with pytest.raises(TraceError):
        Trace.decode(FILE[:length], PLACES)


@settings(deadline=None)
@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_gives_a_trace_that_holds_together(at, change):
    data = bytearray(FILE)
    data[at] ^= change
    tracemalloc.start()
    try:
        read = Trace.decode(data, PLACES)
    except TraceError:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20
    assert len(set(read.places.tolist())) == read.places.size
    assert (np.diff(read.times_us.astype(np.int64)) >= 0).all()


@given(st.binary(max_size=200))
def test_refuses_anything_else(data):
    with pytest.raises(TraceError):
        Trace.decode(data, PLACES)


def test_refuses_a_trace_of_another_appliance():
    with pytest.raises(TraceError):
        Trace.decode(FILE, PLACES - 1)


@pytest.mark.parametrize(
    "touches",
    [[(1, 5), (2, 5)], [(2, 5), (1, 6)], [(1, PLACES)]],
    ids=["a place twice", "time goes back", "a place outside"],
)
def test_refuses_touches_that_cannot_be(touches):
    with pytest.raises(TraceError):
        trace_of(touches)


def test_refuses_a_touch_after_the_end():
    with pytest.raises(TraceError):
        Trace(MANIFEST, 10, 5, True, np.array([6], np.uint64), np.array([1], np.uint32))


def test_refuses_a_run_of_more_than_a_year():
    with pytest.raises(TraceError):
        Trace(MANIFEST, 10, 1 << 60, True, np.empty(0, np.uint64), np.empty(0, np.uint32))


def test_the_recorder_keeps_the_first_touch_of_a_place():
    recorder = TraceRecorder(MANIFEST, 10, learning=True)
    recorder.touched([3, 4], 100)
    recorder.touched(range(4, 6), 250)
    recorder.touched([3], 300)
    trace = recorder.trace(1000)
    assert trace.places.tolist() == [3, 4, 5]
    assert trace.times_us.tolist() == [100, 100, 250]
    assert len(recorder) == 3


def test_the_recorder_does_not_mind_a_clock_that_goes_back():
    recorder = TraceRecorder(MANIFEST, 10, learning=True)
    recorder.touched([3], 100)
    recorder.touched([4], -5)
    assert recorder.trace(50).times_us.tolist() == [100, 100]


def test_merging_tells_when_and_how_often_a_place_is_touched():
    merged = merge([trace_of([(1, 7), (2, 9)]), trace_of([(3, 7)])])
    assert merged.places.tolist() == [7, 9]
    assert merged.when.tolist() == [2.0, 2.0]
    assert merged.runs.tolist() == [2, 1]
    assert merged.share.tolist() == [1.0, 0.5]


def test_a_run_counts_as_much_as_its_weight():
    merged = merge([trace_of([(1, 7)]), trace_of([(5, 7), (6, 8)])], [3, 1])
    assert merged.when.tolist() == [2.0, 6.0]
    assert merged.share.tolist() == [1.0, 0.25]


def test_a_run_that_shows_misses_only_says_nothing_of_other_places():
    merged = merge([trace_of([(1, 7)]), trace_of([(2, 8)], learning=False)])
    assert merged.share.tolist() == [1.0, 0.5]


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 100), st.integers(0, 49)), unique_by=lambda t: t[1]),
        min_size=1,
        max_size=5,
    )
)
def test_merged_runs_hold_every_place_of_each(runs):
    merged = merge([trace_of(sorted(run), places=50) for run in runs])
    assert set(merged.places.tolist()) == {place for run in runs for _, place in run}
    assert ((merged.share > 0) & (merged.share <= 1)).all()
    for row, run in zip(merged.times, runs, strict=True):
        assert int((~np.isnan(row)).sum()) == len(run)


@pytest.mark.parametrize(
    "runs, weights",
    [
        ([], None),
        ([TRACE], [0]),
        ([TRACE], [float("nan")]),
        ([TRACE], [1, 2]),
        ([TRACE, trace_of([], manifest="cd" * 32)], None),
        ([TRACE, trace_of([], places=5)], None),
        ([TRACE] * (traces.MAX_RUNS + 1), None),
    ],
    ids=["none", "no weight", "NaN", "weights", "manifest", "places", "many"],
)
def test_refuses_runs_that_do_not_go_together(runs, weights):
    with pytest.raises(TraceError):
        merge(runs, weights)


def test_refuses_more_touches_than_it_can_keep(monkeypatch):
    monkeypatch.setattr(traces, "MAX_MERGED", 299)
    with pytest.raises(TraceError):
        merge([TRACE])
