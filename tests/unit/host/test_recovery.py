# SPDX-License-Identifier: Apache-2.0
"""What is decided about a post-copy that lost its way."""

import dataclasses
import itertools

import pytest

from nova_enlightened.host import recovery
from nova_enlightened.host.recovery import Carrier, Seen, State, Step, decide
from nova_enlightened.host.standing import Standing

CARRIED = Seen(Standing.POSTCOPY, Standing.POSTCOPY, Carrier.ALIVE, Carrier.ALIVE)
BROKEN = Seen(Standing.FAILED, Standing.FAILED, Carrier.GONE, Carrier.GONE)
EVERYTHING = [
    Seen(*seen)
    for seen in itertools.product(Standing, Standing, Carrier, Carrier, *[(False, True)] * 9)
]


def step(base: Seen, **changes: object) -> Step:
    return decide(dataclasses.replace(base, **changes)).step  # type: ignore[arg-type]


def test_relays_that_run_are_left_alone_whatever_libvirt_says() -> None:
    assert step(CARRIED) is Step.WAIT
    assert step(CARRIED, here=Standing.FAILED) is Step.WAIT
    assert step(CARRIED, here=Standing.FAILED, there=Standing.FAILED) is Step.WAIT


def test_what_is_left_of_a_broken_pair_is_ended() -> None:
    assert step(CARRIED, relay_here=Carrier.GONE) is Step.END_THERE
    assert step(CARRIED, relay_there=Carrier.GONE) is Step.END_HERE


def test_with_both_relays_gone_it_is_resumed() -> None:
    assert step(BROKEN) is Step.RESUME


def test_relays_that_ended_with_the_last_page_are_not_replaced() -> None:
    ended = dataclasses.replace(BROKEN, completed=True, here=Standing.POSTCOPY)
    for there in (Standing.POSTCOPY, Standing.EXECUTES, Standing.UNKNOWN):
        assert step(ended, there=there) is Step.WAIT


def test_libvirt_that_gave_up_is_given_time_to_hear_of_the_last_page() -> None:
    ended = dataclasses.replace(BROKEN, completed=True)
    assert decide(ended).step is Step.RESUME
    assert decide(ended).looks == recovery.ENDING > decide(BROKEN).looks


def test_a_relay_that_qemu_did_not_come_to_makes_room_for_another() -> None:
    assert step(CARRIED, here=Standing.FAILED, idle=True) is Step.END_HERE


def test_nothing_is_ended_while_the_other_host_does_not_answer() -> None:
    unheard = {"there": Standing.UNKNOWN, "relay_there": Carrier.UNKNOWN}
    assert step(CARRIED, **unheard) is Step.WAIT
    assert step(BROKEN, **unheard) is Step.WAIT


def test_while_it_is_handed_over_no_socket_is_closed() -> None:
    assert step(CARRIED, there=Standing.SWITCHING, relay_here=Carrier.GONE) is Step.WAIT
    assert step(CARRIED, here=Standing.SWITCHING, relay_there=Carrier.GONE) is Step.WAIT


def test_qemus_own_channel_is_resumed_only_once_both_have_failed() -> None:
    assert step(BROKEN, relayed=False) is Step.RESUME
    assert step(BROKEN, relayed=False, there=Standing.POSTCOPY) is Step.WAIT


def test_a_source_that_ended_before_the_last_page_has_lost_the_vm() -> None:
    for there in (Standing.POSTCOPY, Standing.FAILED):
        assert step(BROKEN, here=Standing.ENDED, there=there) is Step.LOST


def test_what_is_missing_is_sent_in_the_place_of_a_source_that_gave_up() -> None:
    for there in (Standing.POSTCOPY, Standing.FAILED):
        given_up = dataclasses.replace(BROKEN, gave_up=True, resends=True, there=there)
        assert decide(given_up).step is Step.RESEND
        assert step(given_up, completed=True) is Step.RESEND
        assert step(given_up, relay_there=Carrier.ALIVE) is Step.END_THERE
        assert step(given_up, relay_there=Carrier.UNKNOWN) is Step.WAIT
        assert step(given_up, relay_here=Carrier.ALIVE) is Step.END_HERE


def test_a_source_is_ended_once_its_destination_has_said_that_it_has_all_of_it() -> None:
    delivered = dataclasses.replace(BROKEN, gave_up=True, resends=True, delivered=True)
    for there in Standing:
        assert step(delivered, there=there) is Step.END_SOURCE
    assert {seen.here for seen in EVERYTHING if decide(seen).step is Step.END_SOURCE} == {
        Standing.POSTCOPY,
        Standing.FAILED,
    }
    assert all(seen.delivered for seen in EVERYTHING if decide(seen).step is Step.END_SOURCE)


def test_a_source_that_gave_up_and_is_not_known_has_lost_the_vm_and_is_not_started() -> None:
    for there in (Standing.POSTCOPY, Standing.FAILED):
        assert step(BROKEN, gave_up=True, there=there) is Step.LOST
    assert step(BROKEN, gave_up=True, there=Standing.UNKNOWN) is not Step.LOST


def test_a_destination_that_ended_has_lost_the_vm_and_the_source_is_not_started_again() -> None:
    for here in (Standing.POSTCOPY, Standing.FAILED):
        assert step(BROKEN, here=here, there=Standing.GONE) is Step.LOST


def test_a_vm_that_never_executed_at_its_destination_goes_on_at_its_source() -> None:
    for there in (Standing.GONE, Standing.ENDED):
        found = decide(dataclasses.replace(CARRIED, there=there, never_executed=True))
        assert (found.step, found.looks) == (Step.GO_ON_HERE, recovery.CONFIRMED)


def test_it_goes_on_nowhere_else_and_in_no_doubt() -> None:
    for seen in EVERYTHING:
        if decide(seen).step is Step.GO_ON_HERE:
            assert seen.never_executed
            assert seen.there in (Standing.GONE, Standing.ENDED)
            assert seen.here in (Standing.POSTCOPY, Standing.FAILED, Standing.SWITCHING)


def test_a_destination_that_waits_for_a_source_that_sends_no_more_is_ended() -> None:
    waits = dataclasses.replace(CARRIED, there=Standing.SWITCHING, relay_here=Carrier.GONE)
    assert step(waits, sends_no_more=True) is Step.END_THERE
    assert step(waits, sends_no_more=True, relay_here=Carrier.ALIVE) is Step.WAIT


def test_a_vm_that_never_executed_and_cannot_be_reached_is_ended_at_its_destination() -> None:
    unreached = dataclasses.replace(
        CARRIED, there=Standing.SWITCHING, relay_there=Carrier.GONE, waits=True
    )
    for here in (Standing.POSTCOPY, Standing.FAILED):
        for relay_here in (Carrier.GONE, Carrier.ALIVE):
            found = decide(dataclasses.replace(unreached, here=here, relay_here=relay_here))
            assert (found.step, found.looks) == (Step.END_UNSTARTED, recovery.BLOCKED)
    assert step(unreached, relay_there=Carrier.ALIVE) is Step.WAIT
    assert step(unreached, relay_there=Carrier.UNKNOWN) is Step.WAIT


def test_it_is_ended_nowhere_else_and_in_no_doubt() -> None:
    for seen in EVERYTHING:
        if decide(seen).step is Step.END_UNSTARTED:
            assert seen.waits
            assert seen.there is Standing.SWITCHING
            assert seen.here in (Standing.POSTCOPY, Standing.FAILED)
            assert seen.relay_there is Carrier.GONE


def test_a_vm_that_executes_at_its_source_stayed_there() -> None:
    assert step(BROKEN, here=Standing.EXECUTES, there=Standing.GONE) is Step.STAYED


def test_a_migration_without_relays_that_libvirt_has_not_begun_is_waited_for() -> None:
    begun = dataclasses.replace(BROKEN, relayed=False, here=Standing.EXECUTES)
    assert step(begun, there=Standing.SWITCHING) is Step.WAIT
    assert step(begun, there=Standing.UNKNOWN) is Step.WAIT
    gone = decide(dataclasses.replace(begun, there=Standing.GONE))
    assert (gone.step, gone.looks) == (Step.STAYED, recovery.PATIENT)


def test_a_source_without_it_has_moved_it() -> None:
    assert step(BROKEN, here=Standing.GONE, there=Standing.EXECUTES) is Step.MOVED
    assert step(CARRIED, here=Standing.GONE, completed=True) is Step.MOVED


def test_a_source_whose_libvirt_is_silent_decides_nothing() -> None:
    assert {decide(seen).step for seen in EVERYTHING if seen.here is Standing.UNKNOWN} == {
        Step.WAIT
    }


def test_only_a_vm_whose_source_stands_still_for_post_copy_is_resumed() -> None:
    resumed = [seen for seen in EVERYTHING if decide(seen).step is Step.RESUME]
    assert resumed
    assert {seen.here for seen in resumed} <= {Standing.POSTCOPY, Standing.FAILED}
    assert {seen.relay_here for seen in resumed} == {Carrier.GONE}
    assert {seen.relay_there for seen in resumed} == {Carrier.GONE}


def test_a_vm_is_called_lost_only_by_hosts_that_answer() -> None:
    for seen in EVERYTHING:
        if decide(seen).step is Step.LOST:
            assert Standing.UNKNOWN not in (seen.here, seen.there), seen


def test_one_step_only_starts_a_vm() -> None:
    assert {one.value for one in Step} - {Step.GO_ON_HERE.value} == {
        "wait", "end the source's relay", "end the destination's relay", "resume",
        "send the rest in QEMU's place", "end what is left at the source",
        "end the VM at the destination, which never executed",
        "moved", "stayed", "lost",
    }  # fmt: skip


@pytest.mark.parametrize("state", [State.MOVED, State.STAYED, State.LOST])
def test_an_end_is_an_end(state: State) -> None:
    assert {recovery.after(state, step) for step in Step} == {state}


def test_after_a_stop_nothing_is_tried_but_the_end_is_seen() -> None:
    assert not recovery.takes(State.STOPPED, Step.RESUME)
    assert not recovery.takes(State.STOPPED, Step.END_THERE)
    assert recovery.after(State.STOPPED, Step.MOVED) is State.MOVED


def test_attempts_come_slower_up_to_a_limit() -> None:
    pauses = [recovery.pause_after(attempts) for attempts in range(1, 12)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (recovery.FIRST_PAUSE_S, recovery.LONGEST_PAUSE_S)
