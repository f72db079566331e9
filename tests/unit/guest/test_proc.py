# SPDX-License-Identifier: Apache-2.0
"""What the agent reads of /proc."""

import os
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.guest import proc as procfs
from nova_enlightened.guest import wire
from nova_enlightened.guest.proc import Proc
from nova_enlightened.knowledge import classes
from tests.unit.guest.fake_proc import PRESENT, FakeArea, FakeProc, FakeProcess


def test_agent_and_host_see_the_same_in_page_flags() -> None:
    assert {bit: int(mark) for bit, mark in classes.KPAGEFLAGS.items()} == procfs.KPAGEFLAGS


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=100))
def test_agent_and_host_reduce_page_flags_alike(
    tmp_path_factory: pytest.TempPathFactory, words: list[int]
) -> None:
    flags = np.array(words, dtype="<u8")
    root = tmp_path_factory.mktemp("proc")
    FakeProc(root).frames(flags.tobytes())

    expected = classes.evidence_from_flags(flags).tobytes()
    first = len(words) // 3

    assert Proc(str(root)).evidence(0, len(words)) == expected
    assert Proc(str(root)).evidence(first, 5) == expected[first : first + 5].ljust(5, b"\0")


def test_frames_that_are_gone_are_nothing(tmp_path: pathlib.Path) -> None:
    FakeProc(tmp_path).frames((1 << 10).to_bytes(8, "little") * 2)

    assert Proc(str(tmp_path)).evidence(1, 3) == b"\x40\0\0"


@pytest.mark.parametrize("frames", [0, 1, 2, 511, 4096])
def test_frames_are_counted(tmp_path: pathlib.Path, frames: int) -> None:
    FakeProc(tmp_path, frames=frames)

    assert Proc(str(tmp_path)).frames() == frames


def test_processes_are_listed_with_any_name_and_without_kernel_threads(
    tmp_path: pathlib.Path,
) -> None:
    fake = FakeProc(tmp_path)
    fake.put(FakeProcess(7, name="a) R (b", state="R", ticks=31, faults=5, rss=9))
    fake.put(FakeProcess(8, name="kswapd0", kernel=True))
    (tmp_path / "9").mkdir()  # ended between listing and reading

    found = Proc(str(tmp_path)).processes()

    assert list(found) == [7]
    assert found[7] == procfs.Usage(7, b"a) R (b", True, 31, 5, 50, 1 << 20, 9)


@pytest.mark.parametrize("damage", ["", "7 (x", "7 (x) S 1 2", "7 (x) " + "z " * 40])
def test_a_process_that_cannot_be_understood_is_left_out(
    tmp_path: pathlib.Path, damage: str
) -> None:
    fake = FakeProc(tmp_path)
    fake.put(FakeProcess(7))
    (tmp_path / "7/stat").write_text(damage)

    assert Proc(str(tmp_path)).processes() == {}


def test_areas_are_those_with_pages_of_the_process(tmp_path: pathlib.Path) -> None:
    fake = FakeProc(tmp_path)
    areas = [
        FakeArea(0x10000, [PRESENT | 3], "r-xp", "/usr/bin/x y", referenced=1),
        FakeArea(0x20000, [0, 0]),
        FakeArea(0x30000, [PRESENT | 4, PRESENT | 5], "rw-s", "/dev/shm/b"),
        FakeArea(0x40000, [PRESENT | 9], "r-xp", "[vdso]"),
    ]
    fake.put(FakeProcess(7, areas=areas))

    assert Proc(str(tmp_path)).mappings(7) == [
        procfs.Mapping(0x10000, 0x11000, False, 4096, 4096),
        procfs.Mapping(0x30000, 0x32000, True, 8192, 0),
    ]


def test_this_machines_own_proc_is_understood() -> None:
    proc = Proc()

    usage = proc.usage(os.getpid())
    areas = proc.mappings(os.getpid())

    assert usage is not None
    assert usage.rss > 100
    assert len(areas) > 10
    assert areas == sorted(areas)
    assert sum(area.rss for area in areas) > 100 * procfs.PAGE
    assert any(area.writable for area in areas)
    assert not all(area.writable for area in areas)


def test_this_processs_own_pagemap_is_read() -> None:
    proc = Proc()
    descriptor = proc.open_pagemap(os.getpid())
    try:
        area = next(area for area in proc.mappings(os.getpid()) if area.rss)
        entries = procfs.pagemap(descriptor, area.start, area.end)
    finally:
        os.close(descriptor)

    assert len(entries) == (area.end - area.start) // procfs.PAGE * 8
    assert any(state & 0x80 for state in entries[7::8])


def test_planes_are_combined_byte_by_byte() -> None:
    assert wire.either(b"\x01\x00\x80", b"\x02\x00\x01") == b"\x03\x00\x81"
    assert wire.both(b"\xff\x0f\x00", b"\x81\xff\xff") == b"\x81\x0f\x00"
    assert wire.either(b"") == wire.both(b"", b"") == b""
