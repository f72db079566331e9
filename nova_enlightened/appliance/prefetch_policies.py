# SPDX-License-Identifier: Apache-2.0
"""In which order to prefetch what earlier runs have touched.

Installed under the stevedore namespace `nova_enlightened.prefetch_policies`.
"""

from typing import Final, Protocol

import numpy as np

from nova_enlightened.appliance.clusters import Clusters, find_clusters
from nova_enlightened.appliance.trace import Merged

RARE: Final = 0.25
"""Power of the share of runs by which a cluster's time is divided to find its turn: what every
second run wants is fetched as if it were wanted a fifth later. In replays a larger one cost more
for those who want it than it saved others, even where what runs have apart is rare."""
FIRST_S: Final = 0.1
"""Added to all times before: at the very start, the share decides."""


class PrefetchPolicy(Protocol):
    """A pure function behind a class with a name: the same runs, the same order."""

    name: str

    def ordered(self, merged: Merged) -> Clusters:
        """Every place of the runs once, the one to fetch first at the front.

        A cluster is fetched as a whole where the guest asks for a place of it.
        """
        ...


class Together:
    """Clusters of what runs touched in the same bursts; by when they are wanted, and how often."""

    name = "clusters"

    def ordered(self, merged: Merged) -> Clusters:
        """See `PrefetchPolicy`."""
        found = find_clusters(merged)
        if not found.starts.size:
            return found
        when, share = merged.when[found.members], merged.share[found.members]
        sizes = np.diff(found.starts, append=found.members.size)
        first = np.minimum.reduceat(when, found.starts)
        often = np.add.reduceat(share, found.starts) / sizes
        by_turn = np.argsort((first + FIRST_S) / often**RARE, kind="stable")
        starts = np.cumsum(sizes[by_turn]) - sizes[by_turn]
        # Positions in `members`, cluster by cluster in the new order.
        shift = np.repeat(found.starts[by_turn] - starts, sizes[by_turn])
        return Clusters(found.members[np.arange(found.members.size) + shift], starts)


class FirstTouch:
    """Each place by itself, by when runs touched it first: what a recorded run would replay."""

    name = "first-touch"

    def ordered(self, merged: Merged) -> Clusters:
        """See `PrefetchPolicy`."""
        return Clusters(np.argsort(merged.when, kind="stable"), np.arange(merged.places.size))
