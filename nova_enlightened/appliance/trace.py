# SPDX-License-Identifier: Apache-2.0
"""Traces: which places a run of an appliance touched first, and when; and many runs as one.

A *learning run* is played without prefetching, each page given only when it is asked for, so its
trace has every place. Of other runs only the misses show: places that had not been prefetched.
File format, little endian:

    header   4s magic 'NETR', u16 version, u16 flags (1: a learning run), u32 places of the
             appliance, u32 touches, u64 microseconds the run was watched, 32 bytes: SHA-256
             of the manifest
    body     a zstd frame of columns: u64 microseconds since the guest was started (difference
             to the one before), u32 place
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from nova_enlightened.appliance import frames
from nova_enlightened.appliance.places import MAX_PLACES
from nova_enlightened.exception import ApplianceError, TraceError

MAGIC: Final = b"NETR"
VERSION: Final = 1
HEADER: Final = struct.Struct("<4sHHIIQ32s")
LEARNING: Final = 1
MAX_DURATION_US: Final = 366 * 24 * 3600 * 10**6
"""A year."""
MAX_TRACE: Final = 512 << 20
"""Bytes of the file."""
MAX_RUNS: Final = 256
"""Traces merged at once."""
MAX_MERGED: Final = 1 << 28
"""Touches in all runs merged, places times runs: 1 GiB of times."""


@dataclass(frozen=True, eq=False)
class Trace:
    """First touches of one run. Arrays are not to be written to.

    :ivar manifest: SHA-256 of the appliance's manifest, in hexadecimal.
    :ivar space_places: places of the appliance.
    :ivar duration_us: how long the run was watched.
    :ivar learning: whether it shows every place that was touched, not only misses.
    :ivar times_us: u64: microseconds since the guest was started, ascending.
    :ivar places: u32: distinct places, as long as `times_us`.
    """

    manifest: str
    space_places: int
    duration_us: int
    learning: bool
    times_us: npt.NDArray[np.uint64]
    places: npt.NDArray[np.uint32]

    def __post_init__(self) -> None:
        """:raises TraceError: lengths disagree, an order or a range is broken."""
        if not 0 <= self.space_places <= MAX_PLACES or not 0 <= self.duration_us <= MAX_DURATION_US:
            raise TraceError(f"a trace of {self.space_places} places, {self.duration_us} us")
        if self.times_us.size != self.places.size:
            raise TraceError(f"a trace of {self.times_us.size} times, {self.places.size} places")
        if not self.places.size:
            return
        if int(self.places.max()) >= self.space_places:
            raise TraceError("trace: a place is outside the appliance")
        if bool((self.times_us[1:] < self.times_us[:-1]).any()):
            raise TraceError("trace: times go back")
        if int(self.times_us[-1]) > self.duration_us:
            raise TraceError("trace: a place was touched after the end")
        seen = np.zeros(self.space_places, np.bool_)
        seen[self.places] = True
        if np.count_nonzero(seen) != self.places.size:
            raise TraceError("trace: a place was touched first more than once")

    def encode(self) -> bytes:
        """The file."""
        header = HEADER.pack(
            MAGIC,
            VERSION,
            LEARNING if self.learning else 0,
            self.space_places,
            self.places.size,
            self.duration_us,
            bytes.fromhex(self.manifest),
        )
        times = frames.column(frames.delta(self.times_us, "<u8"), "<u8")
        return header + frames.compress(times + frames.column(self.places, "<u4"))

    @classmethod
    def decode(cls, data: bytes | memoryview, places: int) -> Self:
        """The trace in a file, of an appliance of `places` places.

        :raises TraceError: not such a file, of another appliance, damaged, or past a limit.
        """
        view = memoryview(data)
        if not HEADER.size < len(view) <= MAX_TRACE:
            raise TraceError(f"a trace of {len(view)} bytes")
        magic, version, flags, told, count, duration, manifest = HEADER.unpack_from(view)
        if magic != MAGIC or version != VERSION or flags > LEARNING:
            raise TraceError(f"not a trace of version {VERSION}: {magic!r} {version} {flags:#x}")
        if told != places or count > places:
            raise TraceError(f"a trace of {count} of {told} places, the appliance has {places}")
        try:
            columns = frames.Columns(frames.decompress(view[HEADER.size :], 12 * count))
        except ApplianceError as error:
            raise TraceError(f"trace: {error}") from error
        times = frames.undelta(columns.next(count, "<u8")).astype(np.uint64)
        touched = columns.next(count, "<u4").astype(np.uint32)
        return cls(manifest.hex(), places, duration, flags == LEARNING, times, touched)


class TraceRecorder:
    """Collects a trace while an appliance runs.

    :param manifest: SHA-256 of the appliance's manifest, in hexadecimal.
    :param places: of the appliance.
    :param learning: whether nothing is prefetched, so that every touch will show.
    """

    def __init__(self, manifest: str, places: int, *, learning: bool) -> None:
        self._manifest = manifest
        self._learning = learning
        self._seen = np.zeros(places, np.bool_)
        self._touched: list[int] = []
        self._times: list[int] = []

    def __len__(self) -> int:
        return len(self._touched)

    def touched(self, places: Sequence[int] | range, time_us: int) -> None:
        """The guest wants these places. Later touches of a place do not count.

        :param time_us: since the guest was started; less than before counts as no time.
        """
        at = max(time_us, 0, self._times[-1] if self._times else 0)
        for place in places:
            if not self._seen[place]:
                self._seen[place] = True
                self._touched.append(place)
                self._times.append(at)

    def trace(self, duration_us: int) -> Trace:
        """What was collected so far, the run having been watched for `duration_us`."""
        return Trace(
            self._manifest,
            self._seen.size,
            max(duration_us, self._times[-1] if self._times else 0),
            self._learning,
            np.array(self._times, np.uint64),
            np.array(self._touched, np.uint32),
        )


@dataclass(frozen=True, eq=False)
class Merged:
    """Several runs of an appliance, place by place.

    :ivar manifest: SHA-256 of the appliance's manifest.
    :ivar space_places: places of the appliance.
    :ivar weights: f64[runs]: how much each run counts.
    :ivar places: u32[n]: every place any run touched, ascending.
    :ivar times: f32[runs, n]: seconds at which the run touched it first, NaN where it did not.
    :ivar runs: u16[n]: how many runs touched it.
    :ivar share: f32[n], 0 to 1: the weight of the runs that touched it, of those that would
        have shown it if they had.
    :ivar when: f64[n]: weighted mean of its times, in seconds.
    """

    manifest: str
    space_places: int
    weights: npt.NDArray[np.float64]
    places: npt.NDArray[np.uint32]
    times: npt.NDArray[np.float32]
    runs: npt.NDArray[np.uint16]
    share: npt.NDArray[np.float32]
    when: npt.NDArray[np.float64]


def merge(traces: Sequence[Trace], weights: Sequence[float] | None = None) -> Merged:
    """Put runs together.

    :param weights: positive, one for each trace; 1 where not given.
    :raises TraceError: no traces or too many, of different appliances, or bad weights.
    """
    weigh = np.ones(len(traces)) if weights is None else np.array(weights, np.float64)
    if not 1 <= len(traces) <= MAX_RUNS or weigh.shape != (len(traces),):
        raise TraceError(f"{len(traces)} traces and {weigh.size} weights cannot be merged")
    if not bool((np.isfinite(weigh) & (weigh > 0)).all()):
        raise TraceError("weights of traces are positive numbers")
    first = traces[0]
    for trace in traces:
        if (trace.manifest, trace.space_places) != (first.manifest, first.space_places):
            raise TraceError("traces of different appliances cannot be merged")
    touched = np.zeros(first.space_places, np.bool_)
    for trace in traces:
        touched[trace.places] = True
    places = np.flatnonzero(touched).astype(np.uint32)
    if places.size * len(traces) > MAX_MERGED:
        raise TraceError(f"{len(traces)} traces of {places.size} places are too many at once")
    times = np.full((len(traces), places.size), np.nan, np.float32)
    for row, trace in zip(times, traces, strict=True):
        row[np.searchsorted(places, trace.places)] = trace.times_us / 1e6
    hit = ~np.isnan(times)
    weight = weigh @ hit
    # A run that shows its misses only says nothing of the places it shows not.
    shows = np.array([trace.learning for trace in traces])
    would = weigh @ (hit | shows[:, None])
    when = weigh @ np.where(hit, times, 0.0) / weight
    return Merged(
        first.manifest,
        first.space_places,
        weigh,
        places,
        times,
        hit.sum(axis=0).astype(np.uint16),
        (weight / would).astype(np.float32),
        when,
    )
