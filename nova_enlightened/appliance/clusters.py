# SPDX-License-Identifier: Apache-2.0
"""Places that are used together.

A run touches new places in bursts: a program starts, a request takes a path no request took
before. vTube (Abe et al., "vTube: Efficient Streaming of Virtual Appliances Over Last-Mile
Networks", SoCC 2013) fetches in such groups, found from the intervals between accesses in
traces of earlier runs. Here places are of one cluster when the runs that touched them had them in
the same bursts.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.appliance.trace import Merged

INTERVAL_S: Final = 0.05
"""Seconds without a new place that end a burst: longer than what a fault on a near link takes,
shorter than what people and timers leave between two things they do."""
LIMIT: Final = 256
"""Places in a cluster, 1 MiB: a fault should not ask for much more at once."""
TOGETHER: Final = 0.5
"""Of the runs that touched either of two groups, the share that must have had them in one
burst for them to be one cluster."""

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Clusters:
    """All places of merged runs, cluster after cluster.

    :ivar members: i64[n]: indexes into the arrays of `Merged`.
    :ivar starts: i64[clusters]: where in `members` each cluster begins.
    """

    members: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


def find_clusters(merged: Merged, interval_s: float = INTERVAL_S, limit: int = LIMIT) -> Clusters:
    """Cluster the places that any run touched. The same runs give the same clusters.

    :param interval_s: seconds without a new place that end a burst.
    :param limit: places in a cluster.
    """
    if not merged.places.size:
        empty = np.empty(0, np.int64)
        return Clusters(empty, empty)
    labels = _bursts(merged, interval_s)
    kinds, kind_of = np.unique(labels, axis=1, return_inverse=True)
    kind_of = kind_of.reshape(-1)
    # Kinds of places, by when they are used; then places of a kind, likewise.
    counts = np.bincount(kind_of)
    kind_when = np.bincount(kind_of, merged.when) / counts
    by_when = np.argsort(kind_when, kind="stable")
    rank = np.empty_like(by_when)
    rank[by_when] = np.arange(by_when.size)
    members = np.lexsort((merged.places, merged.when, rank[kind_of]))
    joined = _joined(kinds[:, by_when], merged.weights)
    kind_starts = np.append(0, np.cumsum(counts[by_when])[:-1])
    starts = kind_starts[~joined]
    return Clusters(members, _cut(starts, members.size, limit))


def _bursts(merged: Merged, interval_s: float) -> Labels:
    """i32[runs, n]: number of the burst in which a run touched a place, -1 where it did not."""
    labels = np.full(merged.times.shape, -1, np.int32)
    for row, times in zip(labels, merged.times, strict=True):
        touched = np.flatnonzero(~np.isnan(times))
        in_order = touched[np.argsort(times[touched], kind="stable")]
        gaps = np.diff(times[in_order]) > interval_s
        row[in_order] = np.append(0, np.cumsum(gaps))[: in_order.size]
    return labels


def _joined(kinds: Labels, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """For each kind of places whether it goes into one cluster with the kind before it."""
    joined = np.zeros(kinds.shape[1], np.bool_)
    before, after = kinds[:, :-1], kinds[:, 1:]
    same = weights @ ((before == after) & (before >= 0))
    either = weights @ ((before >= 0) | (after >= 0))
    joined[1:] = same >= TOGETHER * either
    return joined


def _cut(starts: npt.NDArray[np.int64], total: int, limit: int) -> npt.NDArray[np.int64]:
    """Cut clusters that are longer than `limit`."""
    sizes = np.diff(starts, append=total)
    pieces = -(-sizes // limit)
    first = np.repeat(starts, pieces)
    number = np.arange(first.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    cut: npt.NDArray[np.int64] = first + number * limit
    return cut
