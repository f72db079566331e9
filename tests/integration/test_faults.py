# SPDX-License-Identifier: Apache-2.0
"""What breaks while a VM moves, each kind once: it is the same VM, no page differs, and there was
never a second running copy. ``bench/faults.py`` does each many times at random moments.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import Lab, faults, migration
from lab.errors import LabError
from lab.guests import Guest
from lab.watch import event_loop
from nova_enlightened.host.standing import Standing

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root"),
]
LINK_MBIT = 300
MEMORY = {"memory_mib": 256, "arguments": ("--memory", "40")}

Fault = Callable[[faults.Departure], object]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    event_loop()
    with Lab(run=Path(f"/run/nel-f-{os.getpid()}"), link_mbit=LINK_MBIT) as started:
        yield started


class Kept:
    """A guest that goes from host to host; a new one once a case has lost it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._count = 0
        self._guest: Guest | None = None

    def guest(self) -> Guest:
        if self._guest is None:
            self._count += 1
            self._guest = self._lab.guest(
                f"kept{self._count}", workload="checksum", wait=True, **MEMORY
            )
        return self._guest

    def lose(self) -> None:
        if self._guest is not None:
            self._guest.destroy()
            self._guest = None


@pytest.fixture(scope="module")
def kept(lab: Lab) -> Kept:
    return Kept(lab)


@pytest.fixture
def guest(kept: Kept) -> Guest:
    return kept.guest()


@pytest.fixture(autouse=True)
def renewed(kept: Kept, request: pytest.FixtureRequest) -> Iterator[None]:
    """No case begins with what another one broke."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
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


@pytest.mark.parametrize("seconds", [5])
def test_packets_dropped_after_the_switch(lab: Lab, guest: Guest, seconds: int) -> None:
    told = survives(lab, guest, after_the_switch(cut(seconds)))
    assert told["recovered"] is None  # QEMU saw nothing but a pause


def test_packets_dropped_before_the_switch(lab: Lab, guest: Guest) -> None:
    def act(departure: faults.Departure) -> None:
        departure.until_begun()
        cut(1)(departure)

    survives(lab, guest, act)


def test_packets_dropped_during_the_switch(lab: Lab, guest: Guest) -> None:
    def act(departure: faults.Departure) -> None:
        departure.until_switched()
        cut(1)(departure)

    survives(lab, guest, act)


def test_a_link_that_is_reset(lab: Lab, guest: Guest) -> None:
    found: list[int] = []
    told = survives(lab, guest, after_the_switch(lambda one: found.append(faults.reset(one))))
    assert found[0] > 0
    relay = told["relay"]
    assert isinstance(relay, dict)
    assert relay["link"]["reconnects"] > 0


def test_a_link_that_hangs(lab: Lab, guest: Guest) -> None:
    def act(departure: faults.Departure) -> None:
        with faults.hung(departure) as found:
            assert found > 0
            departure.until(lambda: departure.relay("source")[1]["link"]["reconnects"] > 0)

    survives(lab, guest, after_the_switch(act))


def test_an_address_that_is_gone_and_back(lab: Lab, guest: Guest) -> None:
    def act(departure: faults.Departure) -> None:
        with faults.address_gone(departure.lab):
            threading.Event().wait(2)

    survives(lab, guest, after_the_switch(act))


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
        departure.until(lambda: _has_relay(departure, side))
        departure.kill_relay(side)

    stays(lab, guest, act)


def _has_relay(departure: faults.Departure, side: str) -> bool:
    with contextlib.suppress(LabError):
        return bool(departure.relay(side))
    return False


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


def test_a_destination_that_dies_is_said_and_the_source_stays_stopped(lab: Lab, kept: Kept) -> None:
    guest = kept.guest()
    departure = faults.Departure(lab, guest)
    with faults.Copies(departure) as copies:
        departure.start()
        departure.until_executing()
        os.kill(departure.destination.qemu_pid(guest.name), signal.SIGKILL)
        with pytest.raises(LabError, match="QEMU at the destination has ended"):
            departure.report()
    assert copies.second is None
    assert departure.here() is Standing.FAILED
    kept.lose()


def test_a_source_that_dies_is_said(lab: Lab, kept: Kept) -> None:
    guest = kept.guest()
    departure = faults.Departure(lab, guest)
    with faults.Copies(departure) as copies:
        departure.start()
        departure.until_working()
        os.kill(departure.source.qemu_pid(guest.name), signal.SIGKILL)
        with pytest.raises(LabError, match="QEMU at the source has ended"):
            departure.report()
    assert copies.second is None
    kept.lose()


def test_libvirt_9_0_kills_a_vm_whose_destination_is_restarted_while_it_is_handed_over(
    lab: Lab, kept: Kept
) -> None:
    """A limit of libvirt: a destination that was not started yet is ended at the restart, and the
    source does not go back. The VM is not run twice, and the command says that it is lost.
    """
    if migration.other(lab, kept.guest().host).connection.getLibVersion() >= 10_000_000:
        pytest.skip("not libvirt 9.0")
    guest = kept.guest()
    departure = faults.Departure(lab, guest)
    with faults.Copies(departure) as copies:
        departure.start()
        departure.until_switched()
        if departure.there() is not Standing.SWITCHING:
            departure.kill()
            pytest.skip("it was handed over before anything could be done")
        faults.restart_libvirtd(departure.destination)
        with pytest.raises(LabError, match="is lost"):
            departure.report()
    assert "leave libvirtd alone" in departure.said()  # it was told before the switch
    assert copies.second is None
    kept.lose()
