# SPDX-License-Identifier: Apache-2.0
"""A real guest is captured, published, and started by streaming: it is the same VM at the same
instant, no page differs, whatever happens to its player and its store.

Guest memory holds a pattern that a program in the guest checks all the time; the hash of a value
that lives only in its RAM shows that it was resumed and not booted.
"""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import numpy as np
import pytest

from lab import Lab
from lab.hosts import Host
from lab.probe import Report
from lab.processes import run
from lab.saved import relocated
from nova_enlightened import exception
from nova_enlightened.host import capture, players, publishing, save_image, streaming
from nova_enlightened.host.players import RunningPlayer
from nova_enlightened.host.spare_monitor import SpareMonitor
from nova_enlightened.host.streamed_xml import StreamedDisk, streamed_xml
from nova_enlightened.transfer.player_spec import PlayerSpec
from nova_enlightened.transfer.stores.writing import open_writable

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root"),
]
NAME = "kept"
PATIENCE_S = 240.0
KILLS = int(os.environ.get("ENLIGHTENED_KILLS", "3"))
"""How many guests lose their player."""
LATEST_KILL_S = 2.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(run=Path(f"/run/nel-st-{os.getpid()}"), link_mbit=2000) as started:
        yield started


@dataclasses.dataclass(frozen=True)
class Stored:
    """What was published, and of what."""

    lab: Lab
    host: Host
    memory: Path
    disk: Path
    size: int
    store: Path
    manifest: str
    token_hash: int

    @property
    def url(self) -> str:
        return f"file://{self.store}"


@pytest.fixture(scope="module")
def stored(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The guest at work, saved and published."""
    files = tmp_path_factory.mktemp("saved")
    assert lab.image is not None
    disk, memory, store = files / "disk.qcow2", files / "memory.save", files / "store"
    run(["qemu-img", "convert", "-O", "qcow2", str(lab.image.root), str(disk)])
    words = ("--memory", "64")
    guest = lab.guest(NAME, workload="checksum", memory_mib=256, arguments=words, disk=disk)
    guest.wait_ready()
    token_hash = guest.probe.wait_running(1.0).token_hash
    lab.hosts["host1"].virsh("save", NAME, str(memory))
    store.mkdir()
    taken = capture.from_files(str(memory), {"vda": str(disk)}, str(files), "2026-01-01T00:00:00Z")
    with contextlib.closing(open_writable(f"file://{store}")) as open_store:
        found = publishing.publish(taken, open_store, NAME)
    sizes = dict(found.manifest.disks)
    host = lab.hosts["host1"]
    return Stored(lab, host, memory, disk, sizes["vda"], store, found.digest, token_hash)


@dataclasses.dataclass
class Streamed:
    """A domain that was started from the store."""

    stored: Stored
    domain: libvirt.virDomain
    player: RunningPlayer
    monitor: SpareMonitor

    def state(self) -> dict[str, object]:
        return dict(self.player.state())

    def until(self, true: Callable[[dict[str, object]], bool]) -> dict[str, object]:
        """The first state of the player that is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not true(state := self.state()):
            assert time.monotonic() < deadline, json.dumps(state)
            time.sleep(0.02)
        return state

    def until_complete(self) -> dict[str, object]:
        return self.until(lambda state: state.get("phase") == "complete")

    def executing(self) -> Report:
        """Play it, and the first report of its guest."""
        probe = self.stored.lab.collector.probe(NAME)
        probe.restart()
        streaming.play(self.domain, self.player)
        streaming.wait_executing(self.domain, self.player, PATIENCE_S)
        return probe.wait_running(PATIENCE_S)

    def assert_same_and_whole(self) -> None:
        """It has checked all of its memory since now, and found nothing."""
        probe = self.stored.lab.collector.probe(NAME)
        before = probe.wait_running(PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while (seen := probe.wait_next(5.0)) is None or seen.detail < before.detail + 2:
            assert time.monotonic() < deadline, "the guest does not go on"
        assert seen.mismatches == 0
        assert seen.token_hash == self.stored.token_hash

    def recovered(self) -> None:
        prefix = self.stored.host.holder.entered([])
        self.player = streaming.recover(self.domain, self.player, prefix, self.monitor)

    def kill(self) -> None:
        os.kill(self.player.pid, signal.SIGKILL)
        os.waitpid(self.player.pid, 0)

    def end(self) -> None:
        """Domain, player and monitor."""
        with contextlib.suppress(libvirt.libvirtError):
            self.domain.destroy()
        self.player.stop(5.0)
        self.monitor.close()


Starter = Callable[..., Streamed]


@pytest.fixture
def start(stored: Stored, tmp_path: Path) -> Iterator[Starter]:
    """Starts domains, which are gone after the test."""
    started: list[Streamed] = []

    def make(flags: int = 0, **options: object) -> Streamed:
        host, directory = stored.host, f"/run/nova-enlightened/p{uuid.uuid4().hex[:8]}"
        host.make_directory(directory, 0o700)
        spec = PlayerSpec(
            **{
                "run_directory": directory,
                "store": stored.url,
                "manifest": stored.manifest,
                "qemu_socket": f"{directory}/qemu.sock",
                "nbd_sockets": {"vda": f"{directory}/vda.sock"},
                "cache_directory": str(tmp_path / "cache"),
                **options,
            }  # type: ignore[arg-type]
        )
        player = players.start(spec, host.holder.entered([]), host.outside)
        monitor = SpareMonitor(host.outside(f"{directory}/qmp.sock"))
        monitor.open()
        overlay = tmp_path / f"{uuid.uuid4()}.qcow2"
        streaming.make_overlay(str(overlay), "vda", spec.nbd_sockets["vda"], stored.size)
        xml = relocated(host, stored.memory, tmp_path / "console.log")
        disks = [StreamedDisk("vda", str(overlay), spec.nbd_sockets["vda"])]
        try:
            where = f"{directory}/qmp.sock"
            own = streamed_xml(xml, NAME, str(uuid.uuid4()), disks, where)
            domain = host.connection.createXML(own, flags)
        except BaseException:
            player.stop(5.0)
            monitor.close()
            raise
        started.append(Streamed(stored, domain, player, monitor))
        return started[-1]

    try:
        yield make
    finally:
        for each in started:
            each.end()


def pages_of(path: Path, directory: Path) -> tuple[dict[str, int], list[bytes]]:
    """Blocks of a saved file and every page, in order."""
    with save_image.opened(str(path), str(directory)) as image:
        blocks = {block.name: block.length for block in image.parts.blocks}
        pages = []
        for position in image.parts.positions.tolist():
            pages.append(bytes(image.stream[position : position + 4096]) if position >= 0 else b"")
        return blocks, pages


def test_it_is_the_same_vm_and_no_page_it_uses_differs(start: Starter) -> None:
    streamed = start()
    report = streamed.executing()
    assert report.token_hash == streamed.stored.token_hash
    streamed.assert_same_and_whole()
    streamed.until_complete()
    streamed.assert_same_and_whole()
    assert streaming.settle(streamed.domain, streamed.player)


def test_every_page_is_equal_to_the_capture(start: Starter, tmp_path: Path) -> None:
    streamed = start(libvirt.VIR_DOMAIN_START_PAUSED)
    streaming.qmp(
        streamed.domain,
        "migrate-set-capabilities",
        capabilities=[{"capability": "postcopy-ram", "state": True}],
    )
    uri = f"unix:{streamed.player.spec.qemu_socket}"
    streaming.qmp(streamed.domain, "migrate-incoming", uri=uri)
    streamed.player.play()
    streamed.until_complete()
    assert streaming.settle(streamed.domain, streamed.player)
    again = tmp_path / "again.save"
    streamed.domain.save(str(again))
    captured = pages_of(streamed.stored.memory, tmp_path)
    replayed = pages_of(again, tmp_path)
    assert captured[0] == replayed[0]
    zero = bytes(4096)
    differing = [
        number
        for number, (one, other) in enumerate(zip(captured[1], replayed[1], strict=True))
        if (one or zero) != (other or zero)
    ]
    assert len(captured[1]) > 60_000
    assert differing == []


def test_its_disk_is_equal_to_the_capture(start: Starter, tmp_path: Path) -> None:
    streamed = start()
    socket = streamed.stored.host.outside(streamed.player.spec.nbd_sockets["vda"])
    done = run(
        ["qemu-img", "compare", "-f", "raw", "-F", "qcow2",
         f"nbd+unix:///vda?socket={socket}", str(streamed.stored.disk)],
    )  # fmt: skip
    assert "identical" in done.stdout


def test_it_may_be_suspended_and_resumed_while_it_streams(start: Starter) -> None:
    streamed = start(tail="none")
    streamed.executing()
    streamed.domain.suspend()
    streamed.domain.resume()
    streamed.assert_same_and_whole()
    streamed.player.fill()
    streamed.until_complete()
    streamed.assert_same_and_whole()


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_player_comes_back(start: Starter, number: int) -> None:
    # So slow that it is killed in the middle, at any moment of a guest at work: also when QEMU
    # itself waits for a page, and its main loop answers nobody.
    streamed = start(bandwidth_limit=8e6)
    assert streamed.monitor.wait_ready(PATIENCE_S)
    streamed.executing()
    threading.Event().wait(random.Random(number).uniform(0.0, LATEST_KILL_S))
    assert streamed.state()["phase"] != "complete"
    streamed.kill()
    streamed.recovered()
    streamed.assert_same_and_whole()
    assert streamed.state()["error"] is None


def test_a_qemu_that_waits_for_a_page_itself_accepts_another_player(start: Starter) -> None:
    streamed = start(bandwidth_limit=8e6)
    assert streamed.monitor.wait_ready(PATIENCE_S)
    streamed.executing()
    streamed.kill()
    # It reads what nobody brings: its main loop stands still.
    part = {"val": 1 << 20, "size": 159 << 20, "filename": "/dev/null"}
    with pytest.raises(exception.MonitorSilent):
        streamed.monitor.ask("pmemsave", 2.0, out_of_band=False, **part)
    streamed.recovered()
    streamed.assert_same_and_whole()
    assert streamed.state()["error"] is None


def test_a_second_start_is_local(start: Starter, stored: Stored) -> None:
    first = start()
    first.executing()
    first.until_complete()
    first.domain.destroy()
    first.player.stop(5.0)
    away = stored.store.with_name("away")
    stored.store.rename(away)
    try:
        second = start()
        assert second.executing().token_hash == stored.token_hash
        state = second.until_complete()
        second.assert_same_and_whole()
        assert state["progress"]["bytes_from_store"] == 0  # type: ignore[index]
    finally:
        away.rename(stored.store)


def test_a_chunk_that_is_missing_fails_the_start_with_its_name(
    start: Starter, stored: Stored, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(stored.store, damaged)
    packs = sorted((damaged / "objects").rglob("*"), key=lambda path: path.stat().st_size)
    packs[-1].unlink()
    streamed = start(store=f"file://{damaged}")
    with pytest.raises(Exception, match=r"of RAM block|of disk") as caught:
        streamed.executing()
    assert packs[-1].name in str(caught.value)


def test_a_learning_run_brings_only_what_is_touched(start: Starter) -> None:
    streamed = start(record=True)
    streamed.executing()
    streamed.assert_same_and_whole()
    state = streamed.state()
    progress = state["progress"]
    assert isinstance(progress, dict)
    assert progress["memory_present"] < progress["memory"]
    trace = streamed.player.trace()
    assert trace.stat().st_size > 100
    assert np.frombuffer(trace.read_bytes()[:4], "S4")[0] == b"NETR"
