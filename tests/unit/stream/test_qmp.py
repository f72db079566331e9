# SPDX-License-Identifier: Apache-2.0
"""QMP as a client reads it."""

import json

import pytest

from nova_enlightened.exception import StreamError
from nova_enlightened.stream.events import NEED_DATA
from nova_enlightened.stream.qmp import MAX_MESSAGE, Answer, Greeting, Notice, QmpClient

GREETING = b'{"QMP": {"version": {}, "capabilities": ["oob"]}}\r\n'


@pytest.fixture
def client() -> QmpClient:
    made = QmpClient()
    made.receive_data(GREETING)
    assert made.next_event() == Greeting(out_of_band=True)
    return made


def test_a_monitor_without_a_thread_of_its_own_says_so() -> None:
    client = QmpClient()
    client.receive_data(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
    assert client.next_event() == Greeting(out_of_band=False)


def test_a_request_out_of_band_is_marked_and_numbered(client: QmpClient) -> None:
    number, words = client.request("migrate-recover", out_of_band=True, uri="unix:/x")
    assert words.endswith(b"\n")
    assert json.loads(words) == {
        "exec-oob": "migrate-recover", "arguments": {"uri": "unix:/x"}, "id": number,
    }  # fmt: skip


def test_answers_are_told_apart_by_number_though_they_overtake_each_other(
    client: QmpClient,
) -> None:
    first, _ = client.request("query-migrate")
    second, _ = client.request("migrate-recover", out_of_band=True)
    for number in (second, first):
        client.receive_data(json.dumps({"return": {}, "id": number}).encode() + b"\r\n")
    assert client.next_event() == Answer(second, {}, None)
    assert client.next_event() == Answer(first, {}, None)


def test_a_declined_request_has_qemus_words(client: QmpClient) -> None:
    client.receive_data(b'{"error": {"class": "GenericError", "desc": "not paused"}, "id": 3}\r\n')
    assert client.next_event() == Answer(3, None, "not paused")


def test_what_qemu_tells_unasked_is_told_by_its_name(client: QmpClient) -> None:
    client.receive_data(b'{"event": "STOP", "timestamp": {}}\r\n{"return": 1, "id": 7}\r\n')
    assert client.next_event() == Notice("STOP")
    assert client.next_event() == Answer(7, 1, None)


def test_a_message_may_come_byte_by_byte(client: QmpClient) -> None:
    for byte in b'{"return": {}, "id": 1}\r':
        client.receive_data(bytes((byte,)))
        assert client.next_event() is NEED_DATA
    client.receive_data(b"\n")
    assert client.next_event() == Answer(1, {}, None)


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_message_that_is_too_long_is_refused(client: QmpClient, end: bytes) -> None:
    client.receive_data(b" " * (MAX_MESSAGE + 1) + end)
    with pytest.raises(StreamError, match="more than"):
        client.next_event()


@pytest.mark.parametrize("line", [b"nonsense", b"[]", b"[" * 100_000, b"\xff"])
def test_what_is_no_message_is_refused(client: QmpClient, line: bytes) -> None:
    client.receive_data(line + b"\n")
    with pytest.raises(StreamError, match="not a QMP message"):
        client.next_event()


def test_whoever_does_not_greet_is_no_monitor() -> None:
    client = QmpClient()
    client.receive_data(b'{"return": {}, "id": 1}\n')
    with pytest.raises(StreamError, match="greeting"):
        client.next_event()
