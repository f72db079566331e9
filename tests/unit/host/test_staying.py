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
from nova_enlightened.stream import encode


class Source:
    """QEMU at the source: ``run`` is its run state, ``migration`` its migration's."""

    def __init__(self, run: str, migration: str) -> None:
        self.run = run
        self.migration = migration
        self.asked: list[str] = []
        self.cancels = True
        self.destination: socket.socket | None = None

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

    def end_relay(self) -> None:
        self.asked.append("the relay ends")
        if self.cancels and self.migration == "cancelling":
            self.run, self.migration = "postmigrate", "cancelled"


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
    staying.go_on(None, played.end_relay)
    assert played.asked == ["migrate_cancel", "the relay ends", "cont"]


@at("postmigrate", "failed")
def test_one_that_qemu_gave_up_is_not_cancelled(played: Source) -> None:
    staying.go_on(None, played.end_relay)
    assert played.asked == ["cont"]


@at("running", "cancelled")
def test_one_that_executes_is_left_alone(played: Source) -> None:
    staying.go_on(None, played.end_relay)
    assert played.asked == []


@at("finish-migrate", "postcopy-paused")
def test_one_that_has_paused_is_recovered_first_and_cancelled_then(
    played: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, played.destination = socket.socketpair()

    @contextlib.contextmanager
    def recovered(domain: Any) -> Iterator[socket.socket]:
        played.asked.append("recovered")
        with ours:
            yield ours

    monkeypatch.setattr(stand_in, "recovered", recovered)
    with played.destination:
        staying.go_on(None, played.end_relay)
    assert played.asked == ["recovered", "migrate_cancel", "cont"]


@at("finish-migrate", "postcopy-active")
def test_one_that_does_not_end_is_not_started(played: Source) -> None:
    played.cancels = False
    with pytest.raises(exception.LibvirtError, match="does not end"):
        staying.go_on(None, played.end_relay)
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
