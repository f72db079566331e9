# SPDX-License-Identifier: Apache-2.0
import threading

import numpy as np
import pytest

from lab.errors import LabError
from lab.probe import DATAGRAM, MAGIC, Probe, Report, decode


def datagram(
    name: bytes = b"web", state: int = 1, sequence: int = 7, operations: int = 42
) -> bytes:
    return DATAGRAM.pack(MAGIC, name, state, sequence, operations, 1000, 3, 99, 5)


def report(at: float, sequence: int, operations: int, *, running: bool = True) -> Report:
    return Report(at, running, sequence, operations, int(at * 1e9), 0, 0, 0)


def fed(*reports: Report) -> Probe:
    probe = Probe("web")
    for each in reports:
        probe.add(each)
    return probe


def test_datagram_is_read_as_the_guest_programs_write_it() -> None:
    decoded = decode(datagram(), 12.5)
    assert decoded == ("web", Report(12.5, True, 7, 42, 1000, 3, 99, 5))
    assert DATAGRAM.size == 72  # guest/probe.h


def test_foreign_datagrams_are_passed_over() -> None:
    assert decode(b"", 0.0) is None
    assert decode(datagram()[:-1], 0.0) is None
    assert decode(b"XXXX" + datagram()[4:], 0.0) is None


def test_series_spreads_the_work_evenly_between_reports() -> None:
    probe = fed(report(10.0, 0, 0), report(11.0, 1, 100), report(12.0, 2, 100))
    times, rates = probe.series(10.0, 12.0, 0.5)
    np.testing.assert_allclose(times, [10.0, 10.5, 11.0, 11.5])
    np.testing.assert_allclose(rates, [100.0, 100.0, 0.0, 0.0])


def test_no_work_is_counted_before_the_first_and_after_the_last_report() -> None:
    probe = fed(report(10.0, 0, 50), report(11.0, 1, 150))
    np.testing.assert_allclose(probe.series(8.0, 13.0, 1.0)[1], [0, 0, 100, 0, 0])


def test_series_without_reports_is_all_zero() -> None:
    assert fed().series(0.0, 1.0, 0.25)[1].tolist() == [0.0] * 4


def test_reports_out_of_order_are_left_out() -> None:
    probe = fed(report(10.0, 5, 10), report(10.1, 4, 9), report(10.2, 6, 20))
    assert probe.counts()[1].tolist() == [10, 20]


def test_a_program_that_began_anew_begins_a_new_series() -> None:
    probe = fed(report(10.0, 5, 1000), report(30.0, 0, 0), report(31.0, 1, 10))
    assert probe.counts()[1].tolist() == [0, 10]


def test_preparations_are_no_work() -> None:
    probe = fed(report(10.0, 0, 0, running=False), report(11.0, 1, 0), report(12.0, 2, 8))
    assert probe.counts()[0].tolist() == [11.0, 12.0]


def test_waiting_for_a_program_says_what_was_heard() -> None:
    with pytest.raises(LabError, match="said nothing"):
        fed().wait_running(0.0)
    with pytest.raises(LabError, match="only that it prepares"):
        fed(report(1.0, 0, 0, running=False)).wait_running(0.0)


def test_waiting_ends_with_the_first_report_of_work() -> None:
    probe = fed()
    thread = threading.Thread(target=probe.add, args=(report(1.0, 0, 1),))
    thread.start()
    assert probe.wait_running(10.0).operations == 1
    thread.join()
