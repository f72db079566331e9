# SPDX-License-Identifier: Apache-2.0
"""What remediators say over the bus, and hear of each other, on oslo.messaging's own driver."""

import pathlib
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import oslo_messaging
import pytest
from oslo_config import cfg

from nova_enlightened import rpc
from nova_enlightened.remediation.announcements import (
    DECIDED,
    FAILED,
    Announcements,
    Outbox,
    PeerListener,
)
from nova_enlightened.remediation.metrics import Metrics
from nova_enlightened.remediation.record import EvictionRecord
from tests.unit.remediation.fakes import record


@pytest.fixture
def conf(tmp_path: pathlib.Path) -> cfg.ConfigOpts:
    file = tmp_path / "test.conf"
    file.write_text(
        "[DEFAULT]\ntransport_url = fake://\n[oslo_messaging_notifications]\ndriver = messagingv2\n"
    )
    made = cfg.ConfigOpts()
    made(["--config-file", str(file)], project="test", default_config_files=[])
    return made


class Noted:
    """What came, and a way to wait for it."""

    def __init__(self) -> None:
        self.came: list[Any] = []
        self._changed = threading.Condition()

    def take(self, what: Any) -> None:
        with self._changed:
            self.came.append(what)
            self._changed.notify_all()

    def wait(self, count: int, timeout: float = 10.0) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self.came) >= count, timeout)


class Consumer:
    """Takes notifications, as ceilometer or a billing system would."""

    def __init__(self, noted: Noted) -> None:
        self._noted = noted

    def info(self, context: Any, publisher: str, event: str, payload: Any, _: Any) -> None:
        self._noted.take(("info", publisher, event, payload))

    def warn(self, context: Any, publisher: str, event: str, payload: Any, _: Any) -> None:
        self._noted.take(("warn", publisher, event, payload))


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    made = Outbox()
    made.start()
    yield made
    made.stop()


def until(noted: Noted, say: Callable[[], None]) -> None:
    """Say it until it is heard: before a listener listens nothing is, as on a real bus."""
    for _ in range(100):
        say()
        if noted.wait(1, 0.1):
            return
    raise AssertionError("nobody heard")


def test_what_happens_to_an_eviction_is_notified(conf: cfg.ConfigOpts, outbox: Outbox) -> None:
    noted, transport = Noted(), rpc.get_transport(conf)
    voice = Announcements(conf, transport, "nova-enlightened-remediator:here", outbox)
    listener = oslo_messaging.get_notification_listener(
        oslo_messaging.get_notification_transport(conf),
        [oslo_messaging.Target(topic="notifications")],
        [Consumer(noted)],
    )
    listener.start()
    try:
        voice.notify(DECIDED, record())
        voice.notify(FAILED, record(reason="no valid host"))
        assert noted.wait(2)
    finally:
        listener.stop()
        listener.wait()
    found = {event: (priority, payload) for priority, _, event, payload in noted.came}
    assert found[DECIDED][0] == "info"
    assert found[FAILED][0] == "warn"
    assert EvictionRecord.from_dict(found[FAILED][1]) == record(reason="no valid host")
    assert noted.came[0][1] == "nova-enlightened-remediator:here"


def test_every_instance_hears_what_the_leader_shares(conf: cfg.ConfigOpts, outbox: Outbox) -> None:
    transport = rpc.get_transport(conf)
    voice = Announcements(conf, transport, "leader", outbox)
    noted = [Noted(), Noted()]
    peers = [PeerListener(transport, f"peer{n}", one.take) for n, one in enumerate(noted)]
    for peer in peers:
        peer.start()
    try:
        for one in noted:
            until(one, lambda: voice.share(record(revision=3)))
            assert one.came[0] == record(revision=3)
    finally:
        for peer in peers:
            peer.stop()


def test_what_is_no_record_is_dropped(
    conf: cfg.ConfigOpts, caplog: pytest.LogCaptureFixture
) -> None:
    noted = Noted()
    peer = PeerListener(rpc.get_transport(conf), "peer", noted.take)
    peer.eviction_record({}, {"version": 99})
    assert noted.came == []
    assert "dropped" in caplog.text


def test_a_bus_that_hangs_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    begun, hanging, done = threading.Event(), threading.Event(), []
    outbox = Outbox(most=2)
    outbox.start()

    def hang() -> None:
        begun.set()
        hanging.wait(30)

    outbox.put(hang)
    assert begun.wait(10)
    for number in range(10):
        outbox.put(lambda number=number: done.append(number))  # type: ignore[misc]
    assert caplog.text.count("being dropped") == 1
    hanging.set()
    outbox.stop(10.0)
    assert done == [0, 1]


def test_an_announcement_that_fails_is_lost_and_the_next_is_made(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    noted = Noted()
    outbox.put(lambda: 1 // 0 and None)
    outbox.put(lambda: noted.take("next"))
    assert noted.wait(1)
    assert "division" in caplog.text


def test_metrics_are_served_to_prometheus() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    metrics = Metrics()
    metrics.state(leads=True, reports=[], under_way=3, armed=2)
    server = metrics.serve("127.0.0.1", port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
    assert "nova_enlightened_remediator_evictions_under_way 3.0" in text
    assert "python_info" not in text
