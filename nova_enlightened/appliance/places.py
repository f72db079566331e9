# SPDX-License-Identifier: Apache-2.0
"""The places of an appliance: one number for each 4 KiB of its RAM and its disks.

RAM comes first, page for page as `knowledge.space` numbers it, then each disk in the order of
the manifest, its size rounded up to whole units. Chunk indexes, traces and prefetch plans all
speak of places.
"""

import bisect
from typing import Final, Literal, NamedTuple

from nova_enlightened.exception import ApplianceError
from nova_enlightened.knowledge.space import TARGET_PAGE, PageSpace

UNIT: Final = TARGET_PAGE
"""Bytes at a place."""

MAX_PLACES: Final = 1 << 26
"""256 GiB of RAM and disks. Whoever plays an appliance keeps about 16 bytes for each place,
and the manifest is its publisher's word."""


class Location(NamedTuple):
    """Where a place is: a RAM block's name or a disk's target, and the byte offset in it."""

    kind: Literal["ram", "disk"]
    name: str
    offset: int


class ApplianceSpace:
    """The places of one appliance.

    :param memory: its RAM blocks.
    :param disks: (target such as ``vda``, size in bytes), in the manifest's order.
    :ivar places: how many there are.
    :ivar memory_pages: how many of them, the first, are RAM.
    :raises ApplianceError: a disk is empty or listed twice, or there are too many places.
    """

    __slots__ = ("_starts", "_targets", "disks", "memory", "memory_pages", "places")

    def __init__(self, memory: PageSpace, disks: tuple[tuple[str, int], ...] = ()) -> None:
        self.memory = memory
        self.memory_pages: int = memory.pages
        self.disks = disks
        self._targets: dict[str, range] = {}
        first = memory.pages
        for target, size in disks:
            if size <= 0 or target in self._targets:
                raise ApplianceError(f"disk {target!r} of {size} bytes is empty or listed twice")
            end = first - (-size // UNIT)
            self._targets[target] = range(first, end)
            first = end
        if first > MAX_PLACES:
            raise ApplianceError(f"an appliance of {first} places exceeds the {MAX_PLACES}")
        self.places: int = first
        self._starts = [places.start for places in self._targets.values()]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ApplianceSpace)
            and self.memory == other.memory
            and self.disks == other.disks
        )

    def __hash__(self) -> int:
        return hash((self.memory, self.disks))

    def __repr__(self) -> str:
        return f"ApplianceSpace({self.memory!r}, {self.disks!r})"

    def disk_range(self, target: str) -> range:
        """Places of one disk. :raises ApplianceError: there is no such disk."""
        try:
            return self._targets[target]
        except KeyError:
            raise ApplianceError(f"the appliance has no disk {target!r}") from None

    def disk_places(self, target: str, offset: int, length: int) -> range:
        """Places that a byte range of a disk touches; none for a length of 0.

        :raises ApplianceError: there is no such disk, or the range leaves it.
        """
        places = self.disk_range(target)
        if offset < 0 or length < 0 or offset + length > len(places) * UNIT:
            raise ApplianceError(f"bytes {offset}+{length} leave disk {target!r}")
        first = offset // UNIT
        return places[first : first if not length else -(-(offset + length) // UNIT)]

    def locate(self, place: int) -> Location:
        """What is at a place. :raises ApplianceError: there is no such place."""
        if not 0 <= place < self.places:
            raise ApplianceError(f"place {place} is outside an appliance of {self.places}")
        if place < self.memory_pages:
            return Location("ram", *self.memory.locate(place))
        number = bisect.bisect_right(self._starts, place) - 1
        return Location("disk", self.disks[number][0], (place - self._starts[number]) * UNIT)
