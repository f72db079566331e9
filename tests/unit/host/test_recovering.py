# SPDX-License-Identifier: Apache-2.0
"""Recovery of one migration, on hosts that do as they are told."""

import pathlib
import threading
from typing import Any

import libvirt
import pytest

from nova_enlightened import exception
from nova_enlightened.host import recovering, relays, resending, resuming, staying
from nova_enlightened.host.departure import Peer
from nova_enlightened.host.departures import Departure, Departures
from nova_enlightened.host.recoveries import Recoveries
from nova_enlightened.host.recovering import STAYS, Recovery, There
from nova_enlightened.host.recovery import BLOCKED, CONFIRMED, Carrier, State
from nova_enlightened.host.standing import Standing
from nova_enlightened.transfer.spec import RelaySpec

A = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"
OLD = "7f1d0a54-7a0b-4c07-9a6e-6a52a9a3c7de"
DEPARTURE = Departure(A, "host2", "qemu+tcp://host2/system", OLD)
RAM = {"section": 2, "blocks": [["pc.ram", 1 << 20, 4096]]}
PAUSED = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
RUNNING = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)
MIGRATED = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED)


class Failure(libvirt.libvirtError):  # type: ignore[misc]
    def __init__(self) -> None:
        Exception.__init__(self, "libvirt says no")

    def get_error_code(self) -> int:
        return int(libvirt.VIR_ERR_OPERATION_INVALID)


class Scene:
    """Both hosts of a migration whose relays are gone, unless told otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.state_here = PAUSED
        self.there = There(Standing.FAILED, Carrier.GONE)
        self.relay_here = Carrier.GONE
        self.status: dict[str, Any] = {"link": {"ready": True}}
        self.calls: list[tuple[str, dict[str, Any], int]] = []
        self.ended: list[str] = []
        self.started: list[str] = []
        self.undefined = 0
        self.went_on = 0
        self.refuses = False
        self.listens = False
        self.resumed: list[str] = []
        self.unreachable = False
        self.gave_up = False
        self.resent: list[tuple[str, dict[str, Any]]] = []
        self.destroyed = 0
        self.looked = 0
        self.called = threading.Event()
        self.records: list[Departure] = []
        monkeypatch.setattr(relays, "specification", lambda top, migration, role: spec(migration))
        monkeypatch.setattr(relays, "carrier", lambda spec: (self.relay_here, self.status))
        monkeypatch.setattr(relays, "linked", lambda relay, patience: None)
        monkeypatch.setattr(resuming, "resume", self.resume)
        monkeypatch.setattr(resending, "resend", self.resend)
        monkeypatch.setattr(staying, "go_on", self.go_on)
        monkeypatch.setattr(staying, "gave_up", lambda lookup: self.gave_up)
        monkeypatch.setattr(staying, "sends_no_more", lambda lookup: False)
        monkeypatch.setattr(relays.RunningRelay, "take_leave", lambda relay: None)
        monkeypatch.setattr(relays, "end", lambda spec, patience, pid=0: self.ended.append("here"))
        self.one = self.recovery(DEPARTURE)

    def recovery(self, departure: Departure, keep: Any = None) -> Recovery:
        return Recovery(
            departure,
            lambda: self,
            self,
            self.start_here,
            "/run/none",
            keep or self.records.append,
            lambda: self.now,
        )

    def turns(self, count: int = CONFIRMED) -> State:
        for _ in range(count):
            self.one.turn()
        return self.one.state

    def start_here(self, there: RelaySpec, peer: Peer) -> relays.RunningRelay:
        self.started.append(there.migration)
        return relays.RunningRelay(there, 1)

    # -- as the domain --

    def state(self) -> tuple[int, int]:
        return self.state_here

    def isActive(self) -> bool:
        return self.state_here[0] != libvirt.VIR_DOMAIN_SHUTOFF

    def isPersistent(self) -> bool:
        return True

    def undefineFlags(self, flags: int) -> None:
        self.undefined += 1

    def migrateToURI3(self, uri: str, parameters: dict[str, Any], flags: int) -> None:
        self.calls.append((uri, parameters, flags))
        try:
            if self.refuses:
                raise Failure
        finally:
            self.called.set()

    def destroy(self) -> None:
        self.destroyed += 1

    # -- as the destination --

    def look(self, departure: Departure) -> There:
        self.looked += 1
        if self.unreachable:
            raise exception.AgentUnreachable("host2 is silent")
        return self.there

    def end_relay(self, departure: Departure) -> None:
        self.ended.append("there")

    def start_relay(self, spec: RelaySpec) -> Peer:
        return Peer("host2", "10.0.0.2", 4000)

    def spec(self, migration: str) -> RelaySpec:
        return spec(migration)

    def listen_again(self, departure: Departure, migration: str) -> None:
        if not self.listens:
            raise exception.RelayGone("no second monitor")

    def end_domain(self, departure: Departure) -> None:
        self.ended.append("the domain")

    def go_on(self, domain: Any, relay: staying.Relay) -> None:
        self.went_on += 1
        if self.refuses:
            raise exception.LibvirtError("QEMU at the source has paused")
        self.state_here = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED)

    def resume(self, domain: Any, path: str) -> None:
        self.resumed.append(path)
        self.called.set()

    def resend(self, domain: Any, path: str, ram: dict[str, Any], read_memory: Any) -> None:
        self.resent.append((path, ram))
        self.called.set()
        if self.refuses:
            raise exception.LibvirtError("the relay has closed its connection")


def spec(migration: str) -> RelaySpec:
    return RelaySpec(
        role="destination",
        migration=migration,
        run_directory="/run/none/x",
        socket="/run/none/s",
        link_host="10.0.0.2",
        link_port=0,
        secret="0" * 64,
        tls=None,
    )


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_it_is_resumed_through_fresh_relays_with_a_secret_of_their_own(scene: Scene) -> None:
    assert scene.turns(1) is State.RESUMING
    assert scene.called.wait(10)
    (uri, parameters, flags) = scene.calls[0]
    assert uri == DEPARTURE.control_uri
    assert parameters == {"migrate_uri": "unix:///run/none/s"}
    assert flags & libvirt.VIR_MIGRATE_POSTCOPY_RESUME
    assert scene.started != [OLD]
    assert scene.one.departure.migration == scene.started[0]


def test_a_destination_that_listens_again_is_resumed_past_libvirt(scene: Scene) -> None:
    scene.listens = True
    scene.turns(1)
    assert scene.called.wait(10)
    assert scene.resumed == [spec("any").socket]
    assert not scene.calls


def test_each_attempt_is_on_record_before_anybody_is_asked(scene: Scene) -> None:
    scene.turns(1)
    assert (scene.records[0].attempts, scene.records[0].migration) == (1, OLD)
    assert scene.records[1].migration == scene.started[0]


def test_an_attempt_that_libvirt_refuses_is_made_again_later(scene: Scene) -> None:
    scene.refuses = True
    scene.turns(1)
    assert scene.called.wait(10)
    assert scene.one._resuming is not None
    scene.one._resuming.join(10)
    scene.turns(1)
    assert len(scene.calls) == 1
    scene.called.clear()
    scene.now += 60
    scene.turns(1)
    assert scene.called.wait(10)
    assert len(scene.calls) == 2


def test_one_host_that_is_silent_delays_it_and_decides_nothing(scene: Scene) -> None:
    scene.unreachable = True
    assert scene.turns(20) is State.FOLLOWED
    assert not scene.calls
    assert "silent" in scene.one.trouble
    scene.unreachable = False
    assert scene.turns(1) is State.RESUMING


def test_a_relay_gone_here_has_the_other_one_ended(scene: Scene) -> None:
    scene.there = There(Standing.POSTCOPY, Carrier.ALIVE)
    assert scene.turns(CONFIRMED - 1) is State.FOLLOWED
    assert scene.turns(1) is State.CLEARING
    assert scene.ended == ["there"]


def test_a_relay_gone_there_has_this_one_ended(scene: Scene) -> None:
    scene.relay_here, scene.status = Carrier.ALIVE, {"link": {"ready": False}, "channels": 1}
    scene.there = There(Standing.FAILED, Carrier.GONE)
    scene.turns()
    assert scene.ended == ["here"]


def test_the_other_host_is_left_alone_while_nothing_is_wrong(scene: Scene) -> None:
    scene.relay_here, scene.status = Carrier.ALIVE, {"link": {"ready": True}, "channels": 1}
    assert scene.turns(10) is State.FOLLOWED
    assert scene.looked == 0


def test_a_definition_that_libvirt_left_behind_is_removed(scene: Scene) -> None:
    scene.state_here = MIGRATED
    scene.there = There(Standing.EXECUTES, Carrier.GONE)
    assert scene.turns(1) is State.MOVED
    assert scene.undefined == 1


def test_a_vm_whose_destination_is_dead_is_lost_and_says_why(scene: Scene) -> None:
    scene.there = There(Standing.GONE, Carrier.GONE)
    assert scene.turns() is State.LOST
    assert "destination has ended" in scene.one.why
    assert not scene.calls


def test_a_vm_whose_source_gave_up_is_lost_where_nothing_is_known_of_its_memory(
    scene: Scene,
) -> None:
    scene.gave_up = True
    assert scene.turns() is State.LOST
    assert "given its migration up" in scene.one.why
    assert not scene.went_on


def given_up(scene: Scene) -> None:
    """Its relay told of its memory while it could."""
    scene.status["ram"] = RAM
    scene.gave_up = scene.listens = True
    assert scene.turns() is State.RESUMING
    assert scene.called.wait(10)
    assert scene.one._resuming is not None
    scene.one._resuming.join(10)


def test_what_a_source_that_gave_up_has_is_sent_and_then_it_is_ended(scene: Scene) -> None:
    given_up(scene)
    assert scene.resent == [(spec("any").socket, RAM)]
    assert scene.destroyed == 0
    assert scene.records[-1].delivered, "also for who is started anew"
    scene.turns(1)
    assert scene.destroyed == 1
    assert not scene.resumed
    assert not scene.went_on


def test_a_source_whose_memory_did_not_arrive_is_not_ended_but_tried_again(scene: Scene) -> None:
    scene.refuses = True
    given_up(scene)
    assert scene.destroyed == 0
    assert "closed" in scene.one.trouble
    scene.refuses = False
    scene.called.clear()
    scene.now += 60
    scene.turns()
    assert scene.called.wait(10)


def test_a_source_is_not_read_for_a_destination_that_does_not_listen(scene: Scene) -> None:
    scene.status["ram"] = RAM
    scene.gave_up = True
    scene.turns()
    assert scene.one._resuming is not None
    scene.one._resuming.join(10)
    assert not scene.resent
    assert "no second monitor" in scene.one.trouble


def test_what_a_relay_told_of_the_memory_outlives_it_and_a_restart(
    scene: Scene, tmp_path: pathlib.Path
) -> None:
    kept = Departures(str(tmp_path))
    scene.status["ram"] = RAM
    scene.relay_here = Carrier.ALIVE
    Recoveries(kept, scene.recovery).follow(DEPARTURE)
    known = Recoveries(kept, scene.recovery)
    known.load()
    known.turn()
    assert [one.ram for one in kept.kept()] == [RAM]


def test_a_vm_that_never_executed_there_goes_on_here_and_stayed(scene: Scene) -> None:
    scene.there = There(Standing.GONE, Carrier.GONE, never_executed=True)
    assert scene.turns() is State.CLEARING
    assert scene.went_on == 1
    assert scene.ended == ["here"]
    assert scene.turns() is State.STAYED


def test_a_vm_that_waits_there_for_what_cannot_reach_it_is_ended_there(scene: Scene) -> None:
    scene.there = There(Standing.SWITCHING, Carrier.GONE, waits=True)
    assert scene.turns(BLOCKED - 1) is State.FOLLOWED
    assert scene.turns(1) is State.CLEARING
    assert scene.ended == ["the domain"]
    assert not scene.went_on


def test_a_vm_that_cannot_go_on_here_is_lost_after_some_attempts(scene: Scene) -> None:
    scene.there = There(Standing.GONE, Carrier.GONE, never_executed=True)
    scene.refuses = True
    assert scene.turns(CONFIRMED + STAYS) is State.CLEARING
    assert scene.went_on == STAYS
    assert "has paused" in scene.one.trouble
    assert scene.turns() is State.LOST


def test_a_vm_whose_source_is_dead_is_lost_and_says_why(scene: Scene) -> None:
    scene.state_here = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED)
    assert scene.turns() is State.LOST
    assert "source has ended" in scene.one.why


def test_an_operator_stops_it_and_has_it_tried_again(scene: Scene) -> None:
    scene.one.stop()
    assert scene.turns(10) is State.STOPPED
    assert not scene.calls
    assert scene.records[-1].stopped
    scene.one.retry()
    assert scene.turns(1) is State.RESUMING


def test_a_restarted_agent_follows_what_it_followed(scene: Scene, tmp_path: pathlib.Path) -> None:
    Recoveries(Departures(str(tmp_path)), scene.recovery).follow(DEPARTURE)
    again = Recoveries(Departures(str(tmp_path)), scene.recovery)
    again.load()
    again.turn()
    assert scene.called.wait(10)
    assert again.state(A)["attempts"] == 1


def test_what_has_ended_is_told_of_and_not_followed_again(
    scene: Scene, tmp_path: pathlib.Path
) -> None:
    kept = Departures(str(tmp_path))
    known = Recoveries(kept, scene.recovery)
    known.follow(DEPARTURE)
    scene.state_here = RUNNING
    for _ in range(CONFIRMED):
        known.turn()
    assert known.state(A)["state"] == "stayed"
    assert list(kept.kept()) == []


@pytest.mark.parametrize(("moved", "told"), [(True, "moved"), (False, None)])
def test_what_who_ordered_it_saw_end_is_not_told_of_as_followed(
    scene: Scene, tmp_path: pathlib.Path, moved: bool, told: str | None
) -> None:
    kept = Departures(str(tmp_path))
    known = Recoveries(kept, scene.recovery)
    known.follow(DEPARTURE)
    assert DEPARTURE.migration is not None
    known.end_migration(DEPARTURE.migration, moved)
    assert known.state(A).get("state") == told
    assert list(kept.kept()) == []


def test_a_record_that_is_damaged_does_not_hold_up_the_others(tmp_path: pathlib.Path) -> None:
    kept = Departures(str(tmp_path))
    kept.keep(DEPARTURE)
    (tmp_path / "departures" / "broken.json").write_text("{")
    assert list(kept.kept()) == [DEPARTURE]


def test_what_nobody_follows_cannot_be_retried(tmp_path: pathlib.Path, scene: Scene) -> None:
    with pytest.raises(exception.AgentRefused, match="under way"):
        Recoveries(Departures(str(tmp_path)), scene.recovery).retry(A)


def test_the_flags_of_a_resume_are_those_of_a_post_copy() -> None:
    assert recovering.RESUME_FLAGS & libvirt.VIR_MIGRATE_POSTCOPY
    assert recovering.RESUME_FLAGS & libvirt.VIR_MIGRATE_PEER2PEER


def test_qemu_is_not_asked_to_resume_before_the_way_is_open(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "linked", lambda relay, patience: "refused")
    scene.turns(1)
    assert scene.one._resuming is not None
    scene.one._resuming.join(10)
    assert not scene.calls
    assert scene.ended == ["here"]
