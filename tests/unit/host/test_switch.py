# SPDX-License-Identifier: Apache-2.0
"""The switch to post-copy, on a domain that takes it when the test says so."""

import logging
import threading

import libvirt
import pytest

from nova_enlightened.host import qemu_monitor, switch
from nova_enlightened.host.switch import PostCopySwitch

TIMEOUT_S = 10.0


class Connection:
    """Of a QEMU; there is no other connection to it."""

    def __init__(self, version: int) -> None:
        self._version = version

    def getVersion(self) -> int:
        return self._version

    def getURI(self) -> str:
        raise libvirt.libvirtError("no other")


class Domain:
    """Refuses `refusals` requests, forgets `forgotten`, and stops at the one after."""

    def __init__(self, refusals: int = 0, forgotten: int = 0, version: int = 7_002_000) -> None:
        self.left = [refusals, forgotten]
        self.asked = 0
        self.stopped = threading.Event()
        self.standing = [libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED]
        self.suspended = libvirt.VIR_DOMAIN_PAUSED_MIGRATION
        self.notes: list[str] = []
        self._version = version

    def name(self) -> str:
        return "instance-00000001"

    def connect(self) -> Connection:
        return Connection(self._version)

    def suspend(self) -> None:
        self.notes.append("suspended")
        self.standing = [libvirt.VIR_DOMAIN_PAUSED, self.suspended]

    def resume(self) -> None:
        self.notes.append("resumed")

    def migrateStartPostCopy(self, flags: int) -> None:
        self.asked += 1
        if self.left[0]:
            self.left[0] -= 1
            raise libvirt.libvirtError("no migration is under way")
        if self.left[1]:
            self.left[1] -= 1
            return
        self.notes.append("switched")
        self.standing = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY]
        self.stopped.set()

    def state(self) -> list[int]:
        return self.standing


def run(domain: Domain) -> int:
    """How often it was accepted, once the domain has stopped."""
    accepted: list[None] = []
    asking = PostCopySwitch(domain, lambda: accepted.append(None))
    asking.start()
    assert domain.stopped.wait(TIMEOUT_S)
    asking.end()
    return len(accepted)


def test_it_asks_until_libvirt_has_a_migration_to_switch() -> None:
    domain = Domain(refusals=5)
    assert run(domain) == 1
    assert domain.asked == 6


def test_a_request_that_qemu_forgot_is_made_again_and_told_once() -> None:
    domain = Domain(forgotten=2)
    assert run(domain) == 1
    assert domain.asked == 3


def test_it_asks_no_more_when_the_migration_has_ended() -> None:
    domain = Domain(refusals=1_000_000)
    asking = PostCopySwitch(domain, lambda: None)
    asking.start()
    asking.end()
    asked = domain.asked
    assert not domain.stopped.is_set()
    asking.end()
    assert domain.asked == asked


def test_one_that_never_began_can_be_ended() -> None:
    PostCopySwitch(Domain(), lambda: None).end()


def test_a_domain_that_does_not_switch_is_told_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "SLOW_RETRY_S", 0.0)
    domain = Domain(refusals=20)
    times = iter(range(0, 100_000, 10))
    with caplog.at_level(logging.WARNING):
        asking = PostCopySwitch(domain, lambda: None, clock=lambda: float(next(times)))
        asking.start()
        assert domain.stopped.wait(TIMEOUT_S)
        asking.end()
    assert len(caplog.records) == 1
    assert "no migration is under way" in caplog.text


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """QEMU has the capabilities of this migration."""
    event = threading.Event()
    monkeypatch.setattr(qemu_monitor, "has_capability", lambda *_: event.is_set())
    return event


def test_a_qemu_that_could_start_it_here_again_switches_one_that_stands_still(
    ready: threading.Event,
) -> None:
    ready.set()
    domain = Domain(version=switch.STARTS_AGAIN, forgotten=2)
    assert run(domain) == 1
    assert domain.notes == ["suspended", "switched"]


def test_it_stands_still_only_once_qemu_would_switch(ready: threading.Event) -> None:
    domain = Domain(version=switch.STARTS_AGAIN)
    asking = PostCopySwitch(domain, lambda: None)
    asking.start()
    asking.end()
    assert domain.notes == []
    assert domain.asked == 0


@pytest.mark.parametrize("version", [7_002_000, switch.STARTS_AGAIN])
def test_one_whose_owner_has_paused_it_is_left_so(ready: threading.Event, version: int) -> None:
    ready.set()
    domain = Domain(version=version, refusals=1_000_000)
    domain.standing = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER]
    asking = PostCopySwitch(domain, lambda: None)
    asking.start()
    while not domain.asked:
        asking._thread.join(0.01)
    asking.end()
    assert domain.notes == []


def test_one_that_was_suspended_after_its_migration_had_ended_executes_again(
    ready: threading.Event,
) -> None:
    ready.set()
    domain = Domain(version=switch.STARTS_AGAIN, refusals=1_000_000)
    domain.suspended = libvirt.VIR_DOMAIN_PAUSED_USER
    asking = PostCopySwitch(domain, lambda: None)
    asking.start()
    while not domain.asked:
        asking._thread.join(0.01)
    asking.end()
    assert domain.notes == ["suspended", "resumed"]


def test_a_failed_migration_of_a_suspended_one_is_libvirts_to_undo(ready: threading.Event) -> None:
    ready.set()
    domain = Domain(version=switch.STARTS_AGAIN, refusals=1_000_000)
    asking = PostCopySwitch(domain, lambda: None)
    asking.start()
    while not domain.asked:
        asking._thread.join(0.01)
    asking.end()
    assert domain.notes == ["suspended"]
