# SPDX-License-Identifier: Apache-2.0
"""The monitor client, against a QEMU that is only a script."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.qmp import Monitor, MonitorError

GREETING: dict[str, Any] = {"QMP": {"version": {}, "capabilities": []}}


@contextmanager
def qemu(path: Path, answers: list[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """Greets, then sends the next list of messages for every command; collects the commands."""
    asked: list[dict[str, Any]] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve() -> None:
        connection, _ = listener.accept()
        connection.settimeout(5)
        with connection, connection.makefile("rb") as lines:
            connection.sendall(json.dumps(GREETING).encode() + b"\r\n")
            for messages in [[{"return": {}}], *answers]:
                asked.append(json.loads(lines.readline()))
                for message in messages:
                    connection.sendall(json.dumps(message).encode() + b"\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        thread.join(5)
        listener.close()


def event(name: str, seconds: int) -> dict[str, Any]:
    return {"event": name, "timestamp": {"seconds": seconds, "microseconds": 500000}}


@contextmanager
def opened(path: Path) -> Iterator[Monitor]:
    monitor = Monitor(path)
    try:
        monitor.open(5.0)
        yield monitor
    finally:
        monitor.close()


def test_a_command_is_answered_past_events(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    answers = [[event("STOP", 10), {"return": {"status": "ok"}}]]
    with qemu(path, answers) as asked, opened(path) as monitor:
        assert monitor.command("query-it", max_bandwidth=5) == {"status": "ok"}
        assert monitor.at("STOP") is not None
        assert monitor.at("RESUME") is None
    assert asked[1] == {"execute": "query-it", "arguments": {"max-bandwidth": 5}}


def test_qemus_stamp_becomes_monotonic_time(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    now = int(time.time())
    with qemu(path, [[event("STOP", now), {"return": {}}]]), opened(path) as monitor:
        monitor.command("x")
        assert abs(monitor.wait("STOP", 1.0) - time.monotonic()) < 3.0


def test_a_refusal_names_the_command(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    refusal = {"error": {"class": "GenericError", "desc": "not now"}}
    with qemu(path, [[refusal]]), opened(path) as monitor:
        with pytest.raises(MonitorError, match="migrate: not now"):
            monitor.command("migrate")


def test_a_qemu_that_goes_away_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    with qemu(path, []), opened(path) as monitor:
        with pytest.raises(MonitorError):
            monitor.command("query-migrate", timeout=2.0)


def test_a_qemu_that_never_listens_is_an_error(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "none")
    with pytest.raises(MonitorError, match="none"):
        monitor.open(0.05)
    monitor.close()
