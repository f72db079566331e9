# SPDX-License-Identifier: Apache-2.0
"""Which processes are watched, what is remembered of their pages, and for how much CPU."""

import os
import pathlib
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.guest import proc as procfs
from nova_enlightened.guest import sampler as sampling
from nova_enlightened.guest import wire
from nova_enlightened.guest.proc import Proc
from nova_enlightened.guest.sampler import Sampler, Window
from nova_enlightened.guest.sources import Referenced, SoftDirty, Source
from nova_enlightened.knowledge.guest_pages import GuestKnowledge
from nova_enlightened.knowledge.snapshot import decode_snapshot
from tests.unit.guest.fake_proc import PRESENT, SOFT_DIRTY, SWAPPED, FakeArea, FakeProc, FakeProcess

TICK = os.sysconf("SC_CLK_TCK")
FRAMES = 64
DIRTY = PRESENT | SOFT_DIRTY


@pytest.fixture
def fake(tmp_path: pathlib.Path) -> FakeProc:
    """A guest of 64 frames."""
    return FakeProc(tmp_path, FRAMES)


def busy(pid: int = 7, ticks: int = 10**9, areas: list[FakeArea] | None = None) -> FakeProcess:
    """A process that has used a lot of CPU in its life."""
    return FakeProcess(pid, ticks=ticks, areas=areas or [])


class Watching:
    """A sampler on a fake /proc, closed in the end."""

    def __init__(self, fake: FakeProc, source: type[Source] = SoftDirty) -> None:
        self.fake = fake
        proc = Proc(str(fake.root))
        self.source = source(proc)
        self.sampler = Sampler(proc, self.source, FRAMES, 0.0)
        self.now = 0.0

    def sample(self) -> float:
        """One sample, a second after the last."""
        self.now += 1.0
        return self.sampler.sample(self.now)

    def known(self) -> GuestKnowledge:
        """What a host would make of it."""
        head = wire.SNAPSHOT_HEAD.pack(
            *(b"NES1", 1, self.sampler.samples, self.now, FRAMES, 0),
            *(len(self.sampler.watched), len(self.sampler.bitmaps), 0, 0),
        )
        parts = [part for watched in self.sampler.watched.values() for part in watched.parts()]
        return decode_snapshot(
            zlib.decompress(wire.compress([head, *self.sampler.bitmaps, *parts]))
        )


@pytest.fixture
def watch() -> Iterator[list[Watching]]:
    """Samplers put here are stopped after the test."""
    made: list[Watching] = []
    yield made
    for watching in made:
        watching.sampler.stop()


def started(made: list[Watching], fake: FakeProc, source: type[Source] = SoftDirty) -> Watching:
    """A sampler that will be stopped."""
    made.append(Watching(fake, source))
    return made[-1]


def test_pages_written_in_a_sample_are_hot_and_later_ones_hotter(
    fake: FakeProc, watch: list[Watching]
) -> None:
    area = FakeArea(0x10000, [DIRTY | 5, PRESENT | 6, DIRTY | 7, SWAPPED | SOFT_DIRTY | 8, 0])
    process = busy(areas=[area])
    fake.put(process)
    watching = started(watch, fake)

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
    fake: FakeProc, watch: list[Watching]
) -> None:
    fake.put(busy())
    watching = started(watch, fake)
    assert fake.cleared(7) == "4"

    (fake.root / "7/clear_refs").write_text("")
    watching.sample()
    assert fake.cleared(7) == "4"


def test_what_did_most_in_its_life_is_watched_first(fake: FakeProc, watch: list[Watching]) -> None:
    fake.put(busy(7))
    fake.put(FakeProcess(8, ticks=0))

    assert list(started(watch, fake).sampler.watched) == [7]


def test_what_gets_busy_is_watched_from_then_on(fake: FakeProc, watch: list[Watching]) -> None:
    idle = FakeProcess(8, ticks=0, areas=[FakeArea(0x10000, [DIRTY | 9])])
    fake.put(idle)
    watching = started(watch, fake)
    assert not watching.sampler.watched

    idle.ticks = TICK // 2
    fake.put(idle)
    watching.sample()
    assert list(watching.sampler.watched) == [8]
    assert watching.sampler.watched[8].cpu == pytest.approx(0.5)

    watching.sample()
    assert watching.known().heat[9] == 255


def test_only_so_many_are_watched_and_the_idlest_make_room(
    fake: FakeProc, watch: list[Watching]
) -> None:
    crowd = [FakeProcess(pid, ticks=0) for pid in range(10, 10 + 2 * sampling.WATCHED)]
    for process in crowd:
        fake.put(process)
    watching = started(watch, fake)

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


def test_what_stays_idle_is_let_go_when_nothing_of_it_is_left(
    fake: FakeProc, watch: list[Watching]
) -> None:
    fake.put(busy())
    watching = started(watch, fake)

    for _ in range(sampling.FORGET_AFTER):
        watching.sample()
    assert list(watching.sampler.watched) == [7]
    watching.sample()
    assert not watching.sampler.watched


def test_a_process_that_ends_is_dropped(fake: FakeProc, watch: list[Watching]) -> None:
    fake.put(busy())
    watching = started(watch, fake)
    fake.end(7)

    watching.sample()

    assert not watching.sampler.watched


def test_another_process_of_the_same_number_is_another(
    fake: FakeProc, watch: list[Watching]
) -> None:
    fake.put(busy(areas=[FakeArea(0x10000, [DIRTY | 5])]))
    watching = started(watch, fake)
    watching.sample()
    fake.put(FakeProcess(7, ticks=0, started=999))

    watching.sample()

    assert not watching.sampler.watched


def test_an_area_that_grows_keeps_the_history_of_its_pages(
    fake: FakeProc, watch: list[Watching]
) -> None:
    area = FakeArea(0x10000, [DIRTY | 5])
    process = busy(areas=[area])
    fake.put(process)
    watching = started(watch, fake)
    watching.sample()

    area.entries += [DIRTY | 6]
    process.size += procfs.PAGE
    fake.put(process)
    watching.sample()

    assert watching.known().heat[[5, 6]].min() > 100
    assert watching.known().heat[5] == 255


def test_pages_that_are_only_read_are_as_warm_as_their_area(
    fake: FakeProc, watch: list[Watching]
) -> None:
    text = FakeArea(0x10000, [PRESENT | n for n in (1, 2, 3, 4)], "r-xp", referenced=4)
    data = FakeArea(0x20000, [DIRTY | 10, *(PRESENT | n for n in (11, 12, 13))], referenced=1)
    some = FakeArea(0x30000, [PRESENT | n for n in (20, 21, 22, 23)], referenced=2)
    fake.put(busy(areas=[text, data, some]))
    watching = started(watch, fake)

    watching.sample()

    heat = watching.known().heat
    assert set(heat[[1, 2, 3, 4]].tolist()) == {255}
    assert heat[10] == 255
    assert set(heat[[11, 12, 13]].tolist()) == {0}, "the only page referenced was the written one"
    assert 100 < heat[20] < 160


def test_between_full_samples_only_writes_are_asked_for(
    fake: FakeProc, watch: list[Watching]
) -> None:
    data = FakeArea(0x10000, [DIRTY | 5, PRESENT | 6])
    text = FakeArea(0x20000, [PRESENT | 7], "r-xp", referenced=0)
    process = busy(areas=[data, text])
    fake.put(process)
    watching = started(watch, fake)
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


def test_reads_are_counted_since_they_were_last_forgotten(
    fake: FakeProc, watch: list[Watching]
) -> None:
    # Page 5 is written in the first of the samples that the second count of reads spans.
    data = FakeArea(0x10000, [PRESENT | 5, PRESENT | 6])
    process = busy(areas=[data])
    fake.put(process)
    watching = started(watch, fake)
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
    fake: FakeProc, watch: list[Watching]
) -> None:
    area = FakeArea(0x10000, [DIRTY | 5])
    process = busy(areas=[area])
    fake.put(process)
    watching = started(watch, fake, Frames)
    watching.sample()
    area.entries = [DIRTY | 6]
    fake.put(process)

    watching.sample()
    assert watching.known().processes[0].frames.tolist() == [5]
    for _ in range(sampling.FULL_EVERY - 1):
        watching.sample()
    assert watching.known().processes[0].frames.tolist() == [6]
    assert fake.cleared(7) == ""


def test_without_soft_dirty_reads_still_tell(fake: FakeProc, watch: list[Watching]) -> None:
    area = FakeArea(0x10000, [DIRTY | 1, PRESENT | 2], referenced=2)
    fake.put(busy(areas=[area]))
    watching = started(watch, fake, Referenced)

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
    fake: FakeProc, watch: list[Watching]
) -> None:
    watching = started(watch, fake, Frames)

    for _ in range(wire.HISTORY + 2):
        watching.sample()

    assert [len(bitmap) for bitmap in watching.sampler.bitmaps] == [FRAMES // 8] * wire.HISTORY


def test_a_large_process_is_not_made_to_fault(
    fake: FakeProc, watch: list[Watching], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SoftDirty, "fault_s", 1e-6)
    large = busy()
    large.rss = int(sampling.MOST_FAULT_S / 1e-6) + 1
    fake.put(large)

    started(watch, fake)

    assert fake.cleared(7) == "1"


def test_faults_since_the_last_sample_are_charged(
    fake: FakeProc, watch: list[Watching], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SoftDirty, "fault_s", 2e-6)
    process = busy()
    fake.put(process)
    watching = started(watch, fake)

    process.faults = 1000
    fake.put(process)

    assert watching.sample() == pytest.approx(2e-3)
    assert watching.sample() == 0


def test_no_more_pages_are_looked_at_than_a_sample_may(
    fake: FakeProc, watch: list[Watching], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MOST_PAGES", 3)
    areas = [FakeArea(0x10000 * k, [DIRTY | k, DIRTY | k + 10]) for k in (1, 2, 3)]
    fake.put(busy(areas=areas))
    watching = started(watch, fake)

    watching.sample()

    assert watching.known().processes[0].frames.tolist() == [1, 11]
    assert watching.sampler.skipped == 2


def test_code_and_stacks_are_looked_at_before_a_heap_that_may_be_too_large(
    fake: FakeProc, watch: list[Watching], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MOST_PAGES", 3)
    heap = FakeArea(0x10000, [DIRTY | 1, DIRTY | 2, DIRTY | 3])
    code = FakeArea(0x90000, [PRESENT | 9], "r-xp", referenced=1)
    fake.put(busy(areas=[heap, code]))
    watching = started(watch, fake)

    watching.sample()

    assert watching.known().processes[0].frames.tolist() == [9]


def test_large_areas_are_cut_into_windows_and_empty_ones_left_out(
    fake: FakeProc, watch: list[Watching], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "WINDOW", 4 * procfs.PAGE)
    pages = [DIRTY | 1, *[0] * 9, DIRTY | 2]
    fake.put(busy(areas=[FakeArea(0x10000, pages)]))
    watching = started(watch, fake)

    watching.sample()

    assert [start for start, _ in watching.sampler.watched[7].windows] == [0x10000, 0x18000]
    assert watching.known().processes[0].frames.tolist() == [1, 2]


def test_a_nearly_empty_area_is_not_read_whole(
    fake: FakeProc, watch: list[Watching], monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = FakeArea(0x10000, [DIRTY | 1], pages=(2 << 30) // procfs.PAGE)
    near = FakeArea(0x8000, [DIRTY | 2])
    fake.put(busy(areas=[near, sparse]))
    watching = started(watch, fake)

    watching.sample()

    assert [start for start, _ in watching.sampler.watched[7].windows] == [0x8000]
    assert watching.sampler.skipped == 1


def test_a_nearly_empty_area_is_searched_where_the_kernel_can(
    fake: FakeProc, watch: list[Watching], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = 0x10000
    sparse = FakeArea(start, [DIRTY | 1], pages=(2 << 30) // procfs.PAGE)
    fake.put(busy(areas=[sparse]))
    watching = started(watch, fake)
    monkeypatch.setattr(watching.sampler._scan, "probe", lambda descriptor: True)
    monkeypatch.setattr(
        watching.sampler._scan, "present", lambda *where: [(start, start + procfs.PAGE)]
    )

    watching.sample()

    assert watching.known().heat[1] == 255
    assert watching.sampler.skipped == 0


def test_a_stopped_sampler_holds_nothing_open(fake: FakeProc) -> None:
    fake.put(busy())
    before = len(os.listdir("/proc/self/fd"))
    watching = Watching(fake)
    assert len(os.listdir("/proc/self/fd")) == before + 1

    watching.sampler.stop()

    assert len(os.listdir("/proc/self/fd")) == before


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=12))
def test_a_window_remembers_the_last_eight_samples_of_each_page(
    samples: list[list[bool]],
) -> None:
    window = Window()
    entries = (PRESENT | 1).to_bytes(8, "little") * 8
    for used in samples:
        window.take(entries, bytes(0x80 * use for use in used))
        assert window.used(1) == sum(used)
        assert window.used(0) == 0

    assert window.used(3) == sum(any(page) for page in zip(*samples[-3:], strict=True))
    newest_first = samples[::-1][: wire.HISTORY]
    for page in range(8):
        expected = sum(0x80 >> k for k, used in enumerate(newest_first) if used[page])
        assert window.history[page] == expected


def test_frame_numbers_are_compressed_again_only_when_they_change() -> None:
    pages = sampling.WORTH_PACKING
    window = Window()
    clean = b"".join((PRESENT | n + 1).to_bytes(8, "little") for n in range(pages))
    dirty = b"".join((DIRTY | n + 1).to_bytes(8, "little") for n in range(pages))

    window.take(clean, b"")
    first = list(window.parts())
    window.take(dirty, b"")
    assert list(window.parts())[1] is first[1]
    window.take(clean[8:] + clean[:8], b"")
    assert list(window.parts())[1] is not first[1]
