# SPDX-License-Identifier: Apache-2.0
"""The guest of one urgent migration, on a domain that does as it is told."""

import threading
import types
from collections.abc import Callable
from typing import Any

import libvirt
import pytest

from nova_enlightened import exception
from nova_enlightened.host import spare_monitor
from nova_enlightened.virt.decision import Decision, Kind, Reason
from nova_enlightened.virt.outcome import End, Outcome
from nova_enlightened.virt.urgent import UrgentGuest, urgent_flags

ORDERED = Decision(Kind.ORDERED, Reason.WANTED, "an order", "unix:///run/x.sock", "relays")
POSTCOPY = Decision(Kind.POSTCOPY, Reason.NO_ORDER, "no relay there")
FLAGS = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER
TIMEOUT_S = 10.0
MONITOR = "/run/none/vm-qmp.sock"


class Failure(libvirt.libvirtError):  # type: ignore[misc]
    """An error of libvirt with a code of choice."""

    def __init__(self, code: int = libvirt.VIR_ERR_OPERATION_FAILED) -> None:
        Exception.__init__(self, "libvirt says no")
        self.code = code

    def get_error_code(self) -> int:
        return self.code


class Domain:
    """Accepts the switch at the third request, and has stopped two later."""

    def __init__(self) -> None:
        self.asked = 0
        self.refuses = False
        self.stopped = threading.Event()

    def name(self) -> str:
        return "instance-00000001"

    def connect(self) -> Any:
        return types.SimpleNamespace(getVersion=lambda: 7_002_000, getURI=self._no_other)

    @staticmethod
    def _no_other() -> str:
        raise Failure

    def migrateStartPostCopy(self, flags: int) -> None:
        self.asked += 1
        if self.asked < 3 or self.refuses:
            raise Failure(libvirt.VIR_ERR_OPERATION_INVALID)
        if self.asked >= 5:
            self.stopped.set()

    def state(self) -> list[int]:
        if self.stopped.is_set():
            return [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY]
        return [libvirt.VIR_DOMAIN_RUNNING, 0]


class Guest:
    """Nova's guest: each migration ends as the next of `ends` says."""

    def __init__(self, *ends: Callable[[Domain], None]) -> None:
        self._domain = Domain()
        self.calls: list[dict[str, Any]] = []
        self._ends = list(ends)

    def migrate(self, destination: str, **arguments: Any) -> None:
        self.calls.append({"destination": destination, **arguments})
        self._ends.pop(0)(self._domain)

    def get_xml_desc(self) -> str:
        return "<domain/>"


def switched(domain: Domain) -> None:
    assert domain.stopped.wait(TIMEOUT_S)


def refused(domain: Domain) -> None:
    raise Failure


def aborted(domain: Domain) -> None:
    raise Failure(libvirt.VIR_ERR_OPERATION_ABORTED)


def lost(domain: Domain) -> None:
    assert domain.stopped.wait(TIMEOUT_S)
    raise Failure


def lost_before_libvirt_has_its_answer(domain: Domain) -> None:
    domain.refuses = True
    domain.stopped.set()
    raise Failure


class Story:
    """What a guest told while it moved."""

    def __init__(
        self, decision: Decision, *ends: Callable[[Domain], None], end: End = End.MOVED
    ) -> None:
        self.told: list[str] = []
        self.ordered: list[tuple[str, str | None]] = []
        self.guest = Guest(*ends)
        self.urgent = UrgentGuest(
            self.guest,
            decision,
            on_order=lambda uri, relays: self.ordered.append((uri, relays)),
            on_switch=lambda: self.told.append("switched"),
            on_ended=self.told.append,
            on_fallback=lambda made: self.told.append(made.reason.value),
            outcome=lambda: Outcome(end, "as told"),
            monitor=MONITOR,
        )

    def run(self, **arguments: Any) -> None:
        self.urgent.migrate(
            "qemu+tcp://there/system",
            migrate_uri="tcp://there",
            flags=FLAGS | libvirt.VIR_MIGRATE_TLS,
            migrate_disks=[],
            destination_xml="<domain/>",
            bandwidth=7,
            parallel=4,
            **arguments,
        )


def test_an_ordered_migration_goes_through_the_relays_and_is_switched() -> None:
    story = Story(ORDERED, switched)
    story.run()
    assert story.told == ["switched", "completed"]
    (call,) = story.guest.calls
    assert call == {
        "destination": "qemu+tcp://there/system",
        "migrate_uri": "unix:///run/x.sock",
        "flags": FLAGS | libvirt.VIR_MIGRATE_POSTCOPY,
        "migrate_disks": [],
        "destination_xml": spare_monitor.with_monitor("<domain/>", MONITOR),
        "bandwidth": 7,
    }


def test_post_copy_in_qemus_order_keeps_novas_channel_and_its_encryption() -> None:
    story = Story(POSTCOPY, switched)
    story.run()
    (call,) = story.guest.calls
    assert call["migrate_uri"] == "tcp://there"
    assert call["destination_xml"] == "<domain/>"
    assert call["flags"] & libvirt.VIR_MIGRATE_TLS
    assert call["flags"] & libvirt.VIR_MIGRATE_POSTCOPY


def test_what_qemu_cannot_do_in_post_copy_is_not_asked_for() -> None:
    flags = FLAGS | libvirt.VIR_MIGRATE_PARALLEL | libvirt.VIR_MIGRATE_AUTO_CONVERGE
    assert urgent_flags(flags, Kind.POSTCOPY) == FLAGS | libvirt.VIR_MIGRATE_POSTCOPY


def test_relays_that_refuse_cost_the_order_and_not_the_migration() -> None:
    story = Story(ORDERED, refused, switched)
    story.run()
    assert story.told[0] == "failed: libvirt says no"
    assert story.told[1:] == ["relays_failed", "switched"]
    assert [call["migrate_uri"] for call in story.guest.calls] == [
        "unix:///run/x.sock",
        "tcp://there",
    ]
    assert story.guest.calls[1]["flags"] & libvirt.VIR_MIGRATE_TLS


def test_an_aborted_migration_is_not_tried_again() -> None:
    story = Story(ORDERED, aborted)
    with pytest.raises(libvirt.libvirtError):
        story.run()
    assert story.told == ["failed: libvirt says no"]


def test_an_error_after_the_switch_is_no_failed_migration() -> None:
    story = Story(ORDERED, lost)
    story.run()
    assert story.told == ["switched", "completed"]
    assert len(story.guest.calls) == 1


def test_a_switch_counts_that_libvirt_has_not_told_of() -> None:
    story = Story(ORDERED, lost_before_libvirt_has_its_answer)
    story.run()
    assert story.told == ["completed"]
    assert len(story.guest.calls) == 1


def test_a_vm_that_stayed_after_all_is_novas_to_roll_back() -> None:
    story = Story(ORDERED, lost, end=End.STAYED)
    with pytest.raises(libvirt.libvirtError):
        story.run()
    assert story.told == ["switched", "failed: libvirt says no"]


def test_a_vm_that_is_lost_at_its_destination_fails_with_the_reason() -> None:
    story = Story(ORDERED, lost, end=End.LOST_THERE)
    with pytest.raises(exception.EvictionError, match="as told"):
        story.run()
    assert story.told == ["switched", "failed: as told"]


def test_a_vm_whose_source_was_lost_belongs_to_its_destination() -> None:
    story = Story(ORDERED, lost, end=End.LOST_HERE)
    story.run()
    assert story.urgent.end_found == Outcome(End.LOST_HERE, "as told")


def test_whoever_recovers_it_knows_of_it_before_libvirt_is_asked() -> None:
    story = Story(ORDERED, refused, switched)
    story.run()
    there = "qemu+tcp://there/system"
    assert story.ordered == [(there, "relays"), (there, None)]


def test_a_failure_of_post_copy_in_qemus_order_is_novas_to_handle() -> None:
    story = Story(POSTCOPY, refused)
    with pytest.raises(libvirt.libvirtError):
        story.run()
    assert len(story.guest.calls) == 1


def test_the_outcome_is_told_once() -> None:
    story = Story(ORDERED, switched)
    story.run()
    story.urgent.end("failed: libvirt was not asked")
    assert story.told[-1] == "completed"


def test_everything_else_is_novas_guest() -> None:
    assert Story(ORDERED).urgent.get_xml_desc() == "<domain/>"
