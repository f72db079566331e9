# SPDX-License-Identifier: Apache-2.0
"""A host in conversation with guests: the real agent, and some that mean harm.

QEMU's part is played by a listening unix socket; the guest's by a function in a thread.
"""

import json
import os
import pathlib
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import pytest

from nova_enlightened.exception import GuestUnreachable, HintError
from nova_enlightened.guest import agent as program
from nova_enlightened.guest import wire
from nova_enlightened.guest.proc import Proc
from nova_enlightened.host import guest
from nova_enlightened.host.guest import GuestSession
from tests.unit.knowledge.snapshots import Area, Process, Snapshot

MEMORY = 64 << 20
PATIENCE = 30.0
GuestCode = Callable[["Guest"], None]
GOOD = Snapshot(processes=[Process([Area([3, 4], b"\x80\0", samples=1)])]).encoded()


class Guest:
    """The other end of the channel."""

    def __init__(self, path: str, code: GuestCode) -> None:
        self.requests = wire.Requests()
        self.over = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run, args=(code,))
        self._thread.start()

    def _run(self, code: GuestCode) -> None:
        self.connection, _ = self._listener.accept()
        with self.connection:
            try:
                code(self)
            except OSError:
                pass  # the host hung up, as it may

    def hear(self) -> tuple[int, int, bytes]:
        """The next request."""
        while True:
            data = self.connection.recv(4096)
            if not data:
                raise OSError("the host hung up")
            for request in self.requests.receive(data):
                return request

    def say(self, data: bytes) -> None:
        self.connection.sendall(data)

    def stay(self) -> None:
        """Until the host hangs up."""
        while self.connection.recv(4096):
            pass

    def end(self) -> None:
        self.over.set()
        self._listener.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


Meet = Callable[[GuestCode], GuestSession]


@pytest.fixture
def meet(tmp_path: pathlib.Path) -> Iterator[Meet]:
    """Opens a session with a guest that runs the given code."""
    guests: list[Guest] = []
    sessions: list[GuestSession] = []

    def make(code: GuestCode) -> GuestSession:
        path = str(tmp_path / f"port{len(guests)}")
        guests.append(Guest(path, code))
        sessions.append(GuestSession(path, MEMORY))
        sessions[-1].open()
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()
    for each in guests:
        each.end()


def test_the_real_agent_is_met_armed_asked_and_disarmed(tmp_path: pathlib.Path) -> None:
    if os.geteuid() != 0 or not os.path.exists("/proc/kpageflags"):
        pytest.skip("page flags can be read by root only")

    def run(other: Guest) -> None:
        agent = program.Agent(Proc())
        port = program.Port(os.dup(other.connection.fileno()))
        try:
            while not other.over.is_set():
                for request in port.wait(agent.timeout(time.monotonic()) or 0.05):
                    port.answer(agent.answer(*request))
                if not port.answering:
                    port.push(agent.tick(time.monotonic()))
        finally:
            agent.stop()
            os.close(port._descriptor)

    path = str(tmp_path / "port")
    machine = os.sysconf("SC_PHYS_PAGES") * 4096
    other = Guest(path, run)
    try:
        with GuestSession(path, machine) as session:
            hello = session.hello(PATIENCE)
            assert hello.protocol == wire.PROTOCOL
            assert hello.frames >= os.sysconf("SC_PHYS_PAGES")
            assert hello.source == hello.sources[0]
            assert session.ask(PATIENCE).knowledge.frames == hello.frames

            armed = session.arm(0.1, 60, 0.5, PATIENCE)
            assert armed["source"] == hello.source
            asked = session.ask(PATIENCE)
            assert asked.asked
            assert asked.knowledge.classes.any()
            assert session.status(PATIENCE)["armed"]
            assert not session.disarm(PATIENCE)["armed"]
    finally:
        other.end()


def test_what_the_guest_pushes_is_here_before_anyone_asks(meet: Meet) -> None:
    def code(other: Guest) -> None:
        kind, request, _ = other.hear()
        other.say(wire.frame(wire.SNAPSHOT, wire.compress([GOOD]), compressed=True))
        other.say(wire.frame(kind, b"{}", request))
        other.stay()

    session = meet(code)
    assert session.latest() is None
    session.hello(PATIENCE)

    held = session.latest()

    assert held is not None
    assert not held.asked
    assert held.knowledge.heat[3] == 255
    assert session.latest() is held, "decoded once"


def test_what_the_guest_pushes_can_be_waited_for(meet: Meet) -> None:
    newer = Snapshot(samples=9).encoded()

    def code(other: Guest) -> None:
        other.hear()
        other.say(wire.frame(wire.SNAPSHOT, GOOD))
        other.hear()
        other.say(wire.frame(wire.SNAPSHOT, newer))
        other.stay()

    session = meet(code)
    with pytest.raises(GuestUnreachable, match="no snapshot"):
        session.wait(None, 0.05)
    with pytest.raises(GuestUnreachable):
        session.status(0.05)
    first = session.wait(None, PATIENCE)
    assert session.wait(None, PATIENCE) is first
    with pytest.raises(GuestUnreachable):
        session.status(0.05)

    assert session.wait(first, PATIENCE).knowledge.samples == 9


def test_an_answer_that_does_not_come_in_time_leaves_what_was_pushed(meet: Meet) -> None:
    def code(other: Guest) -> None:
        other.say(wire.frame(wire.SNAPSHOT, GOOD))
        other.hear()
        other.say(wire.frame(wire.PONG))
        other.stay()

    session = meet(code)

    assert session.ask(0.5).knowledge.processes[0].name == "redis-server"


def test_a_silent_guest_is_unreachable(meet: Meet) -> None:
    session = meet(Guest.stay)

    with pytest.raises(GuestUnreachable, match="no answer to ASK"):
        session.ask(0.1)
    with pytest.raises(GuestUnreachable, match="no answer to HELLO"):
        session.hello(0.1)
    assert session.failure is None


def test_a_guest_without_the_channel_is_unreachable(tmp_path: pathlib.Path) -> None:
    session = GuestSession(str(tmp_path / "none"), MEMORY)

    with pytest.raises(GuestUnreachable, match="none"):
        session.open()
    with pytest.raises(GuestUnreachable, match="not open"):
        session.hello()
    session.close()


def test_a_guest_that_goes_away_is_unreachable_at_once(meet: Meet) -> None:
    session = meet(lambda other: None)

    with pytest.raises(GuestUnreachable):
        session.hello(PATIENCE)


def test_an_agent_that_declines_says_why(meet: Meet) -> None:
    def code(other: Guest) -> None:
        _, request, _ = other.hear()
        other.say(wire.frame(wire.ERROR, b'{"error": "no\\nroot"}', request))
        other.stay()

    with pytest.raises(GuestUnreachable, match=r"declines: no\?root"):
        meet(code).arm(1, 60, 0.03, PATIENCE)


def answering(payload: bytes, kind: int = wire.HELLO, compressed: bool = False) -> GuestCode:
    """A guest that says this to the first request."""

    def code(other: Guest) -> None:
        _, request, _ = other.hear()
        other.say(wire.frame(kind, payload, request, compressed))
        other.stay()

    return code


@pytest.mark.parametrize(
    "payload",
    [b"[" * 60000, b'{"a":' * 10000 + b"1" + b"}" * 10000, b"[1]", b"{", b"\xff\xfe", b"1" * 9999],
    ids=["deep list", "deep object", "no object", "cut off", "no text", "long number"],
)
def test_json_that_is_none_or_deep_is_refused(meet: Meet, payload: bytes) -> None:
    with pytest.raises(HintError, match="JSON"):
        meet(answering(payload)).hello(PATIENCE)


def test_a_hello_of_wrong_types_is_harmless(meet: Meet) -> None:
    lies = {"agent": 5, "protocol": "x", "kernel": None, "frames": True, "sources": {"a": 1}}
    lies["source"] = "soft\x1b[31m" * 100

    hello = meet(answering(json.dumps(lies).encode())).hello(PATIENCE)

    assert (hello.agent, hello.protocol, hello.frames, hello.sources) == ("", 0, 0, ())
    assert hello.source.isprintable()
    assert len(hello.source) <= 256


def test_an_answer_of_another_type_is_refused(meet: Meet) -> None:
    with pytest.raises(HintError, match="STATUS in answer to HELLO"):
        meet(answering(b"{}", wire.STATUS)).hello(PATIENCE)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"garbage!" * 4, "where a frame begins"),
        (wire.HEADER.pack(b"NEG1", wire.SNAPSHOT, 0, 0, 1, 4, 99) + b"abcd", "checksum"),
        (wire.HEADER.pack(b"NEG1", wire.SNAPSHOT, 0, 0, 1, 0xFFFFFFFF, 0), "claims 4294967295"),
        (
            wire.frame(wire.SNAPSHOT, zlib.compress(bytes(64 << 20), 9), compressed=True),
            "inflates past",
        ),
    ],
    ids=["garbage", "wrong checksum", "terabyte", "zip bomb"],
)
def test_a_guest_that_sends_nonsense_is_not_listened_to_any_more(
    meet: Meet, stream: bytes, reason: str
) -> None:
    def code(other: Guest) -> None:
        other.hear()
        other.say(wire.frame(wire.PONG) + stream)
        other.stay()

    session = meet(code)

    with pytest.raises(HintError, match=reason):
        session.hello(PATIENCE)
    with pytest.raises(HintError, match=reason):
        session.ask(PATIENCE)


def test_a_snapshot_that_lies_is_refused_and_forgotten(meet: Meet) -> None:
    lie = Snapshot(frames=1 << 28).encoded()
    session = meet(answering(wire.compress([lie]), wire.SNAPSHOT, compressed=True))

    with pytest.raises(HintError, match="claims 268435456 frames"):
        session.ask(PATIENCE)
    assert session.latest() is None
    assert session.failure is None, "the next one may be better"


def test_a_frame_that_never_ends_is_given_up(meet: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "FRAME_S", 0.3)

    def drip(other: Guest) -> None:
        other.hear()
        frame = wire.frame(wire.PONG) + wire.frame(wire.SNAPSHOT, bytes(1 << 20))
        other.say(frame[:64])
        for byte in frame[64:]:
            other.say(bytes([byte]))
            if other.over.wait(0.02):
                return

    with pytest.raises(HintError, match="not finished within"):
        meet(drip).hello(PATIENCE)


def test_a_frame_that_stops_half_way_is_given_up(
    meet: Meet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "FRAME_S", 0.2)

    def stop(other: Guest) -> None:
        other.hear()
        other.say(wire.frame(wire.SNAPSHOT, bytes(1000))[:100])
        other.stay()

    with pytest.raises(HintError, match="not finished within"):
        meet(stop).hello(PATIENCE)


def test_a_flood_is_taken_no_faster_than_its_allowance(
    meet: Meet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "BURST", 1 << 20)
    monkeypatch.setattr(guest, "RATE", 1 << 20)
    sent = 0

    def flood(other: Guest) -> None:
        nonlocal sent
        other.connection.settimeout(0.5)
        piece = wire.frame(wire.PONG) * 1000
        while not other.over.is_set():
            other.say(piece)
            sent += len(piece)

    session = meet(flood)
    with pytest.raises(GuestUnreachable):
        session.hello(0.5)

    # A message counts as 16 KiB: 64 of them and what the sockets hold, not millions.
    assert sent < 4 << 20
    assert session.failure is None or isinstance(session.failure, GuestUnreachable)


def test_several_threads_ask_at_once_and_each_gets_its_answer(meet: Meet) -> None:
    def hear_all(other: Guest) -> None:
        held: list[tuple[int, int, bytes]] = []
        while len(held) < 4:
            held += other.requests.receive(other.connection.recv(4096))
        for kind, request, _ in reversed(held):
            body = json.dumps({"frames": request}).encode()
            other.say(wire.frame(kind, body, request))
        other.stay()

    session = meet(hear_all)
    frames: list[int] = []
    threads = [
        threading.Thread(target=lambda: frames.append(session.hello(PATIENCE).frames))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert sorted(frames) == [1, 2, 3, 4]


def test_a_closed_session_says_so(meet: Meet) -> None:
    session = meet(Guest.stay)
    session.close()

    with pytest.raises(GuestUnreachable):
        session.hello(PATIENCE)
