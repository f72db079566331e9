# SPDX-License-Identifier: Apache-2.0
"""Guests that tell what a test wants them to, through a source of hints of their own."""

import threading
from typing import ClassVar

import numpy as np

from nova_enlightened.exception import EnlightenedError, GuestUnreachable
from nova_enlightened.host.guest import HeldKnowledge
from nova_enlightened.host.hint_sources import HintSource
from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.guest_pages import GuestKnowledge

FRAMES = 4096
HOT = 40


def known(hot: int = HOT, samples: int = 4) -> GuestKnowledge:
    heat = np.zeros(FRAMES, np.uint8)
    heat[:hot] = 255
    classes = np.full(FRAMES, PageClass.ANON, np.uint8)
    return GuestKnowledge("test", FRAMES, classes, heat, (), samples, 1.0)


class FakeSource(HintSource):
    """One guest; what happens to it is noted on the class, which a test makes anew."""

    name = "fake"
    notes: ClassVar[list[str]]
    held: ClassVar[HeldKnowledge | None]
    refusal: ClassVar[EnlightenedError | None]
    released: ClassVar[threading.Event]
    asked: ClassVar[threading.Event]
    opening: ClassVar[threading.Event]

    def open(self, timeout: float) -> str:
        self._note("open")
        self.asked.set()
        self.opening.wait(10)
        return "a fake guest"

    def arm(self, interval_s: float, max_s: float, cpu_limit: float) -> None:
        self._note("arm")

    def disarm(self) -> None:
        self._note("disarm")

    def latest(self) -> HeldKnowledge | None:
        return type(self).held

    def ask(self, deadline_s: float) -> HeldKnowledge | None:
        self._note("ask")
        if type(self).held is None:
            raise GuestUnreachable("it says nothing")
        return type(self).held

    def close(self) -> None:
        self.notes.append("close")
        self.released.set()

    def _note(self, what: str) -> None:
        self.notes.append(what)
        if self.refusal is not None:
            raise self.refusal


def fake_source(held: HeldKnowledge | None = None) -> type[FakeSource]:
    """A kind of source with notes of its own."""
    opening = threading.Event()
    opening.set()
    return type(
        "Fake",
        (FakeSource,),
        {
            "notes": [],
            "held": held,
            "refusal": None,
            "released": threading.Event(),
            "asked": threading.Event(),
            "opening": opening,
        },
    )
