# SPDX-License-Identifier: Apache-2.0
"""The stage of ``starts`` on the real laboratory: a far store, a host, and an appliance's users."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt

from bench import engine, measures
from bench.measures import RateSeries
from bench.rounds import StageError
from bench.starts import SUSTAIN_S, Begun, Link, SessionRun, StartWay
from lab import Lab, appliances, memory_compare, streams, whole
from lab.appliances import Appliance, Users
from lab.errors import LabError
from lab.far import FarStore, Meter
from lab.probe import Probe
from lab.saved import Saved
from lab.streams import Published, Stream
from lab.whole import WholeImage
from nova_enlightened.exception import EnlightenedError

HOST = "host2"
UNSHAPED = Link(1000.0, 0.2)
"""Where the link should not matter: as fast as one machine carries it to itself."""
CACHE = "/run/nova-enlightened/cache"
LEARN_LIMIT_S, LOOK_S = 120.0, 0.5
_DOWNLOADS = {
    StartWay.WHOLE: whole.Download.PACKED,
    StartWay.PLAIN: whole.Download.PLAIN,
    StartWay.HTTP: whole.Download.HTTP,
}
ERRORS = (LabError, EnlightenedError, libvirt.libvirtError, OSError)


class ApplianceStage:
    """Starts one appliance again and again on a host of ``lab``.

    ``published`` is what streams it; its cache on the host is empty at each start but the
    cached one's.
    """

    def __init__(self, lab: Lab, store: FarStore, image: WholeImage, published: Published) -> None:
        self._lab = lab
        self._store = store
        self._image = image
        self.published = published
        self._host = lab.hosts[HOST]
        self._work = lab.run_dir / f"start-{self.appliance.name}"
        self._users: Users | None = None
        self._meter: Meter | None = None
        self._stream: Stream | None = None
        self.probe: Probe = lab.collector.probe(self.appliance.name)
        self.tell: Callable[[Mapping[str, Any]], None] = lambda state: None
        """Told what a player says while its guest has not begun to execute."""
        self.full_rate = self.saved.full_rate
        self.bin_s = self.appliance.bin_s

    @property
    def appliance(self) -> Appliance:
        """What is started."""
        return self.saved.appliance

    @property
    def saved(self) -> Saved:
        """Its files."""
        return self._image.saved

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Let it run; raises StageError when its users or its player gave up."""
        time.sleep(seconds)
        try:
            if self._users is not None:
                self._users.check()
            if self._stream is not None:
                self._stream.check()
                self.tell(self._stream.state())
        except ERRORS as error:
            raise StageError(str(error)) from error

    def begin(self, way: StartWay, link: Link, seed: int) -> Begun:
        """Order a start."""
        try:
            self._clear(link)
            self._cold(way)
            self._users, self.probe = appliances.users(self._lab, self.appliance, seed)
            self._meter = Meter(self._store).start()
            begun = self._start(way)
            self._users.let_in()
            return begun
        except ERRORS as error:
            raise StageError(str(error)) from error

    def _start(self, way: StartWay) -> Begun:
        if way in _DOWNLOADS:
            done = whole.start(self._host, self._store, self._image, _DOWNLOADS[way], self._work)
            steps = {"downloaded": done.downloaded, "executing": done.executing}
            return Begun(done.ordered, done.executing, steps)
        ordered = time.monotonic()
        if way is StartWay.RESTORED:
            disk = whole.local_disk(self._host, self.saved.disk, self._work)
            whole.restore(self._host, self.saved.memory, disk, self._work / "console.log")
            return Begun(ordered, time.monotonic())
        self._stream = streams.start(
            self._host, self._store.url, self.published, self._work, cache=CACHE,
            planned=way is not StartWay.LINEAR, tell=self.tell,
        )  # fmt: skip
        return Begun(ordered, self._stream.executing, self._stream.steps)

    def _cold(self, way: StartWay) -> None:
        """Nothing that this way reads from local files is in memory, or in the cache."""
        cache = self._host.outside(CACHE)
        if way in (StartWay.LINEAR, StartWay.PLANNED):
            shutil.rmtree(cache, ignore_errors=True)
        for path in (self.saved.memory, self.saved.disk, *cache.rglob("*")):
            if path.is_file():
                forget_pages(path)

    def first_answer(self) -> float | None:
        """When the users had their first answer."""
        return appliances.first_answer(self.probe)

    def rates(self, first: float, last: float, edge: float, bin_s: float) -> RateSeries:
        """What the guest did."""
        return engine.rates(self.probe, first, last, edge, bin_s)

    def fetched(self, at: float) -> float:
        """Bytes that had come over the link."""
        return self._meter.at(at) if self._meter is not None else 0.0

    def told(self) -> Mapping[str, Any]:
        """The player's last state."""
        return self._stream.state() if self._stream is not None else {}

    def learn(self, link: Link, seed: int, seconds: float) -> Path:
        """A learning run; the file of its trace, until ``end``.

        It lasts until its users have had what they want for ``seconds``: how much of an appliance
        is touched goes by what is asked of it, and on a slow machine that takes longer. Raises
        StageError where they do not come to that in `LEARN_LIMIT_S`.
        """
        self._clear(link)
        self._users, self.probe = appliances.users(self._lab, self.appliance, seed)
        self._stream = streams.start(
            self._host, self._store.url, self.published, self._work, cache=CACHE, record=True
        )
        self._users.let_in()
        self._until_served(self.now())
        self.wait(seconds)
        return self._stream.trace()

    def _until_served(self, begun: float) -> None:
        """Until the users have their full rate; where the guest decides on it, once it runs."""
        if not self.appliance.rate:
            self.probe.wait_running(LEARN_LIMIT_S)
            return
        while True:
            self.wait(LOOK_S)
            now = self.now()
            if self.first_answer() is not None:
                series = self.rates(begun, now, begun, self.bin_s)
                back = measures.recovered_at(series, self.full_rate, begun, sustain_s=SUSTAIN_S)
                if back is not None:
                    return
            if now - begun > LEARN_LIMIT_S:
                raise StageError(f"{self.appliance.name} is not served in {LEARN_LIMIT_S:.0f} s")

    def pages_differing(self) -> int:
        """Pages of a guest that was streamed whole and never executed, that are not as captured.

        Afterwards everything is in the host's cache. Raises what ``streams.fill`` does.
        """
        self._clear(UNSHAPED)
        shutil.rmtree(self._host.outside(CACHE), ignore_errors=True)
        self._stream = streams.fill(self._host, self._store.url, self.published, self._work, CACHE)
        again = self._work / "again.save"
        self._host.virsh("save", self.appliance.name, str(again))
        return memory_compare.differing(self.saved.memory, again, self._work)

    def _clear(self, link: Link) -> None:
        """The link as it should be, and an empty directory for the start."""
        self._store.shape(link.mbit, link.round_trip_ms)
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir()

    def session(self, seconds: float) -> SessionRun:
        """Let a session go on for so long from its first report on, and say what it did.

        Raises StageError where its contents were not what they should be, or none came.
        """
        try:
            begun = self.probe.wait_running(60.0).time
        except LabError as error:
            raise StageError(str(error)) from error
        while self.now() < begun + seconds:
            self.wait(0.5)
        report = self.probe.latest
        if report is None or report.mismatches:
            raise StageError(f"the session found wrong contents: {report}")
        return SessionRun(report.operations, appliances.busy_s(report), report.time - begun)

    def end(self) -> None:
        """Users, guest and player go, and the files of this start."""
        users, self._users = self._users, None
        if users is not None:
            users.stop()
        meter, self._meter = self._meter, None
        if meter is not None:
            meter.stop()
        with suppress(libvirt.libvirtError):
            self._host.connection.lookupByName(self.appliance.name).destroy()
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(*ERRORS):
                stream.stop()
        shutil.rmtree(self._work, ignore_errors=True)


def forget_pages(path: Path) -> None:
    """Have the kernel drop what it keeps of a file in memory (posix_fadvise(2))."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
