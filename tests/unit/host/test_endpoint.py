# SPDX-License-Identifier: Apache-2.0
"""What comes over the bus is checked before anything is done with it."""

import pathlib
import types
from typing import Any

import pytest
from oslo_messaging.rpc import dispatcher

from nova_enlightened import exception
from nova_enlightened.host.departures import Departure
from nova_enlightened.host.endpoint import HostEndpoint
from nova_enlightened.host.metrics import Metrics
from nova_enlightened.host.orders import KeptOrders
from nova_enlightened.host.preparation import Answer

A = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"
B = "7f1d0a54-7a0b-4c07-9a6e-6a52a9a3c7de"


class Scene:
    def __init__(self, tmp_path: pathlib.Path) -> None:
        self.armed: list[list[str]] = []
        self.ended: list[tuple[str, str]] = []
        self.forgotten: list[tuple[object, ...]] = []
        self.followed: list[Departure] = []
        self.recovered: list[tuple[str, str]] = []
        self.unstarted: list[tuple[str, str]] = []
        self.metrics = Metrics()
        self.orders = KeptOrders(str(tmp_path / "orders.json"), lambda: 100.0)
        self.answer = Answer(True, False, "why")
        self.endpoint = HostEndpoint(
            lambda: {"host": "host1"},
            self,  # type: ignore[arg-type]
            self.orders,
            types.SimpleNamespace(prepare=lambda *_: self.answer),  # type: ignore[arg-type]
            types.SimpleNamespace(start=lambda spec: {"spec": spec}),  # type: ignore[arg-type]
            types.SimpleNamespace(end=self.end),  # type: ignore[arg-type]
            self.metrics,
            types.SimpleNamespace(  # type: ignore[arg-type]
                follow=self.followed.append,
                ended=lambda *told: self.forgotten.append(told),
                recover_arrival=lambda *asked: self.recovered.append(asked),
                end_unstarted=lambda *asked: self.unstarted.append(asked),
            ),
        )

    def arm(self, instances: list[str]) -> dict[str, str]:
        self.armed.append(instances)
        return dict.fromkeys(instances, "armed")

    def end(self, migration: str, outcome: str) -> dict[str, Any]:
        self.ended.append((migration, outcome))
        return {"phase": "completed"}

    def ask(self, method: str, **arguments: Any) -> Any:
        """As the bus asks; what is refused is raised as the endpoint meant it."""
        try:
            return getattr(self.endpoint, method)({}, **arguments)
        except dispatcher.ExpectedException as refused:
            raise refused.exc_info[1] from None

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"nova_enlightened_{name}", labels)


@pytest.fixture
def scene(tmp_path: pathlib.Path) -> Scene:
    return Scene(tmp_path)


def test_an_urgent_order_arms_the_guest(scene: Scene) -> None:
    assert scene.ask("order_urgent", instance=A, cause="contended", ttl=60) == {"until": 160.0}
    assert scene.armed == [[A]]
    assert scene.ask("withdraw_urgent", instance=A) == {"withdrawn": True}
    assert scene.ask("withdraw_urgent", instance=A) == {"withdrawn": False}


@pytest.mark.parametrize("ttl", ["60", None, True, [60], -1, 1e300])
def test_an_order_for_no_sane_time_is_refused(scene: Scene, ttl: Any) -> None:
    with pytest.raises(exception.AgentRefused):
        scene.ask("order_urgent", instance=A, cause="c", ttl=ttl)
    assert scene.orders.standing() == ()


@pytest.mark.parametrize("instances", ["abc", None, ["x"], [None], [A] * 1001, {A: 1}])
def test_what_is_no_list_of_instances_is_refused(scene: Scene, instances: Any) -> None:
    with pytest.raises(exception.AgentRefused):
        scene.ask("arm", instances=instances)
    assert scene.armed == []


def test_preparations_are_answered_and_counted(scene: Scene) -> None:
    answer = scene.ask("prepare_eviction", instance=A, destination="host2", tls_required=False)
    assert answer == {"wanted": True, "ordered": False, "reason": "why"}
    assert scene.value("preparations_total", answer="post-copy") == 1


def test_evictions_are_counted_by_outcome(scene: Scene) -> None:
    scene.ask("end_eviction", migration=A, outcome="completed")
    scene.ask("end_eviction", migration=A, outcome="failed: libvirt refused")
    assert scene.ended == [(A, "completed"), (A, "failed: libvirt refused")]
    assert scene.value("evictions_total", outcome="completed") == 1
    assert scene.value("evictions_total", outcome="failed") == 1


def test_a_path_in_place_of_a_migration_is_refused(scene: Scene) -> None:
    with pytest.raises(exception.AgentRefused, match="no UUID"):
        scene.ask("end_eviction", migration="../../etc", outcome="completed")


def test_decisions_are_counted(scene: Scene) -> None:
    scene.ask("note_decision", instance=A, kind="post-copy", reason="relays_failed")
    assert scene.value("decisions_total", kind="post-copy", reason="relays_failed") == 1


@pytest.mark.parametrize("kind", ["", "x" * 100, 'a{b="c"}', "\n", 7])
def test_words_that_are_no_labels_make_no_counters(scene: Scene, kind: Any) -> None:
    scene.ask("note_decision", instance=A, kind=kind, reason="wanted")
    assert scene.value("decisions_total", kind=str(kind), reason="wanted") is None


def test_what_is_to_be_followed_is_named_by_uuids_only(scene: Scene) -> None:
    wanted = {"destination": "host2", "control_uri": "qemu+tcp://host2/system"}
    scene.ask("follow_eviction", instance=A, migration=A, **wanted)
    assert scene.followed == [Departure(A, "host2", "qemu+tcp://host2/system", A)]
    with pytest.raises(exception.AgentRefused, match="no UUID"):
        scene.ask("follow_eviction", instance=A, migration="../../etc", **wanted)


def test_what_has_ended_is_followed_no_more(scene: Scene) -> None:
    scene.ask("end_eviction", migration=A, outcome="completed")
    assert scene.forgotten == [(A, True)]


def test_a_vm_that_never_executed_is_ended_where_it_arrives(scene: Scene) -> None:
    scene.ask("end_unstarted", instance=A, migration=B)
    assert scene.unstarted == [(A, B)]
    with pytest.raises(exception.AgentRefused, match="no UUID"):
        scene.ask("end_unstarted", instance=A, migration="../x")


def test_qemu_of_a_vm_that_arrives_is_told_to_listen_again(tmp_path: pathlib.Path) -> None:
    scene = Scene(tmp_path)
    scene.ask("recover_arrival", instance=A, migration=B)
    assert scene.recovered == [(A, B)]
    with pytest.raises(exception.AgentRefused, match="no UUID"):
        scene.ask("recover_arrival", instance=A, migration="../x")
