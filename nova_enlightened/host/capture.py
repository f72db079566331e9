# SPDX-License-Identifier: Apache-2.0
"""Captures a VM: memory, devices and disks of one instant, as files; the VM goes on.

A running domain is captured by one external snapshot of libvirt's, which stops the guest while
its memory is written (or, where it can, only for the end of that), and at the same instant puts
an overlay over each disk the guest may write to. Below the overlays the disks hold still and are
copied. Then what the guest wrote meanwhile is committed back, and the domain is what it was.

Post-copy is off for such a snapshot, as it must be: with it, the migration of a stopped guest to
a file never ends.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from xml.etree import ElementTree

import libvirt

from nova_enlightened import exception
from nova_enlightened.host import captured_disk, captured_xml, save_image
from nova_enlightened.host.connection import translated

LOG = logging.getLogger(__name__)

MEMORY: Final = "memory.save"
RECORD: Final = "capture.json"
CONVERGE_S: Final = 30.0
"""After that a guest captured while it executes is stopped, for the capture to come to an end."""
COMMIT_S: Final = 600.0
_POLL_S: Final = 0.05

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Capture:
    """A VM of one instant, in files.

    :ivar memory: the file libvirt saved memory, devices and XML to.
    :ivar disks: target, such as ``vda``, to raw file or block device.
    :ivar created: when, ISO 8601 in UTC.
    :ivar qemu_version: that captured it; empty where that is not known.
    :ivar stopped_s: for how long the guest did not execute; None where that is not known.
    """

    memory: str
    disks: Mapping[str, str]
    created: str
    qemu_version: str = ""
    stopped_s: float | None = None

    def to_json(self) -> str:
        """For a record beside the files."""
        return json.dumps(dataclasses.asdict(self), indent=1)


def recorded(directory: str) -> Capture | None:
    """The capture that was completed in a directory, whose files are all there; else None."""
    try:
        with open(os.path.join(directory, RECORD), encoding="utf-8") as file:
            found = Capture(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None
    return found if all(map(os.path.exists, (found.memory, *found.disks.values()))) else None


def from_files(
    memory: str, disks: Mapping[str, str], directory: str, created: str, say: Say = LOG.info
) -> Capture:
    """A capture of a file that ``virsh save`` made, and images of the disks as they were then.

    :param disks: target to image; every disk of the saved domain has to be there.
    :param directory: where images that are not raw are copied to.
    :raises CaptureError: a file cannot be read. :raises CaptureRefused: it cannot be published.
    :raises StreamError: it is not a saved file.
    """
    try:
        with open(memory, "rb") as file:
            xml = save_image.read_header(file).xml
    except OSError as error:
        raise exception.CaptureError(f"{memory}: {error}") from error
    captured_xml.refuse(xml)
    wanted = {disk.target: disk for disk in captured_xml.disks(xml)}
    if set(wanted) != set(disks):
        raise exception.CaptureRefused(
            f"the saved domain has the disks {', '.join(sorted(wanted)) or 'none'}, and given "
            f"are {', '.join(sorted(disks)) or 'none'}: name each with --disk TARGET=FILE"
        )
    raw: dict[str, str] = {}
    for target in sorted(disks):
        raw[target] = disks[target]
        if wanted[target].format != "raw":
            say(f"Copying disk {target}")
            raw[target] = os.path.join(directory, f"{target}.raw")
            captured_disk.flatten(disks[target], wanted[target].format, raw[target])
    return Capture(memory, raw, created)


def make_directory(path: str) -> None:
    """A directory for a capture. QEMU, which is not root, has to get to the overlays in it; the
    files themselves nobody else may read.
    """
    os.makedirs(path, exist_ok=True)
    os.chmod(path, 0o711)


class DomainCapture:
    """Captures one running domain into a directory of its own. Made without I/O.

    :param domain: a ``virDomain``.
    :param directory: for the memory (as large as the guest's), copies of disks and overlays.
    :param live: let the guest execute while its memory is written; None: where that is safe.
        QEMU under TCG may lose what a guest writes meanwhile (found with 7.2).
    """

    def __init__(
        self,
        domain: Any,
        directory: str,
        live: bool | None = None,
        say: Say = LOG.info,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._domain = domain
        self._directory = directory
        self._live = live
        self._say = say
        self._clock = clock

    def run(self, created: str) -> Capture:
        """Capture it, and leave the domain as it was.

        :raises CaptureRefused: it cannot become an appliance, or does not execute.
        :raises CaptureError: something failed; the domain executes as before, and disks that
            are still on an overlay are committed back by the next call.
        """
        make_directory(self._directory)
        self.give_back()
        xml = self._xml()
        captured_xml.refuse(xml)
        disks = captured_xml.disks(xml)
        self._need_room(xml, disks)
        memory = os.path.join(self._directory, MEMORY)
        live = self._is_live(xml)
        stops = _Stops(self._domain, self._clock)
        try:
            with stops.heard():
                began = self._clock()
                self._snapshot(memory, disks, live)
                seconds = self._clock() - began
            raw = self._copy(disks)
        finally:
            self.give_back()
        # Without events the guest was stopped for no longer than the snapshot took.
        stopped = stops.total() if stops.complete else seconds
        capture = Capture(memory, raw, created, self._qemu_version(), round(stopped, 4))
        partial = os.path.join(self._directory, f".{RECORD}")
        with open(partial, "w", encoding="utf-8") as file:
            file.write(capture.to_json())
        os.replace(partial, os.path.join(self._directory, RECORD))
        return capture

    def give_back(self) -> None:
        """Commit every overlay of ours that the domain is on back into its disk.

        :raises CaptureError: libvirt does not, with what to do by hand.
        """
        for disk in captured_xml.disks(self._xml()):
            if os.path.dirname(disk.path) == self._directory:
                self._commit(disk.target, disk.path)

    def _xml(self) -> str:
        with _as_capture_error(), translated("domain XML"):
            return str(self._domain.XMLDesc(0))

    def _qemu_version(self) -> str:
        with _as_capture_error(), translated("version of QEMU"):
            number = int(self._domain.connect().getVersion())
        return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"

    def _is_live(self, xml: str) -> bool:
        if self._live is not None:
            return self._live
        return ElementTree.fromstring(xml).get("type") == "kvm"

    def _need_room(self, xml: str, disks: list[captured_xml.CapturedDisk]) -> None:
        with _as_capture_error(), translated("domain"):
            needed = int(self._domain.info()[1]) * 1024
            if self._domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
                raise exception.CaptureRefused("the server does not execute: start or resume it")
        for disk in disks:
            if disk.format != "raw" or disk.writable:
                with contextlib.suppress(OSError):  # a block device of libvirt's, or no file
                    needed += os.stat(disk.path).st_blocks * 512
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise exception.CaptureError(
                f"{self._directory} has {free >> 20} MiB free and the capture may take "
                f"{needed >> 20}: name a larger one with --work-directory"
            )

    def _snapshot(self, memory: str, disks: list[captured_xml.CapturedDisk], live: bool) -> None:
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        )
        self._say(
            "Capturing memory while the guest executes" if live else "Capturing: the guest stops"
        )
        # libvirt appends nothing, and must not find what an earlier attempt left.
        for path in (memory, *(self._overlay(disk.target) for disk in disks)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        text = self._snapshot_xml(memory, disks)
        with _as_capture_error(), translated("snapshot"):
            if not live:
                self._domain.snapshotCreateXML(text, flags)
                return
            with self._stopped_after(CONVERGE_S):
                self._domain.snapshotCreateXML(
                    text, flags | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
                )

    @contextlib.contextmanager
    def _stopped_after(self, seconds: float) -> Iterator[None]:
        """A guest that writes faster than its memory is written out is stopped after a while."""
        stopped = threading.Event()

        def stop() -> None:
            self._say(f"Its memory changes too fast: the guest stops after {seconds:.0f} s")
            stopped.set()
            with contextlib.suppress(libvirt.libvirtError):  # it came to an end by itself
                self._domain.suspend()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            if stopped.is_set() and self._domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                self._domain.resume()

    def _overlay(self, target: str) -> str:
        return os.path.join(self._directory, f"{target}.overlay")

    def _snapshot_xml(self, memory: str, disks: list[captured_xml.CapturedDisk]) -> str:
        root = ElementTree.Element("domainsnapshot")
        ElementTree.SubElement(root, "memory", {"snapshot": "external", "file": memory})
        listed = ElementTree.SubElement(root, "disks")
        ours = {disk.target for disk in disks if disk.writable}
        for target in ElementTree.fromstring(self._xml()).iterfind("devices/disk/target"):
            name = target.get("dev", "")
            kind = "external" if name in ours else "no"
            disk = ElementTree.SubElement(listed, "disk", {"name": name, "snapshot": kind})
            if name in ours:
                ElementTree.SubElement(disk, "driver", {"type": "qcow2"})
                ElementTree.SubElement(disk, "source", {"file": self._overlay(name)})
        return ElementTree.tostring(root, "unicode")

    def _copy(self, disks: list[captured_xml.CapturedDisk]) -> dict[str, str]:
        raw = {}
        for disk in disks:
            if disk.format == "raw" and not disk.writable:
                raw[disk.target] = disk.path
                continue
            self._say(f"Copying disk {disk.target}")
            raw[disk.target] = os.path.join(self._directory, f"{disk.target}.raw")
            captured_disk.flatten(disk.path, disk.format, raw[disk.target])
        return raw

    def _commit(self, target: str, overlay: str) -> None:
        """Only into the image right below: what lies under that may be other servers' too."""
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
        try:
            with translated(f"disk {target}"):
                if not self._domain.blockJobInfo(target, 0):
                    self._domain.blockCommit(target, None, None, 0, flags)
                self._wait_until_ready(target)
                self._domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        except exception.LibvirtError as error:
            raise exception.CaptureError(
                f"{error}. The guest writes to {overlay}, which must stay; run the command again, "
                f"or: virsh blockcommit {self._domain.name()} {target} --shallow --active --pivot"
            ) from error
        with contextlib.suppress(FileNotFoundError):
            os.unlink(overlay)

    def _wait_until_ready(self, target: str) -> None:
        """Until all of the overlay is below, and each write goes to both."""
        deadline = self._clock() + COMMIT_S
        while True:
            job = self._domain.blockJobInfo(target, 0)
            if job and job["end"] > 0 and job["cur"] == job["end"]:
                return
            if not job or self._clock() > deadline:
                raise exception.LibvirtError(f"disk {target}: its overlay is not committed back")
            time.sleep(_POLL_S)  # libvirt tells of the end of a job, not of its progress


class _Stops:
    """For how long a domain does not execute, by libvirt's events."""

    def __init__(self, domain: Any, clock: Callable[[], float]) -> None:
        self._domain = domain
        self._clock = clock
        self._since: float | None = None
        self._total = 0.0
        self._ended = threading.Event()

    @property
    def complete(self) -> bool:
        """Whether a stop and its end were both heard of."""
        return self._ended.is_set() and self._since is None

    def total(self) -> float:
        """Seconds, over all stops."""
        return self._total

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen; an end that is about to be told is waited for."""
        connection = self._domain.connect()
        try:
            registered = connection.domainEventRegisterAny(
                self._domain, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._told, None
            )
        except libvirt.libvirtError as error:
            LOG.debug("No events: %s", error)
            yield
            return
        try:
            yield
            self._ended.wait(1.0)
        finally:
            connection.domainEventDeregisterAny(registered)

    def _told(self, _connection: Any, _domain: Any, event: int, _detail: int, _: Any) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED and self._since is None:
            self._since = self._clock()
            self._ended.clear()
        elif event == libvirt.VIR_DOMAIN_EVENT_RESUMED and self._since is not None:
            self._total += self._clock() - self._since
            self._since = None
            self._ended.set()


@contextlib.contextmanager
def _as_capture_error() -> Iterator[None]:
    try:
        yield
    except exception.LibvirtError as error:
        raise exception.CaptureError(str(error)) from error
