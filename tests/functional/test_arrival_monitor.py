# SPDX-License-Identifier: Apache-2.0
"""The process that a destination's relay leaves beside it, with a QEMU that this test plays."""

import json
import os
import pathlib
import signal
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from nova_enlightened import exception
from nova_enlightened.cmd import relay as command
from nova_enlightened.host import arrival_monitor, relays
from nova_enlightened.host.departure import Places
from nova_enlightened.host.spare_monitor import monitor_path
from nova_enlightened.transfer import control, unix_socket
from nova_enlightened.transfer.spec import RelaySpec
from tests.unit.host.fake_monitor import Qemu

INSTANCE = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"
MIGRATION = "7f1d0a54-7a0b-4c07-9a6e-6a52a9a3c7de"
NEXT = "0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9"
WAIT_S = 20.0
DECLINED = {"error": {"desc": "Migrate recover can only be run when postcopy is paused."}}


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)  # another process does not tell


class Arrival:
    """A relay, the process beside it, and QEMU's socket for its stream."""

    def __init__(self, top: pathlib.Path) -> None:
        self.top = str(top)
        self._killed = False
        self.monitor = pathlib.Path(monitor_path(self.top, INSTANCE))
        self._stream = unix_socket.listen(Places(self.top, MIGRATION).socket)
        spec = RelaySpec(
            role="destination",
            migration=MIGRATION,
            run_directory=Places(self.top, MIGRATION).directory("destination"),
            socket=Places(self.top, MIGRATION).socket,
            link_host="127.0.0.1",
            link_port=0,
            secret="ab" * 32,
            tls=None,
            monitor=str(self.monitor),
        )
        listener = relays.listen_link("127.0.0.1", 0)
        self.address = listener.getsockname()
        self.relay = relays.start(spec, listener)
        until(self.monitor.exists)

    def kill_relay(self) -> None:
        os.kill(self.relay.pid, signal.SIGKILL)
        os.waitpid(self.relay.pid, 0)
        self._killed = True

    def answers(self) -> bool:
        try:
            control.ask(arrival_monitor.control_path(str(self.monitor)), "?")
        except exception.RelayGone:
            return False
        except exception.RelayError:
            pass
        return True

    def end(self) -> None:
        if not self._killed:
            self.kill_relay()
        if self.answers():
            control.ask(arrival_monitor.control_path(str(self.monitor)), "end")
        self._stream.close()


@pytest.fixture
def arrival() -> Iterator[Arrival]:
    with tempfile.TemporaryDirectory() as top:  # a socket's path must be short
        made = Arrival(pathlib.Path(top))
        yield made
        made.end()


@pytest.fixture
def qemu(arrival: Arrival) -> Iterator[Qemu]:
    made = Qemu(arrival.monitor)
    made.answers["query-status"] = [{"return": {"status": "inmigrate"}}]
    made.start()
    until(lambda: made.asked)
    yield made
    made.close()


def test_qemu_is_told_to_listen_again_when_its_relay_was_killed(
    arrival: Arrival, qemu: Qemu
) -> None:
    qemu.answers["migrate-recover"] = [DECLINED, {"return": {}}]
    arrival.kill_relay()
    assert command.main(["recover", arrival.top, INSTANCE, NEXT]) == 0
    asked = [one for one in qemu.asked if one.get("exec-oob") == "migrate-recover"]
    assert asked[-1]["arguments"]["uri"] == f"unix:{Places(arrival.top, NEXT).socket}"


def test_it_ends_with_the_vm(arrival: Arrival, qemu: Qemu) -> None:
    arrival.kill_relay()
    assert arrival.answers()
    qemu.close()
    until(lambda: not arrival.answers())
    assert not arrival.monitor.exists()


def test_nobody_says_that_a_vm_never_executed_while_its_qemu_is_there(
    arrival: Arrival, qemu: Qemu, capsys: pytest.CaptureFixture[str]
) -> None:
    until(lambda: arrival_monitor.executed(str(arrival.monitor), MIGRATION).waits)
    assert command.main(["executed", arrival.top, INSTANCE, MIGRATION]) == 0
    assert json.loads(capsys.readouterr().out) == {"executed": None, "waits": True}


def test_it_says_that_a_vm_has_executed(
    arrival: Arrival, qemu: Qemu, capsys: pytest.CaptureFixture[str]
) -> None:
    qemu.say({"event": "RESUME", "data": {}, "timestamp": {}})
    until(lambda: arrival_monitor.executed(str(arrival.monitor), MIGRATION).executed is True)
    assert command.main(["executed", arrival.top, INSTANCE, MIGRATION]) == 0
    assert json.loads(capsys.readouterr().out) == {"executed": True, "waits": False}


def test_it_says_nothing_of_another_arrival(arrival: Arrival, qemu: Qemu) -> None:
    qemu.say({"event": "RESUME", "data": {}, "timestamp": {}})
    until(lambda: arrival_monitor.executed(str(arrival.monitor), MIGRATION).executed is True)
    assert arrival_monitor.executed(str(arrival.monitor), NEXT) == (None, False)


def test_it_ends_when_qemu_says_that_the_last_page_has_crossed(
    arrival: Arrival, qemu: Qemu
) -> None:
    qemu.answers["query-migrate"] = [{"return": {"status": "completed"}}]
    arrival.kill_relay()
    until(lambda: not arrival.answers())


def test_a_second_arrival_of_the_vm_takes_the_place_of_the_first(arrival: Arrival) -> None:
    arrival.kill_relay()
    made = arrival.monitor.stat().st_ctime_ns
    spec = arrival.relay.spec
    again = relays.start(spec, relays.listen_link("127.0.0.1", 0))
    until(lambda: arrival.monitor.exists() and arrival.monitor.stat().st_ctime_ns != made)
    os.kill(again.pid, signal.SIGKILL)
    os.waitpid(again.pid, 0)
    assert arrival.answers()


def test_who_is_asked_for_a_vm_without_one_says_so(tmp_path: pathlib.Path) -> None:
    assert command.main(["recover", str(tmp_path), INSTANCE, NEXT]) == 1


def test_only_qemu_may_connect(arrival: Arrival) -> None:
    assert stat.S_IMODE(arrival.monitor.stat().st_mode) == 0o600
    owner = os.stat(Places(arrival.top, MIGRATION).socket).st_uid
    assert arrival.monitor.stat().st_uid == owner


def test_the_relays_port_is_not_kept_by_what_it_leaves_behind(arrival: Arrival) -> None:
    arrival.kill_relay()
    with socket.socket() as link, pytest.raises(ConnectionRefusedError):
        link.connect(arrival.address)
