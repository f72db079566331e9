# SPDX-License-Identifier: Apache-2.0
"""The laboratory itself, on real libvirt and QEMU."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from lab import Lab, processes
from lab.errors import LabError
from lab.migration import migrate
from lab.way import Way

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root"),
]
TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    # Socket paths are bounded to 108 bytes, and pytest's own directories are long.
    with Lab(run=Path(f"/run/nel-test-{os.getpid()}"), link_mbit=800) as started:
        yield started


def program(run: Path, body: str) -> "subprocess.Popen[str]":
    """A process of its own that brings a laboratory up in ``run``, then does ``body``."""
    text = f"from pathlib import Path\nfrom lab import Lab\nlab = Lab(run=Path({str(run)!r}))\n"
    return subprocess.Popen(
        [sys.executable, "-c", text + body], cwd=TOP, stdout=subprocess.PIPE, text=True
    )


def token_in(run: Path) -> str:
    return str(json.loads((run / "state.json").read_text())["token"])


def test_both_hosts_answer_with_names_of_their_own(lab: Lab) -> None:
    status = lab.status()
    assert set(status["hosts"]) == {"host1", "host2"}
    for name, host in lab.hosts.items():
        assert host.connection.getHostname() == name
        assert host.run(["hostname"]).stdout.strip() == name
    assert lab.acceleration in ("KVM", "TCG")


def test_equal_paths_on_two_hosts_are_different_files(lab: Lab) -> None:
    path = "/run/nova-enlightened/who"
    for name, host in lab.hosts.items():
        host.run(["sh", "-c", f"echo {name} > {path}"])
    for name, host in lab.hosts.items():
        assert host.outside(path).read_text().strip() == name


def test_the_link_is_held_to_its_rate(lab: Lab) -> None:
    one, two = lab.hosts["host1"], lab.hosts["host2"]
    lab.link.shape(80)
    try:
        listening = two.holder.in_network(lambda: socket.create_server((two.address, 0)))
        address = listening.getsockname()
        with listening, one.holder.in_network(lambda: socket.create_connection(address)) as sent:
            received, _ = listening.accept()
            with received:
                sent.setblocking(False)
                began, size = time.monotonic(), 0
                while time.monotonic() < began + 1.0:
                    try:
                        sent.send(bytes(1 << 16))
                    except BlockingIOError:
                        pass
                    size += len(received.recv(1 << 20))
                rate = size / (time.monotonic() - began)
    finally:
        lab.link.shape(800)
    assert 3e6 < rate < 11e6  # 10 MB/s, and tbf's bucket once


def test_a_guest_stays_the_same_vm_through_postcopy(lab: Lab) -> None:
    guest = lab.guest("same", workload="checksum", arguments=("--memory", "100"), wait=True)
    try:
        before = guest.probe.wait_running(1.0)
        # Switched at once: QEMU 7.2 under TCG may lose what the guest writes during a pass.
        assert migrate(lab, guest, Way.STOCK).failure is None
        assert guest.host.name == "host2"
        moved = time.monotonic()
        while (after := guest.probe.wait_next(10.0)) is not None and after.time < moved + 0.5:
            pass
        assert after is not None
        assert after.token_hash == before.token_hash
        assert after.mismatches == 0
        assert after.operations > before.operations
        assert guest.channel().is_socket()
    finally:
        guest.destroy()
    assert lab.hosts["host2"].domains() == {}


def test_hot_pages_are_scattered_in_physical_memory(lab: Lab) -> None:
    wanted = ("--memory", "64", "--hot", "16", "--freed", "0")
    guest = lab.guest("hot", workload="scattered", arguments=wanted, wait=True)
    try:
        runs = guest.probe.wait_running(1.0).detail
        assert runs > 2000  # of 4096 pages, a quarter of the memory: 3072 expected
    finally:
        guest.destroy()


def test_load_on_redis_reports_as_its_guest(lab: Lab) -> None:
    guest = lab.guest("db", workload="redis", wait=True)
    try:
        load = lab.redis_load(guest, keys=5000)
        began = guest.probe.wait_running(60.0).time
        while (latest := guest.probe.wait_next(10.0)) is not None and latest.time < began + 1.0:
            load.check()
        assert guest.probe.rate(began, began + 1.0) > 50
        load.stop()
    finally:
        guest.destroy()


def test_processors_of_a_host_are_all_that_its_guests_get() -> None:
    processor = min(os.sched_getaffinity(0))
    with Lab(run=Path(f"/run/nel-pin-{os.getpid()}"), cpus={"host1": {processor}}) as lab:
        guest = lab.guest("pin", workload="idle")
        tasks = Path(f"/proc/{guest.qemu_pid()}/task").iterdir()
        assert {frozenset(os.sched_getaffinity(int(t.name))) for t in tasks} == {
            frozenset({processor})
        }


def test_a_second_laboratory_in_the_same_place_is_refused(lab: Lab) -> None:
    with pytest.raises(LabError, match="has a laboratory"):
        Lab(run=lab.run_dir).up()
    another = Lab(run=lab.run_dir)
    with pytest.raises(LabError, match="has a laboratory"):
        another.down()
    assert lab.hosts["host1"].connection.isAlive()


def test_what_a_killed_process_left_is_cleared() -> None:
    run = Path(f"/run/nel-killed-{os.getpid()}")
    with program(run, "lab.up()\nlab.guest('left', workload='idle')\nprint(1, flush=True)\n"
                      "import signal\nsignal.pause()\n") as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
    token = token_in(run)
    assert len(list(processes.belonging_to(token))) >= 6  # 3 holders, 2 libvirtd, QEMU
    assert Lab(run=run).down() >= 6
    assert not list(processes.belonging_to(token))
    assert not run.exists()


def test_a_signal_in_the_block_leaves_nothing() -> None:
    run = Path(f"/run/nel-term-{os.getpid()}")
    with program(run, "with lab:\n    print(1, flush=True)\n    import signal\n"
                      "    signal.pause()\n") as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline()
        token = token_in(run)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert not list(processes.belonging_to(token))
    assert not run.exists()


def test_a_process_that_only_has_a_recorded_number_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        holders = {"ctl": {"pid": bystander.pid, "started": 1}}
        state = {"token": "gone", "owner": {"pid": bystander.pid, "started": 1}, "holders": holders}
        (tmp_path / "state.json").write_text(json.dumps(state))
        assert Lab(run=tmp_path).down() == 0
        assert bystander.poll() is None
        bystander.kill()


def test_libvirt_errors_are_told_as_the_laboratorys(lab: Lab) -> None:
    with pytest.raises(LabError, match="bad on host1"):
        lab.guest("bad", machine="nonsense")
    assert "bad" not in lab.guests
    with pytest.raises(libvirt.libvirtError):
        lab.hosts["host1"].connection.lookupByName("bad")
