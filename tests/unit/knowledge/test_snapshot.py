# SPDX-License-Identifier: Apache-2.0
"""Decoding what a guest says of its memory, when it means well and when it does not."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.exception import HintError
from nova_enlightened.guest import wire
from nova_enlightened.knowledge import heat
from nova_enlightened.knowledge import snapshot as format_
from nova_enlightened.knowledge.classes import Evidence, PageClass
from nova_enlightened.knowledge.snapshot import SnapshotLimits, decode_snapshot, from_flags
from tests.unit.knowledge.snapshots import Area, Process, Snapshot, bitmap

ANON = int(Evidence.ANON)
SMALL = SnapshotLimits.for_memory(1 << 20)


def test_both_halves_of_the_format_agree() -> None:
    assert format_.HEADER.format == wire.SNAPSHOT_HEAD.format
    assert format_.PROCESS.format == wire.PROCESS_HEAD.format
    assert format_.AREA.format == wire.AREA_HEAD.format
    assert format_.MAGIC == wire.SNAPSHOT_MAGIC
    assert format_.VERSION == wire.SNAPSHOT_VERSION
    assert heat.HISTORY == wire.HISTORY


def test_a_snapshot_tells_classes_heat_and_processes() -> None:
    evidence = bytes([Evidence.RESERVED, Evidence.FREE, ANON, ANON | 1, Evidence.TAIL, 0, 4, 32])
    process = Process([Area([3, 0, 2], b"\xc0\0\x40", samples=2)], pid=7, cpu=250)

    known = decode_snapshot(Snapshot(evidence, [process]).encoded())

    assert known.source == "soft-dirty"
    assert (known.frames, known.samples, known.taken_at) == (8, 3, 12.5)
    assert known.classes.tolist() == [
        PageClass.RESERVED,
        PageClass.FREE,
        PageClass.ANON,
        PageClass.ANON,
        PageClass.ANON,
        PageClass.KERNEL,
        PageClass.FILE,
        PageClass.PAGE_TABLE,
    ]
    assert known.heat[3] == 255
    assert heat.SAMPLED_MIN < known.heat[2] < known.heat[3] // 2 + heat.SAMPLED_MIN
    assert known.heat[4] == heat.KERNEL_MARK
    assert known.heat[[0, 1, 5, 6, 7]].tolist() == [0] * 5
    [found] = known.processes
    assert (found.pid, found.name, found.running, found.cpu) == (7, "redis-server", True, 0.25)
    assert found.frames.tolist() == [3, 2]


def test_a_process_keeps_its_virtual_order_over_areas() -> None:
    process = Process([Area([9, 8]), Area([0, 0]), Area([1, 63])])

    [found] = decode_snapshot(Snapshot(processes=[process]).encoded()).processes

    assert found.frames.tolist() == [9, 8, 1, 63]


def test_a_frame_mapped_twice_keeps_its_first_place() -> None:
    process = Process([Area([5, 9, 5]), Area([9, 7])])

    [found] = decode_snapshot(Snapshot(processes=[process]).encoded()).processes

    assert found.frames.tolist() == [5, 9, 7]


def test_a_shared_frame_is_as_hot_as_its_hottest_user() -> None:
    cold = Process([Area([5], b"\x01", samples=8)], cpu=1)
    hot = Process([Area([5], b"\xff", samples=8)], cpu=2)

    for pair in ([cold, hot], [hot, cold]):
        assert decode_snapshot(Snapshot(processes=pair).encoded()).heat[5] == 255


def test_a_frame_twice_in_an_area_is_as_hot_as_its_hotter_place() -> None:
    for history in (b"\x80\0", b"\0\x80"):
        process = Process([Area([5, 5], history)])
        assert decode_snapshot(Snapshot(processes=[process]).encoded()).heat[5] == 255


def test_processes_come_busiest_first() -> None:
    processes = [Process(pid=1, cpu=5), Process(pid=2, cpu=900), Process(pid=3, cpu=40)]

    found = decode_snapshot(Snapshot(processes=processes).encoded()).processes

    assert [process.pid for process in found] == [2, 3, 1]


def test_frames_used_are_hot_where_they_are_process_memory() -> None:
    evidence = bytes([ANON, ANON, Evidence.FILE, Evidence.SLAB, Evidence.FREE, ANON, ANON, ANON])
    newest, older = bitmap(8, [0, 2, 3, 4]), bitmap(8, [0, 1])

    known = decode_snapshot(Snapshot(evidence, bitmaps=[newest, older]).encoded())

    assert known.heat[0] == 255
    assert known.heat[2] > known.heat[1] >= heat.SAMPLED_MIN
    assert known.heat[3:].tolist() == [0] * 5


def test_frames_beyond_what_is_described_are_unknown() -> None:
    known = decode_snapshot(Snapshot(bytes([ANON]), frames=4).encoded())

    assert known.classes.tolist() == [PageClass.ANON] + [PageClass.UNKNOWN] * 3


def test_a_few_frames_of_a_device_are_left_out() -> None:
    frames = [*range(1, 50), 1 << 30]

    [found] = decode_snapshot(Snapshot(processes=[Process([Area(frames)])]).encoded()).processes

    assert found.frames.tolist() == list(range(1, 50))


def test_names_cannot_forge_log_lines() -> None:
    process = Process(name=b"x\nERROR \x1b[31m\xff")
    known = decode_snapshot(Snapshot(processes=[process], source=b"a\rb").encoded())

    assert known.source == "a?b"
    assert known.processes[0].name.isprintable()


def test_page_flags_alone_are_knowledge_too() -> None:
    flags = np.array([1 << 10, 1 << 12 | 1 << 6, 1 << 7], dtype=np.uint64)

    known = from_flags(flags, "qemu-guest-agent", 3.0)

    assert known.classes.tolist() == [PageClass.FREE, PageClass.ANON, PageClass.SLAB]
    assert known.heat.tolist() == [0, heat.KERNEL_MARK, 0]
    assert (known.samples, known.processes) == (0, ())


areas = st.lists(st.integers(0, 63), max_size=20).flatmap(
    lambda frames: st.builds(
        Area,
        st.just(frames),
        st.binary(min_size=len(frames), max_size=len(frames)),
        st.integers(0, 255),
        st.integers(0, 255),
    )
)
processes = st.builds(
    Process,
    st.lists(areas, max_size=4),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=30),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)


@settings(deadline=None)
@given(st.binary(min_size=64, max_size=64), st.lists(processes, max_size=3))
def test_what_the_agent_encodes_is_what_the_host_decodes(
    evidence: bytes, sent: list[Process]
) -> None:
    known = decode_snapshot(Snapshot(evidence, sent).encoded())

    by_cpu = sorted(sent, key=lambda process: -process.cpu)
    for process, found in zip(by_cpu, known.processes, strict=True):
        frames = [frame for area in process.areas for frame in area.frames if frame]
        assert found.frames.tolist() == list(dict.fromkeys(frames))
        assert (found.pid, found.running) == (process.pid, process.running)
    used = {
        frame
        for process in sent
        for area in process.areas
        if area.samples
        for frame, history in zip(area.frames, area.history, strict=True)
        if frame and history >= 0x80
    }
    assert all(known.heat[frame] >= heat.SAMPLED_MIN for frame in used)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_garbage_is_refused_or_decoded_but_never_anything_else(garbage: bytes) -> None:
    for payload in (garbage, Snapshot().encoded()[:38] + garbage):
        try:
            decode_snapshot(payload, SMALL)
        except HintError:
            pass


@settings(deadline=None)
@given(st.data())
def test_a_damaged_snapshot_is_refused_or_decoded_but_never_anything_else(
    data: st.DataObject,
) -> None:
    whole = bytearray(
        Snapshot(processes=[Process([Area([1, 2, 3], b"abc")])], bitmaps=[bytes(8)]).encoded()
    )
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_snapshot(whole, SMALL)
    except HintError:
        pass


def test_a_snapshot_cut_off_anywhere_is_refused() -> None:
    whole = Snapshot(processes=[Process([Area([1, 2, 3], b"abc")])], bitmaps=[bytes(8)]).encoded()

    for end in range(len(whole)):
        with pytest.raises(HintError):
            decode_snapshot(whole[:end])


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(HintError, match="follow"):
        decode_snapshot(Snapshot(tail=b"!").encoded())


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (Snapshot(magic=b"NES2"), "magic"),
        (Snapshot(version=2), "version"),
        (Snapshot(frames=0, described=0), "0 frames"),
        (Snapshot(frames=1 << 28), "claims"),
        (Snapshot(frames=(1 << 40) // 4096 * 1024, described=0), "claims"),
        (Snapshot(frames=63), "describes 64 of 63"),
        (Snapshot(described=1 << 20, frames=1 << 20), "ends inside evidence"),
        (Snapshot(count=200), "ends inside process"),
        (Snapshot(count=60000), "60000 processes"),
        (Snapshot(bitmaps=[bytes(8)] * 9), "9 bitmaps"),
        (Snapshot(bitmaps=[bytes(7)]), "bitmap"),
        (Snapshot(zero=1), "0x1"),
        (Snapshot(source=b"x" * 300), "source name"),
        (Snapshot(taken_at=math.nan), "taken at"),
        (Snapshot(taken_at=-math.inf), "taken at"),
        (Snapshot(processes=[Process([Area([1 << 31] * 40)])]), "do not exist"),
    ],
)
def test_a_lie_is_refused_by_name(lie: Snapshot, reason: str) -> None:
    with pytest.raises(HintError, match=reason):
        decode_snapshot(lie.encoded(), SMALL)


def test_more_bytes_than_the_guest_has_a_use_for_are_refused_unread() -> None:
    with pytest.raises(HintError, match="over"):
        decode_snapshot(bytes(SMALL.payload + 1), SMALL)


def test_a_process_of_more_pages_than_the_guest_is_refused() -> None:
    # An area may announce pages without sending a plane: the claim alone must be enough.
    claim = wire.AREA_HEAD.pack(0xFFFFFFFF, 0, 0, 0, 0)
    process = wire.PROCESS_HEAD.pack(1, 0, 0, 0, 1)

    with pytest.raises(HintError, match="limits"):
        decode_snapshot(Snapshot(count=1, tail=process + claim).encoded(), SMALL)


def test_more_areas_than_any_process_has_are_refused() -> None:
    process = wire.PROCESS_HEAD.pack(1, 0, 0, 0, 0xFFFFFFFF)

    with pytest.raises(HintError, match="limits"):
        decode_snapshot(Snapshot(count=1, tail=process).encoded(), SMALL)


def test_an_unknown_plane_is_refused() -> None:
    claim = wire.AREA_HEAD.pack(1, 0, 0, 0x40, 0) + b"x"
    process = wire.PROCESS_HEAD.pack(1, 0, 0, 0, 1)

    with pytest.raises(HintError, match="planes"):
        decode_snapshot(Snapshot(count=1, tail=process + claim).encoded())


def test_limits_grow_with_the_guest_and_end_somewhere() -> None:
    small, large, huge = (SnapshotLimits.for_memory(1 << n) for n in (29, 36, 50))

    assert small.frames < large.frames <= huge.frames
    assert huge.payload <= 256 << 20
    assert small.payload < 8 << 20
    assert struct.calcsize(">Q") * large.frames < 1 << 30
