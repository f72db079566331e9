# SPDX-License-Identifier: Apache-2.0
"""How much of a process's memory is looked at, and the history that is kept of it."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.guest import proc as procfs
from nova_enlightened.guest import sampler as sampling
from nova_enlightened.guest import wire
from nova_enlightened.guest.sampler import Window
from tests.unit.guest.fake_proc import PRESENT, FakeArea, FakeProc
from tests.unit.guest.watching import DIRTY, Watching, busy

Watch = Callable[..., Watching]


def test_an_area_that_grows_keeps_the_history_of_its_pages(fake: FakeProc, watch: Watch) -> None:
    area = FakeArea(0x10000, [DIRTY | 5])
    process = busy(areas=[area])
    fake.put(process)
    watching = watch()
    watching.sample()

    area.entries += [DIRTY | 6]
    process.size += procfs.PAGE
    fake.put(process)
    watching.sample()

    assert watching.known().heat[[5, 6]].min() > 100
    assert watching.known().heat[5] == 255


def test_no_more_pages_are_looked_at_than_a_sample_may(
    fake: FakeProc, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MOST_PAGES", 3)
    areas = [FakeArea(0x10000 * k, [DIRTY | k, DIRTY | k + 10]) for k in (1, 2, 3)]
    fake.put(busy(areas=areas))
    watching = watch()

    watching.sample()

    assert watching.known().processes[0].frames.tolist() == [1, 11]
    assert watching.sampler.skipped == 2


def test_code_and_stacks_are_looked_at_before_a_heap_that_may_be_too_large(
    fake: FakeProc, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MOST_PAGES", 3)
    heap = FakeArea(0x10000, [DIRTY | 1, DIRTY | 2, DIRTY | 3])
    code = FakeArea(0x90000, [PRESENT | 9], "r-xp", referenced=1)
    fake.put(busy(areas=[heap, code]))
    watching = watch()

    watching.sample()

    assert watching.known().processes[0].frames.tolist() == [9]


def test_large_areas_are_cut_into_windows_and_empty_ones_left_out(
    fake: FakeProc, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "WINDOW", 4 * procfs.PAGE)
    pages = [DIRTY | 1, *[0] * 9, DIRTY | 2]
    fake.put(busy(areas=[FakeArea(0x10000, pages)]))
    watching = watch()

    watching.sample()

    assert [start for start, _ in watching.sampler.watched[7].windows] == [0x10000, 0x18000]
    assert watching.known().processes[0].frames.tolist() == [1, 2]


def test_a_nearly_empty_area_is_not_read_whole(
    fake: FakeProc, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = FakeArea(0x10000, [DIRTY | 1], pages=(2 << 30) // procfs.PAGE)
    near = FakeArea(0x8000, [DIRTY | 2])
    fake.put(busy(areas=[near, sparse]))
    watching = watch()

    watching.sample()

    assert [start for start, _ in watching.sampler.watched[7].windows] == [0x8000]
    assert watching.sampler.skipped == 1


def test_a_nearly_empty_area_is_searched_where_the_kernel_can(
    fake: FakeProc, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = 0x10000
    sparse = FakeArea(start, [DIRTY | 1], pages=(2 << 30) // procfs.PAGE)
    fake.put(busy(areas=[sparse]))
    watching = watch()
    monkeypatch.setattr(watching.sampler._scan, "probe", lambda descriptor: True)
    monkeypatch.setattr(
        watching.sampler._scan, "present", lambda *where: [(start, start + procfs.PAGE)]
    )

    watching.sample()

    assert watching.known().heat[1] == 255
    assert watching.sampler.skipped == 0


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=12))
def test_a_window_remembers_seven_samples_of_each_page_and_whether_older_ones_saw_it(
    samples: list[list[bool]],
) -> None:
    window = Window()
    entries = (PRESENT | 1).to_bytes(8, "little") * 8
    for used in samples:
        window.take(entries, bytes(0x80 * use for use in used))
        assert window.used(1) == sum(used)
        assert window.used(0) == 0

    assert window.used(3) == sum(any(page) for page in zip(*samples[-3:], strict=True))
    newest_first = samples[::-1]
    for page in range(8):
        last = wire.HISTORY - 1
        expected = sum(0x80 >> k for k, used in enumerate(newest_first[:last]) if used[page])
        expected |= any(used[page] for used in newest_first[last:])
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
