# SPDX-License-Identifier: Apache-2.0
"""Appliances as they are when they are published: booted once, at work, saved; kept in a cache.

What is saved is what ``virsh save`` writes, and the disk of that moment.
"""

import fcntl
import hashlib
import json
import shutil
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab import appliances
from lab.appliances import Appliance
from lab.domain import domain_xml
from lab.errors import LabError
from lab.hosts import Host
from lab.laboratory import Lab
from lab.probe import PORT
from lab.processes import run

_FORMAT = 3
_WARM_S, _FULL_S = 6.0, 6.0
_KEPT_S = 7 * 86400
_WARM_SEED = 1
_SHARE = 0.9


@dataclass(frozen=True)
class Saved:
    """An appliance in files. ``memory``: of ``virsh save``, uncompressed. ``disk``: qcow2.

    ``full_rate``: what it did with its users before it was saved, work units a second.
    """

    appliance: Appliance
    memory: Path
    disk: Path
    full_rate: float


def saved(lab: Lab, appliance: Appliance, tell: Callable[[str], None]) -> Saved:
    """The appliance, made where the cache has none of this guest image and QEMU.

    Raises LabError where it does not come to work, or to nearly the rate its users ask for: on a
    machine busy with other things, its full rate would be that machine's.
    """
    image = lab.image
    if image is None:
        raise LabError("the laboratory is not up")
    host = lab.status()["hosts"]["host1"]
    made_of = (_FORMAT, image.initrd.name, image.root.parent.name, repr(appliance),
               lab.acceleration, host["qemu"], host["libvirt"])  # fmt: skip
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    target = lab.cache / f"appliance-{appliance.name}-{digest}"
    with (lab.cache / f"appliance-{appliance.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _forget_old(lab.cache)
            work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=lab.cache))
            try:
                _make(lab, appliance, work, tell)
                work.rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        target.touch()
    known = json.loads((target / "known.json").read_text())
    return Saved(appliance, target / "memory.save", target / "disk.qcow2", known["full_rate"])


def _forget_old(cache: Path) -> None:
    for path in cache.glob("appliance-*-*"):
        if path.is_dir() and path.stat().st_mtime < time.time() - _KEPT_S:
            shutil.rmtree(path)


def _make(lab: Lab, appliance: Appliance, work: Path, tell: Callable[[str], None]) -> None:
    assert lab.image is not None, "the laboratory is up"
    host, name = lab.hosts["host1"], appliance.name
    disk, console = work / "disk.qcow2", lab.run_dir / f"console-{name}.log"
    run(["qemu-img", "convert", "-O", "qcow2", str(lab.image.root), str(disk)])
    xml = domain_xml(appliance.spec(disk), lab.image, lab.acceleration, console, PORT)
    appliances.know_address(lab, appliance)
    lab.collector.probe(name).restart()
    tell(f"booting {appliance.title}")
    host.connection.createXML(xml, 0)
    try:
        _until(lambda: appliances.is_ready(lab, appliance), 180.0, f"{name} does not come to work")
        full = _warm(lab, appliance, tell) if appliance.load else 1.0
        tell(f"saving {name}")
        host.virsh("save", name, str(work / "memory.save"))
    except BaseException:
        host.virsh("destroy", name, check=False)
        raise
    (work / "known.json").write_text(json.dumps({"full_rate": full}))


def _warm(lab: Lab, appliance: Appliance, tell: Callable[[str], None]) -> float:
    """Let it work for some users, so that it is saved as a server in use; its full rate."""
    tell(f"{appliance.name} gets its data and works")
    users, probe = appliances.users(lab, appliance, _WARM_SEED, fill=True)
    try:
        users.let_in()
        _until(lambda: appliances.first_answer(probe) is not None, 180.0,
               f"{appliance.name} answers nobody")  # fmt: skip
        users.check()
        time.sleep(_WARM_S)
        first = time.monotonic()
        time.sleep(_FULL_S)
        users.check()
        full = probe.rate(first, time.monotonic())
        if full < _SHARE * appliance.rate:
            raise LabError(
                f"{appliance.name} did {full:.0f} of {appliance.rate:g} {appliance.unit}: this "
                "machine is too busy, or too slow, to measure it on"
            )
        return full
    finally:
        users.stop()


def _until(done: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise LabError(f"{otherwise} in {seconds:.0f} s")
        time.sleep(0.1)  # nothing tells from outside what a guest's service is about to do


def relocated(host: Host, memory: Path, console: Path) -> str:
    """The saved domain's XML with its console elsewhere."""
    tree = ElementTree.fromstring(host.connection.saveImageGetXMLDesc(str(memory), 0))
    for tag in ("serial", "console"):
        for path in tree.iterfind(f"./devices/{tag}/source"):
            path.set("path", str(console))
    return ElementTree.tostring(tree, encoding="unicode")


def with_disk(host: Host, memory: Path, disk: str, console: Path) -> str:
    """The same with its disk element replaced by ``disk`` (XML of what is inside it)."""
    tree = ElementTree.fromstring(relocated(host, memory, console))
    element = tree.find("./devices/disk")
    if element is None:
        raise LabError(f"the domain saved in {memory} has no disk")
    for name in ("driver", "source", "backingStore"):
        for child in element.findall(name):
            element.remove(child)
    for child in reversed(ElementTree.fromstring(f"<inside>{disk}</inside>")):
        element.insert(0, child)
    return ElementTree.tostring(tree, encoding="unicode")
