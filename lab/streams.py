# SPDX-License-Identifier: Apache-2.0
"""Appliances of the laboratory published, learned, and started by streaming them."""

import contextlib
import dataclasses
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import libvirt

from lab.errors import LabError
from lab.hosts import Host
from lab.saved import Saved, relocated
from nova_enlightened.appliance.prefetch_order import Tail
from nova_enlightened.host import capture, learning, players, publishing, streaming
from nova_enlightened.host.publishing import Progress
from nova_enlightened.host.streamed_xml import StreamedDisk, streamed_xml
from nova_enlightened.transfer.player_spec import PlayerSpec
from nova_enlightened.transfer.stores.writing import open_writable

STORE = "store"
"""Directory of the appliances below the far store's root."""
TARGET = "vda"
START_S = 900.0
"""How long a start may take: an image at a slow link, on demand."""


@dataclasses.dataclass(frozen=True)
class Published:
    """An appliance in the store. ``stored_bytes``: of all its packs; ``disk_bytes``: of its disk,
    as the guest has it. ``plan``: None before one was learned.
    """

    saved: Saved
    manifest: str
    stored_bytes: int
    disk_bytes: int
    plan: str | None = None
    plan_bytes: int = 0

    @property
    def name(self) -> str:
        """Of the appliance."""
        return self.saved.appliance.name


def publish(saved: Saved, root: Path, progress: Progress | None = None) -> Published:
    """Publish an appliance below ``root``. Raises EnlightenedError where it cannot be."""
    directory = root / STORE
    directory.mkdir(parents=True, exist_ok=True)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(saved.memory.stat().st_mtime))
    with contextlib.closing(open_writable(f"file://{directory}")) as store:
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            files = {TARGET: str(saved.disk)}
            taken = capture.from_files(str(saved.memory), files, scratch, created)
            found = publishing.publish(taken, store, saved.appliance.name, progress=progress)
    return Published(saved, found.digest, found.stored_bytes, dict(found.manifest.disks)[TARGET])


def learn(published: Published, root: Path, traces: Sequence[Path]) -> Published:
    """Make a plan of these traces, and none else. Raises EnlightenedError."""
    with contextlib.closing(open_writable(f"file://{root / STORE}")) as store:
        learned = learning.learn(store, published.manifest, traces, stored=False)
    return dataclasses.replace(published, plan=learned.digest, plan_bytes=learned.layer_bytes)


@dataclasses.dataclass
class Stream:
    """A guest that streams. ``executing``: since when it does (monotonic s)."""

    player: players.RunningPlayer
    executing: float
    steps: Mapping[str, float]
    last: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def state(self) -> Mapping[str, Any]:
        """What the player tells of itself."""
        self.last = self.player.state() or self.last
        return self.last

    def check(self) -> None:
        """Raises LabError when the player failed."""
        state = self.state()
        if state.get("phase") == "failed":
            raise LabError(f"the player failed: {state.get('error')}")

    def wait_complete(self, seconds: float) -> None:
        """Until everything is there. Raises LabError when it takes longer, or fails."""
        deadline = time.monotonic() + seconds
        while self.state().get("phase") != "complete":
            self.check()
            if time.monotonic() > deadline:
                raise LabError(f"not everything is there in {seconds:.0f} s: {self.last}")
            time.sleep(0.1)  # the player tells by a file, a few times a second

    def trace(self) -> Path:
        """What the guest touched so far."""
        return self.player.trace()

    def stop(self) -> None:
        """End the player."""
        self.player.stop(5.0)


def start(
    host: Host, url: str, published: Published, work: Path, *, cache: str, planned: bool = True,
    record: bool = False, tell: Callable[[Mapping[str, Any]], None] = lambda state: None,
) -> Stream:  # fmt: skip
    """Start the appliance on ``host`` by streaming it; returns when it executes.

    Unless ``planned``, what nobody asked for comes in the order of places. With ``record`` it
    does not come at all: a learning run. ``tell`` gets the player's states meanwhile.
    Raises EnlightenedError or libvirtError.
    """
    spec = _spec(host, url, published, cache, planned=planned, record=record)
    with _player(host, spec, published.name) as player:
        steps = {"player started": time.monotonic()}
        domain = _domain(host, spec, published, work, 0)
        steps["domain created"] = time.monotonic()
        streaming.play(domain, player)
        streaming.wait_executing(domain, player, START_S, tell)
        stream = Stream(player, time.monotonic(), steps)
        known = stream.state()
        for key, words in (("ready_since", "buffered"), ("executing_since", "executing")):
            if known.get(key):
                steps[words] = float(known[key])
        stream.executing = steps.get("executing", stream.executing)
        return stream


def fill(host: Host, url: str, published: Published, work: Path, cache: str) -> Stream:
    """Bring all of the appliance to ``host``: its memory into a domain that does not execute, and
    everything into the cache. Returns when all is there. Raises as ``start`` does.
    """
    spec = _spec(host, url, published, cache, planned=True, record=False)
    with _player(host, spec, published.name) as player:
        flags = libvirt.VIR_DOMAIN_START_PAUSED
        domain = _domain(host, spec, published, work, flags)
        wanted = [{"capability": "postcopy-ram", "state": True}]
        streaming.qmp(domain, "migrate-set-capabilities", capabilities=wanted)
        streaming.qmp(domain, "migrate-incoming", uri=f"unix:{spec.qemu_socket}")
        player.play()
        stream = Stream(player, time.monotonic(), {})
        stream.wait_complete(START_S)
        streaming.settle(domain, player)
        return stream


def _spec(
    host: Host, url: str, published: Published, cache: str, *, planned: bool, record: bool
) -> PlayerSpec:
    directory = f"/run/nova-enlightened/players/{uuid.uuid4()}"
    host.make_directory(directory, 0o700)
    host.make_directory(cache)
    return PlayerSpec(
        run_directory=directory,
        store=f"{url}{STORE}",
        manifest=published.manifest,
        plan=published.plan if planned else None,
        qemu_socket=f"{directory}/qemu.sock",
        nbd_sockets={TARGET: f"{directory}/{TARGET}.sock"},
        cache_directory=cache,
        record=record,
        tail=Tail.FAULTED if planned else Tail.LINEAR,
    )


@contextlib.contextmanager
def _player(host: Host, spec: PlayerSpec, name: str) -> Iterator[players.RunningPlayer]:
    """A player; ended with its domain when the block fails."""
    player = players.start(spec, host.holder.entered([]), host.outside)
    try:
        yield player
    except BaseException:
        with contextlib.suppress(libvirt.libvirtError):
            host.connection.lookupByName(name).destroy()
        player.stop(5.0)
        raise


def _domain(
    host: Host, spec: PlayerSpec, published: Published, work: Path, flags: int
) -> libvirt.virDomain:
    overlay, socket = str(work / "overlay.qcow2"), spec.nbd_sockets[TARGET]
    streaming.make_overlay(overlay, TARGET, socket, published.disk_bytes)
    xml = relocated(host, published.saved.memory, work / "console.log")
    disks = [StreamedDisk(TARGET, overlay, socket)]
    own = str(uuid.uuid4())
    return host.connection.createXML(streamed_xml(xml, published.name, own, disks), flags)
