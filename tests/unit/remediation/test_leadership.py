# SPDX-License-Identifier: Apache-2.0
"""Who leads, and who must not think so any more."""

import pathlib
from typing import Any

import pytest
import tooz
from tooz import coordination

from nova_enlightened import exception
from nova_enlightened.remediation import leadership
from nova_enlightened.remediation.leadership import CONFIRMED_FOR_S, Leadership


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def url(tmp_path: pathlib.Path) -> str:
    return f"file://{tmp_path}"


def test_one_leads_and_the_other_follows_when_it_stops(url: str, clock: Clock) -> None:
    first, second = Leadership(url, "a", clock), Leadership(url, "b", clock)
    for one in (first, second, first, second):
        one.look()
    assert (first.leads, second.leads) == (True, False)
    first._leave()
    second.look()
    assert (first.leads, second.leads) == (False, True)
    second._leave()


def test_who_has_not_been_confirmed_for_long_does_not_lead(url: str, clock: Clock) -> None:
    one = Leadership(url, "a", clock)
    one.look()
    clock.now += CONFIRMED_FOR_S - 0.1
    assert one.leads
    clock.now += 0.2
    assert not one.leads
    one.look()
    assert one.leads
    one._leave()


class Lost:
    """A coordinator whose lock goes to another, or that breaks."""

    def __init__(self) -> None:
        self.owner = True
        self.error: Exception | None = None
        self.acquired = True

    def start(self) -> None:
        self.heartbeat()

    def heartbeat(self) -> None:
        if self.error is not None:
            raise self.error

    def get_lock(self, name: bytes) -> "Lost":
        return self

    def acquire(self, blocking: bool) -> bool:
        return self.owner

    def is_still_owner(self) -> bool:
        return self.owner

    def release(self) -> None:
        self.heartbeat()

    def stop(self) -> None:
        self.heartbeat()


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> Lost:
    made = Lost()
    monkeypatch.setattr(coordination, "get_coordinator", lambda *_: made)
    return made


def test_a_lock_that_went_to_another_ends_the_lead(lost: Lost, clock: Clock) -> None:
    one = Leadership("x://", "a", clock)
    one.look()
    assert one.leads
    lost.owner = False
    one.look()
    assert not one.leads


@pytest.mark.parametrize("error", [tooz.ToozError("gone"), ConnectionResetError("gone")])
def test_a_backend_that_breaks_ends_the_lead_until_it_is_back(
    lost: Lost, clock: Clock, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    one = Leadership("x://", "a", clock)
    one.look()
    lost.error = error
    for _ in range(5):
        one.look()
    assert not one.leads
    assert caplog.text.count("does not answer") == 1
    lost.error = None
    one.look()
    assert one.leads


def test_a_driver_that_cannot_tell_the_owner_is_believed_to_know_what_it_holds(
    lost: Lost, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(self: Any) -> bool:
        raise tooz.NotImplemented("not implemented")

    monkeypatch.setattr(Lost, "is_still_owner", unknown)
    one = Leadership("x://", "a", clock)
    one.look()
    one.look()
    assert one.leads
    lost.acquired = False
    one.look()
    assert not one.leads


def test_a_backend_that_is_not_installed_is_refused_without_its_password() -> None:
    with pytest.raises(exception.ConfigError, match="pigeon") as caught:
        leadership.check("pigeon://user:secret@host")
    assert "secret" not in str(caught.value)
