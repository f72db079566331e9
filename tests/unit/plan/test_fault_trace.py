# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova_enlightened.exception import PlanError
from nova_enlightened.plan.fault_trace import HEADER, FaultFlag, FaultRecorder, FaultTrace

BLOCKS = (("pc.ram", 4096 * 100), ("vga.vram", 4096 * 4))


def recorded():
    recorder = FaultRecorder(10.0)
    recorder.fault(7, 10.5)
    recorder.fault(101, 11.0, FaultFlag.ASKED)
    assert recorder.seen(np.array([1, 7]), 10.75) == [0.25]
    return recorder.trace(BLOCKS, "heat", 50e6)


def test_times_count_from_switchover_and_latency_to_the_page():
    entries = recorded().entries
    assert entries["time"].tolist() == [0.5, 1.0]
    assert entries["latency"][0] == 0.25
    assert math.isnan(entries["latency"][1])
    assert entries["flags"].tolist() == [0, FaultFlag.ASKED]


def test_what_is_written_is_read_again():
    trace = recorded()
    again = FaultTrace.decode(trace.encode())
    assert again.blocks == BLOCKS
    assert (again.policy, again.bandwidth) == ("heat", 50e6)
    assert again.entries.tobytes() == trace.entries.tobytes()
    assert again.space.pages == 104


def test_a_trace_without_faults_is_one_too():
    empty = FaultRecorder(0.0).trace(BLOCKS, "stock", None)
    assert FaultTrace.decode(empty.encode()).entries.size == 0


def test_a_page_waited_for_twice_is_one_fault():
    recorder = FaultRecorder(0.0)
    recorder.fault(7, 1.0)
    recorder.fault(7, 2.0)
    assert recorder.waiting == 1
    assert recorder.seen(np.array([7]), 3.0) == [2.0]
    assert recorder.waiting == 0


def test_many_waiting_at_once_are_all_found():
    recorder = FaultRecorder(0.0)
    for page in range(40):
        recorder.fault(page, 0.0)
    assert len(recorder.seen(np.arange(20, 100), 1.0)) == 20
    assert recorder.waiting == 20


def test_a_recorder_keeps_to_its_limit():
    recorder = FaultRecorder(0.0, limit=2)
    for page in range(5):
        recorder.fault(page, 0.0)
    assert recorder.dropped == 3
    assert recorder.trace(BLOCKS, "stock", None).entries.size == 2


@given(st.integers(0, 400))
def test_a_truncated_file_is_refused_or_has_fewer_entries(cut):
    raw = recorded().encode()
    try:
        trace = FaultTrace.decode(raw[: min(cut, len(raw) - 1)])
    except PlanError:
        return
    assert trace.entries.size < 2


@given(st.binary(max_size=200))
def test_garbage_is_refused(raw):
    with pytest.raises(PlanError):
        FaultTrace.decode(raw)


def test_a_page_outside_the_blocks_is_refused():
    trace = recorded()
    entries = trace.entries.copy()
    entries["page"][0] = 104
    bad = FaultTrace(BLOCKS, "heat", None, entries)
    with pytest.raises(PlanError):
        FaultTrace.decode(bad.encode())


def test_a_header_longer_than_the_file_is_refused():
    raw = bytearray(recorded().encode())
    HEADER.pack_into(raw, 0, b"NEFT", 1, 0, 1 << 19)
    with pytest.raises(PlanError):
        FaultTrace.decode(bytes(raw))


def test_a_header_that_is_deeply_nested_is_refused():
    header = b"[" * 100_000
    with pytest.raises(PlanError):
        FaultTrace.decode(HEADER.pack(b"NEFT", 1, 0, len(header)) + header)
