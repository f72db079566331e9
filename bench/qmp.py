# SPDX-License-Identifier: Apache-2.0
"""A QEMU monitor, as far as benchmarks need one: commands in turn, events by name."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

CONNECT_S = 20.0


class MonitorError(Exception):
    """QEMU refused a command, or is gone."""


class Monitor:
    """A connection to a QMP socket, made as soon as QEMU listens."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._unread = b""
        self.events: list[dict[str, Any]] = []

    def open(self, seconds: float = CONNECT_S) -> None:
        """Connect and negotiate. Raises MonitorError when QEMU does not listen in time."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._socket.connect(str(self._path))
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise MonitorError(f"{self._path}: {error}") from error
                time.sleep(0.02)  # nothing tells when QEMU begins to listen
        self._message(seconds)
        self.command("qmp_capabilities")

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def command(self, name: str, timeout: float = 30.0, **arguments: Any) -> Any:
        """What QEMU returns. Underscores in argument names stand for hyphens.

        Raises MonitorError when it refuses, or does not answer in time.
        """
        said = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            words = json.dumps({"execute": name, "arguments": said})
            self._socket.sendall(words.encode() + b"\n")
        except OSError as error:
            raise MonitorError(f"{name}: {error}") from error
        while True:
            message = self._message(timeout)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise MonitorError(f"{name}: {message['error'].get('desc')}")

    def wait(self, event: str, seconds: float) -> float:
        """When ``event`` first happened since the last ``forget``: monotonic seconds.

        Raises MonitorError when it does not happen in time.
        """
        deadline = time.monotonic() + seconds
        while (at := self.at(event)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise MonitorError(f"no {event} within {seconds:g} s")
            self._message(left)
        return at

    def at(self, event: str) -> float | None:
        """When ``event`` first happened, of those received; None if it did not."""
        ahead = time.clock_gettime(time.CLOCK_REALTIME) - time.monotonic()
        for found in self.events:
            if found["event"] == event:
                stamp = found["timestamp"]
                return float(stamp["seconds"]) + float(stamp["microseconds"]) * 1e-6 - ahead
        return None

    def forget(self) -> None:
        """Forget the events so far."""
        self.events.clear()

    def _message(self, seconds: float) -> dict[str, Any]:
        """The next message that was sent; events are kept as well."""
        self._socket.settimeout(max(seconds, 0.001))
        try:
            while b"\n" not in self._unread:
                data = self._socket.recv(65536)
                if not data:
                    raise MonitorError(f"{self._path}: QEMU closed its monitor")
                self._unread += data
        except OSError as error:
            raise MonitorError(f"{self._path}: {error}") from error
        line, _, self._unread = self._unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self.events.append(message)
        return message
