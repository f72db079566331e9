# SPDX-License-Identifier: Apache-2.0
"""QEMU's second monitor, with a QEMU that this test plays."""

import os
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest

from nova_enlightened import exception
from nova_enlightened.host import spare_monitor, streaming
from nova_enlightened.host.spare_monitor import SpareMonitor
from nova_enlightened.transfer.player_spec import PlayerSpec
from tests.unit.host.fake_monitor import Qemu

WAIT_S = 10.0


@pytest.fixture
def monitor(tmp_path: pathlib.Path) -> Iterator[SpareMonitor]:
    made = SpareMonitor(tmp_path / "qmp.sock")
    made.open()
    yield made
    made.close()


@pytest.fixture
def qemu(monitor: SpareMonitor) -> Iterator[Qemu]:
    made = Qemu(monitor.path).start()
    assert monitor.wait_ready(WAIT_S)
    yield made
    made.close()


DECLINED = {"error": {"desc": "Migrate recover can only be run when postcopy is paused."}}


def test_it_asks_for_commands_out_of_band(qemu: Qemu) -> None:
    assert qemu.asked[0]["arguments"] == {"enable": ["oob"]}


def test_it_is_answered_while_the_main_loop_stands_still(monitor: SpareMonitor, qemu: Qemu) -> None:
    with pytest.raises(exception.MonitorSilent):
        monitor.ask("query-status", 0.01, out_of_band=False)
    qemu.answers["migrate-recover"] = [{"return": {}}]
    assert monitor.ask("migrate-recover", uri="unix:/x") == {}
    assert "exec-oob" in qemu.asked[-1]


def test_what_qemu_declines_is_told_in_its_words(monitor: SpareMonitor, qemu: Qemu) -> None:
    qemu.answers["migrate-recover"] = [DECLINED]
    with pytest.raises(exception.StreamingError, match="postcopy is paused"):
        monitor.ask("migrate-recover", uri="unix:/x")


def test_a_qemu_that_never_connected_is_silent(monitor: SpareMonitor) -> None:
    with pytest.raises(exception.MonitorSilent, match="not connected"):
        monitor.ask("migrate-recover", uri="unix:/x")


def test_a_qemu_that_comes_again_is_taken_again(monitor: SpareMonitor, qemu: Qemu) -> None:
    another = Qemu(monitor.path).start()
    another.answers["migrate-recover"] = [{"return": "another"}]
    while not another.asked:
        threading.Event().wait(0.01)
    assert monitor.wait_ready(WAIT_S)
    assert monitor.ask("migrate-recover", uri="unix:/x") == "another"
    another.close()


def test_whoever_waits_is_told_when_qemu_ends(monitor: SpareMonitor, qemu: Qemu) -> None:
    threading.Timer(0.05, qemu.close).start()
    with pytest.raises(exception.MonitorSilent):
        monitor.ask("query-status", WAIT_S, out_of_band=False)


def test_a_monitor_without_a_thread_of_its_own_is_of_no_use(monitor: SpareMonitor) -> None:
    made = Qemu(monitor.path, {"QMP": {"capabilities": []}}).start()
    made._thread.join(WAIT_S)  # until it is hung up on
    assert not monitor.wait_ready(0.0)
    assert made.asked == []
    made.close()


class AProcess:
    """A QEMU in a process of its own, which waits for its migration and says what it is told."""

    def __init__(self, path: pathlib.Path, status: str = "inmigrate") -> None:
        self._words, words = os.pipe()
        self._mouth = words
        self._pid = os.fork()
        if not self._pid:
            os.close(words)
            self._be(path, status)

    def _be(self, path: pathlib.Path, status: str) -> None:
        played = Qemu(path)
        played.answers["query-status"] = [{"return": {"status": status}}]
        played.start()
        while word := os.read(self._words, 1):
            if word == b"r":
                played.say({"event": "RESUME", "data": {}, "timestamp": {}})
        os._exit(0)

    def resume(self) -> None:
        os.write(self._mouth, b"r")

    def end(self) -> None:
        os.close(self._mouth)
        os.close(self._words)
        os.waitpid(self._pid, 0)


def told(monitor: SpareMonitor, executed: bool | None, within: float = WAIT_S) -> bool:
    """Whether it comes to say so."""
    deadline = time.monotonic() + within
    while monitor.executed is not executed and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    return monitor.executed is executed


def test_a_vm_executes_when_qemu_says_so(monitor: SpareMonitor) -> None:
    qemu = AProcess(monitor.path)
    qemu.resume()
    assert told(monitor, True)
    assert not monitor.waits
    qemu.end()
    assert monitor.executed is True


def test_a_vm_never_executed_in_a_qemu_that_ended_without_having_said_so(
    monitor: SpareMonitor,
) -> None:
    qemu = AProcess(monitor.path)
    assert monitor.wait_ready(WAIT_S)
    monitor.ask("query-status", out_of_band=False)
    assert monitor.executed is None, "it may yet"
    assert monitor.waits
    qemu.end()
    assert told(monitor, False)
    assert not monitor.waits


def test_nobody_knows_of_a_qemu_that_was_away_for_a_while(monitor: SpareMonitor) -> None:
    for _ in range(2):
        qemu = AProcess(monitor.path)
        assert monitor.wait_ready(WAIT_S)
        monitor.ask("query-status", out_of_band=False)
        qemu.end()
        while monitor.ready:
            threading.Event().wait(0.01)
    assert not told(monitor, False, 0.5)
    assert not monitor.waits


def test_nobody_knows_of_a_qemu_that_executed_when_it_came(monitor: SpareMonitor) -> None:
    qemu = AProcess(monitor.path, "running")
    assert monitor.wait_ready(WAIT_S)
    monitor.ask("query-status", out_of_band=False)
    qemu.end()
    assert not told(monitor, False, 0.5)


def test_nobody_is_let_in_but_its_owner(monitor: SpareMonitor) -> None:
    assert monitor.path.stat().st_mode & 0o777 == 0o600


def test_its_socket_goes_with_it(tmp_path: pathlib.Path) -> None:
    made = SpareMonitor(tmp_path / "qmp.sock")
    made.open()
    made.close()
    assert not made.path.exists()


def test_a_comma_in_a_path_is_not_the_end_of_it() -> None:
    assert "path=/a,,b.sock," in spare_monitor.arguments("/a,b.sock")[1]


@pytest.mark.parametrize(
    "xml",
    [
        "<domain/>",
        "<domain><q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<q:arg value='-no-hpet'/></q:commandline></domain>",
    ],
)
def test_a_domain_is_given_it_once(xml: str) -> None:
    once = spare_monitor.with_monitor(xml, "/run/x-qmp.sock")
    words = [word.get("value") for word in ElementTree.fromstring(once)[0]]
    assert words[-4:] == spare_monitor.arguments("/run/x-qmp.sock")
    assert spare_monitor.with_monitor(once, "/run/x-qmp.sock") == once


# --- recovery -------------------------------------------------------------------------------------


def test_it_is_asked_until_qemu_has_noticed_that_its_player_is_gone(
    monitor: SpareMonitor, qemu: Qemu
) -> None:
    qemu.answers["migrate-recover"] = [DECLINED, DECLINED, {"return": {}}]
    assert streaming._listening_again(None, "unix:/x", monitor) == "postcopy-paused"
    assert [one["exec-oob"] for one in qemu.asked if "exec-oob" in one] == ["migrate-recover"] * 3


def test_a_qemu_that_has_all_its_memory_says_so(monitor: SpareMonitor, qemu: Qemu) -> None:
    qemu.answers["migrate-recover"] = [DECLINED]
    qemu.answers["query-migrate"] = [{"return": {"status": "completed"}}]
    assert streaming._listening_again(None, "unix:/x", monitor) == "completed"


def test_a_main_loop_that_stands_still_is_not_asked_more_often_than_qemu_queues(
    monitor: SpareMonitor, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PAUSE_S", 1.0)
    monkeypatch.setattr(streaming, "STATUS_S", 0.025)  # as 0.25 s is to 10 s
    qemu.answers["migrate-recover"] = [DECLINED]
    with pytest.raises(exception.StreamingError, match="postcopy is paused"):
        streaming._listening_again(None, "unix:/x", monitor)
    assert 0 < sum(one.get("execute") == "query-migrate" for one in qemu.asked) < 8


def test_without_it_qemu_is_asked_through_libvirt(
    monitor: SpareMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def qmp(_: Any, command: str, **words: Any) -> dict[str, Any]:
        asked.append(command)
        return {"status": "postcopy-paused"}

    monkeypatch.setattr(streaming, "qmp", qmp)
    assert streaming._listening_again(None, "unix:/x", monitor) == "postcopy-paused"
    assert asked == ["query-migrate", "migrate-recover"]


class Starting:
    """A player that listens only when it is asked the third time. ``alive``: it has not ended."""

    def __init__(self, alive: bool) -> None:
        self.spec = PlayerSpec("/r", "file:///s", "0" * 64, nbd_sockets={"vda": "/r/vda.sock"})
        self.alive = alive
        self.asked = 0

    def ask(self, _: str) -> dict[str, Any]:
        self.asked += 1
        if self.asked < 3:
            raise exception.PlayerGone("refused")
        return {"disks": {"clients": 1}}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"drv": "nbd", "node-name": "below", "file": "nbd+unix:///vda?socket=/r/vda.sock"}
    monkeypatch.setattr(streaming, "qmp_list", lambda *_: [node])


@pytest.mark.usefixtures("exported")
def test_a_player_whose_interpreter_starts_is_waited_for() -> None:
    player = Starting(alive=True)
    streaming.reconnect_disks(None, player)  # type: ignore[arg-type]
    assert player.asked == 3


@pytest.mark.usefixtures("exported")
def test_a_player_that_has_ended_is_not_waited_for() -> None:
    with pytest.raises(exception.PlayerGone):
        streaming.reconnect_disks(None, Starting(alive=False))  # type: ignore[arg-type]
