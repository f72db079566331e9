# SPDX-License-Identifier: Apache-2.0
"""One conversation with the agent inside a guest, over QEMU's unix socket for its port.

QEMU lets one client in at a time. A session keeps the connection, so that snapshots which an
armed agent sends by itself are here already when the guest has to leave.

The other side is the guest's. What it sends is bounded in size by the RAM the host gave it, in
rate by not reading on, and in time by deadlines; nothing it sends is decoded before it is asked
for. A session that met nonsense is over: its errors say why, and every later call repeats them.
"""

import itertools
import json
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from nova_enlightened.exception import GuestUnreachable, HintError
from nova_enlightened.knowledge.guest_pages import GuestKnowledge
from nova_enlightened.knowledge.snapshot import SnapshotLimits, decode_snapshot
from nova_enlightened.stream.events import NEED_DATA
from nova_enlightened.stream.guest_channel import (
    HEADER,
    PROTOCOL,
    ChannelLimits,
    GuestChannel,
    Message,
    MessageType,
    encode,
)

LOG = logging.getLogger(__name__)

ANSWER_S: Final = 5.0
"""How long a small answer may take: a guest on a contended host is slow."""
SEND_S: Final = 5.0
FRAME_S: Final = 30.0
"""A frame that was begun must be whole within this time."""
RATE: Final = 32 << 20
"""Bytes a second taken from one guest over time, after decompression."""
BURST: Final = 256 << 20
MESSAGE_COST: Final = 16 << 10
"""Bytes a message counts for besides its own: bounds how many small ones are taken."""
_RECEIVE: Final = 256 << 10


@dataclass(frozen=True)
class Hello:
    """What the agent said of itself. Claims, not facts."""

    agent: str
    protocol: int
    kernel: str
    frames: int
    sources: tuple[str, ...]
    """Ways to find pages in use that this guest's kernel offers."""
    source: str
    """The one the agent uses."""


@dataclass(frozen=True)
class HeldKnowledge:
    """A decoded snapshot and when the host received it."""

    knowledge: GuestKnowledge
    received_at: float
    """Seconds of the host's monotonic clock."""
    asked: bool
    """It answers a question; otherwise the agent sent it by itself."""


@dataclass
class _Held:
    payload: bytes
    received_at: float
    asked: bool
    decoded: HeldKnowledge | None = None


class GuestSession:
    """A conversation with one guest's agent. Usable from several threads.

    :param path: QEMU's unix socket for the port (the `path` of the channel's <source>).
    :param memory: bytes of RAM the guest has, for the limits.
    :param clock: monotonic seconds.
    """

    def __init__(self, path: str, memory: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._limits = SnapshotLimits.for_memory(memory)
        payload = min(self._limits.payload, ChannelLimits.payload)
        self._channel = GuestChannel(
            ChannelLimits(payload=payload, inflated=self._limits.payload, hunted=2 * payload)
        )
        self._socket: socket.socket | None = None
        self._reader: threading.Thread | None = None
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._decoding = threading.Lock()
        self._ids = itertools.count(1)
        self._answers: dict[int, Message | None] = {}
        self._failure: Exception | None = None
        self._held: _Held | None = None
        self._closing = threading.Event()

    def __enter__(self) -> "GuestSession":
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Connect and start to listen. The agent need not be there yet.

        :raises GuestUnreachable: QEMU's socket does not take the connection.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(SEND_S)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            raise GuestUnreachable(f"guest channel {self._path}: {error}") from error
        self._socket = connection
        self._reader = threading.Thread(
            target=self._read, args=(connection,), name="guest-channel", daemon=True
        )
        self._reader.start()

    def close(self) -> None:
        """End the conversation; a sampling agent stops when its lease runs out."""
        self._closing.set()
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other side was faster
        if self._reader is not None:
            self._reader.join()
        if self._socket is not None:
            self._socket.close()
        self._fail(GuestUnreachable("the session was closed"))

    @property
    def failure(self) -> Exception | None:
        """Why the conversation is over, or None."""
        return self._failure

    def hello(self, timeout: float = ANSWER_S) -> Hello:
        """Ask who is there.

        :raises GuestUnreachable: no answer in time. :raises HintError: not a sane answer.
        """
        said = self._ask_json(MessageType.HELLO, {"protocol": PROTOCOL}, MessageType.HELLO, timeout)
        sources = said.get("sources")
        return Hello(
            agent=_text(said, "agent"),
            protocol=_number(said, "protocol"),
            kernel=_text(said, "kernel"),
            frames=_number(said, "frames"),
            sources=_names(sources) if isinstance(sources, list) else (),
            source=_text(said, "source"),
        )

    def arm(
        self, interval_s: float, max_s: float, cpu_limit: float, timeout: float = ANSWER_S
    ) -> dict[str, Any]:
        """Have the agent sample for `max_s` seconds, or renew that lease.

        :param interval_s: between two samples, at least.
        :param cpu_limit: share of one vCPU the agent may use.
        :returns: what the agent says it does now.
        :raises GuestUnreachable: no answer in time. :raises HintError: not a sane answer.
        """
        wanted = {"interval_s": interval_s, "max_s": max_s, "cpu_limit": cpu_limit}
        return self._ask_json(MessageType.ARM, wanted, MessageType.ARMED, timeout)

    def disarm(self, timeout: float = ANSWER_S) -> dict[str, Any]:
        """Have the agent stop sampling. Returns its status; raises like `arm`."""
        return self._ask_json(MessageType.DISARM, {}, MessageType.STATUS, timeout)

    def clone(self, identity: Mapping[str, Any], timeout: float = ANSWER_S) -> dict[str, Any]:
        """Tell the guest that it is a copy, and who it is now; see `guest.clone.become`.

        Returns which parts it says were ``done``, and why others ``failed``. Raises like `arm`.
        """
        return self._ask_json(MessageType.CLONE, dict(identity), MessageType.CLONED, timeout)

    def status(self, timeout: float = ANSWER_S) -> dict[str, Any]:
        """What the agent did and what it cost. Raises like `arm`."""
        return self._ask_json(MessageType.STATUS, {}, MessageType.STATUS, timeout)

    def latest(self) -> HeldKnowledge | None:
        """The newest snapshot that is here already, pushed or asked for; never waits for I/O.

        :raises HintError: it is not a sane snapshot. It is forgotten then.
        """
        with self._changed:
            held = self._held
        if held is None:
            return None
        with self._decoding:
            if held.decoded is None:
                try:
                    knowledge = decode_snapshot(held.payload, self._limits)
                except HintError:
                    self._forget(held)
                    raise
                held.decoded = HeldKnowledge(knowledge, held.received_at, held.asked)
                held.payload = b""
        return held.decoded

    def wait(self, newer_than: HeldKnowledge | None, timeout: float) -> HeldKnowledge:
        """Wait for a snapshot received after this one; for any without one.

        :raises GuestUnreachable: none in time. :raises HintError: not a sane snapshot.
        """
        deadline = self._clock() + timeout
        with self._changed:
            while self._held is None or self._held.decoded is newer_than is not None:
                if self._failure is not None:
                    raise self._failure
                left = deadline - self._clock()
                if left <= 0:
                    raise GuestUnreachable("no snapshot from the guest in time")
                self._changed.wait(left)
        held = self.latest()
        if held is None:
            raise HintError("the snapshot was malformed")
        return held

    def ask(self, deadline_s: float) -> HeldKnowledge:
        """What the agent knows now; what it last sent by itself if it does not answer in time.

        :raises GuestUnreachable: neither is there. :raises HintError: not a sane snapshot.
        """
        try:
            self._request(MessageType.ASK, b"", MessageType.SNAPSHOT, deadline_s)
        except GuestUnreachable:
            held = self.latest()
            if held is None:
                raise
            return held
        held = self.latest()
        if held is None:
            raise HintError("the snapshot asked for was malformed")
        return held

    def _forget(self, held: _Held) -> None:
        with self._changed:
            if self._held is held:
                self._held = None

    def _ask_json(
        self, kind: MessageType, body: dict[str, Any], answer: MessageType, timeout: float
    ) -> dict[str, Any]:
        return _json(self._request(kind, json.dumps(body).encode(), answer, timeout))

    def _request(
        self, kind: MessageType, payload: bytes, answer: MessageType, timeout: float
    ) -> Message:
        request = next(self._ids) & 0xFFFFFFFF
        with self._changed:
            self._answers[request] = None
        try:
            self._send(encode(kind, payload, request))
            message = self._wait(request, self._clock() + timeout, kind)
        finally:
            with self._changed:
                del self._answers[request]
        if message.type is MessageType.ERROR:
            raise GuestUnreachable(f"the guest's agent declines: {_text(_json(message), 'error')}")
        if message.type is not answer:
            raise HintError(f"{message.type.name} in answer to {kind.name}")
        return message

    def _send(self, frame: bytes) -> None:
        if self._socket is None or self._failure is not None:
            raise self._failure or GuestUnreachable("the session is not open")
        try:
            with self._sending:
                self._socket.sendall(frame)
        except OSError as error:
            # Part of the frame may have gone: whatever follows would be misread.
            failure = GuestUnreachable(f"guest channel {self._path}: {error}")
            self._fail(failure)
            raise failure from error

    def _wait(self, request: int, deadline: float, kind: MessageType) -> Message:
        with self._changed:
            while (message := self._answers[request]) is None:
                if self._failure is not None:
                    raise self._failure
                left = deadline - self._clock()
                if left <= 0:
                    raise GuestUnreachable(f"no answer to {kind.name} from the guest in time")
                self._changed.wait(left)
            return message

    def _fail(self, error: Exception) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = error
            self._changed.notify_all()

    def _read(self, connection: socket.socket) -> None:
        """The reader thread: until the connection ends or the guest sends nonsense."""
        try:
            self._read_on(connection)
        except HintError as error:
            LOG.warning("Not listening to guest any more (%s): %s", self._path, error)
            self._fail(error)
        except OSError as error:
            self._fail(GuestUnreachable(f"guest channel {self._path}: {error}"))
        else:
            self._fail(GuestUnreachable(f"guest channel {self._path}: closed by QEMU"))

    def _read_on(self, connection: socket.socket) -> None:
        allowance = _Allowance(self._clock())
        begun: float | None = None
        while not self._closing.is_set():
            pause = allowance.pause(self._clock())
            if pause and self._closing.wait(pause):
                return
            readable, _, _ = select.select([connection], [], [], FRAME_S)
            if begun is not None and self._clock() - begun > FRAME_S:
                raise HintError(f"a frame was begun and not finished within {FRAME_S:.0f} s")
            if not readable:
                continue
            data = connection.recv(_RECEIVE)
            if not data:
                return
            self._channel.receive_data(data)
            allowance.spend(len(data))
            finished = self._take_messages(allowance)
            if self._channel.pending < HEADER.size:
                begun = None
            elif begun is None or finished:
                begun = self._clock()

    def _take_messages(self, allowance: "_Allowance") -> bool:
        finished = False
        while (message := self._channel.next_event()) is not NEED_DATA:
            finished = True
            allowance.spend(MESSAGE_COST + len(message.payload))
            self._take(message)
        return finished

    def _take(self, message: Message) -> None:
        with self._changed:
            if message.type is MessageType.SNAPSHOT:
                asked = message.request in self._answers
                self._held = _Held(message.payload, self._clock(), asked)
                self._changed.notify_all()
                message = Message(message.type, message.request, b"")
            if message.request in self._answers:
                self._answers[message.request] = message
                self._changed.notify_all()


class _Allowance:
    """Bytes that may still be taken from the guest now; says how long to wait when overdrawn."""

    def __init__(self, now: float) -> None:
        self._left = float(BURST)
        self._at = now

    def spend(self, size: int) -> None:
        self._left -= size

    def pause(self, now: float) -> float:
        self._left = min(float(BURST), self._left + (now - self._at) * RATE)
        self._at = now
        return max(0.0, -self._left / RATE)


def _json(message: Message) -> dict[str, Any]:
    try:
        said = json.loads(message.payload or b"{}")
    except (ValueError, RecursionError) as error:
        raise HintError(f"{message.type.name} is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise HintError(f"{message.type.name} is not a JSON object")
    return said


def _text(said: dict[str, Any], key: str) -> str:
    """A string from the guest, fit for a log."""
    value = said.get(key, "")
    return _printable(value, 256) if isinstance(value, str) else ""


def _names(values: list[Any]) -> tuple[str, ...]:
    return tuple(_printable(value, 64) for value in values[:16] if isinstance(value, str))


def _printable(text: str, most: int) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:most])


def _number(said: dict[str, Any], key: str) -> int:
    value = said.get(key, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
