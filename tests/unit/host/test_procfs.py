# SPDX-License-Identifier: Apache-2.0
"""The kernel's files, as a real host has them, and as none should."""

import pytest

from nova_enlightened.host import procfs
from tests.unit.host import captured


def test_time_that_is_not_idle_is_busy_and_guests_are_not_counted_twice() -> None:
    busy = procfs.cpu_seconds(captured.STAT)
    assert busy[0] == pytest.approx((668628 + 3043 + 74846 + 7802 + 1157) / 100)
    assert set(busy) == {0, 1}


def test_a_cpu_line_of_words_is_passed_over() -> None:
    assert procfs.cpu_seconds("cpu0 a b c d e\ncpu1 1 1 1 1 1 1 1 1\n").keys() == {1}


def test_only_the_numbers_asked_for_are_read() -> None:
    wanted = ("MemTotal", "MemAvailable")
    assert procfs.keyed_numbers(captured.MEMINFO, wanted) == {
        "MemTotal": 24684092,
        "MemAvailable": 22912612,
    }


def test_pressure_totals_are_seconds() -> None:
    assert procfs.pressure(captured.PRESSURE_CPU) == procfs.Pressure(3775.156676, 0.0)
    assert procfs.pressure("") == procfs.Pressure()


def test_run_delay_is_the_second_number() -> None:
    assert procfs.run_delay(captured.SCHEDSTAT) == pytest.approx(1.421583438)
    assert procfs.run_delay("0") is None


@pytest.mark.parametrize("name", ["CPU 0/KVM\n", "CPU 12/TCG\n"])
def test_vcpu_threads_are_known_by_name(name: str) -> None:
    assert procfs.is_vcpu(name)


@pytest.mark.parametrize("name", ["qemu-system-x86\n", "IO mon_iothread\n", "vhost-123\n"])
def test_other_threads_are_not_vcpus(name: str) -> None:
    assert not procfs.is_vcpu(name)


def test_a_cpu_list_is_read() -> None:
    assert procfs.cpu_set("0-2,8\n") == {0, 1, 2, 8}


@pytest.mark.parametrize("text", ["", "a", "3-1", "0-99999999", "1-", "-1", "0,,1"])
def test_what_is_no_cpu_list_is_none(text: str) -> None:
    assert procfs.cpu_set(text) is None


def test_cgroup_paths_of_both_versions() -> None:
    one = procfs.cgroup_paths(captured.CGROUP_V1)
    assert one["cpu"].endswith("/libvirt/vcpu0")
    assert one[""] == "/"
    assert procfs.cgroup_paths(captured.CGROUP_V2)[""].startswith("/machine.slice/")


@pytest.mark.parametrize(
    ("newer", "older", "expected"),
    [
        ("50000 100000\n", None, True),
        ("max 100000\n", None, False),
        (None, "50000\n", True),
        (None, "-1\n", False),
        (None, None, False),
    ],
)
def test_quotas_of_both_versions(newer: str | None, older: str | None, expected: bool) -> None:
    assert procfs.has_quota(newer, older) is expected


def test_throttled_time_of_both_versions() -> None:
    assert procfs.throttled_seconds(captured.CPU_STAT_V1) == pytest.approx(2.5)
    assert procfs.throttled_seconds(captured.CPU_STAT_V2) == pytest.approx(2.5)
    assert procfs.throttled_seconds("usage_usec 1\n") is None
