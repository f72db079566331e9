# SPDX-License-Identifier: Apache-2.0
"""The map from guest frames to page numbers."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.exception import HintError
from nova_enlightened.knowledge.layout import MemoryLayout
from nova_enlightened.knowledge.space import PageSpace

MIB, GIB = 1 << 20, 1 << 30
FRAMES_PER_GIB = GIB // 4096
ABOVE_4G = 4 * FRAMES_PER_GIB


def domain(
    machine: str = "pc-i440fx-7.2", memory: int = 768 * MIB, cells: str = "", extra: str = ""
) -> str:
    """A domain as libvirt writes it; `memory` in bytes."""
    return f"""
    <domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
      <name>guest</name>
      <memory unit='KiB'>{memory // 1024}</memory>
      <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
      <cpu>{cells}</cpu>
      {extra}
    </domain>"""


def numa(*sizes: int) -> str:
    """Cells of these sizes, in bytes."""
    cells = "".join(
        f"<cell id='{k}' cpus='{k}' memory='{size // 1024}' unit='KiB'/>"
        for k, size in enumerate(sizes)
    )
    return f"<numa>{cells}</numa>"


def page_of(layout: MemoryLayout, space: PageSpace, frame: int) -> int:
    """One frame's page number."""
    return int(layout.frame_to_page(space, np.array([frame], dtype=np.int64))[0])


@pytest.mark.parametrize(
    ("machine", "memory", "low"),
    [
        # hw/i386/pc_piix.c pc_init1: split once RAM reaches 3.5 GiB, then at 3 GiB
        ("pc", 768 * MIB, 768 * MIB),
        ("pc-i440fx-7.2", 3584 * MIB - 4096, 3584 * MIB - 4096),
        ("pc-i440fx-7.2", 3584 * MIB, 3 * GIB),
        ("pc-i440fx-2.0", 4 * GIB, 3 * GIB),
        ("pc-i440fx-noble", 8 * GIB, 3 * GIB),
        ("pc-i440fx-rhel7.6.0", 8 * GIB, 3 * GIB),
        # gigabyte_align = false
        ("pc-i440fx-1.7", 4 * GIB, 3584 * MIB),
        ("pc-1.2", 4 * GIB, 3584 * MIB),
        # hw/i386/pc_q35.c pc_q35_init: split once RAM reaches 2.75 GiB, then at 2 GiB
        ("q35", 2816 * MIB - 4096, 2816 * MIB - 4096),
        ("pc-q35-7.2", 2816 * MIB, 2 * GIB),
        ("pc-q35-9.2", 64 * GIB, 2 * GIB),
    ],
)
def test_memory_is_split_where_the_machine_splits_it(machine: str, memory: int, low: int) -> None:
    layout = MemoryLayout.from_domain_xml(domain(machine, memory))
    space = PageSpace([("pc.ram", memory), ("pc.bios", 256 << 10)])
    split, last = low // 4096, memory // 4096 - 1

    assert page_of(layout, space, 0) == 0
    assert page_of(layout, space, split - 1) == split - 1
    assert page_of(layout, space, split) == -1
    if last >= split:
        assert page_of(layout, space, ABOVE_4G) == split
        assert page_of(layout, space, ABOVE_4G + last - split) == last
    assert page_of(layout, space, ABOVE_4G + last - split + 1) == -1


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_an_operators_lower_bound_is_honoured(machine: str) -> None:
    passed = (
        "<qemu:commandline><qemu:arg value='-machine'/>"
        "<qemu:arg value='max-ram-below-4g=1G'/></qemu:commandline>"
    )
    layout = MemoryLayout.from_domain_xml(domain(machine, 4 * GIB, extra=passed))

    assert layout.windows == (
        (0, FRAMES_PER_GIB, 0),
        (ABOVE_4G, 3 * FRAMES_PER_GIB, FRAMES_PER_GIB),
    )


def test_numa_cells_are_blocks_laid_end_to_end() -> None:
    xml = domain("pc-q35-7.2", 4 * GIB, numa(1 * GIB, 3 * GIB))
    layout = MemoryLayout.from_domain_xml(xml)
    space = PageSpace([("ram-node0", 1 * GIB), ("ram-node1", 3 * GIB)])

    assert page_of(layout, space, FRAMES_PER_GIB - 1) == FRAMES_PER_GIB - 1
    assert page_of(layout, space, FRAMES_PER_GIB) == FRAMES_PER_GIB
    assert page_of(layout, space, 2 * FRAMES_PER_GIB) == -1
    assert page_of(layout, space, ABOVE_4G) == 2 * FRAMES_PER_GIB
    assert page_of(layout, space, ABOVE_4G + 2 * FRAMES_PER_GIB - 1) == 4 * FRAMES_PER_GIB - 1


def test_blocks_may_come_in_any_order_in_the_stream() -> None:
    xml = domain("pc-i440fx-7.2", 2 * GIB, numa(1 * GIB, 1 * GIB))
    layout = MemoryLayout.from_domain_xml(xml)
    space = PageSpace([("vga.vram", 16 * MIB), ("ram-node1", GIB), ("ram-node0", GIB)])

    assert page_of(layout, space, 0) == space.base("ram-node0")
    assert page_of(layout, space, FRAMES_PER_GIB) == space.base("ram-node1")


def test_cells_without_backends_are_one_block() -> None:
    layout = MemoryLayout.from_domain_xml(domain("pc", 2 * GIB, numa(GIB, GIB)))
    space = PageSpace([("pc.ram", 2 * GIB)])

    assert page_of(layout, space, 2 * FRAMES_PER_GIB - 1) == 2 * FRAMES_PER_GIB - 1


def test_old_machine_types_name_a_file_backend_by_its_path() -> None:
    layout = MemoryLayout.from_domain_xml(domain("pc-i440fx-3.1", GIB, numa(GIB)))
    space = PageSpace([("/objects/ram-node0", GIB)])

    assert page_of(layout, space, 17) == 17


def test_a_backend_of_another_name_is_known_by_its_size() -> None:
    layout = MemoryLayout.from_domain_xml(domain(memory=GIB))

    assert page_of(layout, PageSpace([("bios", 4096), ("mem0", GIB)]), 5) == 6
    assert page_of(layout, PageSpace([("mem1", GIB), ("mem0", GIB)]), 5) == -1


def test_a_memory_device_is_where_its_address_says() -> None:
    dimm = """
    <maxMemory slots='16' unit='KiB'>16777216</maxMemory>
    <devices><memory model='dimm'>
      <target><size unit='KiB'>524288</size><node>0</node></target>
      <alias name='dimm0'/><address type='dimm' slot='0' base='0x140000000'/>
    </memory></devices>"""
    xml = domain("pc-q35-7.2", 1 * GIB + 512 * MIB, numa(1 * GIB), extra=dimm)
    layout = MemoryLayout.from_domain_xml(xml)
    space = PageSpace([("ram-node0", GIB), ("memdimm0", 512 * MIB)])

    assert layout.devices == (("memdimm0", 0x140000, 131072),)
    assert page_of(layout, space, 0x140000 + 7) == FRAMES_PER_GIB + 7
    assert page_of(layout, space, 0x140000 + 131072) == -1


def test_a_memory_device_without_cells_is_not_initial_memory() -> None:
    dimm = """<devices><memory model='dimm'>
      <target><size unit='KiB'>524288</size></target></memory></devices>"""
    layout = MemoryLayout.from_domain_xml(domain(memory=GIB + 512 * MIB, extra=dimm))

    assert layout.backends == (("pc.ram", FRAMES_PER_GIB),)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("<memory>1048576</memory>", GIB),
        ("<memory unit='GiB'>2</memory>", 2 * GIB),
        ("<memory unit='b'>4096</memory>", 4096),
        ("<memory unit='MB'>512</memory>", 512 * 10**6),
    ],
)
def test_sizes_have_the_units_of_libvirt(text: str, size: int) -> None:
    xml = f"<domain>{text}<os><type machine='pc'>hvm</type></os></domain>"

    assert MemoryLayout.from_domain_xml(xml).backends == (("pc.ram", size // 4096),)


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("<domain", "parse"),
        ("<network/>", "not a domain"),
        ("<domain><os><type machine='pc'/></os></domain>", "memory"),
        (domain("microvm"), "microvm"),
        (domain("isapc"), "isapc"),
        (domain(memory=0), "0 bytes"),
        (domain().replace("'KiB'", "'bushel'"), "size"),
        (domain().replace("786432", "much"), "size"),
        (domain().replace("x86_64", "aarch64"), "aarch64"),
        (domain(memory=GIB, cells=numa(GIB)).replace("id='0'", "id='zero'"), "cell"),
        (domain("pc-q35-7.2", 1100 * GIB), "CPU vendor"),
    ],
)
def test_what_is_not_known_has_no_map_and_a_reason(xml: str, reason: str) -> None:
    with pytest.raises(HintError, match=reason):
        MemoryLayout.from_domain_xml(xml)


@settings(deadline=None)
@given(
    st.sampled_from(["pc", "q35", "pc-i440fx-1.7"]),
    st.lists(st.integers(1, 1 << 20).map(lambda n: n * 4096), min_size=1, max_size=3),
)
def test_a_map_reaches_every_page_once(machine: str, cells: list[int]) -> None:
    xml = domain(machine, sum(cells), numa(*cells))
    layout = MemoryLayout.from_domain_xml(xml)
    space = PageSpace([(f"ram-node{k}", size) for k, size in enumerate(cells)])

    extents = layout.extents(space)
    by_page = sorted((e.page, e.count) for e in extents)

    # End to end, in page numbers; apart, in frames.
    assert [page for page, _ in by_page] == [0, *itertools.accumulate(n for _, n in by_page[:-1])]
    assert sum(n for _, n in by_page) == space.pages
    assert all(a.frame + a.count <= b.frame for a, b in itertools.pairwise(extents))
    for extent in extents:
        edges = np.array([extent.frame, extent.frame + extent.count - 1], dtype=np.int64)
        expected = [extent.page, extent.page + extent.count - 1]
        assert layout.frame_to_page(space, edges).tolist() == expected


def test_a_layout_survives_json() -> None:
    layout = MemoryLayout.from_domain_xml(domain("q35", 8 * GIB, numa(4 * GIB, 4 * GIB)))

    assert MemoryLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


@pytest.mark.parametrize(
    "change",
    [
        {"windows": [[0, 1]]},
        {"windows": [["x", 1, 2]]},
        {"windows": [[0, -1, 0]]},
        {"backends": None},
        {"backends": [["pc.ram", 1]] * 5000},
        {"devices": [["memdimm0", -5, 1]]},
        {"devices": [["memdimm0", float("inf"), 1]]},  # JSON as Python reads it has infinity
    ],
)
def test_a_damaged_layout_is_refused(change: dict[str, object]) -> None:
    data = MemoryLayout.from_domain_xml(domain()).to_dict() | change

    with pytest.raises(HintError, match="layout"):
        MemoryLayout.from_dict(data)


def test_a_layout_that_lacks_a_part_is_refused() -> None:
    with pytest.raises(HintError, match="layout"):
        MemoryLayout.from_dict({})
