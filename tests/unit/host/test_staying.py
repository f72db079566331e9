# SPDX-License-Identifier: Apache-2.0
"""A source that goes on, with a QEMU that this test plays."""

from typing import Any

import libvirt
import pytest

from nova_enlightened import exception
from nova_enlightened.host import qemu_monitor, staying


class Source:
    """QEMU at the source: ``run`` is its run state, ``migration`` its migration's."""

    def __init__(self, run: str, migration: str) -> None:
        self.run = run
        self.migration = migration
        self.asked: list[str] = []
        self.cancels = True

    def ask(self, domain: Any, command: str, **words: Any) -> Any:
        match command:
            case "query-status":
                return {"status": self.run}
            case "query-migrate":
                return {"status": self.migration}
            case "migrate_cancel":
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
def test_one_that_has_paused_is_not_cancelled(played: Source) -> None:
    with pytest.raises(exception.LibvirtError, match="no way back"):
        staying.go_on(None, played.end_relay)
    assert played.asked == []


@at("finish-migrate", "postcopy-active")
def test_one_that_does_not_end_is_not_started(played: Source) -> None:
    played.cancels = False
    with pytest.raises(exception.LibvirtError, match="does not end"):
        staying.go_on(None, played.end_relay)
    assert "cont" not in played.asked


@at("postmigrate", "failed")
def test_a_source_that_failed_has_given_up(played: Source) -> None:
    assert staying.given_up(lambda: None)


@at("finish-migrate", "postcopy-active")
def test_one_that_hands_over_has_not(played: Source) -> None:
    assert not staying.given_up(lambda: None)


@at("postmigrate", "failed")
def test_one_that_is_not_found_is_not_said_to_have(played: Source) -> None:
    def gone() -> Any:
        raise libvirt.libvirtError("no domain")

    assert not staying.given_up(gone)
