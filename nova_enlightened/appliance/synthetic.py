# SPDX-License-Identifier: Apache-2.0
"""Appliances and runs made up for the simulator.

A run is a sequence of activities, each of which touches places that belong together, within
milliseconds. Some activities every run has (what resumes with the guest, the main loop of its
service), others depend on what it is asked to do. Randomness is the caller's.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.appliance.building import DISK_GROUP, RAM_GROUP
from nova_enlightened.appliance.chunks import ABSENT, DIGEST, MAX_PACK, ZERO, ChunkIndex
from nova_enlightened.appliance.places import UNIT, ApplianceSpace
from nova_enlightened.appliance.trace import Trace
from nova_enlightened.exception import ApplianceError
from nova_enlightened.knowledge.space import PageSpace

MIB: Final = (1 << 20) // UNIT
MANIFEST: Final = "00" * 32
KINDS: Final = ("service", "session")


@dataclass(frozen=True)
class ApplianceShape:
    """An appliance, in MiB, and what a run of it does.

    :ivar kind: `service`: all at the beginning, then steady; `session`: somebody does one thing
        after the other, with pauses.
    :ivar zero: share of the places that are zero.
    :ivar used: MiB that a run touches, about.
    :ivar common: share of the activities that every run has.
    :ivar chance: that a run has one of the others.
    :ivar seconds: of a run.
    """

    kind: str = "service"
    memory: int = 512
    disk: int = 256
    zero: float = 0.25
    used: int = 72
    common: float = 0.7
    chance: float = 0.6
    seconds: float = 30.0

    def __post_init__(self) -> None:
        """:raises ApplianceError: unknown kind, or the parts exceed the whole."""
        if self.kind not in KINDS:
            raise ApplianceError(f"no synthetic appliance is called {self.kind!r}: {KINDS}")
        if self.used > (self.memory + self.disk) * (1 - self.zero) / 2 or self.used < 1:
            raise ApplianceError("the synthetic appliance is smaller than what its runs use")


@dataclass(frozen=True, eq=False)
class SyntheticAppliance:
    """A space, where its places are stored, and some runs."""

    space: ApplianceSpace
    base: ChunkIndex
    runs: tuple[Trace, ...]


def make_appliance(
    shape: ApplianceShape, runs: int, rng: np.random.Generator
) -> SyntheticAppliance:
    """Make up an appliance and `runs` runs of it."""
    memory = PageSpace([("pc.ram", shape.memory * MIB * UNIT)])
    space = ApplianceSpace(memory, (("vda", shape.disk * MIB * UNIT),) if shape.disk else ())
    zero = rng.random(space.places // 32 + 1).repeat(32)[: space.places] < shape.zero
    sizes = np.where(zero, 0.0, rng.uniform(0.15, 0.75, space.places) * UNIT)
    stored = np.flatnonzero(~zero)
    ram = stored[stored < space.memory_pages]
    disk = stored[stored >= space.memory_pages]
    base = index_of((ram, disk), (RAM_GROUP, DISK_GROUP), sizes, missing=ZERO)
    activities = _Activities(shape, stored, rng)
    return SyntheticAppliance(
        space, base, tuple(activities.run(space.places, rng) for _ in range(runs))
    )


def sizes_of(index: ChunkIndex) -> npt.NDArray[np.float64]:
    """f64[places]: about how many stored bytes each place takes, by those of its chunk."""
    sizes = np.zeros(index.places)
    stored = index.stored
    each = index.length / np.maximum(index.units, 1)
    sizes[stored] = each[index.chunk_of[stored]]
    return sizes


def index_of(
    orders: tuple[npt.NDArray[np.integer], ...],
    groups: tuple[int, ...],
    sizes: npt.NDArray[np.float64],
    *,
    missing: int = ABSENT,
) -> ChunkIndex:
    """An index of chunks that nobody has stored, of about the length they would have.

    :param orders: places, none twice, in the order in which they would be stored; those with a
        size of 0 are zero places.
    :param groups: units in a chunk, for each of `orders`.
    :param sizes: see `sizes_of`.
    """
    chunk_of = np.full(sizes.size, missing, np.uint32)
    slot_of = np.zeros(sizes.size, np.uint8)
    lengths, units, first = [], [], 0
    for order, group in zip(orders, groups, strict=True):
        chunk_of[order] = ZERO
        order = order[sizes[order] > 0]
        if not order.size:
            continue
        number = np.arange(order.size)
        chunk_of[order] = first + number // group
        slot_of[order] = number % group
        begins = np.arange(0, order.size, group)
        lengths.append(np.ceil(np.add.reduceat(sizes[order], begins)))
        units.append(np.diff(begins, append=order.size))
        first += begins.size
    length = np.concatenate([np.empty(0), *lengths]).astype(np.uint64)
    # A pack begins where the bytes so far pass a multiple of a size that leaves room for one more.
    ends = np.cumsum(length)
    pack = ((ends - length) // np.uint64(MAX_PACK // 2)).astype(np.int64)
    pack = np.unique(pack, return_inverse=True)[1].reshape(-1)
    begins_of = (ends - length)[np.searchsorted(pack, np.arange(int(pack.max(initial=-1)) + 1))]
    return ChunkIndex(
        chunk_of,
        slot_of,
        pack.astype(np.uint16),
        ends - length - begins_of[pack],
        length.astype(np.uint32),
        np.concatenate([np.empty(0), *units]).astype(np.uint8),
        np.zeros((length.size, DIGEST), np.uint8),
        tuple(f"{number:064x}" for number in range(begins_of.size)),
    )


class _Activities:
    """What runs may do: groups of places, when about, and whether every run does it."""

    def __init__(
        self, shape: ApplianceShape, stored: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        self._shape = shape
        wanted = int(shape.used * MIB / (shape.common + (1 - shape.common) * shape.chance))
        sizes = rng.geometric(1 / 60, wanted)
        sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), wanted)) + 1]
        # Runs of neighbours, scattered over memory and disk.
        starts = rng.choice(stored.size // 8, int(sizes.sum()) // 4 + 1, replace=False) * 8
        places = stored[(starts[:, None] + np.arange(4)).reshape(-1)][: int(sizes.sum())]
        self._places = np.split(places, np.cumsum(sizes)[:-1])
        count = len(self._places)
        self._common = rng.random(count) < shape.common
        if shape.kind == "service":
            self._when = rng.exponential(shape.seconds / 8, count) % shape.seconds
        else:
            scenes = np.sort(rng.uniform(0, shape.seconds, max(2, int(shape.seconds / 3))))
            self._when = rng.choice(scenes, count) + rng.exponential(0.2, count)

    def run(self, places: int, rng: np.random.Generator) -> Trace:
        """One run. Its activities come a little earlier or later than another's."""
        touched, times = [], []
        for members, when, common in zip(self._places, self._when, self._common, strict=True):
            if not common and rng.random() >= self._shape.chance:
                continue
            some = members[rng.random(members.size) < 0.97]
            at = float(when * rng.lognormal(0, 0.15))
            touched.append(some)
            times.append(at + np.cumsum(rng.exponential(0.0004, some.size)))
        place, time = np.concatenate(touched), np.concatenate(times)
        by_time = np.argsort(time, kind="stable")
        micros = (time[by_time] * 1e6).astype(np.uint64)
        end = int(max(self._shape.seconds * 1e6, micros[-1]))
        return Trace(MANIFEST, places, end, True, micros, place[by_time].astype(np.uint32))
