# SPDX-License-Identifier: Apache-2.0
"""Whether a server may be started where Nova has it."""

import itertools

import libvirt
import pytest

from nova_enlightened.host.standing import Standing
from nova_enlightened.virt import guard
from nova_enlightened.virt.journal import Entry

UNDER_WAY = Entry("2f4d4a55-6c5a-4f0f-8a5f-0a33c4b3f1f0", "b" * 8, "host2", False, {})
LOST = Entry(UNDER_WAY.instance, "b" * 8, "host2", False, {}, lost="QEMU there has ended")
LEFT = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY)
LEFT_FAILED = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
OFF = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN)
RUNS = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)
STATES = (LEFT, LEFT_FAILED, OFF, RUNS, None)


@pytest.mark.parametrize(
    ("state", "there", "resumes"), list(itertools.product(STATES, Standing, (False, True)))
)
def test_nothing_that_is_leaving_is_started_whatever_libvirt_says(
    state: tuple[int, int] | None, there: Standing, resumes: bool
) -> None:
    assert guard.refusal(state, UNDER_WAY, there, resumes) is not None


@pytest.mark.parametrize("there", [*(set(Standing) - {Standing.GONE, Standing.ENDED})])
def test_a_lost_one_is_not_started_before_its_destination_says_that_nothing_is_left(
    there: Standing,
) -> None:
    words = guard.refusal(OFF, LOST, there)
    assert words is not None
    assert "QEMU there has ended" in words


@pytest.mark.parametrize(
    ("state", "there"), list(itertools.product(STATES, (Standing.GONE, Standing.ENDED)))
)
def test_a_lost_one_that_is_gone_there_may_be_started_anew(
    state: tuple[int, int] | None, there: Standing
) -> None:
    assert guard.refusal(state, LOST, there) is None


@pytest.mark.parametrize("state", [LEFT, LEFT_FAILED])
@pytest.mark.parametrize("entry", [None, LOST])
def test_what_stands_still_for_post_copy_never_goes_on(
    state: tuple[int, int], entry: Entry | None
) -> None:
    assert guard.refusal(state, entry, Standing.GONE, resumes=True) is not None


@pytest.mark.parametrize("state", [LEFT, LEFT_FAILED])
def test_without_an_entry_libvirts_word_is_enough_to_refuse(state: tuple[int, int]) -> None:
    assert guard.refusal(state, None, Standing.UNKNOWN) is not None


@pytest.mark.parametrize("state", [OFF, RUNS, None])
def test_what_never_left_is_novas_to_start(state: tuple[int, int] | None) -> None:
    assert guard.refusal(state, None, Standing.UNKNOWN) is None


def test_a_destination_in_post_copy_is_not_taken_for_a_source() -> None:
    running = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED)
    assert guard.refusal(running, None, Standing.UNKNOWN) is None
