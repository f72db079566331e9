# SPDX-License-Identifier: Apache-2.0
"""What the agent answers, pushes and stops doing; and its port."""

import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nova_enlightened.guest import agent as program
from nova_enlightened.guest import frames, pack, sampler, wire
from nova_enlightened.guest.agent import Agent
from nova_enlightened.guest.port import TOLD, Port, find_port
from nova_enlightened.guest.proc import Proc
from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.guest_pages import GuestKnowledge
from nova_enlightened.knowledge.snapshot import decode_snapshot
from nova_enlightened.stream.events import NEED_DATA
from nova_enlightened.stream.guest_channel import GuestChannel, Message, MessageType
from tests.unit.guest.fake_proc import PRESENT, FakeArea, FakeProc, FakeProcess

ARM = json.dumps({"interval_s": 1.0, "max_s": 100.0, "cpu_limit": 0.1}).encode()


class FakeTime:
    """A clock that moves when told, and counts CPU time as a constant."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.cpu = 0.0

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.cpu


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """The time the agent sees."""
    clock = FakeTime()
    monkeypatch.setattr(program, "time", clock)
    return clock


@pytest.fixture
def fake(tmp_path: pathlib.Path) -> FakeProc:
    """A guest whose kernel has the `referenced` source, with one busy process."""
    fake = FakeProc(tmp_path, 64)
    fake.frames((1 << 12).to_bytes(8, "little") * 64)
    fake.put(FakeProcess(os.getpid()))
    area = FakeArea(0x10000, [PRESENT | 5, PRESENT | 6], referenced=2)
    fake.put(FakeProcess(7, "work", ticks=10**9, areas=[area]))
    return fake


@pytest.fixture
def agent(fake: FakeProc, clock: FakeTime) -> Iterator[Agent]:
    """The agent of that guest."""
    agent = Agent(Proc(str(fake.root)), str(fake.root / "sys"))
    yield agent
    agent.stop()


def read(frame: bytes) -> Message:
    """The one message in a frame, as the host sees it."""
    channel = GuestChannel()
    channel.receive_data(frame)
    message = channel.next_event()
    assert message is not NEED_DATA
    assert channel.next_event() is NEED_DATA
    return message


def said(frame: bytes, kind: MessageType) -> dict[str, Any]:
    """The JSON in a frame of the expected type."""
    message = read(frame)
    assert message.type is kind
    answer: dict[str, Any] = json.loads(message.payload)
    return answer


def known(frame: bytes) -> GuestKnowledge:
    """The snapshot in a frame."""
    message = read(frame)
    assert message.type is MessageType.SNAPSHOT
    return decode_snapshot(message.payload)


def test_hello_says_what_the_kernel_offers(agent: Agent) -> None:
    hello = said(agent.answer(wire.HELLO, 3, b"{}"), MessageType.HELLO)

    assert hello["frames"] == 64
    assert hello["sources"] == ["referenced", "none"]
    assert hello["source"] == "referenced"
    assert hello["protocol"] == 1


def test_asked_without_being_armed_it_tells_classes(agent: Agent) -> None:
    frame = agent.answer(wire.ASK, 9, b"")

    assert read(frame).request == 9
    assert known(frame).source == "page-flags"
    assert (known(frame).classes == PageClass.ANON).all()
    assert known(frame).processes == ()


def test_unarmed_it_does_nothing(agent: Agent, clock: FakeTime) -> None:
    assert agent.timeout(clock.now) is None
    assert agent.tick(clock.now) == b""


def test_armed_it_pushes_a_snapshot_after_the_first_short_sample(
    agent: Agent, clock: FakeTime
) -> None:
    armed = said(agent.answer(wire.ARM, 1, ARM), MessageType.ARMED)
    assert armed == {"interval_s": 1.0, "max_s": 100.0, "cpu_limit": 0.1, "source": "referenced"}
    assert agent.tick(clock.now) == b"", "it only reads what frames are"
    assert agent.timeout(clock.now) == program.FIRST_SAMPLE_S

    clock.now += program.FIRST_SAMPLE_S
    pushed = agent.tick(clock.now)

    assert read(pushed).request == 0
    assert known(pushed).samples == 1
    assert known(pushed).taken_at == clock.now
    assert known(pushed).heat[[5, 6]].tolist() == [255, 255]
    assert known(pushed).processes[0].name == "work"
    assert agent.timeout(clock.now) == 1.0


def test_a_lease_that_is_not_renewed_runs_out(agent: Agent, clock: FakeTime) -> None:
    agent.answer(wire.ARM, 1, ARM)
    clock.now += 100.5

    assert agent.tick(clock.now) == b""
    assert not said(agent.answer(wire.STATUS, 2, b""), MessageType.STATUS)["armed"]
    assert agent.timeout(clock.now) is None


def test_renewing_a_lease_keeps_what_is_known(agent: Agent, clock: FakeTime) -> None:
    agent.answer(wire.ARM, 1, ARM)
    clock.now += 1
    agent.tick(clock.now)

    clock.now += 98
    agent.answer(wire.ARM, 2, ARM)

    status = said(agent.answer(wire.STATUS, 3, b""), MessageType.STATUS)
    assert (status["samples"], status["lease_s"]) == (1, 100.0)


def test_disarmed_it_stops(agent: Agent, clock: FakeTime) -> None:
    agent.answer(wire.ARM, 1, ARM)

    assert not said(agent.answer(wire.DISARM, 2, b""), MessageType.STATUS)["armed"]
    assert agent.timeout(clock.now) is None


def test_asked_while_armed_it_answers_at_once_and_then_looks_again(
    agent: Agent, clock: FakeTime
) -> None:
    agent.answer(wire.ARM, 1, ARM)
    agent.tick(clock.now)
    clock.now += 1
    pushed = agent.tick(clock.now)
    clock.now += 0.5
    assert known(agent.answer(wire.ASK, 2, b"")).taken_at == known(pushed).taken_at
    assert agent.timeout(clock.now) == 0.5, "what it sent is fresh: no hurry"

    clock.now += 0.499 + program.FRESH_S
    agent._due = clock.now + 50  # as after a dear sample
    assert known(agent.answer(wire.ASK, 3, b"")).samples == 1
    assert agent.timeout(clock.now) == 0
    assert known(agent.tick(clock.now)).samples == 2


def test_asked_before_the_first_sample_it_tells_what_there_is(
    agent: Agent, clock: FakeTime
) -> None:
    agent.answer(wire.ARM, 1, ARM)

    assert known(agent.answer(wire.ASK, 2, b"")).samples == 0


def test_its_own_cpu_time_makes_it_wait(
    agent: Agent, clock: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    spending = itertools.count(0, 2.0)
    agent.answer(wire.ARM, 1, ARM.replace(b"100.0", b"3600"))
    monkeypatch.setattr(clock, "process_time", lambda: next(spending))

    waited = []
    for _ in range(6):
        clock.now = agent._due
        assert agent.tick(clock.now)
        waited.append(agent._due - clock.now)

    # 2 CPU seconds a sample; 0.1 of a CPU, of which a third is for other things.
    assert waited[0] == 1.0, "some is allowed in advance"
    assert waited[-1] == pytest.approx(30.0)


def test_frames_are_read_before_the_first_sample_and_rarely_after(
    agent: Agent, clock: FakeTime, fake: FakeProc
) -> None:
    agent.answer(wire.ARM, 1, ARM)
    assert agent.timeout(clock.now) == 0
    assert agent.tick(clock.now) == b"", "nothing to push before the first sample"
    clock.now += 1
    assert (known(agent.tick(clock.now)).classes == PageClass.ANON).all()
    fake.frames((1 << 10).to_bytes(8, "little") * 64)

    clock.now += 1
    assert (known(agent.tick(clock.now)).classes == PageClass.ANON).all()
    clock.now += frames.REFRESH_S
    agent.tick(clock.now)
    agent.tick(clock.now)
    clock.now += 1
    assert (known(agent.tick(clock.now)).classes == PageClass.FREE).all()


def test_a_large_guest_is_told_of_as_far_as_it_was_read_and_in_full_later(
    agent: Agent, clock: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "PIECE", 48)
    monkeypatch.setattr(program, "ANSWER_S", 0.0)
    assert not known(agent.answer(wire.ASK, 1, b"")).classes.any()

    assert agent.timeout(clock.now) == 0
    assert agent.tick(clock.now) == b""
    assert np.count_nonzero(known(agent.answer(wire.ASK, 2, b"")).classes) == 48
    assert (known(agent.tick(clock.now)).classes == PageClass.ANON).all()
    assert agent.timeout(clock.now) is None


def test_who_arms_anew_gets_what_is_known(agent: Agent, clock: FakeTime) -> None:
    agent.answer(wire.ARM, 1, ARM)
    clock.now += 1
    pushed = agent.tick(clock.now)
    agent.tick(clock.now)
    agent._due = clock.now + 50  # as after a dear sample

    agent.answer(wire.ARM, 2, ARM)

    assert agent.timeout(clock.now) == 0
    assert known(agent.tick(clock.now)).taken_at == known(pushed).taken_at
    assert agent.tick(clock.now) == b""


def test_settings_are_bounded(agent: Agent) -> None:
    wild = json.dumps({"interval_s": 0, "max_s": 1e9, "cpu_limit": 77}).encode()

    armed = said(agent.answer(wire.ARM, 1, wild), MessageType.ARMED)

    assert (armed["interval_s"], armed["max_s"], armed["cpu_limit"]) == (0.1, 3600.0, 0.5)


@pytest.mark.parametrize(
    "payload", [b"{", b"\xff", b'{"interval_s": "soon"}', b"[" * 50000, b'{"max_s": "\\u0000"}']
)
def test_a_damaged_request_is_answered_with_an_error(agent: Agent, payload: bytes) -> None:
    assert "error" in said(agent.answer(wire.ARM, 1, payload), MessageType.ERROR)


def test_a_request_of_another_protocol_is_not_answered(agent: Agent) -> None:
    assert agent.answer(wire.PONG, 1, b"") == b""
    assert agent.answer(200, 1, b"") == b""
    assert read(agent.answer(wire.PING, 4, b"x")) == Message(MessageType.PONG, 4, b"x")


def test_a_source_that_fails_is_replaced_by_the_next(
    agent: Agent, clock: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object) -> bytes:
        raise OSError(5, "it broke")

    agent.answer(wire.ARM, 1, ARM)
    monkeypatch.setattr(type(agent._sources[0]), "bitmap", broken)
    clock.now += 1
    assert agent.tick(clock.now) == b""

    status = said(agent.answer(wire.STATUS, 2, b""), MessageType.STATUS)
    assert status["armed"]
    assert status["source"] == "none"
    assert "it broke" in status["trouble"]
    clock.now += 1
    assert known(agent.tick(clock.now)).source == "none"


def test_a_guest_that_hides_page_flags_has_no_agent(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError):
        Agent(Proc(str(tmp_path)), str(tmp_path))


@pytest.fixture
def pair() -> Iterator[tuple[Port, socket.socket]]:
    """A port, and the host's end of it."""
    guest, host = socket.socketpair()
    host.settimeout(5)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield Port(guest.fileno()), host
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    guest.close()
    host.close()


def pump(port: Port, host: socket.socket, frames: int) -> list[Message]:
    """Have the port send until the host has so many frames."""
    channel = GuestChannel()
    found: list[Message] = []
    while len(found) < frames:
        port.wait(0.01)
        channel.receive_data(host.recv(1 << 20))
        while (message := channel.next_event()) is not NEED_DATA:
            found.append(message)
    return found


def test_answers_overtake_pushes_and_a_new_push_replaces_an_old(
    pair: tuple[Port, socket.socket],
) -> None:
    port, host = pair
    port.push(wire.frame(wire.SNAPSHOT, b"old"))
    port.push(wire.frame(wire.SNAPSHOT, b"new"))
    port.answer(wire.frame(wire.STATUS, b"{}", 1))
    port.answer(wire.frame(wire.STATUS, b"{}", 2))
    assert port.answering

    sent = pump(port, host, 3)

    assert [(m.type, m.request, m.payload) for m in sent] == [
        (MessageType.STATUS, 1, b"{}"),
        (MessageType.STATUS, 2, b"{}"),
        (MessageType.SNAPSHOT, 0, b"new"),
    ]
    assert not port.answering


def test_a_frame_longer_than_the_port_takes_arrives_whole(
    pair: tuple[Port, socket.socket],
) -> None:
    port, host = pair
    payload = os.urandom(3 << 20)
    port.push(wire.frame(wire.SNAPSHOT, payload))

    assert pump(port, host, 1)[0].payload == payload


def test_requests_come_through(pair: tuple[Port, socket.socket]) -> None:
    port, host = pair
    host.sendall(wire.frame(wire.PING, b"a", 1) + wire.frame(wire.ASK, b"", 2))

    assert port.wait(5) == [(wire.PING, 1, b"a"), (wire.ASK, 2, b"")]


def test_when_the_host_goes_nothing_is_kept_for_the_next(
    pair: tuple[Port, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, host = pair
    waited: list[float] = []
    monkeypatch.setattr(signal, "sigtimedwait", lambda _, timeout: waited.append(timeout))
    port.answer(wire.frame(wire.STATUS, b"{}", 1))
    host.close()

    for _ in range(3):
        assert port.wait(0.2) == []

    assert not port.answering
    assert set(waited) == {0.2}, "there is nobody to wait for on the port itself"


def test_the_kernel_tells_when_a_host_comes(pair: tuple[Port, socket.socket]) -> None:
    _, host = pair
    while signal.sigtimedwait({TOLD}, 0) is not None:
        pass  # of what came before

    host.sendall(wire.frame(wire.PING, b"a", 1))

    assert signal.sigtimedwait({TOLD}, 5) is not None


def test_a_port_is_found_without_udev(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_port(str(tmp_path)) == str(tmp_path)
    assert find_port("/dev/virtio-ports/no.such.port") is None


def test_the_packed_agent_runs_and_is_always_the_same(tmp_path: pathlib.Path) -> None:
    packed = tmp_path / "agent.pyz"
    assert pack.main([str(packed)]) == 0
    assert packed.read_bytes() == pack.packed()
    assert os.access(packed, os.X_OK)

    run = subprocess.run(
        [sys.executable, "-I", str(packed), "--check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    if os.geteuid() == 0 and os.path.exists("/proc/kpageflags"):
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout)["frames"] > 0
    else:
        assert run.returncode == 1
        assert "root" in run.stderr


def test_packing_needs_a_place_to_pack_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert pack.main([]) == 2
    assert "usage" in capsys.readouterr().err


def test_the_unit_starts_what_the_instructions_install() -> None:
    unit = (pathlib.Path(pack.__file__).parent / "nova-enlightened-guest.service").read_text()

    [program_path] = [
        word for line in unit.splitlines() if line.startswith("ExecStart=") for word in line.split()
    ][-1:]
    assert f"install -D -m 0755 nova-enlightened-guest.pyz {program_path}" in unit
    assert sampler.MOST_PAGES * 9 + (192 << 20) < 512 << 20
