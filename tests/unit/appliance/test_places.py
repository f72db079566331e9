# SPDX-License-Identifier: Apache-2.0
import pytest

from nova_enlightened.appliance.places import MAX_PLACES, ApplianceSpace
from nova_enlightened.exception import ApplianceError
from nova_enlightened.knowledge.space import PageSpace

MEMORY = PageSpace([("pc.ram", 40960), ("vga.vram", 8192)])
SPACE = ApplianceSpace(MEMORY, (("vda", 10000), ("vdb", 4096)))


def test_disks_come_behind_ram_and_their_last_unit_may_be_half_empty():
    assert SPACE.memory_pages == 12
    assert SPACE.disk_range("vda") == range(12, 15)
    assert SPACE.disk_range("vdb") == range(15, 16)
    assert SPACE.places == 16


@pytest.mark.parametrize(
    "place, location",
    [
        (0, ("ram", "pc.ram", 0)),
        (11, ("ram", "vga.vram", 4096)),
        (12, ("disk", "vda", 0)),
        (14, ("disk", "vda", 8192)),
        (15, ("disk", "vdb", 0)),
    ],
)
def test_locates_a_place(place, location):
    assert SPACE.locate(place) == location


@pytest.mark.parametrize("place", [-1, 16])
def test_refuses_a_place_outside(place):
    with pytest.raises(ApplianceError):
        SPACE.locate(place)


@pytest.mark.parametrize(
    "offset, length, places",
    [
        (0, 1, range(12, 13)),
        (4095, 2, range(12, 14)),
        (4096, 4096, range(13, 14)),
        (9000, 3000, range(14, 15)),
        (5000, 0, range(13, 13)),
        (0, 12288, range(12, 15)),
    ],
)
def test_knows_the_places_of_a_byte_range_of_a_disk(offset, length, places):
    assert SPACE.disk_places("vda", offset, length) == places


@pytest.mark.parametrize("offset, length", [(-1, 1), (0, -1), (12288, 1), (0, 12289)])
def test_refuses_a_byte_range_that_leaves_the_disk(offset, length):
    with pytest.raises(ApplianceError):
        SPACE.disk_places("vda", offset, length)


def test_refuses_a_disk_it_does_not_have():
    with pytest.raises(ApplianceError):
        SPACE.disk_range("vdc")


@pytest.mark.parametrize(
    "disks", [(("vda", 0),), (("vda", 4096), ("vda", 4096)), (("vda", MAX_PLACES * 4096),)]
)
def test_refuses_disks_that_cannot_be(disks):
    with pytest.raises(ApplianceError):
        ApplianceSpace(MEMORY, disks)


def test_spaces_of_the_same_blocks_and_disks_are_equal():
    assert ApplianceSpace(MEMORY, (("vda", 10000), ("vdb", 4096))) == SPACE
    assert ApplianceSpace(MEMORY, (("vda", 10000),)) != SPACE
    assert hash(SPACE) == hash(ApplianceSpace(MEMORY, SPACE.disks))
