# SPDX-License-Identifier: Apache-2.0
"""Preparing a migration: what is wanted, what is missing, and that the answer comes in time."""

import pathlib
import queue
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest

from nova_enlightened import exception, rpc
from nova_enlightened.host import departure, preparation, relays
from nova_enlightened.host.guest import HeldKnowledge
from nova_enlightened.host.hint_sources import HintTarget
from nova_enlightened.host.orders import KeptOrders
from nova_enlightened.host.preparation import Domain, Preparation
from nova_enlightened.host.relay_upkeep import RelayUpkeep
from nova_enlightened.transfer import unix_socket
from nova_enlightened.transfer.spec import RelaySpec
from tests.unit.host.fake_guests import FRAMES, FakeSource, fake_source, known

A = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"
XML = f"""<domain type='kvm'><memory unit='KiB'>{FRAMES * 4}</memory>
<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os></domain>"""
TIMEOUT_S = 10.0
DESCRIBED = {"capable": True, "link_name": "host2", "link_host": "192.0.2.2", "obstacles": []}


class Scene:
    """A host that prepares, another that is asked, and a guest."""

    def __init__(self, top: pathlib.Path) -> None:
        self.options = types.SimpleNamespace(
            default_policy="stock",
            run_directory=str(top),
            link_tls="off",
            link_tls_ca="ca",
            link_tls_certificate="cert",
            link_tls_key="key",
            injection_window_floor=256,
            injection_window_cap=1024,
            ordering_policy="heat",
        )
        self.kind = fake_source(HeldKnowledge(known(), 0.0, asked=False))
        self.described: Any = DESCRIBED
        self.listens: Any = {"link_host": "192.0.2.2", "link_port": 49216}
        self.domain: Any = Domain(XML, HintTarget("i", FRAMES * 4096))
        self.armed_source: FakeSource | None = self.kind(self.domain.target)
        self.trouble: str | None = None
        self.ended: queue.Queue[str] = queue.Queue()
        self.released: list[FakeSource] = []
        self.asked: list[RelaySpec] = []
        self.started: list[RelaySpec] = []
        self.now = 0.0
        self.orders = KeptOrders(str(top / "orders.json"), lambda: 100.0)
        self.preparation = Preparation(
            self.options,
            "host1",
            self.orders,
            self,  # type: ignore[arg-type]
            [self.kind],
            lambda uuid: self._or_raise(self.domain),
            self,
            RelayUpkeep(str(top), 60.0),
            lambda: self.now,
        )

    @staticmethod
    def _or_raise(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    # -- as armed guests --

    def take(self, instance: str) -> FakeSource | None:
        return self.armed_source

    def release(self, source: FakeSource) -> None:
        self.released.append(source)

    # -- as the other hosts' agents --

    def describe(self, host: str) -> dict[str, Any]:
        value = self._or_raise(self.described)
        return dict(value() if callable(value) else value)

    def start_destination_relay(self, host: str, spec: str) -> dict[str, Any]:
        self.asked.append(RelaySpec.from_json(spec))
        value = self._or_raise(self.listens)
        return dict(value() if callable(value) else value)

    def arrival(self, host: str, instance: str, migration: str | None) -> dict[str, Any]:
        raise exception.AgentUnreachable(host)

    def end_arrival(self, host: str, migration: str) -> dict[str, Any]:
        self.ended.put(migration)
        return {}

    def order(self) -> None:
        self.orders.place(A, "the host is contended", 60.0)

    def prepare(self, tls_required: bool = False) -> preparation.Answer:
        return self.preparation.prepare(A, "host2", tls_required)


@pytest.fixture
def scene(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene(tmp_path)

    def start(spec: RelaySpec, listener: Any, **_: Any) -> relays.RunningRelay:
        listener.close()
        made.started.append(spec)
        return relays.RunningRelay(spec, 1)

    class Listener:
        def close(self) -> None:
            pass

    monkeypatch.setattr(relays, "start", start)
    monkeypatch.setattr(relays, "linked", lambda relay, patience: made.trouble)
    monkeypatch.setattr(relays, "end", lambda *_: made.ended.put("here"))
    # The paths of a test are too long for real sockets.
    monkeypatch.setattr(unix_socket, "listen", lambda path: Listener())
    yield made
    made.preparation.close()


def test_without_an_order_nothing_is_wanted(scene: Scene) -> None:
    answer = scene.prepare()
    assert (answer.wanted, answer.ordered) == (False, False)
    assert scene.asked == []


def test_an_order_has_both_relays_ready(scene: Scene) -> None:
    scene.order()
    answer = scene.prepare()
    assert (answer.wanted, answer.ordered) == (True, True), answer.reason
    assert "the host is contended" in answer.reason
    there, here = scene.asked[0], scene.started[0]
    assert answer.migrate_uri == f"unix://{here.socket}"
    assert (there.migration, there.secret) == (here.migration, here.secret)
    assert answer.migration == here.migration
    assert (here.link_host, here.link_port) == ("192.0.2.2", 49216)
    assert here.knowledge is not None
    assert pathlib.Path(here.knowledge).stat().st_size > 0


@pytest.mark.parametrize("version", [None, "1.1", "of late"])
def test_a_destination_that_keeps_no_second_monitor_is_not_asked_for_one(
    scene: Scene, version: str | None
) -> None:
    scene.described = {**DESCRIBED, "rpc_version": version}
    scene.order()
    assert scene.prepare().ordered
    assert scene.asked[0].monitor is None


def test_a_destination_that_keeps_one_is_told_where(scene: Scene) -> None:
    scene.described = {**DESCRIBED, "rpc_version": rpc.MONITORED_ARRIVALS}
    scene.order()
    assert scene.prepare().ordered
    there = scene.asked[0].monitor
    assert there is not None
    assert A in there


def test_an_order_is_for_one_migration(scene: Scene) -> None:
    scene.order()
    scene.prepare()
    assert not scene.prepare().wanted


def test_by_default_policy_every_migration_is_wanted(scene: Scene) -> None:
    scene.options.default_policy = "ordered"
    answer = scene.prepare()
    assert answer.ordered
    assert "default_policy" in answer.reason


def test_the_guest_is_let_go_of_once_its_knowledge_was_taken(scene: Scene) -> None:
    scene.order()
    scene.prepare()
    assert scene.released == [scene.armed_source]


def test_a_guest_that_is_not_armed_is_asked(scene: Scene) -> None:
    scene.armed_source = None
    scene.kind.held = None
    scene.order()
    answer = scene.prepare()
    assert (answer.wanted, answer.ordered) == (True, False)
    assert "says nothing" in answer.reason
    assert scene.kind.notes == ["open", "ask", "close"]


def test_old_knowledge_is_asked_for_anew(scene: Scene) -> None:
    scene.now = preparation.FRESH_S + 1
    scene.order()
    assert scene.prepare().ordered
    assert scene.kind.notes == ["ask"]


def test_tls_names_each_sides_peer(scene: Scene) -> None:
    scene.options.link_tls = "required"
    scene.order()
    assert scene.prepare(tls_required=True).ordered
    there, here = scene.asked[0].tls, scene.started[0].tls
    assert there is not None
    assert here is not None
    assert (there.peer_name, here.peer_name) == ("host1", "host2")


def test_a_link_less_protected_than_nova_promises_is_not_used(scene: Scene) -> None:
    scene.order()
    answer = scene.prepare(tls_required=True)
    assert (answer.wanted, answer.ordered) == (True, False)
    assert "link_tls" in answer.reason
    assert scene.asked == []


@pytest.mark.parametrize(
    "described",
    [
        exception.AgentUnreachable("agent of host2: no answer"),
        exception.AgentRefused("host2: no such method"),
        {**DESCRIBED, "capable": False, "obstacles": ["no userfaultfd"]},
        {},
    ],
)
def test_a_destination_that_may_not_take_post_copy_is_novas(scene: Scene, described: Any) -> None:
    scene.described = described
    scene.order()
    answer = scene.prepare()
    assert (answer.wanted, answer.ordered) == (False, False)
    assert "host2" in answer.reason
    assert scene.asked == []


@pytest.mark.parametrize(
    "listens",
    [
        exception.AgentRefused("host2: no port from 1 to 2"),
        {},
        {"link_host": "h", "link_port": "many"},
    ],
)
def test_without_a_relay_there_it_leaves_in_qemus_order(scene: Scene, listens: Any) -> None:
    scene.listens = listens
    scene.order()
    answer = scene.prepare()
    assert (answer.wanted, answer.ordered, answer.migrate_uri) == (True, False, None)
    assert scene.started == []
    assert scene.ended.get(timeout=TIMEOUT_S) == scene.asked[0].migration


def test_a_domain_libvirt_does_not_know_has_an_answer(scene: Scene) -> None:
    scene.domain = exception.LibvirtError("domain not found")
    scene.order()
    answer = scene.prepare()
    assert (answer.wanted, answer.ordered) == (True, False)
    assert "not found" in answer.reason


def test_a_machine_whose_memory_map_is_not_known_has_an_answer(scene: Scene) -> None:
    scene.domain = Domain(XML.replace("pc-i440fx-7.2", "virt-7.2"), scene.domain.target)
    scene.order()
    answer = scene.prepare()
    assert (answer.wanted, answer.ordered) == (True, False)
    assert "virt-7.2" in answer.reason


def test_a_destination_that_never_answers_does_not_hold_up_the_migration(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "BUDGET_S", 0.01)
    ended = threading.Event()
    scene.described = lambda: ended.wait(TIMEOUT_S) and {}
    scene.order()
    answer = scene.prepare()
    ended.set()
    assert (answer.wanted, answer.ordered) == (False, False)
    assert "too long" in answer.reason


def test_a_mistake_of_the_agent_leaves_the_migration_to_nova(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departure, "start_source", lambda *_: 1 / 0)
    scene.order()
    answer = scene.prepare()
    assert (answer.wanted, answer.ordered) == (False, False)
    assert "division" in answer.reason


def test_an_answer_leaves_out_what_there_is_not() -> None:
    assert preparation.Answer(False, False, "why").to_dict() == {
        "wanted": False,
        "ordered": False,
        "reason": "why",
    }


def test_relays_that_do_not_reach_each_other_leave_it_to_stock_pre_copy(scene: Scene) -> None:
    scene.order()
    scene.trouble = "Connection refused"
    answer = scene.prepare()
    assert (answer.wanted, answer.ordered) == (False, False)
    assert "do not reach each other: Connection refused" in answer.reason
    ended = {scene.ended.get(timeout=TIMEOUT_S) for _ in range(2)}
    assert ended == {"here", scene.asked[0].migration}


def test_a_relay_that_started_too_late_there_is_ended(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "BUDGET_S", 0.1)
    late = threading.Event()
    scene.listens = lambda: late.wait(TIMEOUT_S) and {}
    scene.order()
    answer = scene.prepare()
    assert (answer.wanted, answer.ordered) == (True, False)
    assert scene.ended.empty(), "it has not started yet"
    late.set()
    assert scene.ended.get(timeout=TIMEOUT_S) == scene.asked[0].migration


def test_a_destination_without_room_for_it_leaves_it_to_stock_pre_copy(scene: Scene) -> None:
    scene.order()
    scene.described = {**scene.described, "memory_available": 1}
    answer = scene.prepare()
    assert (answer.wanted, answer.ordered) == (False, False)
    assert "MiB available" in answer.reason
    assert scene.asked == []
