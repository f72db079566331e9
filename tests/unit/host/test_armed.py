# SPDX-License-Identifier: Apache-2.0
"""Guests that are armed: leases, what is known of them, and what becomes of those that go."""

import concurrent.futures
import types
from collections.abc import Iterator
from typing import Any

import pytest

from nova_enlightened.exception import GuestUnreachable, HintError, LibvirtError
from nova_enlightened.host import armed
from nova_enlightened.host.armed import ArmedGuests, hot_kib
from nova_enlightened.host.guest import HeldKnowledge
from nova_enlightened.host.hint_sources import HintTarget
from tests.unit.host.fake_guests import HOT, FakeSource, fake_source, known

A, B = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69", "11111111-3a1c-4b0e-9a3e-1f2d3c4b5a69"
LEASE_S = 300


class AtOnce:
    """A pool that does everything at once, in the caller's thread."""

    def submit(self, call: Any, *arguments: Any) -> None:
        call(*arguments)

    def shutdown(self, **_: Any) -> None:
        pass


class Scene:
    """Armed guests, their clock, and the source they all have."""

    def __init__(self, held: HeldKnowledge | None = None) -> None:
        self.now = 0.0
        self.kind = fake_source(held)
        self.lost: set[str] = set()
        options = types.SimpleNamespace(arm_interval=1.0, arm_max=LEASE_S, arm_cpu_limit=0.05)
        self.guests = ArmedGuests(options, [self.kind], self._target, lambda: self.now)
        self.guests._pool.shutdown()
        self.guests._pool = AtOnce()  # type: ignore[assignment]

    def _target(self, uuid: str) -> HintTarget:
        if uuid in self.lost:
            raise LibvirtError(f"domain {uuid}: gone")
        return HintTarget(uuid, 1 << 24)

    @property
    def notes(self) -> list[str]:
        return self.kind.notes


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene(HeldKnowledge(known(), 0.0, asked=False))
    yield made
    made.guests.close()


def test_arming_asks_the_guest_and_says_how(scene: Scene) -> None:
    scene.guests.arm([A])
    facts = scene.guests.facts(A)
    assert facts is not None
    assert (facts.armed, facts.hot, facts.how) == (True, HOT * 4, "a fake guest")
    assert scene.guests.facts(B) is None


def test_arming_again_only_renews_the_lease(scene: Scene) -> None:
    scene.guests.arm([A])
    scene.now = LEASE_S - 1
    scene.guests.arm([A])
    scene.now = LEASE_S + 1
    scene.guests.turn()
    assert scene.guests.facts(A) is not None
    assert scene.notes.count("open") == 1


def test_the_guests_own_lease_is_renewed_before_it_runs_out(scene: Scene) -> None:
    scene.guests.arm([A])
    scene.now = LEASE_S / 2
    scene.guests.turn()
    assert scene.notes.count("arm") == 2


def test_a_lease_that_runs_out_disarms(scene: Scene) -> None:
    scene.guests.arm([A])
    scene.now = LEASE_S
    scene.guests.turn()
    assert scene.guests.facts(A) is None
    assert scene.notes[-2:] == ["disarm", "close"]


def test_disarming_lets_go_of_the_guest(scene: Scene) -> None:
    scene.guests.arm([A])
    assert scene.guests.disarm([A, B]) == {A: "disarmed", B: "was not armed"}
    assert scene.notes[-2:] == ["disarm", "close"]


def test_a_guest_that_is_gone_is_forgotten(scene: Scene) -> None:
    scene.guests.arm([A])
    scene.guests.turn(present=[B])
    assert scene.guests.facts(A) is None
    assert scene.notes[-1] == "close"


def test_guests_are_not_forgotten_where_libvirt_does_not_answer(scene: Scene) -> None:
    scene.guests.arm([A])
    scene.guests.turn(present=None)
    assert scene.guests.facts(A) is not None


def test_a_guest_that_does_not_answer_is_asked_again_later(scene: Scene) -> None:
    scene.kind.refusal = GuestUnreachable("not booted yet")
    scene.guests.arm([A])
    facts = scene.guests.facts(A)
    assert facts is not None
    assert not facts.armed
    assert "not booted yet" in facts.how
    scene.kind.refusal = None
    scene.now = 1.0
    scene.guests.turn()
    assert scene.notes == ["open"]
    scene.now = armed.AGAIN_S
    scene.guests.turn()
    facts = scene.guests.facts(A)
    assert facts is not None
    assert facts.armed


def test_a_domain_that_libvirt_does_not_know_is_told(scene: Scene) -> None:
    scene.lost.add(A)
    scene.guests.arm([A])
    assert "gone" in scene.guests.states()[A]


def test_a_guest_that_talks_nonsense_is_not_listened_to_for_a_while(scene: Scene) -> None:
    scene.guests.arm([A])
    scene.kind.refusal = HintError("nonsense")
    scene.now = LEASE_S / 2
    scene.guests.turn()
    facts = scene.guests.facts(A)
    assert facts is not None
    assert (facts.armed, facts.hot, facts.how) == (False, None, "nonsense")
    assert scene.notes[-1] == "close"


def test_snapshots_are_decoded_every_few_seconds_at_most(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[float] = []

    def latest(self: FakeSource) -> HeldKnowledge | None:
        read.append(scene.now)
        return None

    monkeypatch.setattr(scene.kind, "latest", latest)
    scene.guests.arm([A])
    for second in range(7):
        scene.now = float(second)
        scene.guests.turn()
    assert read == [0.0, 3.0, 6.0]


def test_who_takes_a_guest_has_its_conversation(scene: Scene) -> None:
    scene.guests.arm([A])
    source = scene.guests.take(A)
    assert isinstance(source, FakeSource)
    assert scene.guests.facts(A) is None
    assert "close" not in scene.notes
    scene.guests.release(source)
    assert scene.notes[-2:] == ["disarm", "close"]
    assert scene.guests.take(A) is None


def test_an_order_does_not_wait_for_a_guest_that_is_being_asked(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(armed, "TAKE_S", 0.01)
    pool = concurrent.futures.ThreadPoolExecutor(2)
    scene.guests._pool = pool
    scene.kind.opening.clear()
    scene.guests.arm([A])
    assert scene.kind.asked.wait(10)
    assert scene.guests.take(A) is None
    scene.kind.opening.set()
    pool.shutdown()
    # Nobody holds QEMU's only connection to the guest any more.
    assert scene.notes[-1] == "close"


def test_no_more_than_so_many_guests_are_armed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(armed, "MOST", 1)
    said = scene.guests.arm([A, B])
    assert "refused" in said[B]
    assert scene.guests.facts(B) is None


def test_hot_memory_is_not_known_without_samples() -> None:
    assert hot_kib(HeldKnowledge(known(samples=0), 0.0, asked=True)) is None
