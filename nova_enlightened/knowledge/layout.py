# SPDX-License-Identifier: Apache-2.0
"""Where a guest's frames are among its RAM blocks: guest physical address -> page number.

QEMU lays its RAM (one block, or one block a NUMA cell, end to end) into the guest's physical
address space in two pieces: from zero up to a machine-specific bound, and the rest from
4 GiB (`hw/i386/pc_piix.c` pc_init1, `hw/i386/pc_q35.c` pc_q35_init, `hw/i386/pc.c`
pc_memory_init, `hw/core/numa.c` numa_init_memdev_container). Hotplugged DIMMs are blocks of
their own at the address their device says. libvirt names the blocks (its
`src/qemu/qemu_command.c`): "pc.ram" where there are no NUMA cells, whatever backs it;
"ram-nodeN" a cell, unless QEMU was started with `-numa node,mem=`, which leaves one
"pc.ram"; "mem" + alias a DIMM. Machine types up to 3.1 put "/objects/" before the name of a
file or memfd backend.

A wrong map costs time, never data: it only orders requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.exception import HintError
from nova_enlightened.knowledge import domain_xml
from nova_enlightened.knowledge.space import TARGET_PAGE, PageSpace

MAX_PIECES: Final = 4096
"""NUMA cells and DIMMs: QEMU allows 128 and 256."""
WHOLE: Final = "pc.ram"
MAX_FRAME: Final = 1 << 40
"""x86 has 52 bits of physical address."""
OBJECT_PREFIX: Final = "/objects/"


@dataclass(frozen=True)
class Extent:
    """Consecutive guest frames that are consecutive pages."""

    frame: int
    count: int
    page: int


@dataclass(frozen=True)
class MemoryLayout:
    """A guest's memory map. All numbers are 4096-byte frames.

    :ivar machine: for messages only.
    :ivar windows: (first guest frame, frames, first frame of the flat RAM it shows).
    :ivar backends: (block name, frames): what flat RAM is made of, end to end.
    :ivar whole: name of the one block that stands for all backends if they are not there.
    :ivar devices: (block name, first guest frame, frames): hotplugged memory.
    """

    machine: str
    windows: tuple[tuple[int, int, int], ...]
    backends: tuple[tuple[str, int], ...]
    whole: str = WHOLE
    devices: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def from_domain_xml(cls, xml: str) -> "MemoryLayout":
        """The layout of a libvirt domain (its live XML).

        :raises HintError: not a domain, a machine whose map is not known, or an impossible map.
        """
        memory = domain_xml.parse(xml)
        low, size = memory.below_4g // TARGET_PAGE, memory.size // TARGET_PAGE
        above = (domain_xml.ABOVE_4G // TARGET_PAGE, size - low, low)
        layout = cls(
            machine=memory.machine,
            windows=((0, low, 0), above) if size > low else ((0, low, 0),),
            backends=tuple(
                (f"ram-node{k}", cell // TARGET_PAGE) for k, cell in enumerate(memory.cells)
            )
            or ((WHOLE, size),),
            devices=tuple(
                (name, base // TARGET_PAGE, count // TARGET_PAGE)
                for name, base, count in memory.devices
            ),
        )
        layout._check()
        return layout

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, for `from_dict`."""
        return {
            "machine": self.machine,
            "windows": [list(window) for window in self.windows],
            "backends": [list(backend) for backend in self.backends],
            "whole": self.whole,
            "devices": [list(device) for device in self.devices],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "MemoryLayout":
        """Inverse of `to_dict`. :raises HintError: it is not such a form."""
        try:
            layout = cls(
                machine=str(data["machine"]),
                windows=tuple((int(a), int(b), int(c)) for a, b, c in data["windows"]),
                backends=tuple((str(name), int(n)) for name, n in data["backends"]),
                whole=str(data["whole"]),
                devices=tuple((str(n), int(a), int(b)) for n, a, b in data["devices"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise HintError(f"not a memory layout: {error!r}") from error
        layout._check()
        return layout

    def _check(self) -> None:
        pieces = (*self.windows, *(device[1:] for device in self.devices))
        sizes = [n for _, n in self.backends]
        if len(pieces) + len(sizes) > MAX_PIECES:
            raise HintError("a memory layout of too many pieces")
        values = [value for piece in (*pieces, sizes) for value in piece]
        if not 0 <= min(values, default=0) <= max(values, default=0) < MAX_FRAME:
            raise HintError(f"a memory layout with numbers outside 0 to {MAX_FRAME}")

    def extents(self, space: PageSpace) -> list[Extent]:
        """The map as extents, for the blocks that are really there. In frame order.

        Blocks this layout does not know (firmware, video memory) are in no extent; blocks
        it expects and the space lacks leave their frames out.
        """
        found: list[Extent] = []
        flat = self._flat(space)
        for frame, count, offset in self.windows:
            for start, size, page in flat:
                low, high = max(offset, start), min(offset + count, start + size)
                if low < high:
                    found.append(Extent(frame + low - offset, high - low, page + low - start))
        for name, frame, count in self.devices:
            pages = _block(space, name)
            if pages is not None:
                found.append(Extent(frame, min(count, len(pages)), pages.start))
        return sorted(found, key=lambda extent: extent.frame)

    def likely_space(self) -> PageSpace:
        """The beginning of the page space QEMU will name: it lists blocks by size, RAM first.

        :raises PlanError: the layout's sizes make no space.
        """
        blocks = sorted(self.backends, key=lambda block: -block[1])
        return PageSpace([(name, frames * TARGET_PAGE) for name, frames in blocks])

    def _flat(self, space: PageSpace) -> list[tuple[int, int, int]]:
        """(first flat frame, frames, first page) of each backend that is there."""
        placed: list[tuple[int, int, int]] = []
        offset = 0
        for name, count in self.backends:
            pages = _block(space, name)
            if pages is not None:
                placed.append((offset, min(count, len(pages)), pages.start))
            offset += count
        if placed:
            return placed
        pages = _block(space, self.whole) or _only_block_of(space, offset)
        return [(0, min(offset, len(pages)), pages.start)] if pages else []

    def frame_to_page(
        self, space: PageSpace, frames: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Page numbers of guest frames; -1 where no such page is in the space.

        :param frames: guest frame numbers, any shape, any values.
        """
        pages = np.full(frames.shape, -1, dtype=np.int64)
        for extent in self.extents(space):
            inside = (frames >= extent.frame) & (frames < extent.frame + extent.count)
            pages[inside] = frames[inside] + (extent.page - extent.frame)
        return pages


def _block(space: PageSpace, name: str) -> range | None:
    for spelling in (name, OBJECT_PREFIX + name):
        if spelling in space:
            return space.block_range(spelling)
    return None


def _only_block_of(space: PageSpace, frames: int) -> range | None:
    """The block of exactly this size, whatever its name (`-machine memory-backend=x`)."""
    alike = [name for name, size in space.blocks() if size == frames * TARGET_PAGE]
    return space.block_range(alike[0]) if len(alike) == 1 else None
