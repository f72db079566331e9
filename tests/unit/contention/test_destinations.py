# SPDX-License-Identifier: Apache-2.0
import pytest

from nova_enlightened.contention.destinations import (
    MEMORY_MB,
    VCPU,
    Demand,
    DestinationLimits,
    Inventory,
    judge,
)
from nova_enlightened.contention.report import Level
from nova_enlightened.exception import ConfigError
from tests.unit.contention.simulated_host import GIB, host_report

VM = Demand(vcpus=4, memory=4 * GIB, cpu=2.0)
LIMITS = DestinationLimits()


def fit(report, demand=VM, age=0.0, inventories=None, **more):
    return judge(report, age, demand, LIMITS, inventories, **more)


def test_a_host_with_room_fits_and_says_how_much_is_left():
    found = fit(host_report())
    assert found.fits is True
    assert found.score == pytest.approx(0.85 - 3.0 / 8)
    assert "CPU +48%" in found.reason


def test_more_room_scores_higher():
    assert fit(host_report(cpu_used=0.5)).score > fit(host_report(cpu_used=3.0)).score


def test_the_scarcer_resource_decides():
    found = fit(host_report(memory_available=10 * GIB))
    assert found.score == pytest.approx(6 / 64 - 0.08)


def test_a_host_without_a_report_is_unknown():
    assert (fit(None).fits, fit(None).score) == (None, 0.0)


@pytest.mark.parametrize("age", [10.1, 1e9, -31.0, float("nan")])
def test_an_old_report_says_nothing_not_even_that_the_host_is_contended(age):
    found = fit(host_report(level=Level.ACT), age=age)
    assert (found.fits, found.score) == (None, 0.0)


@pytest.mark.parametrize("level, score", [(Level.WARN, -0.5), (Level.ACT, -1.0)])
def test_a_contended_host_does_not_fit(level, score):
    found = fit(host_report(level=level))
    assert (found.fits, found.score) == (False, score)
    assert "said by a test" in found.reason


def test_a_host_that_would_become_contended_does_not_fit():
    found = fit(host_report(cpu_used=6.0))
    assert found.fits is False
    assert -1.0 <= found.score < 0


def test_what_guests_wait_for_there_counts_as_wanted():
    assert fit(host_report(cpu_used=4.0, cpu_waiting=1.0)).fits is False


def test_what_is_on_its_way_counts_as_there():
    assert fit(host_report(), arriving=Demand(4, 4 * GIB, 4.0)).fits is False
    assert fit(host_report(), arriving=Demand(4, 42 * GIB, 0.0)).fits is False


def test_a_vm_may_have_an_empty_host_to_itself():
    whole = Demand(vcpus=8, memory=GIB, cpu=8.0)
    assert fit(host_report(cpu_used=0.5), whole).fits is True
    assert fit(host_report(cpu_used=2.0), whole).fits is False


def test_a_vm_that_wants_more_than_the_host_has_does_not_fit_though_it_is_empty():
    assert fit(host_report(cpu_used=0.0), Demand(16, GIB, 12.0)).fits is False


def test_a_new_server_is_expected_to_want_a_share_of_its_vcpus():
    assert fit(host_report(cpu_used=5.0), Demand(4, GIB)).fits is True
    assert fit(host_report(cpu_used=5.0), Demand(16, GIB)).fits is False


def test_placement_refuses_whatever_the_report_says():
    full = {VCPU: Inventory(total=8, allocation_ratio=1.0, used=6)}
    found = fit(None, inventories=full)
    assert found.fits is False
    assert found.reason == "VCPU: 2 left in placement, not 4"


def test_memory_is_counted_in_whole_mib():
    tight = {MEMORY_MB: Inventory(total=64, used=0)}
    assert fit(None, Demand(1, 64 * 1024, 0.1), inventories=tight).fits is None
    assert fit(None, Demand(1, 64 * 1024 + 1, 0.1), inventories=tight).fits is False


def test_cpus_reserved_for_the_host_are_not_the_guests():
    held = {VCPU: Inventory(total=8, reserved=5, allocation_ratio=8.0)}
    assert fit(host_report(), inventories=held).fits is False
    assert fit(host_report(reserved_cpus=5)).fits is False


def test_a_ratio_below_one_keeps_that_part_of_the_host_free():
    held = {MEMORY_MB: Inventory(total=64 * 1024, allocation_ratio=0.5)}
    assert fit(host_report(memory_available=40 * GIB), inventories=held).fits is False


def test_a_ratio_above_one_makes_no_more_of_the_host():
    held = {VCPU: Inventory(total=8, allocation_ratio=16.0)}
    assert fit(host_report(cpu_used=6.0), inventories=held).fits is False


@pytest.mark.parametrize("nothing", [{"cpus": 0}, {"memory_total": 0, "memory_available": 0}])
def test_a_host_that_has_nothing_fits_nothing(nothing):
    assert fit(host_report(**nothing)).fits is False


@pytest.mark.parametrize("values", [{"age": 0.0}, {"cpu": 1.2}, {"empty": -0.1}])
def test_limits_out_of_range_are_refused_by_name(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        DestinationLimits(**values)
