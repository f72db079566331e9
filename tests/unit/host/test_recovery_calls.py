# SPDX-License-Identifier: Apache-2.0
"""What an agent does with a VM that arrives, when that of its source asks for it."""

from typing import Any

import libvirt
import pytest
from oslo_config import cfg

from nova_enlightened import exception
from nova_enlightened.conf import read
from nova_enlightened.host import arrival_monitor, far_sides, relays
from nova_enlightened.host.arrival_monitor import Told
from nova_enlightened.host.departures import Departure
from nova_enlightened.host.recovery import Carrier
from nova_enlightened.host.recovery_calls import RecoveryCalls
from nova_enlightened.host.standing import Standing

A = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"
B = "7f1d0a54-7a0b-4c07-9a6e-6a52a9a3c7de"
STARTING = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
POSTCOPY = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY)


class Scene:
    """libvirt, the VM, its relay and its second monitor, of the destination."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said = STARTING
        self.relay = Carrier.GONE
        self.told = Told(None, waits=True)
        self.destroyed = 0
        self.declines = False
        monkeypatch.setattr(relays, "specification", lambda *_: object())
        monkeypatch.setattr(relays, "carrier", lambda spec: (self.relay, {}))
        monkeypatch.setattr(arrival_monitor, "executed", lambda *_: self.told)
        conf: cfg.ConfigOpts = read([])
        self.calls = RecoveryCalls(conf, self, None, "host2", None)  # type: ignore[arg-type]

    def get(self) -> "Scene":
        return self

    def lookupByUUIDString(self, uuid: str) -> "Scene":
        assert uuid == A
        return self

    def state(self) -> tuple[int, int]:
        return self.said

    def close(self) -> None:
        """As a connection."""

    def destroy(self) -> None:
        if self.declines:
            raise libvirt.libvirtError("no")
        self.destroyed += 1


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_a_vm_that_waits_for_its_start_is_told_of_as_that(scene: Scene) -> None:
    there = far_sides.there(scene.calls.arrival(A, B))
    assert (there.domain, there.relay) == (Standing.SWITCHING, Carrier.GONE)
    assert there.waits
    assert not there.never_executed, "it may yet"


def test_one_that_never_executed_and_cannot_be_reached_is_ended(scene: Scene) -> None:
    scene.calls.end_unstarted(A, B)
    assert scene.destroyed == 1


@pytest.mark.parametrize(
    "change",
    [{"said": POSTCOPY}, {"relay": Carrier.ALIVE}, {"relay": Carrier.UNKNOWN}, {"told": Told()},
     {"told": Told(True)}],
    ids=["executes", "relay alive", "relay silent", "nobody knows", "told so"],
)  # fmt: skip
def test_one_that_may_have_executed_or_may_yet_is_not(scene: Scene, change: dict[str, Any]) -> None:
    for name, value in change.items():
        setattr(scene, name, value)
    with pytest.raises(exception.AgentRefused, match="may have executed"):
        scene.calls.end_unstarted(A, B)
    assert not scene.destroyed


def test_libvirt_that_declines_is_said_to(scene: Scene) -> None:
    scene.declines = True
    with pytest.raises(exception.LibvirtError, match="never executed: no"):
        scene.calls.end_unstarted(A, B)


# --- a destination without an agent ------------------------------------------------------------


DEPARTURE = Departure(A, "host2", "qemu+tcp://host2/system", B)


def command_side() -> far_sides.CommandFarSide:
    return far_sides.CommandFarSide("host2", "10.0.0.2", (), "/run/none", None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("told", "ended"), [(Told(None, waits=True), 1), (Told(True), 0)])
def test_a_command_ends_a_vm_only_while_it_waits_for_its_start(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, told: Told, ended: int
) -> None:
    monkeypatch.setattr(libvirt, "open", lambda uri: scene)
    monkeypatch.setattr(far_sides.CommandFarSide, "_executed", lambda *_: told)
    command_side().end_domain(DEPARTURE)
    assert scene.destroyed == ended


def test_a_destination_whose_libvirt_is_not_reached_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(uri: str) -> Any:
        raise libvirt.libvirtError("refused")

    monkeypatch.setattr(libvirt, "open", refused)
    with pytest.raises(exception.LibvirtError, match="refused"):
        command_side().end_domain(DEPARTURE)
