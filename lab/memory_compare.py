# SPDX-License-Identifier: Apache-2.0
"""Whether two saved memories are the same, page by page."""

from pathlib import Path

import numpy as np

from lab.errors import LabError
from nova_enlightened.host import save_image
from nova_enlightened.stream import stored

PAGE = 4096
_AT_ONCE = 4096


def differing(one: Path, other: Path, scratch: Path) -> int:
    """How many 4 KiB pages of guest RAM differ between two files that ``virsh save`` wrote.

    Raises LabError where they are not of the same machine, StreamError where one is damaged.
    """
    with (
        save_image.opened(str(one), str(scratch)) as left,
        save_image.opened(str(other), str(scratch)) as right,
    ):
        blocks = [
            [(block.name, block.length) for block in image.parts.blocks] for image in (left, right)
        ]
        if blocks[0] != blocks[1]:
            raise LabError(f"{one} and {other} are of different machines")
        found = 0
        for first in range(0, left.parts.positions.size, _AT_ONCE):
            pages = [
                np.frombuffer(
                    stored.gather(image.stream, image.parts.positions[first : first + _AT_ONCE]),
                    np.uint64,
                ).reshape(-1, PAGE // 8)
                for image in (left, right)
            ]
            found += int((pages[0] != pages[1]).any(axis=1).sum())
        return found
