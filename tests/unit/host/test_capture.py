# SPDX-License-Identifier: Apache-2.0
"""Capturing against a domain that does what it is told; the real thing is in integration."""

import os
import pathlib
import stat
import threading
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest

from nova_enlightened.exception import CaptureError, CaptureRefused
from nova_enlightened.host import capture, captured_disk
from nova_enlightened.host.capture import DomainCapture

XML = """<domain type='{kind}'><name>one</name><memory unit='KiB'>1024</memory><devices>
<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{path}'/>
<target dev='vda' bus='virtio'/></disk>
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>
<target dev='sda' bus='sata'/></disk>
</devices></domain>"""
PAUSED, RUNNING = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_RUNNING
MOMENT = "2030-01-02T03:04:05+00:00"


class Domain:
    """In place of a virDomain, and of its connection."""

    def __init__(self, disk: pathlib.Path) -> None:
        self.path, self.format, self.kind = str(disk), "qcow2", "qemu"
        self.below = self.path
        self.running = RUNNING
        self.calls: list[str] = []
        self.flags = self.commit_flags = 0
        self.during: Callable[[], None] = lambda: None
        self.ready = True
        self.told: Any = None
        self.job = False

    def name(self) -> str:
        return "one"

    def connect(self) -> "Domain":
        return self

    def getVersion(self) -> int:
        return 7002022

    def XMLDesc(self, _flags: int) -> str:
        return XML.format(
            kind=self.kind,
            path=self.path,
            format="qcow2" if self.path != self.below else self.format,
        )

    def info(self) -> list[int]:
        return [self.running, 1024, 1024, 1, 0]

    def state(self) -> list[int]:
        return [self.running, 0]

    def suspend(self) -> None:
        self.calls.append("suspend")
        self.running = PAUSED

    def resume(self) -> None:
        self.calls.append("resume")
        self.running = RUNNING

    def domainEventRegisterAny(self, _domain: Any, _event: int, told: Any, _: Any) -> int:
        self.told = told
        return 1

    def domainEventDeregisterAny(self, _number: int) -> None:
        self.told = None

    def snapshotCreateXML(self, xml: str, flags: int) -> None:
        self.calls.append("snapshot")
        self.flags = flags
        root = ElementTree.fromstring(xml)
        memory, source = root.find("memory"), root.find("disks/disk[@name='vda']/source")
        assert memory is not None
        pathlib.Path(memory.get("file", "")).write_bytes(b"memory")
        self.told(self, self, libvirt.VIR_DOMAIN_EVENT_SUSPENDED, 0, None)
        self.during()
        if source is not None:
            self.path = source.get("file", "")
            pathlib.Path(self.path).write_bytes(b"overlay")
        self.told(self, self, libvirt.VIR_DOMAIN_EVENT_RESUMED, 0, None)
        kinds = {one.get("name"): one.get("snapshot") for one in root.iterfind("disks/disk")}
        assert kinds == {"vda": "external", "sda": "no"}

    def blockJobInfo(self, _target: str, _flags: int) -> dict[str, int]:
        return {"cur": 1, "end": 1} if self.job and self.ready else {}

    def blockCommit(self, _target: str, base: Any, top: Any, _speed: int, flags: int) -> None:
        assert (base, top) == (None, None)
        self.calls.append("commit")
        self.commit_flags = flags
        self.job = True

    def blockJobAbort(self, _target: str, flags: int) -> None:
        assert flags == libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
        self.calls.append("pivot")
        self.path, self.job = self.below, False


@pytest.fixture
def domain(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Domain:
    def flatten(source: str, _format: str, target: str) -> None:
        pathlib.Path(target).write_bytes(pathlib.Path(source).read_bytes())

    monkeypatch.setattr(captured_disk, "flatten", flatten)
    (tmp_path / "disk").write_bytes(b"contents")
    return Domain(tmp_path / "disk")


def test_a_domain_is_captured_and_is_what_it_was(domain: Domain, tmp_path: pathlib.Path) -> None:
    work = tmp_path / "work"
    found = DomainCapture(domain, str(work)).run(MOMENT)
    assert domain.calls == ["snapshot", "commit", "pivot"]
    assert domain.path == domain.below
    assert pathlib.Path(found.disks["vda"]).read_bytes() == b"contents"
    assert found.qemu_version == "7.2.22"
    assert found.created == MOMENT
    assert found.stopped_s is not None
    assert not (work / "vda.overlay").exists()
    assert capture.recorded(str(work)) == found


def test_only_the_image_right_below_is_committed_into(
    domain: Domain, tmp_path: pathlib.Path
) -> None:
    # What lies deeper is the base of other servers too.
    DomainCapture(domain, str(tmp_path / "work")).run(MOMENT)
    assert domain.commit_flags & libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
    assert domain.commit_flags & libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE


@pytest.mark.parametrize(
    "kind, asked, live", [("qemu", None, False), ("kvm", None, True), ("kvm", False, False)]
)
def test_a_guest_executes_meanwhile_where_that_is_safe(
    domain: Domain, tmp_path: pathlib.Path, kind: str, asked: bool | None, live: bool
) -> None:
    domain.kind = kind
    DomainCapture(domain, str(tmp_path / "work"), asked).run(MOMENT)
    assert bool(domain.flags & libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE) is live
    assert domain.flags & libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA


def test_a_guest_that_changes_too_fast_is_stopped_and_goes_on(
    domain: Domain, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()
    suspend = domain.suspend

    def noted() -> None:
        suspend()
        stopped.set()

    monkeypatch.setattr(domain, "suspend", noted)
    monkeypatch.setattr(capture, "CONVERGE_S", 0.01)
    domain.during = lambda: assert_true(stopped.wait(30))
    DomainCapture(domain, str(tmp_path / "work"), live=True).run(MOMENT)
    assert domain.calls[:3] == ["snapshot", "suspend", "resume"]
    assert domain.running == RUNNING


def assert_true(value: bool) -> None:
    assert value


def test_a_copy_that_fails_leaves_the_domain_on_its_own_disk(
    domain: Domain, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: str) -> None:
        raise CaptureError("disk full")

    monkeypatch.setattr(captured_disk, "flatten", fail)
    with pytest.raises(CaptureError, match="disk full"):
        DomainCapture(domain, str(tmp_path / "work")).run(MOMENT)
    assert domain.path == domain.below
    assert capture.recorded(str(tmp_path / "work")) is None


def test_an_overlay_left_behind_is_committed_first(domain: Domain, tmp_path: pathlib.Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    domain.path = str(work / "vda.overlay")
    (work / "vda.overlay").write_bytes(b"overlay")
    DomainCapture(domain, str(work)).run(MOMENT)
    assert domain.calls == ["commit", "pivot", "snapshot", "commit", "pivot"]


def test_an_overlay_that_is_not_committed_stays_and_the_way_out_is_told(
    domain: Domain, tmp_path: pathlib.Path
) -> None:
    work = tmp_path / "work"
    domain.ready = False
    with pytest.raises(CaptureError, match=r"blockcommit one vda --shallow --active --pivot"):
        DomainCapture(domain, str(work)).run(MOMENT)
    assert (work / "vda.overlay").exists()


def test_a_server_that_does_not_execute_is_refused(domain: Domain, tmp_path: pathlib.Path) -> None:
    domain.running = PAUSED
    with pytest.raises(CaptureRefused, match="does not execute"):
        DomainCapture(domain, str(tmp_path / "work")).run(MOMENT)
    assert domain.calls == []


def test_a_directory_without_room_is_refused_before_anything_stops(
    domain: Domain, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = capture.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(capture.shutil, "disk_usage", lambda _: free)
    with pytest.raises(CaptureError, match="--work-directory"):
        DomainCapture(domain, str(tmp_path / "work")).run(MOMENT)
    assert domain.calls == []


def test_what_libvirt_refuses_is_told(
    domain: Domain, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise libvirt.libvirtError("no")

    monkeypatch.setattr(domain, "snapshotCreateXML", refuse)
    with pytest.raises(CaptureError, match="snapshot"):
        DomainCapture(domain, str(tmp_path / "work")).run(MOMENT)


def test_qemu_gets_to_overlays_and_nobody_else_to_names(
    domain: Domain, tmp_path: pathlib.Path
) -> None:
    DomainCapture(domain, str(tmp_path / "work")).run(MOMENT)
    assert stat.S_IMODE(os.stat(tmp_path / "work").st_mode) == 0o711


def test_a_record_whose_files_are_gone_is_none(domain: Domain, tmp_path: pathlib.Path) -> None:
    found = DomainCapture(domain, str(tmp_path / "work")).run(MOMENT)
    pathlib.Path(found.memory).unlink()
    assert capture.recorded(str(tmp_path / "work")) is None
    assert capture.recorded(str(tmp_path / "elsewhere")) is None
