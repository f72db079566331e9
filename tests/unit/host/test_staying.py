# SPDX-License-Identifier: Apache-2.0
"""A source that goes on, with a QEMU that this test plays."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest

from nova_enlightened import exception
from nova_enlightened.host import qemu_monitor, stand_in, staying
from nova_enlightened.host.stand_in import StandIn
from nova_enlightened.host.switch import STARTS_AGAIN
from nova_enlightened.stream import encode
from nova_enlightened.stream.empty_destination import EmptyDestination


class Source:
    """QEMU at the source: ``run`` is its run state, ``migration`` its migration's."""

    def __init__(self, run: str, migration: str) -> None:
        self.run = run
        self.migration = migration
        self.asked: list[str] = []
        self.cancels = True
        self.version = 7_002_022
        self.without_relay = ("finish-migrate", "postcopy-paused")
        self.destination: socket.socket | None = None

    # -- as the domain, and its connection --

    def connect(self) -> "Source":
        return self

    def getVersion(self) -> int:
        return self.version

    # -- as the relay --

    path = "/run/none.sock"

    def take_leave(self) -> None:
        self.asked.append("the relay takes leave")

    def end(self) -> None:
        self.asked.append("the relay ends")
        if self.cancels and self.migration == "cancelling":
            self.run, self.migration = "postmigrate", "cancelled"
        elif self.version >= STARTS_AGAIN:
            self.run, self.migration = self.without_relay

    # -- as QEMU --

    def ask(self, domain: Any, command: str, **words: Any) -> Any:
        match command:
            case "query-status":
                if self.migration == "cancelling" and self.destination is not None:
                    assert self.destination.recv(1) == b""
                    self.run, self.migration = "postmigrate", "cancelled"
                return {"status": self.run}
            case "query-migrate":
                return {"status": self.migration}
            case "migrate_cancel":
                if self.destination is not None:
                    assert self.destination.recv(64) == encode.shut()
                self.migration = "cancelling"
            case "cont":
                self.run = "running"
        self.asked.append(command)
        return {}


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Source:
    made = Source(*request.param)
    monkeypatch.setattr(qemu_monitor, "ask", made.ask)
    monkeypatch.setattr(staying, "ENDS_S", 0.0)
    monkeypatch.setattr(staying, "HEARD_S", 0.0)
    return made


def at(run: str, migration: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("played", [(run, migration)], indirect=True)


@at("finish-migrate", "postcopy-active")
def test_a_migration_under_way_is_cancelled_first_and_its_writer_woken(played: Source) -> None:
    staying.go_on(played, played)
    assert played.asked == ["the relay takes leave", "migrate_cancel", "the relay ends", "cont"]


@at("postmigrate", "failed")
def test_one_that_qemu_gave_up_is_not_cancelled(played: Source) -> None:
    staying.go_on(played, played)
    assert played.asked == ["cont"]


@at("running", "cancelled")
def test_one_that_executes_is_left_alone(played: Source) -> None:
    staying.go_on(played, played)
    assert played.asked == []


@at("finish-migrate", "postcopy-paused")
def test_one_that_has_paused_is_recovered_first_and_cancelled_then(
    played: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, played.destination = socket.socketpair()
    stands_in(monkeypatch, played, StandIn(ours, EmptyDestination({})))
    with played.destination:
        staying.go_on(played, played)
    assert played.asked == ["the relay takes leave", "recovered", "migrate_cancel", "cont"]


def stands_in(monkeypatch: pytest.MonkeyPatch, played: Source, made: Any) -> None:
    @contextlib.contextmanager
    def recovered(domain: Any, path: str) -> Iterator[Any]:
        assert path == played.path
        played.asked.append("recovered")
        with contextlib.closing(made):
            yield made

    monkeypatch.setattr(stand_in, "recovered", recovered)


class Takes:
    """A destination that takes all, and closes: then a newer QEMU fails."""

    def __init__(self, played: Source) -> None:
        self._played = played

    def take_all(self) -> None:
        self._played.asked.append("all is taken")

    def close(self) -> None:
        self._played.run, self._played.migration = "paused", "failed"


@at("finish-migrate", "postcopy-active")
def test_a_newer_qemu_which_cancels_no_post_copy_sends_all_it_has_and_fails(
    played: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    played.version = STARTS_AGAIN
    stands_in(monkeypatch, played, Takes(played))
    staying.go_on(played, played)
    assert played.asked == ["the relay ends", "recovered", "all is taken", "cont"]


@at("finish-migrate", "postcopy-active")
def test_a_newer_qemu_that_fails_with_its_relay_is_not_recovered(played: Source) -> None:
    played.version = STARTS_AGAIN
    played.without_relay = ("paused", "failed")
    staying.go_on(played, played)
    assert played.asked == ["the relay ends", "cont"]


@at("finish-migrate", "postcopy-active")
def test_a_newer_qemu_that_does_not_notice_is_not_started(played: Source) -> None:
    played.version = STARTS_AGAIN
    played.without_relay = ("finish-migrate", "postcopy-active")
    with pytest.raises(exception.LibvirtError, match="does not notice"):
        staying.go_on(played, played)
    assert "cont" not in played.asked


@at("finish-migrate", "postcopy-active")
def test_one_that_does_not_end_is_not_started(played: Source) -> None:
    played.cancels = False
    with pytest.raises(exception.LibvirtError, match="does not end"):
        staying.go_on(played, played)
    assert "cont" not in played.asked


@at("postmigrate", "failed")
def test_a_source_that_failed_sends_no_more(played: Source) -> None:
    assert staying.sends_no_more(lambda: None)


@at("finish-migrate", "postcopy-active")
def test_one_that_hands_over_does(played: Source) -> None:
    assert not staying.sends_no_more(lambda: None)


@at("postmigrate", "failed")
def test_of_one_that_is_not_found_it_is_not_said(played: Source) -> None:
    def gone() -> Any:
        raise libvirt.libvirtError("no domain")

    assert not staying.sends_no_more(gone)
