# SPDX-License-Identifier: Apache-2.0
"""What playback asks for, and what it says of itself."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Fetch:
    """A byte range to ask the store for.

    :ivar layer: number of the layer the chunks are of.
    :ivar pack: name of the object.
    :ivar offset: in the object; `length` bytes from there.
    :ivar chunks: consecutive chunks of the layer, back to back in it.
    :ivar urgent: a guest waits for it.
    """

    layer: int
    pack: str
    offset: int
    length: int
    chunks: tuple[int, ...]
    urgent: bool


class Progress(NamedTuple):
    """How far a playback is.

    :ivar places: all, and how many of them are `present`.
    :ivar memory: pages of RAM, and how many of them are `memory_present`.
    :ivar planned: places of the plan, and how many at its front are `ready`.
    :ivar fetched_bytes: that arrived; `stored_bytes` are all there are, without the plan's layer.
    :ivar fetches: that arrived, and how many `failed`.
    :ivar faults: demands for places that were not there.
    :ivar bandwidth: bytes a second, 0 while unknown; `rtt` in seconds, 0 while unknown.
    :ivar window: bytes that may be under way, and how many are `outstanding`.
    """

    places: int
    present: int
    memory: int
    memory_present: int
    planned: int
    ready: int
    fetched_bytes: int
    stored_bytes: int
    fetches: int
    failed: int
    faults: int
    bandwidth: float
    rtt: float
    window: int
    outstanding: int
