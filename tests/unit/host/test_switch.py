# SPDX-License-Identifier: Apache-2.0
"""The switch to post-copy, on a domain that takes it when the test says so."""

import logging
import threading

import libvirt
import pytest

from nova_enlightened.host import switch
from nova_enlightened.host.switch import PostCopySwitch

TIMEOUT_S = 10.0


class Domain:
    """Refuses `refusals` requests, forgets `forgotten`, and stops at the one after."""

    def __init__(self, refusals: int = 0, forgotten: int = 0) -> None:
        self.left = [refusals, forgotten]
        self.asked = 0
        self.stopped = threading.Event()

    def name(self) -> str:
        return "instance-00000001"

    def migrateStartPostCopy(self, flags: int) -> None:
        self.asked += 1
        if self.left[0]:
            self.left[0] -= 1
            raise libvirt.libvirtError("no migration is under way")
        if self.left[1]:
            self.left[1] -= 1
            return
        self.stopped.set()

    def state(self) -> list[int]:
        paused = self.stopped.is_set()
        return [libvirt.VIR_DOMAIN_PAUSED if paused else libvirt.VIR_DOMAIN_RUNNING, 0]


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
