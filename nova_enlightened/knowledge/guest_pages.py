# SPDX-License-Identifier: Apache-2.0
"""What a guest knows of its memory, by guest frame number and by page number of the stream.

`GuestKnowledge` is a decoded snapshot: arrays indexed by guest frame number. A plan needs page
numbers: `GuestKnowledge.place` translates, and leaves out what has none.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nova_enlightened.knowledge.layout import MemoryLayout
from nova_enlightened.knowledge.space import PageSpace


class PlacedProcess(NamedTuple):
    """One process's pages that are in the page space."""

    name: str
    cpu: float
    """Share of one vCPU it used while it was sampled: 0 to the number of vCPUs."""
    running: bool
    pages: npt.NDArray[np.int64]
    """Page numbers in virtual-address order; none twice."""


@dataclass(frozen=True)
class GuestPages:
    """What is known of each page of a `PageSpace`."""

    source: str
    """How the guest found out, e.g. "soft-dirty"."""
    classes: npt.NDArray[np.uint8]
    """PageClass, shape (space.pages,); UNKNOWN where the guest said nothing."""
    heat: npt.NDArray[np.uint8]
    """Shape (space.pages,); see `nova_enlightened.knowledge.heat`."""
    processes: tuple[PlacedProcess, ...]
    """Busiest first."""
    samples: int = 0


@dataclass(frozen=True)
class ProcessPages:
    """The pages of one process that were in memory."""

    pid: int
    name: str
    running: bool
    """It was on a CPU or waiting for one, or had used some since the sample before."""
    cpu: float
    """Share of one vCPU it used while it was sampled: 0 to the number of vCPUs."""
    frames: npt.NDArray[np.int64]
    """Guest frame numbers in virtual-address order; none negative, none twice."""


@dataclass(frozen=True)
class GuestKnowledge:
    """What a guest said of its memory, checked and decoded; indexed by guest frame number."""

    source: str
    """How the guest found out, e.g. "soft-dirty"."""
    frames: int
    classes: npt.NDArray[np.uint8]
    """PageClass, shape (frames,)."""
    heat: npt.NDArray[np.uint8]
    """Shape (frames,): 0 not seen in use, 255 used in every sample. See `heat`."""
    processes: tuple[ProcessPages, ...]
    """Busiest first."""
    samples: int
    taken_at: float
    """Seconds of the guest's monotonic clock."""

    def place(self, layout: MemoryLayout, space: PageSpace) -> GuestPages:
        """Translate to page numbers; what has no page number is left out."""
        classes = np.zeros(space.pages, dtype=np.uint8)
        heat = np.zeros(space.pages, dtype=np.uint8)
        for extent in layout.extents(space):
            count = max(0, min(extent.count, self.frames - extent.frame))
            into = slice(extent.page, extent.page + count)
            taken = slice(extent.frame, extent.frame + count)
            classes[into] = self.classes[taken]
            heat[into] = self.heat[taken]
        processes = []
        for known in self.processes:
            pages = layout.frame_to_page(space, known.frames)
            placed = PlacedProcess(known.name, known.cpu, known.running, pages[pages >= 0])
            processes.append(placed)
        return GuestPages(self.source, classes, heat, tuple(processes), self.samples)
