# SPDX-License-Identifier: Apache-2.0
"""What a soak breaks, and when in a migration it may."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import libvirt
import libvirt_qemu
import numpy as np

from lab import faults
from lab.errors import LabError
from lab.faults import Departure
from nova_enlightened.knowledge.guest_pages import GuestKnowledge

LONGEST_CUT_S: Final = 6.0
LONG_SOAK_MIN: Final = 20.0
LONG_CUTS_S: Final = (30.0, 120.0)
GUEST_UNIT: Final = "nova-enlightened-guest.service"

Fault = Callable[[Departure, random.Random], None]


def nothing(departure: Departure, dice: random.Random) -> None:
    """All goes well."""


def _dropped(departure: Departure, dice: random.Random) -> None:
    with faults.dropped(departure.lab):
        time.sleep(dice.uniform(0.5, LONGEST_CUT_S))  # this is how long the fault lasts


def _dropped_for_long(departure: Departure, dice: random.Random) -> None:
    with faults.dropped(departure.lab):
        time.sleep(dice.choice(LONG_CUTS_S))  # this is how long the fault lasts


def _hung(departure: Departure, dice: random.Random) -> None:
    with faults.hung(departure):
        time.sleep(dice.uniform(0.5, LONGEST_CUT_S))  # this is how long the fault lasts


def _reset(departure: Departure, dice: random.Random) -> None:
    faults.reset(departure)


def _source_relay_killed(departure: Departure, dice: random.Random) -> None:
    departure.kill_relay("source")


def _destination_relay_killed(departure: Departure, dice: random.Random) -> None:
    departure.kill_relay("destination")


def guest_agent_killed(departure: Departure, dice: random.Random) -> None:
    """In the guest, which starts it again after a while."""
    words = {"path": "/usr/bin/systemctl", "arg": ["kill", "-s", "KILL", GUEST_UNIT]}
    command = json.dumps({"execute": "guest-exec", "arguments": words})
    try:
        libvirt_qemu.qemuAgentCommand(departure.guest.domain, command, 5, 0)
    except libvirt.libvirtError as error:
        raise LabError(f"qemu-guest-agent in {departure.guest.name}: {error}") from error


FAULTS: Final[Mapping[str, Fault]] = {
    "nothing": nothing,
    "link drops everything": _dropped,
    "link drops all for long": _dropped_for_long,
    "link hangs": _hung,
    "link is reset": _reset,
    "source's relay killed": _source_relay_killed,
    "destination's relay killed": _destination_relay_killed,
    "guest's agent killed": guest_agent_killed,
}
PHASES: Final[Mapping[str, Callable[[Departure], None]]] = {
    "ordered": lambda departure: None,
    "begun": Departure.until_begun,
    "switched": Departure.until_switched,
    "executing there": Departure.until_executing,
}


OF_A_MIGRATION: Final = frozenset(FAULTS) - {
    "nothing",
    "link drops everything",
    "link drops all for long",
    "guest's agent killed",
}
"""Faults of what is there only once libvirt migrates."""


def inverted(known: GuestKnowledge, dice: random.Random) -> GuestKnowledge:
    """The hottest pages are said to be unused, and free ones to be hot."""
    return dataclasses.replace(known, heat=255 - known.heat, classes=7 - known.classes)


def invented(known: GuestKnowledge, dice: random.Random) -> GuestKnowledge:
    """Anything at all."""
    numbers = np.random.default_rng(dice.randrange(1 << 32))
    return dataclasses.replace(
        known,
        heat=numbers.integers(0, 256, known.heat.size).astype(np.uint8),
        classes=numbers.integers(0, 8, known.classes.size).astype(np.uint8),
    )


HINTS: Final = {"wrong hints": inverted, "invented hints": invented}


def phases(fault: str) -> Sequence[str]:
    """When a fault may come."""
    if fault in OF_A_MIGRATION:
        return [name for name in PHASES if name != "ordered"]
    return ["ordered"] if fault in HINTS or FAULTS[fault] is guest_agent_killed else list(PHASES)


LONG: Final = frozenset({"link drops all for long"})


def chosen(minutes: float) -> Sequence[str]:
    """The faults of a soak of so many minutes: a short one has no time for long ones."""
    return [name for name in (*FAULTS, *HINTS) if name not in LONG or minutes >= LONG_SOAK_MIN]
