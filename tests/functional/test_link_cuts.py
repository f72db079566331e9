# SPDX-License-Identifier: Apache-2.0
"""Connections that break in every way a network has; the bytes arrive once and in order."""

from __future__ import annotations

import dataclasses
import pathlib
import random
from collections.abc import Iterator

import pytest

from nova_enlightened.stream.link import Closed, Finished, Opened, Reset
from nova_enlightened.stream.link_state import Role
from nova_enlightened.transfer.link_events import (
    Broken,
    LinkOptions,
    Lost,
    PeerAbsent,
    PeerReady,
    Refused,
)
from tests.functional.link_hosts import MAIN, PREEMPT, Hosts, certificates

MIB = 1 << 20
IMPATIENT = LinkOptions(ping=0.05, dead=0.25, handshake=0.5, backoff=0.01, max_backoff=0.05)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return certificates(tmp_path_factory.mktemp("ca"))


@pytest.fixture(params=["plain", "tls"])
def hosts(request: pytest.FixtureRequest, ca: pathlib.Path) -> Iterator[Hosts]:
    with Hosts(ca if request.param == "tls" else None, IMPATIENT) as pair:
        yield pair


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def test_both_channels_are_carried_both_ways(hosts: Hosts) -> None:
    hosts.open()
    contents = {}
    for number, host in enumerate(hosts.hosts):
        for channel in (MAIN, PREEMPT):
            contents[number, channel] = noise(3 * MIB + 17, seed=2 * number + channel)
            host.send(channel, contents[number, channel])
    hosts.finish()
    for number, host in enumerate(reversed(hosts.hosts)):
        for channel in (MAIN, PREEMPT):
            assert host.arrived[channel] == contents[number, channel]


@pytest.mark.parametrize("seed", range(3))
def test_cuts_at_random_moments_lose_and_repeat_nothing(hosts: Hosts, seed: int) -> None:
    dice = random.Random(seed)
    hosts.open()
    forward, back = noise(24 * MIB, seed), noise(MIB, seed + 100)
    hosts.source.send(MAIN, forward)
    hosts.source.send(PREEMPT, back)
    hosts.destination.send(MAIN, back)
    for _ in range(8):
        hosts.until_carried(dice.randrange(2 * MIB))
        hosts.wire.cut()
        hosts.until(lambda: hosts.source.link.ready and hosts.destination.link.ready)
    hosts.finish()
    assert hosts.destination.arrived[MAIN] == forward
    assert hosts.destination.arrived[PREEMPT] == back
    assert hosts.source.arrived[MAIN] == back
    assert hosts.source.link.reconnects >= 8
    assert len(hosts.source.saw(Lost)) == hosts.source.link.reconnects


def test_a_hung_connection_is_found_and_replaced(hosts: Hosts) -> None:
    hosts.open()
    content = noise(8 * MIB, 1)
    hosts.source.send(MAIN, content)
    hosts.until(lambda: hosts.wire.carried > MIB)
    hosts.wire.frozen = True
    hosts.until(lambda: hosts.source.saw(Lost))
    assert "nothing heard" in str(hosts.source.saw(Lost)[0])
    hosts.wire.frozen = False
    hosts.finish()
    assert hosts.destination.arrived[MAIN] == content


def test_an_idle_connection_is_kept(hosts: Hosts) -> None:
    hosts.open()
    turns = iter(range(1000))
    before = hosts.wire.carried
    hosts.until(lambda: hosts.wire.carried > before + 400 and next(turns) > 20)
    assert not hosts.source.saw(Lost)


def test_a_new_connection_replaces_one_that_only_the_destination_believes_in(
    hosts: Hosts,
) -> None:
    patient = dataclasses.replace(IMPATIENT, dead=60.0)
    hosts.destination.link.options = patient
    hosts.open()
    hosts.wire.frozen = True
    hosts.until(lambda: hosts.source.saw(Lost))
    hosts.wire.frozen = False
    hosts.until(lambda: len(hosts.destination.saw(PeerReady)) == 2)
    assert "replaced" in str(hosts.destination.saw(Lost)[0])
    hosts.finish()


def test_attempts_go_on_while_nobody_answers(hosts: Hosts) -> None:
    hosts.open()
    content = noise(4 * MIB, 3)
    hosts.source.send(MAIN, content)
    hosts.until(lambda: hosts.wire.carried > MIB)
    hosts.wire.refuse()
    hosts.wire.cut()
    hosts.until(lambda: hosts.source.link.attempts > 5)
    assert "refused" in hosts.source.link.trouble
    assert len(hosts.source.saw(Lost)) == 1
    assert hosts.source.saw(PeerAbsent)
    hosts.wire.listen(hosts.wire.address)
    hosts.finish()
    assert hosts.source.link.trouble == ""
    assert hosts.destination.arrived[MAIN] == content


def test_the_source_may_start_before_anybody_listens(hosts: Hosts) -> None:
    hosts.wire.refuse()
    hosts.until(lambda: hosts.source.link.attempts > 3)
    hosts.wire.listen(hosts.wire.address)
    hosts.open()
    assert hosts.source.events == [PeerReady(resumed=False)]


def test_pauses_between_attempts_grow_up_to_the_limit() -> None:
    now = 100.0

    def clock() -> float:
        return now

    with Hosts() as hosts:
        hosts.wire.refuse()
        hosts.source.link.abort()
        lonely = hosts.add(
            hosts.make(Role.SOURCE, hosts.wire.address, options=LinkOptions(), clock=clock)
        )
        pauses = []
        for _ in range(9):
            hosts.until(lambda: lonely.link.trouble)
            lonely.link.trouble = ""
            pauses.append(round(lonely.link.timeout() or 0, 3))
            now += 3.0
    assert pauses[:5] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert set(pauses[5:]) == {2.0}


def test_a_qemu_that_does_not_read_stops_the_sender_and_memory_is_bounded(hosts: Hosts) -> None:
    hosts.open()
    hosts.destination.taking = False
    content = noise(40 * MIB, 5)
    hosts.source.send(MAIN, content)
    hosts.until(lambda: hosts.source.link.can_send(MAIN) == 0)
    for _ in range(30):
        hosts.turn()
    assert hosts.source.link.session.under_way <= IMPATIENT.retain
    assert not hosts.source.saw(Lost)
    hosts.destination.taking = True
    hosts.finish()
    assert hosts.destination.arrived[MAIN] == content


def test_half_close_and_reset_are_carried(hosts: Hosts) -> None:
    hosts.open()
    hosts.source.link.send_fin(MAIN)
    hosts.source.link.send_reset(PREEMPT)
    hosts.until(lambda: len(hosts.destination.events) == 5)
    assert set(hosts.destination.events[1:]) == {
        Opened(MAIN),
        Opened(PREEMPT),
        Finished(MAIN),
        Reset(PREEMPT),
    }


def test_the_end_is_said_with_its_reason(hosts: Hosts) -> None:
    hosts.open()
    hosts.source.link.close("stopped by the operator")
    hosts.until(lambda: hosts.source.link.closed and hosts.destination.link.closed)
    assert hosts.destination.events[-1] == Closed("stopped by the operator")


def test_ending_without_a_connection_takes_no_time(hosts: Hosts) -> None:
    hosts.source.link.close()
    assert hosts.source.link.closed


@pytest.mark.parametrize("unheard", ["source", "destination"])
def test_a_peer_whose_last_word_was_lost_is_not_waited_for_for_ever(unheard: str) -> None:
    with Hosts(options=dataclasses.replace(IMPATIENT, farewell=0.3)) as hosts:
        hosts.open()
        hosts.source.send(MAIN, noise(MIB, 1))
        hosts.finish()
        gone = hosts.source if unheard == "source" else hosts.destination
        left = hosts.destination if unheard == "source" else hosts.source
        gone.link.abort()
        hosts.until(lambda: left.link.closed)
        assert left.events[-1] == Closed("")


def test_a_connection_lost_in_the_middle_is_waited_for() -> None:
    with Hosts(options=dataclasses.replace(IMPATIENT, farewell=0.0)) as hosts:
        hosts.open()
        hosts.source.link.send_fin(MAIN)
        hosts.wire.cut()
        hosts.until(lambda: hosts.source.link.reconnects == 1)
        assert not hosts.destination.saw(Closed)


def test_a_source_started_anew_cannot_go_on_for_the_old_one(hosts: Hosts) -> None:
    hosts.open()
    hosts.source.link.abort()
    again = hosts.add(hosts.make(Role.SOURCE, hosts.wire.address))
    hosts.until(lambda: again.saw(Refused) and hosts.destination.saw(Broken))
    assert "started anew" in str(again.saw(Refused)[0])


def test_a_destination_started_anew_cannot_go_on_for_the_old_one(hosts: Hosts) -> None:
    hosts.open()
    hosts.until(lambda: hosts.source.link.session.settled)
    address = hosts.destination.link.address
    hosts.destination.link.abort()
    hosts.add(hosts.make(Role.DESTINATION, address))
    hosts.until(lambda: hosts.source.saw(Broken))
    attempts = hosts.source.link.attempts
    hosts.turn()
    assert hosts.source.link.attempts == attempts
