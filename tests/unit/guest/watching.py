# SPDX-License-Identifier: Apache-2.0
"""A sampler on a fake /proc."""

import os
import zlib

from nova_enlightened.guest import wire
from nova_enlightened.guest.proc import Proc
from nova_enlightened.guest.sampler import Sampler
from nova_enlightened.guest.sources import SoftDirty, Source
from nova_enlightened.knowledge.guest_pages import GuestKnowledge
from nova_enlightened.knowledge.snapshot import decode_snapshot
from tests.unit.guest.fake_proc import PRESENT, SOFT_DIRTY, FakeArea, FakeProc, FakeProcess

TICK = os.sysconf("SC_CLK_TCK")
FRAMES = 64
DIRTY = PRESENT | SOFT_DIRTY


def busy(pid: int = 7, ticks: int = 10**9, areas: list[FakeArea] | None = None) -> FakeProcess:
    """A process that has used a lot of CPU in its life."""
    return FakeProcess(pid, ticks=ticks, areas=areas or [])


class Watching:
    """A sampler on a fake /proc, closed in the end."""

    def __init__(self, fake: FakeProc, source: type[Source] = SoftDirty) -> None:
        self.fake = fake
        proc = Proc(str(fake.root))
        self.source = source(proc)
        self.sampler = Sampler(proc, self.source, FRAMES, 0.0)
        self.now = 0.0

    def sample(self) -> float:
        """One sample, a second after the last."""
        self.now += 1.0
        return self.sampler.sample(self.now)

    def known(self) -> GuestKnowledge:
        """What a host would make of it."""
        head = wire.SNAPSHOT_HEAD.pack(
            *(b"NES1", 1, self.sampler.samples, self.now, FRAMES, 0),
            *(len(self.sampler.watched), len(self.sampler.bitmaps), 0, 0),
        )
        parts = [part for watched in self.sampler.watched.values() for part in watched.parts()]
        return decode_snapshot(
            zlib.decompress(wire.compress([head, *self.sampler.bitmaps, *parts]))
        )
