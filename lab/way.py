# SPDX-License-Identifier: Apache-2.0
"""The ways a guest can be migrated here, and the record of one migration, as values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Way(enum.StrEnum):
    """How a guest is migrated.

    The stock ways are what libvirt and QEMU do by themselves; post-copy is switched at once in
    all of them, as soon as QEMU takes it.
    """

    PRECOPY = "precopy"
    STOCK = "stock_postcopy"
    STOCK_PREEMPT = "stock_postcopy_preempt"
    ENLIGHTENED = "enlightened"
    ENLIGHTENED_PREEMPT = "enlightened_preempt"

    @property
    def enlightened(self) -> bool:
        """Whether it is ours: a relay requests the pages in the order of a plan."""
        return self in (Way.ENLIGHTENED, Way.ENLIGHTENED_PREEMPT)

    @property
    def preempt(self) -> bool:
        """Whether QEMU's ``postcopy-preempt`` capability is on."""
        return self in (Way.STOCK_PREEMPT, Way.ENLIGHTENED_PREEMPT)

    @property
    def postcopy(self) -> bool:
        """Whether the guest executes at the destination before its memory is there."""
        return self is not Way.PRECOPY

    @property
    def words(self) -> str:
        """The way as a reader knows it."""
        return _WORDS[self]


_WORDS = {
    Way.PRECOPY: "pre-copy",
    Way.STOCK: "stock post-copy",
    Way.STOCK_PREEMPT: "stock post-copy, preempt",
    Way.ENLIGHTENED: "enlightened post-copy",
    Way.ENLIGHTENED_PREEMPT: "enlightened post-copy, preempt",
}


@dataclass(frozen=True)
class Migration:
    """One migration, with times in monotonic seconds of this machine; None did not happen.

    ``ordered``: the order to leave. ``prepared``: the destination's QEMU was ready.
    ``switch_accepted``: libvirt took the order to switch to post-copy. ``switchover``: the
    source stopped executing. ``executing``: the destination started to. ``source_freed``: the
    source's QEMU was gone. ``completed``: libvirt ended the migration. ``extra`` holds the times
    of steps that only some ways have, in order. ``relay`` is the last state of the source's
    relay. ``failure`` says why it failed or was given up.
    """

    way: Way
    guest: str
    source: str
    destination: str
    ordered: float
    prepared: float | None = None
    switch_accepted: float | None = None
    switchover: float | None = None
    executing: float | None = None
    source_freed: float | None = None
    completed: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
    relay: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None

    def parts(self) -> dict[str, float]:
        """Seconds from the order to each step that happened, soonest first."""
        steps = {
            **self.extra,
            "destination prepared": self.prepared,
            "switch accepted": self.switch_accepted,
            "switchover": self.switchover,
            "executing": self.executing,
            "source freed": self.source_freed,
            "completed": self.completed,
        }
        found = {name: at - self.ordered for name, at in steps.items() if at is not None}
        return dict(sorted(found.items(), key=lambda step: step[1]))
