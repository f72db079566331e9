# SPDX-License-Identifier: Apache-2.0
"""QEMU's side of its second monitor, played by a test."""

import contextlib
import json
import pathlib
import socket
import threading
from typing import Any

GREETING = {"QMP": {"version": {}, "capabilities": ["oob"]}}


class Qemu:
    """Connects as QEMU does. ``answers``: by command; nothing for what the main loop would do
    that stands still.
    """

    def __init__(self, path: pathlib.Path, greeting: Any = None) -> None:
        self.answers: dict[str, list[dict[str, Any]]] = {"qmp_capabilities": [{"return": {}}]}
        self.asked: list[dict[str, Any]] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.say(GREETING if greeting is None else greeting)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def say(self, words: dict[str, Any]) -> None:
        self.socket.sendall(json.dumps(words).encode() + b"\r\n")

    def start(self) -> "Qemu":
        self._thread.start()
        return self

    def _run(self) -> None:
        for line in self.socket.makefile():
            asked = json.loads(line)
            self.asked.append(asked)
            command = asked.get("exec-oob") or asked["execute"]
            if answers := self.answers.get(command):
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                self.say({**answer, "id": asked["id"]})

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # it may have ended already
        self.socket.close()
