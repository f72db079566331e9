# SPDX-License-Identifier: Apache-2.0
"""Reading what frames are, a piece at a time."""

import itertools
import pathlib
import time

import pytest

from nova_enlightened.guest import frames as module
from nova_enlightened.guest.budget import Budget
from nova_enlightened.guest.frames import Frames
from nova_enlightened.guest.proc import Proc
from tests.unit.guest.fake_proc import FakeProc

FREE, ANON = (1 << 10).to_bytes(8, "little"), (1 << 12).to_bytes(8, "little")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four frames at a time, and CPU time that costs a tenth of a second a look."""
    monkeypatch.setattr(module, "PIECE", 4)
    ticks = itertools.count(0, 0.1)
    monkeypatch.setattr(time, "process_time", lambda: next(ticks))


def make(root: pathlib.Path, count: int, share: float = 1.0, ahead_s: float = 100.0) -> Frames:
    """Frames that are all free."""
    FakeProc(root).frames(FREE * count)
    return Frames(Proc(str(root)), count, Budget(share, ahead_s, 0.0))


def evidence(frames: Frames) -> bytes:
    """What a snapshot would tell."""
    return b"".join(part.raw for part in frames.parts())


def test_pieces_add_up_to_all_frames(tmp_path: pathlib.Path) -> None:
    frames = make(tmp_path, 10)

    assert [frames.step(0.0) for _ in range(3)] == [False, False, True]
    assert evidence(frames) == b"\x40" * 10
    assert (frames.read, frames.passes) == (10, 1)


def test_what_was_read_counts_until_it_is_read_again(tmp_path: pathlib.Path) -> None:
    frames = make(tmp_path, 8)
    frames.step(0.0)
    assert evidence(frames) == b"\x40" * 4
    frames.step(0.0)
    FakeProc(tmp_path).frames(ANON * 8)

    assert not frames.step(20.0)
    assert evidence(frames) == b"\x08" * 4 + b"\x40" * 4
    assert not frames.step(20.0), "only the first pass is news"
    assert evidence(frames) == b"\x08" * 8


def test_a_piece_waits_for_its_budget(tmp_path: pathlib.Path) -> None:
    frames = make(tmp_path, 8, share=0.01, ahead_s=0.0)
    assert frames.due(0.0) == 0

    frames.step(0.0)

    assert frames.due(0.0) == pytest.approx(10.0)
    assert frames.due(4.0) == pytest.approx(6.0)


def test_all_read_it_rests_unless_there_is_a_hurry(tmp_path: pathlib.Path) -> None:
    frames = make(tmp_path, 4)
    frames.step(5.0)

    assert frames.due(5.0) == module.REFRESH_S
    frames.hurry(6.0)
    assert frames.due(6.0) == 0


def test_for_an_answer_it_reads_what_it_can_in_time(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 1)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    frames = make(tmp_path, 100, share=0.001, ahead_s=0.0)

    frames.read_for(3.0)
    assert frames.read == 12

    frames.read_for(1000.0)
    assert frames.read == 100
    frames.read_for(1000.0)
    assert frames.passes == 1


def test_more_frames_than_a_host_takes_are_not_told_of(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 6)
    frames = make(tmp_path, 10)

    frames.step(0.0)
    frames.step(0.0)

    assert (frames.read, frames.count) == (6, 10)
