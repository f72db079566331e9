# SPDX-License-Identifier: Apache-2.0
"""A player process between a store over HTTP and a QEMU that is played by the test; its disks are
read by QEMU's own tools.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nova_enlightened import exception
from nova_enlightened.appliance.chunks import UNIT
from nova_enlightened.appliance.trace import Trace
from nova_enlightened.host import players
from nova_enlightened.transfer.player_spec import PlayerSpec
from tests.functional.incoming_qemu import IncomingQemu
from tests.functional.stored_appliance import Server, StoredAppliance, make, served

PATIENCE_S = 60.0
STORED_PAGE = ("pc.ram", 402 * UNIT)
ZERO_PAGE = ("pc.ram", 400 * UNIT)


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> StoredAppliance:
    return make(tmp_path_factory.mktemp("appliance"))


@dataclasses.dataclass
class Stage:
    """A player, and all around it."""

    appliance: StoredAppliance
    server: Server
    qemu: IncomingQemu
    directory: Path
    player: players.RunningPlayer | None = None

    def start(self, **options: Any) -> players.RunningPlayer:
        spec = PlayerSpec(
            **{
                "run_directory": str(self.directory / "run"),
                "store": self.server.url,
                "manifest": self.appliance.manifest,
                "qemu_socket": str(self.qemu.path),
                "nbd_sockets": {"vda": str(self.directory / "vda.sock")},
                "cache_directory": str(self.directory / "cache"),
                "connections": 4,
                **options,
            }
        )
        self.player = players.start(spec)
        return self.player

    def state(self) -> Mapping[str, Any]:
        assert self.player is not None
        return self.player.state()

    def until(self, true: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while not true(state := self.state()):
            assert time.monotonic() < deadline, json.dumps(dict(state))
            time.sleep(0.02)
        return state

    def until_phase(self, phase: str) -> Mapping[str, Any]:
        return self.until(lambda state: state.get("phase") == phase)

    def executing(self, **options: Any) -> None:
        """Play up to where the guest executes."""
        self.start(**options).play(PATIENCE_S)
        self.qemu.accept()
        self.qemu.loaded()

    def kill(self) -> None:
        assert self.player is not None
        os.kill(self.player.pid, signal.SIGKILL)
        os.waitpid(self.player.pid, 0)

    def resumed(self) -> None:
        """Another player takes the VM up."""
        assert self.player is not None
        self.qemu.hang_up()
        self.player = players.resumed(self.player)
        self.qemu.accept_resumed()

    def exit_status(self) -> int:
        assert self.player is not None
        return os.waitstatus_to_exitcode(os.waitpid(self.player.pid, 0)[1])

    @property
    def export(self) -> str:
        return f"nbd+unix:///vda?socket={self.directory}/vda.sock"


@pytest.fixture
def stage(appliance: StoredAppliance, tmp_path: Path) -> Iterator[Stage]:
    # Sockets' paths are bounded to 108 bytes, and pytest's own directories are long.
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(appliance.directory))
        short = Path(f"/tmp/ne-{os.getpid()}-{tmp_path.name[-12:]}")
        shutil.rmtree(short, ignore_errors=True)
        short.mkdir()
        stack.callback(shutil.rmtree, short, ignore_errors=True)
        qemu = IncomingQemu(short / "qemu.sock", appliance)
        stack.callback(qemu.close)
        made = Stage(appliance, server, qemu, short)
        try:
            yield made
        finally:
            if made.player is not None:
                made.player.stop(5.0)


def test_all_memory_arrives_once_and_as_captured(stage: Stage) -> None:
    stage.executing()
    stage.qemu.all_pages()
    stage.qemu.assert_whole()
    assert not stage.qemu.zeros
    state = stage.until_phase("complete")
    assert state["error"] is None
    assert state["percent"] == 100.0
    assert state["progress"]["bytes_from_cache"] == 0


def test_nothing_is_played_before_it_is_said(stage: Stage) -> None:
    player = stage.start()
    state = stage.until(lambda state: state.get("ready"))
    assert state["phase"] == "buffering"
    stage.qemu.listener.settimeout(0.2)
    with pytest.raises(TimeoutError):
        stage.qemu.accept()
    stage.qemu.listener.settimeout(PATIENCE_S)
    player.play()
    stage.qemu.accept()


def test_faults_are_served_before_the_devices_are_loaded(stage: Stage) -> None:
    stage.start().play(PATIENCE_S)
    stage.qemu.accept()
    stage.qemu.ask(*STORED_PAGE)
    stage.qemu.until(STORED_PAGE)
    # Nothing but what the devices touch, and what lies in one chunk with it.
    assert len(stage.qemu.order) <= 4
    stage.qemu.loaded()
    stage.qemu.all_pages()
    stage.qemu.assert_whole()


def test_a_page_of_zeros_that_is_asked_for_is_answered_as_zeros(stage: Stage) -> None:
    stage.executing(record=True)
    stage.qemu.ask(*ZERO_PAGE)
    stage.qemu.until(ZERO_PAGE)
    assert stage.qemu.zeros == {ZERO_PAGE}


def test_a_learning_run_brings_what_is_asked_for_and_records_it(stage: Stage) -> None:
    stage.executing(record=True)
    stage.qemu.ask(*STORED_PAGE)
    stage.qemu.until(STORED_PAGE)
    assert len(stage.qemu.order) <= 4
    assert stage.player is not None
    path = stage.player.trace()
    whole = sum(map(len, stage.appliance.memory.values())) + len(stage.appliance.disk) + 512
    trace = Trace.decode(path.read_bytes(), whole // UNIT)
    assert trace.learning
    assert trace.places.tolist() == [402]
    stage.player.fill()
    stage.qemu.all_pages()
    stage.qemu.assert_whole()


def test_a_learning_run_sees_a_page_touched_whose_chunk_came_for_another(stage: Stage) -> None:
    block, address = STORED_PAGE
    neighbour = (block, address - 3 * UNIT)  # between them is nothing that is stored here first
    stage.executing(record=True)
    stage.qemu.ask(*STORED_PAGE)
    stage.qemu.until(STORED_PAGE)
    assert neighbour not in stage.qemu.memory
    stage.qemu.ask(*neighbour)
    stage.qemu.until(neighbour)
    state = stage.until(lambda state: state["touched"] == 2)
    assert state["progress"]["fetches"] == 1


@pytest.mark.parametrize("taken", [0, 1, 37, 200, 400])
def test_a_killed_player_comes_back_and_no_page_comes_twice(stage: Stage, taken: int) -> None:
    stage.executing(bandwidth_limit=2e6)
    pages = stage.qemu.pages()
    for _ in range(taken):
        next(pages)
    stage.kill()
    stage.resumed()
    if STORED_PAGE not in stage.qemu.memory:
        stage.qemu.ask(*STORED_PAGE)
    stage.qemu.all_pages()
    stage.qemu.assert_whole()
    stage.until_phase("complete")


def test_what_was_asked_for_of_a_killed_player_is_asked_again_of_the_next(stage: Stage) -> None:
    stage.executing(record=True)
    stage.server.misbehave("500")
    stage.qemu.ask(*STORED_PAGE)
    stage.until(lambda state: state.get("memory", {}).get("waiting") == 1)
    stage.kill()
    stage.server.misbehave("")
    stage.resumed()
    stage.qemu.ask(*STORED_PAGE)
    stage.qemu.until(STORED_PAGE)


def test_a_second_player_needs_no_store(stage: Stage) -> None:
    stage.executing()
    stage.qemu.all_pages()
    stage.until_phase("complete")
    assert stage.player is not None
    stage.player.stop(5.0)
    stage.qemu.close()
    stage.server.misbehave("500")
    stage.qemu = IncomingQemu(stage.directory / "qemu.sock", stage.appliance)
    stage.executing()
    stage.qemu.all_pages()
    stage.qemu.assert_whole()
    stage.until_phase("complete")
    whole = stage.directory / "vda.raw"
    tool("qemu-img", "convert", "-f", "raw", "-O", "raw", stage.export, str(whole))
    assert whole.read_bytes() == stage.appliance.disk
    assert stage.state()["progress"]["bytes_from_store"] == 0


def test_a_damaged_cache_is_fetched_again(stage: Stage) -> None:
    stage.executing()
    stage.qemu.all_pages()
    stage.until_phase("complete")
    assert stage.player is not None
    stage.player.stop(5.0)
    stage.qemu.close()
    (damaged,) = (stage.directory / "cache").glob(f"{stage.appliance.packs[0]}.pack")
    with damaged.open("r+b") as file:
        file.seek(1000)
        file.write(b"not what it was" * 10)
    stage.qemu = IncomingQemu(stage.directory / "qemu.sock", stage.appliance)
    stage.executing()
    stage.qemu.all_pages()
    stage.qemu.assert_whole()
    assert stage.until_phase("complete")["progress"]["bytes_from_store"] > 0


def test_a_full_cache_disk_is_gone_on_without(stage: Stage) -> None:
    spec = PlayerSpec(
        run_directory=str(stage.directory / "run"),
        store=stage.server.url,
        manifest=stage.appliance.manifest,
        qemu_socket=str(stage.qemu.path),
        cache_directory=str(stage.directory / "cache"),
    )
    # No file may grow beyond 16 KiB, as if the disk were full.
    stage.player = players.start(spec, ["prlimit", "--fsize=16384"])
    stage.player.play(PATIENCE_S)
    stage.qemu.accept()
    stage.qemu.loaded()
    stage.qemu.all_pages()
    stage.qemu.assert_whole()
    stage.until(lambda state: state.get("ended"))
    assert stage.state()["cache"]["trouble"] == "the cache's disk is full"


@pytest.mark.parametrize("misdeed", ["500", "truncated", "changed"])
def test_what_a_server_does_wrong_for_a_while_is_overcome(stage: Stage, misdeed: str) -> None:
    stage.server.misbehave(misdeed, stage.appliance.packs[0], times=2)
    stage.executing()
    stage.qemu.all_pages()
    stage.qemu.assert_whole()
    assert stage.until_phase("complete")["error"] is None


@pytest.mark.parametrize("misdeed", ["500", "truncated", "changed", "missing", "ignores ranges"])
def test_a_chunk_that_cannot_be_had_fails_the_start_by_name(stage: Stage, misdeed: str) -> None:
    pack = stage.appliance.packs[0]
    stage.server.misbehave(misdeed, pack)
    stage.start()
    state = stage.until_phase("failed")
    assert f"of pack {pack}" in state["error"]
    assert "of RAM block pc.ram" in state["error"]
    assert not stage.qemu.memory
    # QEMU may just be about to open the disk: it is not what it fails for.
    done = tool("qemu-io", "-r", "-f", "raw", "-c", "read 8192 512", stage.export, check=False)
    assert "Input/output error" in done.stderr + done.stdout
    assert stage.player is not None
    stage.player.stop()
    assert stage.exit_status() == 1


def test_a_guest_that_executes_waits_for_what_cannot_be_had(stage: Stage) -> None:
    stage.executing(record=True)
    stage.server.misbehave("changed")
    stage.qemu.ask(*STORED_PAGE)
    state = stage.until_phase("failed")
    assert "byte 0x192000 of RAM block pc.ram" in state["error"]
    assert not stage.qemu.memory
    stage.server.misbehave("")
    stage.qemu.until(STORED_PAGE)
    start = STORED_PAGE[1]
    expected = stage.appliance.memory["pc.ram"][start : start + UNIT]
    assert stage.qemu.memory[STORED_PAGE] == expected
    stage.until_phase("streaming")


def test_a_manifest_that_is_not_the_one_asked_for_is_refused(stage: Stage) -> None:
    stage.server.misbehave("changed", stage.appliance.manifest)
    stage.start()
    state = stage.until_phase("failed")
    assert stage.appliance.manifest in state["error"]
    assert stage.exit_status() == 1


def test_a_qemu_that_gives_up_ends_the_player(stage: Stage) -> None:
    stage.executing(record=True)
    stage.qemu.hang_up()
    assert "QEMU closed" in stage.until_phase("failed")["error"]
    assert stage.exit_status() == 1


def test_a_request_outside_of_memory_ends_the_player(stage: Stage) -> None:
    stage.executing(record=True)
    stage.qemu.ask("pc.ram", 1 << 40)
    assert "outside RAM block" in stage.until_phase("failed")["error"]


# -- disks ----------------------------------------------------------------------------------------


def tool(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=check,
        timeout=PATIENCE_S,
    )


def test_the_disk_reads_as_captured(stage: Stage) -> None:
    stage.start()
    whole = stage.directory / "vda.raw"
    tool("qemu-img", "convert", "-f", "raw", "-O", "raw", stage.export, str(whole))
    assert whole.read_bytes() == stage.appliance.disk


def test_a_read_on_demand_brings_no_more_than_its_chunks(stage: Stage) -> None:
    stage.start(record=True)
    at = 2 * UNIT + 17
    done = tool("qemu-io", "-r", "-f", "raw", "-c", f"read -v {at} 16", stage.export)
    shown = stage.appliance.disk[at : at + 16].hex()
    assert shown in "".join(line[10:58].replace(" ", "") for line in done.stdout.splitlines())
    state = stage.until(lambda state: state.get("disks", {}).get("reads"))
    assert state["progress"]["present"] < state["progress"]["places"] / 2


def test_zeros_are_told_without_a_fetch(stage: Stage) -> None:
    stage.start(record=True)
    done = tool("qemu-img", "map", "--output=json", "-f", "raw", stage.export)
    extents = json.loads(done.stdout)
    assert extents[0] | {"start": 0, "length": UNIT, "zero": True} == extents[0]
    assert sum(extent["length"] for extent in extents) == len(stage.appliance.disk)
    for extent in extents:
        data = stage.appliance.disk[extent["start"] : extent["start"] + extent["length"]]
        assert extent["zero"] is not any(data)
    state = stage.until(lambda state: "fetches" in state.get("progress", {}))
    assert state["progress"]["fetches"] == 0


def test_the_disk_cannot_be_written(stage: Stage) -> None:
    stage.start(record=True)
    done = tool("qemu-io", "-f", "raw", "-c", "write 0 4096", stage.export, check=False)
    assert done.returncode != 0
    assert "Permission denied" in done.stderr


def test_many_clients_read_at_once(stage: Stage) -> None:
    stage.start()
    files = [stage.directory / f"copy-{number}" for number in range(6)]
    threads = [
        threading.Thread(
            target=tool,
            args=("qemu-img", "convert", "-f", "raw", "-O", "raw", stage.export, str(f)),
        )
        for f in files
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(file.read_bytes() == stage.appliance.disk for file in files)


def test_a_read_waits_for_what_cannot_be_had_and_is_answered_when_it_can(stage: Stage) -> None:
    stage.executing(record=True)
    stage.server.misbehave("500")
    found: list[subprocess.CompletedProcess[str]] = []
    words = ("qemu-io", "-r", "-f", "raw", "-c", f"read {2 * UNIT} 4096", stage.export)
    reader = threading.Thread(target=lambda: found.append(tool(*words)))
    reader.start()
    state = stage.until_phase("failed")
    assert "of disk vda" in state["error"]
    stage.server.misbehave("")
    reader.join(PATIENCE_S)
    assert "4096/4096" in found[0].stdout


def test_a_disk_without_its_memory_is_served(stage: Stage) -> None:
    stage.start(qemu_socket=None)
    whole = stage.directory / "vda.raw"
    tool("qemu-img", "convert", "-f", "raw", "-O", "raw", stage.export, str(whole))
    assert whole.read_bytes() == stage.appliance.disk
    assert stage.until_phase("complete")["memory"] == {}
    assert stage.player is not None
    with pytest.raises(exception.PlayerError, match="no memory"):
        stage.player.play()


def test_who_does_not_speak_nbd_is_dropped_alone(stage: Stage) -> None:
    stage.start(record=True)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(PATIENCE_S)
        stranger.connect(str(stage.directory / "vda.sock"))
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 4)
        while stranger.recv(4096):
            pass
    done = tool("qemu-io", "-r", "-f", "raw", "-c", "read 0 4096", stage.export)
    assert "4096/4096" in done.stdout
