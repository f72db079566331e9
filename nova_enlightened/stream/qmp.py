# SPDX-License-Identifier: Apache-2.0
"""QEMU's machine protocol (QMP) as a client speaks it, without I/O.

What is asked out of band is answered by the monitor's own thread, also while QEMU's main loop
stands still. Source: ``docs/interop/qmp-spec.txt`` and ``monitor/qmp.c`` of QEMU 7.2 and 10.0.
"""

import dataclasses
import itertools
import json
from typing import Any, Final

from nova_enlightened.exception import StreamError
from nova_enlightened.stream.events import NEED_DATA, NeedData

MAX_MESSAGE: Final = 256 << 10
"""Bytes of one message: none of those asked for here has more than a few thousand."""
MAX_NAME: Final = 64
OUT_OF_BAND: Final = "oob"


@dataclasses.dataclass(frozen=True)
class Greeting:
    """The first message. :ivar out_of_band: the monitor has a thread of its own."""

    out_of_band: bool


@dataclasses.dataclass(frozen=True)
class Answer:
    """To the request with this number. :ivar error: why it was declined, or None."""

    request: int
    value: Any
    error: str | None


@dataclasses.dataclass(frozen=True)
class Notice:
    """What QEMU tells unasked, by its name."""

    name: str


class QmpClient:
    """One connection."""

    def __init__(self) -> None:
        self._unread = bytearray()
        self._seen = 0
        self._greeted = False
        self._numbers = itertools.count(1)

    def receive_data(self, data: bytes) -> None:
        """What QEMU sent; take all events before the next of it."""
        self._unread += data

    def next_event(self) -> Greeting | Answer | Notice | NeedData:
        """What was said next.

        :raises StreamError: no QMP, or a message above :data:`MAX_MESSAGE`.
        """
        while (message := self._next()) is not None:
            if not self._greeted:
                return self._greeting(message)
            if "event" in message:
                return Notice(str(message["event"])[:MAX_NAME])
            number = message.get("id")
            if isinstance(number, int):
                return _answer(number, message)
        return NEED_DATA

    def _next(self) -> dict[str, Any] | None:
        end = self._unread.find(b"\n", self._seen)
        if max(end, len(self._unread) if end < 0 else 0) > MAX_MESSAGE:
            raise StreamError(f"a QMP message of more than {MAX_MESSAGE} bytes")
        if end < 0:
            self._seen = len(self._unread)
            return None
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        self._seen = 0
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StreamError(f"not a QMP message: {error}") from error
        if not isinstance(message, dict):
            raise StreamError("not a QMP message: no object")
        return message

    def _greeting(self, message: dict[str, Any]) -> Greeting:
        said = message.get("QMP")
        if not isinstance(said, dict):
            raise StreamError("no QMP greeting")
        self._greeted = True
        capabilities = said.get("capabilities")
        return Greeting(isinstance(capabilities, list) and OUT_OF_BAND in capabilities)

    def request(
        self, command: str, *, out_of_band: bool = False, **arguments: Any
    ) -> tuple[int, bytes]:
        """Its number, and what is to be sent."""
        number = next(self._numbers)
        verb = "exec-oob" if out_of_band else "execute"
        words = {verb: command, "arguments": arguments, "id": number}
        return number, json.dumps(words).encode() + b"\n"


def _answer(number: int, message: dict[str, Any]) -> Answer:
    if "return" in message:
        return Answer(number, message["return"], None)
    error = message.get("error")
    said = error.get("desc") if isinstance(error, dict) else None
    return Answer(number, None, str(said or "declined")[:1000])
