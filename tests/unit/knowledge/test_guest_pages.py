# SPDX-License-Identifier: Apache-2.0
"""Knowledge by guest frame becomes knowledge by page number."""

import numpy as np

from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.guest_pages import GuestKnowledge, ProcessPages
from nova_enlightened.knowledge.layout import MemoryLayout
from nova_enlightened.knowledge.space import PageSpace

LAYOUT = MemoryLayout("pc", windows=((0, 4, 0), (8, 2, 4)), backends=(("pc.ram", 6),))
SPACE = PageSpace([("vga.vram", 2 * 4096), ("pc.ram", 6 * 4096)])


def knowledge(frames: int, process: list[int]) -> GuestKnowledge:
    """Every frame's heat is its number."""
    return GuestKnowledge(
        source="soft-dirty",
        frames=frames,
        classes=np.full(frames, PageClass.ANON, dtype=np.uint8),
        heat=np.arange(frames, dtype=np.uint8),
        processes=(ProcessPages(1, "a", True, 0.5, np.array(process, dtype=np.int64)),),
        samples=3,
        taken_at=0.0,
    )


def test_frames_land_on_their_pages() -> None:
    placed = knowledge(10, []).place(LAYOUT, SPACE)

    assert placed.classes.tolist() == [PageClass.UNKNOWN] * 2 + [PageClass.ANON] * 6
    assert placed.heat.tolist() == [0, 0, 0, 1, 2, 3, 8, 9]
    assert (placed.source, placed.samples) == ("soft-dirty", 3)


def test_processes_keep_their_order_and_lose_what_has_no_page() -> None:
    [process] = knowledge(10, [9, 5, 0, 8, 3]).place(LAYOUT, SPACE).processes

    assert process.pages.tolist() == [7, 2, 6, 5]
    assert (process.name, process.cpu, process.running) == ("a", 0.5, True)


def test_a_guest_that_tells_of_less_leaves_the_rest_unknown() -> None:
    placed = knowledge(9, []).place(LAYOUT, SPACE)

    assert placed.heat.tolist() == [0, 0, 0, 1, 2, 3, 8, 0]
    assert placed.classes[7] == PageClass.UNKNOWN


def test_a_guest_that_tells_of_a_few_frames_only_is_placed() -> None:
    assert knowledge(1, [0]).place(LAYOUT, SPACE).processes[0].pages.tolist() == [2]


def test_with_no_block_of_the_layout_nothing_is_known() -> None:
    placed = knowledge(10, [1, 2]).place(LAYOUT, PageSpace([("other", 4096)]))

    assert not placed.classes.any()
    assert not placed.heat.any()
    assert placed.processes[0].pages.size == 0
