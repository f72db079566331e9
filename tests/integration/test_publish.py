# SPDX-License-Identifier: Apache-2.0
"""Capturing and publishing VMs of a real libvirt and QEMU."""

import hashlib
import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import libvirt
import numpy as np
import pytest

from lab import Lab
from lab.guests import Guest
from nova_enlightened.appliance.chunks import UNIT
from nova_enlightened.cmd.manage import command, context
from nova_enlightened.cmd.manage.context import Context
from nova_enlightened.host import capture as capturing
from nova_enlightened.host import captured_xml, connection, publishing
from nova_enlightened.host.capture import Capture, DomainCapture
from nova_enlightened.transfer.stores.writing import WritableStore, open_writable
from tests.functional.published import contents
from tests.functional.published import expected as captured

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root"),
]
MOMENT = "2030-01-02T03:04:05+00:00"
MIB = 1 << 20
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    connection.run_event_loop()
    with Lab(run=Path(f"/run/nel-publish-{os.getpid()}"), link_mbit=800) as started:
        yield started


@pytest.fixture
def store(tmp_path: Path) -> WritableStore:
    return open_writable(f"file://{tmp_path}/store")


def disk(directory: Path) -> Path:
    """A qcow2 of 64 MiB on a base image, with something in both."""
    base, top = directory / "base.qcow2", directory / "disk.qcow2"
    for words in (
        ["qemu-img", "create", "-q", "-f", "qcow2", str(base), "64M"],
        ["qemu-io", "-c", "write -P 0x41 1M 2M", str(base)],
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(top)],
        ["qemu-io", "-c", "write -P 0x42 2M 64k", str(top)],
    ):
        subprocess.run(words, check=True, capture_output=True)
    return top


def device(path: Path) -> str:
    return (
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file='{path}'/><target dev='vdb' bus='virtio'/></disk>"
    )


@pytest.fixture
def guest(lab: Lab, tmp_path: Path) -> Iterator[Guest]:
    """Memory under test all the time, and a disk that may be written to."""
    wanted: dict[str, Any] = {"memory_mib": 320, "devices": device(disk(tmp_path))}
    arguments = ("--memory", "80")
    # A name of its own: reports are kept by name.
    made = lab.guest(
        f"pub{next(NUMBERS)}", workload="checksum", arguments=arguments, wait=True, **wanted
    )
    yield made
    made.destroy()


def source_of(guest: Guest, target: str) -> str:
    listed = captured_xml.disks(guest.domain.XMLDesc(0))
    return next(one.path for one in listed if one.target == target)


def told(record: Any, **figures: float) -> None:
    """Figures go into the report of the tests (``--junit-xml``)."""
    for name, value in figures.items():
        record(name, value)


def sees_no_difference(guest: Guest, token: int) -> bool:
    """Whether the guest goes on, as the same VM, and finds its memory right."""
    before = guest.probe.latest
    assert before is not None
    while (after := guest.probe.wait_next(10.0)) is not None:
        if after.operations > before.operations + 2000:
            return after.token_hash == token and after.mismatches == 0
    return False


def differing(store: WritableStore, published: publishing.Published, capture: Capture) -> int:
    """Places at which the store is not the capture."""
    got = np.frombuffer(contents(store, published), np.uint8).reshape(-1, UNIT)
    expected = np.frombuffer(captured(capture), np.uint8).reshape(-1, UNIT)
    assert got.shape == expected.shape
    return int((got != expected).any(axis=1).sum())


@pytest.mark.parametrize("live", [False, True])
def test_a_guest_goes_on_and_the_store_has_what_it_was(
    guest: Guest,
    store: WritableStore,
    tmp_path: Path,
    live: bool,
    record_property: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # This guest changes its memory as fast as it is written out.
    monkeypatch.setattr(capturing, "CONVERGE_S", 3.0)
    token = guest.probe.wait_running(1.0).token_hash
    before = source_of(guest, "vdb")
    base = hashlib.sha256((tmp_path / "base.qcow2").read_bytes()).hexdigest()
    work = tmp_path / "work"
    capture = DomainCapture(guest.domain, str(work), live).run(MOMENT)
    assert sees_no_difference(guest, token)
    # It is on its own disk again, and what lies below that was left alone.
    assert source_of(guest, "vdb") == before
    assert not list(work.glob("*.overlay"))
    assert hashlib.sha256((tmp_path / "base.qcow2").read_bytes()).hexdigest() == base
    assert capture.stopped_s is not None
    assert 0 < capture.stopped_s < 30
    told(record_property, stopped_s=capture.stopped_s)

    published = publishing.publish(capture, store, "pub")
    assert published.manifest.space().memory_pages > 320 * MIB // UNIT
    assert differing(store, published, capture) == 0
    raw = np.fromfile(capture.disks["vdb"], np.uint8)
    assert raw.size == 64 * MIB
    assert set(np.unique(raw[MIB : 2 * MIB])) == {0x41}
    assert set(np.unique(raw[2 * MIB : 2 * MIB + 65536])) == {0x42}
    assert raw[3 * MIB :].max() == 0


def test_a_second_capture_stores_what_changed_only(
    lab: Lab, store: WritableStore, tmp_path: Path, record_property: Any
) -> None:
    wanted: dict[str, Any] = {"memory_mib": 320, "devices": device(disk(tmp_path))}
    guest = lab.guest("twice", workload="idle", wait=True, **wanted)
    try:
        first = DomainCapture(guest.domain, str(tmp_path / "one")).run(MOMENT)
        parent = publishing.publish(first, store, "one")
        assert sees_time_pass(guest)
        second = DomainCapture(guest.domain, str(tmp_path / "two")).run(MOMENT)
    finally:
        guest.destroy()
    known = publishing.read_parent(store, parent.digest)
    child = publishing.publish(second, store, "two", known)
    told(record_property, parent_bytes=parent.new_bytes, child_bytes=child.new_bytes)
    assert child.manifest.parent == parent.digest
    assert child.new_bytes < parent.new_bytes / 10
    assert differing(store, child, second) == 0


def test_what_the_other_release_of_qemu_saves_is_published_too(
    store: WritableStore,
) -> None:
    with Lab(run=Path(f"/run/nel-pub10-{os.getpid()}"), release="trixie") as there:
        # Its hosts see the laboratory's own directories only.
        wanted: dict[str, Any] = {"memory_mib": 256, "devices": device(disk(there.run_dir))}
        guest = there.guest("ten", workload="idle", wait=True, **wanted)
        capture = DomainCapture(guest.domain, str(there.run_dir / "work")).run(MOMENT)
        assert sees_time_pass(guest)
        done = publishing.publish(capture, store, "ten")
        assert done.manifest.qemu_version.startswith("10.")
        assert differing(store, done, capture) == 0


def sees_time_pass(guest: Guest) -> bool:
    before = guest.probe.latest
    after = guest.probe.wait_next(10.0)
    return before is not None and after is not None and after.sequence > before.sequence


def test_an_overlay_that_a_dead_process_left_is_committed_back(
    guest: Guest, tmp_path: Path
) -> None:
    before = source_of(guest, "vdb")
    work = tmp_path / "work"
    work.mkdir()
    xml = f"""<domainsnapshot><disks><disk name='vda' snapshot='no'/>
      <disk name='vdb' snapshot='external'><source file='{work}/vdb.overlay'/></disk>
      </disks></domainsnapshot>"""
    guest.domain.snapshotCreateXML(
        xml,
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY,
    )
    assert source_of(guest, "vdb") == f"{work}/vdb.overlay"
    DomainCapture(guest.domain, str(work)).give_back()
    assert source_of(guest, "vdb") == before
    assert not list(work.iterdir())


def test_a_guest_is_published_from_the_command_line(
    lab: Lab, guest: Guest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = guest.probe.wait_running(1.0).token_hash
    file = tmp_path / "manage.conf"
    uri = lab.hosts["host1"].libvirt_uri()
    file.write_text(f"[enlightened_agent]\nhost = host1\nlibvirt_uri = {uri}\n")
    there = Context(context.read([str(file)]), cast("Any", None), cast("Any", None), lambda *_: [])

    def run(*words: str) -> Any:
        asked = ["appliance", *words, "--store", f"file://{tmp_path}/store", "--json"]
        status = command.run(command.parser().parse_args(asked), there)
        assert status == 0
        return json.loads(capsys.readouterr().out)

    uuid = guest.domain.UUIDString()
    work = tmp_path / "work"
    words = ("publish", "--server", uuid, "--name", "pub", "--work-directory", str(work))
    published = run(*words)
    assert sees_no_difference(guest, token)
    assert published["stopped_seconds"] > 0
    assert not list(work.iterdir())
    assert run("verify", published["manifest"])["wrong"] == []
    shown = run("show", published["manifest"])
    assert shown["disks"]["vdb"] == 64 * MIB
    assert shown["qemu_version"] == lab.status()["hosts"]["host1"]["qemu"]
    assert [one["name"] for one in run("list")] == ["pub"]
