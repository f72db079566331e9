# SPDX-License-Identifier: Apache-2.0
"""Which processes are watched, and what is remembered of their pages."""

import os
from collections.abc import Callable

import pytest

from nova_enlightened.guest import sampler as sampling
from nova_enlightened.guest import wire
from nova_enlightened.guest.sources import Referenced, SoftDirty, Source
from tests.unit.guest.fake_proc import PRESENT, SOFT_DIRTY, SWAPPED, FakeArea, FakeProc, FakeProcess
from tests.unit.guest.watching import DIRTY, FRAMES, TICK, Watching, busy

Watch = Callable[..., Watching]


def test_pages_written_in_a_sample_are_hot_and_later_ones_hotter(
    fake: FakeProc, watch: Watch
) -> None:
    area = FakeArea(0x10000, [DIRTY | 5, PRESENT | 6, DIRTY | 7, SWAPPED | SOFT_DIRTY | 8, 0])
    process = busy(areas=[area])
    fake.put(process)
    watching = watch()

    watching.sample()
    area.entries[2] = PRESENT | 7
    fake.put(process)
    watching.sample()

    known = watching.known()
    assert known.heat[5] == 255
    assert 255 > known.heat[7] > 0
    assert known.heat[6] == known.heat[8] == 0
    assert known.processes[0].frames.tolist() == [5, 6, 7]


def test_a_process_is_told_to_forget_when_watched_and_after_each_sample(
    fake: FakeProc, watch: Watch
) -> None:
    fake.put(busy())
    watching = watch()
    assert fake.cleared(7) == "4"

    (fake.root / "7/clear_refs").write_text("")
    watching.sample()
    assert fake.cleared(7) == "4"


def test_what_did_most_in_its_life_is_watched_first(fake: FakeProc, watch: Watch) -> None:
    fake.put(busy(7))
    fake.put(FakeProcess(8, ticks=0))

    assert list(watch().sampler.watched) == [7]


def test_what_gets_busy_is_watched_from_then_on(fake: FakeProc, watch: Watch) -> None:
    idle = FakeProcess(8, ticks=0, areas=[FakeArea(0x10000, [DIRTY | 9])])
    fake.put(idle)
    watching = watch()
    assert not watching.sampler.watched

    idle.ticks = TICK // 2
    fake.put(idle)
    watching.sample()
    assert list(watching.sampler.watched) == [8]
    assert watching.sampler.watched[8].cpu == pytest.approx(0.5)

    watching.sample()
    assert watching.known().heat[9] == 255


def test_only_so_many_are_watched_and_the_idlest_make_room(fake: FakeProc, watch: Watch) -> None:
    crowd = [FakeProcess(pid, ticks=0) for pid in range(10, 10 + 2 * sampling.WATCHED)]
    for process in crowd:
        fake.put(process)
    watching = watch()

    for rank, process in enumerate(crowd):
        process.ticks = 5 + rank
        fake.put(process)
    watching.sample()

    busiest = {process.pid for process in crowd[-sampling.WATCHED :]}
    assert set(watching.sampler.watched) == busiest

    newcomer = crowd[0]
    newcomer.ticks += TICK
    fake.put(newcomer)
    watching.sample()
    assert newcomer.pid in watching.sampler.watched
    assert len(watching.sampler.watched) == sampling.WATCHED


def test_what_stays_idle_is_let_go_when_nothing_of_it_is_left(fake: FakeProc, watch: Watch) -> None:
    fake.put(busy())
    watching = watch()

    for _ in range(sampling.FORGET_AFTER):
        watching.sample()
    assert list(watching.sampler.watched) == [7]
    watching.sample()
    assert not watching.sampler.watched


def test_a_process_that_ends_is_dropped(fake: FakeProc, watch: Watch) -> None:
    fake.put(busy())
    watching = watch()
    fake.end(7)

    watching.sample()

    assert not watching.sampler.watched


def test_another_process_of_the_same_number_is_another(fake: FakeProc, watch: Watch) -> None:
    fake.put(busy(areas=[FakeArea(0x10000, [DIRTY | 5])]))
    watching = watch()
    watching.sample()
    fake.put(FakeProcess(7, ticks=0, started=999))

    watching.sample()

    assert not watching.sampler.watched


def test_pages_that_are_only_read_are_as_warm_as_their_area(fake: FakeProc, watch: Watch) -> None:
    text = FakeArea(0x10000, [PRESENT | n for n in (1, 2, 3, 4)], "r-xp", referenced=4)
    data = FakeArea(0x20000, [DIRTY | 10, *(PRESENT | n for n in (11, 12, 13))], referenced=1)
    some = FakeArea(0x30000, [PRESENT | n for n in (20, 21, 22, 23)], referenced=2)
    fake.put(busy(areas=[text, data, some]))
    watching = watch()

    watching.sample()

    heat = watching.known().heat
    assert set(heat[[1, 2, 3, 4]].tolist()) == {255}
    assert heat[10] == 255
    assert set(heat[[11, 12, 13]].tolist()) == {0}, "the only page referenced was the written one"
    assert 100 < heat[20] < 160


def test_between_full_samples_only_writes_are_asked_for(fake: FakeProc, watch: Watch) -> None:
    data = FakeArea(0x10000, [DIRTY | 5, PRESENT | 6])
    text = FakeArea(0x20000, [PRESENT | 7], "r-xp", referenced=0)
    process = busy(areas=[data, text])
    fake.put(process)
    watching = watch()
    watching.sample()

    data.entries = [PRESENT | 5, DIRTY | 6]
    text.entries, text.referenced = [PRESENT | 8], 1
    fake.put(process)
    for _ in range(sampling.FULL_EVERY - 1):
        watching.sample()
    between = watching.known()
    watching.sample()
    after = watching.known()

    assert between.heat[6] > between.heat[5] > 0
    assert between.processes[0].frames.tolist() == [5, 6, 7]
    assert after.processes[0].frames.tolist() == [5, 6, 8]
    assert between.heat[8] == 0
    assert after.heat[8] > 100


def test_reads_are_counted_since_they_were_last_forgotten(fake: FakeProc, watch: Watch) -> None:
    # Page 5 is written in the first of the samples that the second count of reads spans.
    data = FakeArea(0x10000, [PRESENT | 5, PRESENT | 6])
    process = busy(areas=[data])
    fake.put(process)
    watching = watch()
    watching.sample()

    data.entries, data.referenced = [DIRTY | 5, PRESENT | 6], 1
    fake.put(process)
    watching.sample()
    data.entries = [PRESENT | 5, PRESENT | 6]
    fake.put(process)
    for _ in range(sampling.FULL_EVERY - 1):
        watching.sample()

    assert watching.known().heat[5] > 0
    assert watching.known().heat[6] == 0, "the page referenced was the one written"


def test_a_source_that_sees_frames_looks_at_processes_for_their_order_only(
    fake: FakeProc, watch: Watch
) -> None:
    area = FakeArea(0x10000, [DIRTY | 5])
    process = busy(areas=[area])
    fake.put(process)
    watching = watch(Frames)
    watching.sample()
    area.entries = [DIRTY | 6]
    fake.put(process)

    watching.sample()
    assert watching.known().processes[0].frames.tolist() == [5]
    for _ in range(sampling.FULL_EVERY - 1):
        watching.sample()
    assert watching.known().processes[0].frames.tolist() == [6]
    assert fake.cleared(7) == ""


def test_without_soft_dirty_reads_still_tell(fake: FakeProc, watch: Watch) -> None:
    area = FakeArea(0x10000, [DIRTY | 1, PRESENT | 2], referenced=2)
    fake.put(busy(areas=[area]))
    watching = watch(Referenced)

    watching.sample()

    assert fake.cleared(7) == "1"
    assert set(watching.known().heat[[1, 2]].tolist()) == {255}


class Frames(Source):
    """A source of frames with a different answer each time."""

    name = "frames"
    frame_wise = True

    def bitmap(self) -> bytes:
        return b"\x01" if self.proc.frames() else b""


def test_bitmaps_of_frames_are_kept_newest_first_and_as_long_as_the_guest(
    fake: FakeProc, watch: Watch
) -> None:
    watching = watch(Frames)

    for _ in range(wire.HISTORY + 2):
        watching.sample()

    assert [len(bitmap) for bitmap in watching.sampler.bitmaps] == [FRAMES // 8] * wire.HISTORY


def test_a_large_process_is_not_made_to_fault(
    fake: FakeProc, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SoftDirty, "fault_s", 1e-6)
    large = busy()
    large.rss = int(sampling.MOST_FAULT_S / 1e-6) + 1
    fake.put(large)

    watch()

    assert fake.cleared(7) == "1"


def test_faults_since_the_last_sample_are_charged(
    fake: FakeProc, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SoftDirty, "fault_s", 2e-6)
    process = busy()
    fake.put(process)
    watching = watch()

    process.faults = 1000
    fake.put(process)

    assert watching.sample() == pytest.approx(2e-3)
    assert watching.sample() == 0


def test_a_stopped_sampler_holds_nothing_open(fake: FakeProc) -> None:
    fake.put(busy())
    before = len(os.listdir("/proc/self/fd"))
    watching = Watching(fake)
    assert len(os.listdir("/proc/self/fd")) == before + 1

    watching.sampler.stop()

    assert len(os.listdir("/proc/self/fd")) == before


def test_what_used_cpu_lately_counts_as_running_though_it_waits_just_now(
    fake: FakeProc, watch: Watch
) -> None:
    process = busy()
    fake.put(process)
    watching = watch()

    process.ticks += TICK
    fake.put(process)
    watching.sample()
    assert watching.known().processes[0].running

    watching.sample()
    assert not watching.known().processes[0].running
    process.state = "R"
    fake.put(process)
    watching.sample()
    assert watching.known().processes[0].running
