# SPDX-License-Identifier: Apache-2.0
"""The prefetch plan: what runs of an appliance will want, soonest first, in clusters.

The plan comes with a layer of its own, in which the planned places are stored again in the order
they will be wanted: following the plan is reading a few packs from front to back. File format,
little endian:

    header   4s magic 'NEPP', u16 version, u16 runs, u32 places of the appliance, u32 planned
             places, u32 clusters, u16 packs, u16 zero, u64 stored bytes of the layer,
             32 bytes: SHA-256 of the manifest
    body     a zstd frame of columns: u32 place, u32 milliseconds, for each planned place (both
             differences to the one before); u32 places in each cluster; for the index of the
             layer and then each pack: 32 bytes of SHA-256, u32 length
"""

import math
import re
import struct
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from nova_enlightened.appliance import frames
from nova_enlightened.appliance.chunks import MAX_INDEX, MAX_PACK, MAX_PACKS, ChunkIndex
from nova_enlightened.appliance.manifest import Object
from nova_enlightened.appliance.places import MAX_PLACES, ApplianceSpace
from nova_enlightened.appliance.prefetch_policies import PrefetchPolicy, Together
from nova_enlightened.appliance.trace import Merged
from nova_enlightened.exception import ApplianceError, PrefetchPlanError

MAGIC: Final = b"NEPP"
VERSION: Final = 1
HEADER: Final = struct.Struct("<4sHHIIIHHQ32s")
MAX_PLAN: Final = 512 << 20
"""Bytes of the file."""
OBJECT: Final = 32 + 4
UNLIKELY: Final = 0xFFFFFFFF
"""In `PrefetchPlan.wanted_ms`: fewer than half of the runs touched the place, so nobody need
wait for it before the guest is started."""
LIKELY: Final = 0.5
SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class PlanOrder:
    """A plan that has no layer yet. For the fields see `PrefetchPlan`."""

    manifest: str
    space_places: int
    runs: int
    order: npt.NDArray[np.uint32]
    wanted_ms: npt.NDArray[np.uint32]
    cluster_starts: npt.NDArray[np.uint32]

    def with_layer(
        self, layer: Object, index: ChunkIndex, packs: tuple[Object, ...]
    ) -> "PrefetchPlan":
        """The plan, whose places are stored again in `index`, the content of `layer`."""
        return PrefetchPlan(
            self.manifest,
            self.space_places,
            self.runs,
            self.order,
            self.wanted_ms,
            self.cluster_starts,
            index.stored_bytes,
            layer,
            packs,
        )


def make(merged: Merged, space: ApplianceSpace, policy: PrefetchPolicy | None = None) -> PlanOrder:
    """Decide the order in which to fetch what runs have touched.

    :param policy: None for the default, `Together`.
    :raises PrefetchPlanError: the runs are not of this appliance, or the policy does not name each
        of their places once.
    """
    if merged.space_places != space.places:
        raise PrefetchPlanError(
            f"runs of {merged.space_places} places, an appliance of {space.places}"
        )
    chosen = policy or Together()
    ordered = chosen.ordered(merged)
    members = ordered.members
    if not np.array_equal(np.sort(members), np.arange(merged.places.size)):
        raise PrefetchPlanError(f"policy {chosen.name} does not name every place once")
    wanted = np.minimum(np.rint(merged.when[members] * 1e3), UNLIKELY - 1).astype(np.uint32)
    wanted[merged.share[members] < LIKELY] = UNLIKELY
    return PlanOrder(
        merged.manifest,
        merged.space_places,
        merged.weights.size,
        merged.places[members],
        wanted,
        ordered.starts.astype(np.uint32),
    )


@dataclass(frozen=True, eq=False)
class PrefetchPlan:
    """What to fetch in which order. Arrays are not to be written to.

    :ivar manifest: SHA-256 of the appliance's manifest, in hexadecimal.
    :ivar space_places: places of the appliance.
    :ivar runs: how many traces it was made of, 1 to 65535.
    :ivar order: u32[n]: distinct places, the one to fetch first at the front.
    :ivar wanted_ms: u32[n]: milliseconds after its start at which the guest is expected to
        want the place, or `UNLIKELY`.
    :ivar cluster_starts: u32[clusters]: where in `order` each cluster begins, ascending from 0.
    :ivar stored_bytes: of all chunks of the plan's layer.
    :ivar layer: object with the chunk index of the plan's layer.
    :ivar packs: every pack of that index, in its order.
    """

    manifest: str
    space_places: int
    runs: int
    order: npt.NDArray[np.uint32]
    wanted_ms: npt.NDArray[np.uint32]
    cluster_starts: npt.NDArray[np.uint32]
    stored_bytes: int
    layer: Object
    packs: tuple[Object, ...]

    def __post_init__(self) -> None:
        """:raises PrefetchPlanError: lengths disagree, or a value is outside its range."""
        if not 0 <= self.space_places <= MAX_PLACES or not 1 <= self.runs <= 0xFFFF:
            raise PrefetchPlanError(f"a plan of {self.space_places} places, {self.runs} runs")
        if self.order.size != self.wanted_ms.size or self.order.size > self.space_places:
            raise PrefetchPlanError(f"a plan of {self.order.size} places, {self.wanted_ms.size}")
        limits = [(self.layer, MAX_INDEX), *((pack, MAX_PACK) for pack in self.packs)]
        if len(self.packs) > MAX_PACKS or any(
            not SHA256.fullmatch(item.sha256) or not 1 <= item.length <= limit
            for item, limit in limits
        ):
            raise PrefetchPlanError("prefetch plan: an object of its layer cannot be one")
        if not 0 <= self.stored_bytes <= sum(pack.length for pack in self.packs):
            raise PrefetchPlanError("prefetch plan: its layer has more bytes than its packs")
        self._check_order()

    def _check_order(self) -> None:
        if self.order.size:
            if int(self.order.max()) >= self.space_places:
                raise PrefetchPlanError("prefetch plan: a place is outside the appliance")
            seen = np.zeros(self.space_places, np.bool_)
            seen[self.order] = True
            if np.count_nonzero(seen) != self.order.size:
                raise PrefetchPlanError("prefetch plan: a place is planned twice")
        starts = self.cluster_starts.astype(np.int64)
        if bool(starts.size) != bool(self.order.size) or (
            starts.size
            and (
                int(starts[0]) != 0
                or int(starts[-1]) >= self.order.size
                or bool((np.diff(starts) < 1).any())
            )
        ):
            raise PrefetchPlanError("prefetch plan: its clusters are not parts of its order")

    def encode(self) -> bytes:
        """The file."""
        header = HEADER.pack(
            MAGIC,
            VERSION,
            self.runs,
            self.space_places,
            self.order.size,
            self.cluster_starts.size,
            len(self.packs),
            0,
            self.stored_bytes,
            bytes.fromhex(self.manifest),
        )
        sizes = np.diff(self.cluster_starts, append=np.uint32(self.order.size))
        body = [
            frames.column(frames.delta(self.order, "<u4"), "<u4"),
            frames.column(frames.delta(self.wanted_ms, "<u4"), "<u4"),
            frames.column(sizes, "<u4"),
        ]
        for item in (self.layer, *self.packs):
            body.append(bytes.fromhex(item.sha256) + struct.pack("<I", item.length))
        return header + frames.compress(b"".join(body))

    @classmethod
    def decode(cls, data: bytes | memoryview, places: int) -> Self:
        """The plan in a file, for an appliance of `places` places.

        :raises PrefetchPlanError: not such a file, of another appliance, damaged, past a limit.
        """
        view = memoryview(data)
        if not HEADER.size < len(view) <= MAX_PLAN:
            raise PrefetchPlanError(f"a prefetch plan of {len(view)} bytes")
        header = HEADER.unpack_from(view)
        magic, version, runs, told, count, clusters, packs, _, stored, manifest = header
        if magic != MAGIC or version != VERSION:
            raise PrefetchPlanError(f"not a prefetch plan of version {VERSION}: {magic!r}")
        if told != places or not clusters <= count <= places or packs > MAX_PACKS:
            raise PrefetchPlanError(
                f"a plan of {count} of {told} places in {clusters} clusters and {packs} packs, "
                f"for an appliance of {places}"
            )
        size = 8 * count + 4 * clusters + OBJECT * (packs + 1)
        try:
            columns = frames.Columns(frames.decompress(view[HEADER.size :], size))
        except ApplianceError as error:
            raise PrefetchPlanError(f"prefetch plan: {error}") from error
        order = frames.undelta(columns.next(count, "<u4")).astype(np.uint32)
        wanted = frames.undelta(columns.next(count, "<u4")).astype(np.uint32)
        ends = np.cumsum(columns.next(clusters, "<u4"), dtype=np.uint64)
        if clusters and int(ends[-1]) != count:
            raise PrefetchPlanError("prefetch plan: its clusters are not its places")
        starts = np.append(np.zeros(min(clusters, 1), np.uint64), ends[:-1]).astype(np.uint32)
        rows = columns.next((packs + 1) * OBJECT, "u1").tobytes()
        objects = [
            Object(digest.hex(), length) for digest, length in struct.iter_unpack("<32sI", rows)
        ]
        return cls(
            manifest.hex(), places, runs, order, wanted, starts, stored, objects[0], (*objects[1:],)
        )

    def buffer_s(self, bandwidth: float, rtt: float, stall_s: float = 0.0) -> float:
        """How long to fetch before the guest is started, so that it then finds in time
        whatever is likely to be wanted, everything coming in plan order.

        :param bandwidth: bytes a second, above 0.
        :param rtt: seconds from a request to its first byte.
        :param stall_s: seconds the guest may come to wait in all after its start.
        :returns: seconds from the first request; never more at a higher bandwidth, never less
            at a longer round trip.
        :raises PrefetchPlanError: the link is none.
        """
        if not bandwidth > 0 or not rtt >= 0:
            raise PrefetchPlanError(f"no link has {bandwidth} bytes/s and {rtt} s")
        likely = np.flatnonzero(self.wanted_ms != UNLIKELY)
        if not likely.size:
            return 0.0
        arrives = rtt + (likely + 1) * (self.stored_bytes / self.order.size / bandwidth)
        return max(0.0, float((arrives - self.wanted_ms[likely] / 1e3).max()) - stall_s)

    def before(self, bandwidth: float, rtt: float, stall_s: float = 0.0) -> int:
        """How many places, from the front of `order`, are to be there before the guest is
        started; see `buffer_s`.
        """
        if self.buffer_s(bandwidth, rtt, stall_s) <= rtt:
            return 0
        likely = np.flatnonzero(self.wanted_ms != UNLIKELY)
        # How many places further than this one the link is by the time it is wanted.
        each = self.stored_bytes / self.order.size / bandwidth
        ahead = (self.wanted_ms[likely] / 1e3 + stall_s) / each
        return min(self.order.size, math.ceil(max(0.0, float((likely + 1 - ahead).max()))))
