# SPDX-License-Identifier: Apache-2.0
"""What breaks while a VM moves, each kind once: it is the same VM, no page differs, and there was
never a second running copy. ``bench/faults.py`` does each many times at random moments.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import Lab, faults, migration
from lab.errors import LabError
from lab.guests import Guest
from lab.host_agents import HostAgents, OrderedDeparture
from lab.watch import event_loop
from nova_enlightened.host.standing import Standing
from nova_enlightened.host.switch import STARTS_AGAIN
from tests.conftest import FAILED

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root"),
    # On a busy machine a fault can be late, and land at another moment than the case is about.
    pytest.mark.flaky(reruns=2),
]
LINK_MBIT = 300
HANDOVER_MBIT = 10
"""It takes a quarter of a second and more then."""
CUT_S = 1.0
RELEASE = os.environ.get("ENLIGHTENED_RELEASE", "bookworm")
"""Whose QEMU and libvirt: ``trixie`` has 10.0 and 11.3."""
CUTS_S = [float(one) for one in os.environ.get("ENLIGHTENED_CUTS", "5").split(",")]
MEMORY = {"memory_mib": 256, "arguments": ("--memory", "40")}

Fault = Callable[[faults.Departure], object]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    event_loop()
    run = Path(f"/run/nel-f-{os.getpid()}")
    with Lab(run=run, release=RELEASE, link_mbit=LINK_MBIT) as started:
        yield started


class Kept:
    """Guests that go from host to host; new ones once a case has lost them."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._count = 0
        self._guests: list[Guest] = []

    def guests(self, count: int) -> Sequence[Guest]:
        while len(self._guests) < count:
            self._count += 1
            name = f"kept{self._count}"
            self._guests.append(self._lab.guest(name, workload="checksum", wait=True, **MEMORY))
        return self._guests[:count]

    def guest(self) -> Guest:
        return self.guests(1)[0]

    def lose(self) -> None:
        while self._guests:
            self._guests.pop().destroy()


@pytest.fixture(scope="module")
def kept(lab: Lab) -> Kept:
    return Kept(lab)


@pytest.fixture
def guest(kept: Kept) -> Guest:
    return kept.guest()


@pytest.fixture
def three(kept: Kept) -> Sequence[Guest]:
    return kept.guests(3)


@pytest.fixture(autouse=True)
def renewed(kept: Kept, request: pytest.FixtureRequest) -> Iterator[None]:
    """No case begins with what another one broke."""
    yield
    if request.node.stash[FAILED]:
        kept.lose()


def token(guest: Guest) -> int:
    assert guest.probe.latest is not None
    return guest.probe.latest.token_hash


def survives(lab: Lab, guest: Guest, fault: Fault) -> dict[str, object]:
    """It moves although `fault` befalls it; what the command that moved it says."""
    known = token(guest)
    departure = faults.Departure(lab, guest)
    with faults.Copies(departure) as copies:
        departure.start()
        try:
            fault(departure)
            told = departure.report()
        finally:
            departure.kill()
    assert copies.looks > 0
    assert copies.second is None
    assert (departure.here(), departure.there()) == (Standing.GONE, Standing.EXECUTES)
    faults.assert_whole(guest, known)
    return told


def stays(lab: Lab, guest: Guest, fault: Fault) -> None:
    """It goes on where it is although `fault` befalls its migration."""
    known = token(guest)
    departure = faults.Departure(lab, guest)
    with faults.Copies(departure) as copies:
        departure.start()
        try:
            fault(departure)
            departure.until(lambda: departure.there() is Standing.GONE, alone=True)
        finally:
            departure.kill()
    assert copies.second is None
    assert departure.here() is Standing.EXECUTES
    faults.assert_whole(guest, known)


def after_the_switch(act: Fault) -> Fault:
    """`act` once the guest executes at its destination."""

    def fault(departure: faults.Departure) -> None:
        departure.until_executing()
        act(departure)

    return fault


# --- the link ------------------------------------------------------------------------------------


def cut(seconds: float) -> Fault:
    def act(departure: faults.Departure) -> None:
        with faults.dropped(departure.lab):
            threading.Event().wait(seconds)

    return act


@pytest.mark.parametrize("seconds", CUTS_S)
def test_packets_dropped_after_the_switch(lab: Lab, guest: Guest, seconds: float) -> None:
    told = survives(lab, guest, after_the_switch(cut(seconds)))
    assert told["recovered"] is None  # QEMU saw nothing but a pause


def dropped(departure: faults.Departure) -> None:
    with faults.dropped(departure.lab):
        threading.Event().wait(CUT_S)


def reset(departure: faults.Departure) -> None:
    departure.until(lambda: faults.connections(departure))
    assert faults.reset(departure) > 0
    reconnected(departure)


def hung(departure: faults.Departure) -> None:
    departure.until(lambda: faults.connections(departure))
    with faults.hung(departure) as found:
        assert found > 0
        reconnected(departure)


def reconnected(departure: faults.Departure) -> None:
    departure.until(lambda: departure.relay("source")[1]["link"]["reconnects"] > 0)


ONE_ADDRESS = threading.Lock()


def address_gone(departure: faults.Departure) -> None:
    with ONE_ADDRESS, faults.address_gone(departure.lab):
        threading.Event().wait(CUT_S)


PHASES: dict[str, Callable[[faults.Departure], None]] = {
    "before the switch": faults.Departure.until_begun,
    "during the switch": faults.Departure.until_switched,
    "after the switch": faults.Departure.until_executing,
}


@pytest.mark.parametrize("cause", [dropped, reset, hung, address_gone])
def test_a_link_cut_before_during_and_after_the_switch(
    lab: Lab, three: Sequence[Guest], cause: Fault
) -> None:
    """A guest for each phase, all at once: what befalls the whole link befalls all of them."""

    def one(guest: Guest, phase: str) -> dict[str, object]:
        def fault(departure: faults.Departure) -> None:
            PHASES[phase](departure)
            cause(departure)

        try:
            return survives(lab, guest, fault)
        except BaseException as error:
            error.add_note(phase)
            raise

    with ThreadPoolExecutor(len(PHASES)) as pool:
        told = list(pool.map(one, three, PHASES))
    assert [each["recovered"] for each in told] == [None] * 3  # QEMU saw nothing but a pause


# --- relays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_relay_killed_after_the_switch(lab: Lab, guest: Guest, side: str) -> None:
    def act(departure: faults.Departure) -> None:
        # Sooner, QEMU 7.2 may wait for a page where it answers libvirt: nobody can reach it then.
        departure.until_working()
        departure.kill_relay(side)

    assert survives(lab, guest, act)["recovered"]


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_relay_killed_before_the_switch(lab: Lab, guest: Guest, side: str) -> None:
    def act(departure: faults.Departure) -> None:
        with departure.held_before_the_switch():
            departure.kill_relay(side)

    stays(lab, guest, act)


# --- services ------------------------------------------------------------------------------------


def test_libvirtd_of_the_source_restarted_after_the_switch(lab: Lab, guest: Guest) -> None:
    survives(lab, guest, after_the_switch(lambda one: faults.restart_libvirtd(one.source)))


def test_libvirtd_of_the_destination_restarted_after_the_switch(lab: Lab, guest: Guest) -> None:
    survives(lab, guest, after_the_switch(lambda one: faults.restart_libvirtd(one.destination)))


def test_libvirtd_of_the_source_restarted_before_the_switch(lab: Lab, guest: Guest) -> None:
    def act(departure: faults.Departure) -> None:
        departure.until_begun()
        faults.restart_libvirtd(departure.source)

    stays(lab, guest, act)


@pytest.fixture(scope="module")
def agents(lab: Lab) -> Iterator[HostAgents]:
    started = HostAgents(lab)
    try:
        yield started.start()
    finally:
        started.stop()


def survives_by_agents(guest: Guest, agents: HostAgents, fault: Fault) -> None:
    """It moves, ordered as Nova does, although `fault` befalls it once it executes there."""
    known = token(guest)
    departure = OrderedDeparture(agents, guest)
    with faults.Copies(departure) as copies:
        departure.start()
        try:
            departure.until_begun()
            departure.until_executing()
            fault(departure)
            assert departure.report()["end"] == "moved"
        finally:
            departure.kill()
    assert copies.second is None
    assert (departure.here(), departure.there()) == (Standing.GONE, Standing.EXECUTES)
    faults.assert_whole(guest, known)
    assert agents.wrong_of(departure) == ""


def test_agents_of_both_hosts_restarted_after_the_switch(guest: Guest, agents: HostAgents) -> None:
    def act(departure: faults.Departure) -> None:
        agents.restart(departure.source)
        agents.restart(departure.destination)

    survives_by_agents(guest, agents, act)


def test_the_message_bus_restarted_after_the_switch(guest: Guest, agents: HostAgents) -> None:
    def act(departure: faults.Departure) -> None:
        agents.stop_bus()
        agents.start_bus()

    survives_by_agents(guest, agents, act)


def test_a_relay_killed_while_the_message_bus_is_away(guest: Guest, agents: HostAgents) -> None:
    """Its recovery needs the destination's agent, whom nobody can ask until the bus is back."""

    def act(departure: faults.Departure) -> None:
        departure.until_working()
        agents.stop_bus()
        departure.kill_relay("destination")
        departure.until(lambda: departure.there() is Standing.FAILED)
        agents.start_bus()

    survives_by_agents(guest, agents, act)


def test_who_ordered_it_is_killed_after_the_switch(lab: Lab, guest: Guest) -> None:
    """As nova-compute that is restarted: the migration is libvirt's and the relays' by then."""
    known = token(guest)
    departure = faults.Departure(lab, guest)
    with faults.Copies(departure) as copies:
        departure.start()
        departure.until_executing()
        departure.kill()
        departure.until(lambda: departure.here() is Standing.GONE, alone=True)
    assert copies.second is None
    assert (departure.here(), departure.there()) == (Standing.GONE, Standing.EXECUTES)
    faults.assert_whole(guest, known)


# --- what cannot be survived: it is said, and the VM is not started a second time ----------------


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_host_that_dies_is_said_and_the_vm_is_not_run_twice(
    lab: Lab, kept: Kept, side: str
) -> None:
    guest = kept.guest()
    departure = faults.Departure(lab, guest)
    host = departure.source if side == "source" else departure.destination
    try:
        with faults.Copies(departure) as copies:
            departure.start()
            if side == "source":  # sooner, its destination may answer nobody
                departure.until_working(60.0)
            departure.until_executing()
            os.kill(host.qemu_pid(guest.name), signal.SIGKILL)
            with pytest.raises(LabError, match=f"QEMU at the {side} has ended"):
                departure.report()
        assert copies.second is None
        assert departure.here() is (Standing.ENDED if side == "source" else Standing.FAILED)
    finally:
        departure.kill()
        kept.lose()


# --- while it is handed over ------------------------------------------------------------------


def starts_again(lab: Lab) -> bool:
    return bool(lab.hosts["host1"].connection.getVersion() >= STARTS_AGAIN)


def goes_on_at_its_source(lab: Lab, kept: Kept, fault: Fault) -> None:
    """What befalls it before the last of its device state has come ends QEMU at its destination;
    it never executed there. libvirt 9.0 lets it leave again only after it was started anew.
    """
    guest = kept.guest()
    known = token(guest)
    lab.link.shape(HANDOVER_MBIT)
    try:
        departure = faults.Departure(lab, guest)
        with faults.Copies(departure) as copies:
            departure.start()
            if starts_again(lab):  # it is suspended first
                departure.until_switched()
            else:
                departure.until(lambda: departure.here() is not Standing.EXECUTES)
            assert departure.there() is Standing.SWITCHING
            fault(departure)
            departure.until(lambda: departure.here() is Standing.EXECUTES, alone=True)
            faults.assert_whole(guest, known)
        assert copies.second is None
        assert departure.there() in (Standing.GONE, Standing.ENDED)
        departure.kill()
    finally:
        lab.link.shape(LINK_MBIT)
        kept.lose()


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_relay_killed_while_it_is_handed_over(lab: Lab, kept: Kept, side: str) -> None:
    goes_on_at_its_source(lab, kept, lambda departure: departure.kill_relay(side))


def test_libvirtd_of_the_destination_restarted_while_it_is_handed_over(
    lab: Lab, kept: Kept
) -> None:
    """libvirt 9.0 ends it there, and cancels it here as if it were pre-copy: whether QEMU can go
    back from that is chance. The command says how it ended, and warns of it before the switch.
    """
    if migration.other(lab, kept.guest().host).connection.getLibVersion() >= 10_000_000:
        pytest.skip("not libvirt 9.0")
    guest = kept.guest()
    known = token(guest)
    departure = faults.Departure(lab, guest)
    with faults.Copies(departure) as copies:
        departure.start()
        departure.until_switched()
        if departure.there() is not Standing.SWITCHING:
            departure.kill()
            pytest.skip("it was handed over before anything could be done")
        faults.restart_libvirtd(departure.destination)
        with pytest.raises(LabError, match=r"is lost|ended the migration"):
            departure.report()
    assert "leave libvirtd alone" in departure.said()
    assert copies.second is None
    if "is lost" not in departure.said():
        faults.assert_whole(guest, known)
    kept.lose()
