# SPDX-License-Identifier: Apache-2.0
"""How a migration ended that libvirt gave up after its switch."""

import itertools
from typing import Any

import pytest

from nova_enlightened import exception
from nova_enlightened.host.standing import Standing
from nova_enlightened.virt import outcome
from nova_enlightened.virt.outcome import End


def judged(here: Standing, **agent: str) -> End | None:
    found = outcome.judged(here, agent)
    return None if found is None else found.end


@pytest.mark.parametrize("here", [Standing.POSTCOPY, Standing.FAILED, Standing.SWITCHING])
def test_while_its_memory_is_on_both_hosts_nothing_has_ended(here: Standing) -> None:
    for state in ("followed", "clearing", "resuming", "stopped", "unknown"):
        assert judged(here, state=state) is None


def test_a_source_that_cannot_be_asked_has_not_ended() -> None:
    assert judged(Standing.UNKNOWN) is None


def test_a_vm_that_is_gone_from_its_source_has_moved() -> None:
    assert judged(Standing.GONE) is End.MOVED


def test_a_vm_that_executes_at_its_source_stayed() -> None:
    assert judged(Standing.EXECUTES) is End.STAYED


def test_where_it_was_lost_tells_which_host_has_its_record() -> None:
    assert judged(Standing.FAILED, state="lost", why="x") is End.LOST_THERE
    assert judged(Standing.ENDED, state="lost", why="x") is End.LOST_HERE
    assert judged(Standing.ENDED) is End.LOST_HERE


def test_an_end_is_believed_only_when_seen_several_times_in_a_row() -> None:
    looks = iter(
        [Standing.FAILED, Standing.GONE, Standing.FAILED, *[Standing.GONE] * outcome.CONFIRMED]
    )
    found = outcome.wait(lambda: next(looks), dict, "vm", lambda _: None, lambda: 0.0)
    assert found.end is End.MOVED
    assert next(looks, None) is None


def test_an_agent_that_does_not_answer_is_asked_again() -> None:
    asked = itertools.count()

    def agent() -> dict[str, Any]:
        if next(asked) < 5:
            raise exception.AgentUnreachable("agent of src")
        return {"state": "lost", "why": "QEMU at the destination has ended"}

    found = outcome.wait(lambda: Standing.FAILED, agent, "vm", lambda _: None, lambda: 0.0)
    assert (found.end, found.words) == (End.LOST_THERE, "QEMU at the destination has ended")
