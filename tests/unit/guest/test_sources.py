# SPDX-License-Identifier: Apache-2.0
"""Which ways of finding pages in use a kernel offers, and what they tell."""

import array
import os
import pathlib

import pytest

from nova_enlightened.guest import proc as procfs
from nova_enlightened.guest import sources
from nova_enlightened.guest.proc import Proc
from nova_enlightened.guest.sources import Damon, IdlePage, PagemapScan, Referenced, SoftDirty
from tests.unit.guest.fake_proc import PRESENT, SOFT_DIRTY, FakeProc, FakeProcess

IOMEM = """\
00000000-00000fff : Reserved
00001000-0000ffff : System RAM
  00001000-00001fff : Kernel code
00010000-0001ffff : PCI Bus 0000:00
00020000-0003ffff : System RAM
"""


def entries(*values: int) -> bytes:
    """Pagemap entries."""
    return b"".join(value.to_bytes(8, "little") for value in values)


def test_soft_dirty_is_bit_55(tmp_path: pathlib.Path) -> None:
    source = SoftDirty(Proc(str(tmp_path)))

    written = source.used(entries(PRESENT | SOFT_DIRTY | 5, PRESENT | 6, SOFT_DIRTY, (1 << 55) - 1))

    assert written == b"\x80\x00\x80\x00"


def test_forgetting_clears_references_first_as_only_the_other_flushes_the_tlb(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    proc = Proc(str(tmp_path))
    monkeypatch.setattr(proc, "clear_refs", lambda pid, what: told.append(what))

    SoftDirty(proc).forget(7, references=True, writes=True)
    SoftDirty(proc).forget(7, references=True, writes=False)
    SoftDirty(proc).forget(7, references=False, writes=True)

    assert told == [1, 4, 1, 4]


def test_a_busy_moment_does_not_make_faults_dear(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeProc(tmp_path)
    fake.put(FakeProcess(os.getpid()))
    first_touch, faulting, marked = [9.0], [10.0, 10.0, 3.0, 10.0], [1.0, 9.0, 9.0]
    took = iter(first_touch + faulting + marked)
    monkeypatch.setattr(sources._OwnPages, "write", lambda pages: next(took))

    source = SoftDirty(Proc(str(tmp_path)))
    source.probe(64)

    assert source.fault_s == (3.0 - 1.0) / sources._OwnPages.count


def test_a_kernel_that_takes_the_4_but_marks_nothing_has_no_soft_dirty(
    tmp_path: pathlib.Path,
) -> None:
    fake = FakeProc(tmp_path)
    fake.put(FakeProcess(os.getpid()))

    assert not SoftDirty(Proc(str(tmp_path))).probe(64)


def test_a_proc_without_clear_refs_has_neither(tmp_path: pathlib.Path) -> None:
    assert not SoftDirty(Proc(str(tmp_path))).probe(64)
    assert not Referenced(Proc(str(tmp_path))).probe(64)


class FakeIdle:
    """The bitmap of idle page tracking."""

    def __init__(self, root: pathlib.Path, frames: int) -> None:
        self.file = root / "kernel/mm/page_idle/bitmap"
        self.file.parent.mkdir(parents=True)
        self.file.write_bytes(bytes(frames // 8))


def test_frames_no_longer_idle_were_used(tmp_path: pathlib.Path) -> None:
    idle = FakeIdle(tmp_path, 128)
    source = IdlePage(Proc(str(tmp_path)), str(tmp_path))
    assert source.probe(128)

    source.start(128)
    assert idle.file.read_bytes() == b"\xff" * 16
    idle.file.write_bytes(b"\xfe" + b"\xff" * 14 + b"\x7f")

    assert source.bitmap() == b"\x01" + bytes(14) + b"\x80"
    assert idle.file.read_bytes() == b"\xff" * 16, "idle again for the next sample"


def test_idle_page_tracking_is_too_dear_for_a_large_guest(tmp_path: pathlib.Path) -> None:
    FakeIdle(tmp_path, 128)

    assert not IdlePage(Proc(str(tmp_path)), str(tmp_path)).probe(IdlePage.MOST + 1)


class FakeDamon:
    """DAMON's tree of files, as far as the agent uses it, without its behaviour."""

    def __init__(self, root: pathlib.Path) -> None:
        self.admin = root / "kernel/mm/damon/admin/kdamonds"
        self.scheme = self.admin / "0/contexts/0/schemes/0"
        for ram in ("0", "1"):
            (self.admin / "0/contexts/0/targets/0/regions" / ram).mkdir(parents=True)
        for part in ("intervals", "nr_regions"):
            (self.admin / "0/contexts/0/monitoring_attrs" / part).mkdir(parents=True)
        for part in ("sz", "nr_accesses", "age"):
            (self.scheme / "access_pattern" / part).mkdir(parents=True)
        (self.scheme / "tried_regions").mkdir()
        self.put("nr_kdamonds", "0")
        self.put("0/contexts/0/avail_operations", "vaddr\nfvaddr\npaddr\n")

    def put(self, name: str, text: str) -> None:
        place = self.admin / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def get(self, name: str) -> str:
        return (self.admin / name).read_text()

    def region(self, number: int, start: int, end: int) -> None:
        """What the scheme was applied to."""
        tried = f"0/contexts/0/schemes/0/tried_regions/{number}"
        self.put(f"{tried}/start", f"{start}\n")
        self.put(f"{tried}/end", f"{end}\n")


@pytest.fixture
def damon(tmp_path: pathlib.Path) -> FakeDamon:
    """A kernel that has DAMON and 64 frames."""
    (tmp_path / "iomem").write_text(IOMEM)
    return FakeDamon(tmp_path)


def test_damon_watches_ram_and_nothing_else(tmp_path: pathlib.Path, damon: FakeDamon) -> None:
    source = Damon(Proc(str(tmp_path)), str(tmp_path))
    assert source.probe(64)
    assert damon.get("nr_kdamonds") == "0", "a probe leaves nothing behind"

    source.start(64)

    regions = "0/contexts/0/targets/0/regions"
    assert damon.get(f"{regions}/nr_regions") == "2"
    assert damon.get(f"{regions}/0/start") == str(0x1000)
    assert damon.get(f"{regions}/0/end") == str(0x10000)
    assert damon.get(f"{regions}/1/end") == str(0x40000)
    assert damon.get("0/contexts/0/schemes/0/action") == "stat"
    assert damon.get("0/contexts/0/schemes/0/access_pattern/nr_accesses/min") == "1"
    assert damon.get("0/state") == "on"

    source.stop()
    assert damon.get("0/state") == "off"
    assert damon.get("nr_kdamonds") == "0"


def test_regions_damon_saw_accessed_are_used_frames(
    tmp_path: pathlib.Path, damon: FakeDamon
) -> None:
    source = Damon(Proc(str(tmp_path)), str(tmp_path))
    assert source.probe(64)
    source.start(64)
    damon.region(1, 0x8000, 0x10000)
    damon.region(2, 0x38000, 0x80000)

    assert source.bitmap() == b"\x00\xff\0\0\0\0\0\xff"
    assert damon.get("0/state") == "update_schemes_tried_regions"


def test_a_damon_that_somebody_uses_is_left_alone(tmp_path: pathlib.Path, damon: FakeDamon) -> None:
    damon.put("nr_kdamonds", "1")

    assert not Damon(Proc(str(tmp_path)), str(tmp_path)).probe(64)
    assert damon.get("nr_kdamonds") == "1"


def test_a_damon_without_physical_addresses_is_not_used(
    tmp_path: pathlib.Path, damon: FakeDamon
) -> None:
    damon.put("0/contexts/0/avail_operations", "vaddr\n")

    assert not Damon(Proc(str(tmp_path)), str(tmp_path)).probe(64)
    assert damon.get("nr_kdamonds") == "0"


def test_the_best_source_comes_first_and_one_is_always_there(tmp_path: pathlib.Path) -> None:
    FakeIdle(tmp_path, 64)
    FakeProc(tmp_path).put(FakeProcess(os.getpid()))

    offered = sources.offered(Proc(str(tmp_path)), 64, str(tmp_path))
    bare = sources.offered(Proc(str(tmp_path / "none")), 64, str(tmp_path / "none"))

    assert [source.name for source in offered] == ["idle-page", "referenced", "none"]
    assert [source.name for source in bare] == ["none"]


def test_a_scan_finds_the_pages_of_a_sparse_area_in_this_kernel() -> None:
    size = 256
    memory = array.array("B", b"\1" * ((size + 1) * procfs.PAGE))
    start = memory.buffer_info()[0]
    start += -start % procfs.PAGE
    descriptor = Proc().open_pagemap(os.getpid())
    try:
        scan = PagemapScan()
        if not scan.probe(descriptor):
            pytest.skip("this kernel is older than 6.7")
        found = list(scan.present(descriptor, start, start + size * procfs.PAGE))
        nothing = list(scan.present(descriptor, 0, procfs.PAGE))
    finally:
        os.close(descriptor)

    assert sum(high - low for low, high in found) == size * procfs.PAGE
    assert nothing == []


def test_without_the_ioctl_there_is_no_scan(tmp_path: pathlib.Path) -> None:
    (tmp_path / "pagemap").write_bytes(b"")
    with (tmp_path / "pagemap").open("rb") as file:
        assert not PagemapScan().probe(file.fileno())
