# SPDX-License-Identifier: Apache-2.0
"""Calls over a bus that is down, slow, or full of those that wait for it."""

import threading
from collections.abc import Iterator
from typing import Any

import oslo_messaging
import pytest
from oslo_config import cfg

from nova_enlightened import exception, rpc


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """What a call waits for that never gets an answer; set when the test has ended."""
    event = threading.Event()
    yield event
    event.set()


def test_a_bounded_call_answers() -> None:
    assert rpc.Bounded()(lambda: {"a": 1}, 5.0) == {"a": 1}


def test_a_bounded_call_raises_what_was_raised() -> None:
    def fail() -> None:
        raise oslo_messaging.MessagingTimeout("no answer")

    with pytest.raises(oslo_messaging.MessagingTimeout, match="no answer"):
        rpc.Bounded()(fail, 5.0)


def test_a_call_that_never_ends_is_left_to_itself(stuck: threading.Event) -> None:
    with pytest.raises(exception.AgentUnreachable, match="in time"):
        rpc.Bounded()(stuck.wait, 0.01)


def test_calls_that_are_stuck_do_not_pile_up_without_end(stuck: threading.Event) -> None:
    bounded = rpc.Bounded(most=2)
    for _ in range(2):
        with pytest.raises(exception.AgentUnreachable, match="in time"):
            bounded(stuck.wait, 0.01)
    with pytest.raises(exception.AgentUnreachable, match="too many"):
        bounded(stuck.wait, 0.01)


class Client:
    """oslo.messaging's client, answering or failing as told."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def prepare(self, **_: Any) -> "Client":
        return self

    def call(self, context: dict[str, Any], method: str, **arguments: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def host_api(monkeypatch: pytest.MonkeyPatch, answer: Any) -> rpc.HostAPI:
    monkeypatch.setattr(oslo_messaging, "get_rpc_client", lambda *_, **__: Client(answer))
    return rpc.HostAPI(oslo_messaging.get_rpc_transport(cfg.ConfigOpts(), url="fake://"))


def test_an_agents_refusal_carries_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    error = oslo_messaging.RemoteError("ConfigError", "link_tls is 'off'", "")
    with pytest.raises(exception.AgentRefused, match="host1: link_tls is 'off'"):
        host_api(monkeypatch, error).describe("host1")


def test_a_refusal_within_one_process_is_a_refusal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(exception.AgentRefused, match="host1: no"):
        host_api(monkeypatch, exception.ConfigError("no")).describe("host1")


def test_what_the_buss_driver_raises_means_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    # kombu's errors come through oslo.messaging as they are.
    with pytest.raises(exception.AgentUnreachable, match="refused"):
        host_api(monkeypatch, ConnectionRefusedError("refused")).describe("host1")


def test_what_an_older_agent_does_not_serve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    error = oslo_messaging.UnsupportedVersion("1.2", method="recover_arrival")
    with pytest.raises(exception.AgentRefused, match="host1"):
        host_api(monkeypatch, error).recover_arrival("host1", "instance", "migration")


@pytest.mark.parametrize(
    ("version", "served"),
    [("1.2", True), ("1.10", True), ("1.1", False), ("2.2", False), (None, False), ("x", False)],
)
def test_versions_of_calls_are_compared_as_oslo_messaging_does(
    version: str | None, served: bool
) -> None:
    assert rpc.serves({"rpc_version": version}, "1.2") is served


def test_an_agent_that_tells_no_version_serves_none() -> None:
    assert not rpc.serves({}, rpc.FIRST_HOST_VERSION)


def test_a_host_that_does_not_answer_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(exception.AgentUnreachable, match="host1"):
        host_api(monkeypatch, oslo_messaging.MessagingTimeout("timed out")).describe("host1")
