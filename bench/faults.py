# SPDX-License-Identifier: Apache-2.0
"""What breaks at random moments while VMs move: how many survive it.

A case survives when exactly one copy of the VM executes in the end, at either host, it is the same
VM, it has checked all of its memory since and no page differs, and there was never a second
running copy. Several guests move at once. The seed of the moments is in the results.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

from bench.results import Outcome
from bench.session import Session, certificates, versions
from lab import Lab, faults
from lab.errors import LabError
from lab.faults import Departure
from lab.guests import Guest
from lab.host_agents import HostAgents, OrderedDeparture
from nova_enlightened.host.standing import Standing

SEED: Final = 5
AT_ONCE: Final = 5
QUICK_AT_ONCE: Final = 2
LINK_MBIT: Final = 200.0
MEMORY_MIB: Final = 256
CHECKED_MIB: Final = 60
SPAN_S: Final = 8.0
"""Moments are drawn from so long, beginning when libvirt begins to migrate, or the guest executes
at its destination."""
SETTLE_S: Final = 240.0
CUT_S: Final = 30.0
QUICK_SHARE: Final = 10
STAYED: Final = "stayed"


@dataclass(frozen=True)
class Case:
    """One VM and what befell it.

    ``at``: seconds after the beginning of its span. ``undone``: why nothing was done to it, though
    perhaps to others beside it; then it is counted only where the VM was lost.
    """

    kind: str
    guest: str
    at: float
    survived: bool
    where: str
    words: str
    undone: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    ``measure``: its id. ``cases``: how many. ``arrived``: the span begins when the guest executes
    at its destination. ``shared``: it befalls all guests of a batch at once. ``agents``: they are
    moved by the hosts' agents, whose records have to be right in the end.
    """

    measure: str
    cases: int
    arrived: bool
    shared: bool
    act: Callable[[Departure, random.Random], str]
    agents: bool = False


def faults_survived(session: Session) -> Outcome:
    """Every kind, in batches."""
    lab = session.lab("bookworm")
    lab.link.shape(LINK_MBIT)
    dice = random.Random(SEED)
    values: dict[str, list[float]] = {}
    runs: list[dict[str, Any]] = []
    together = QUICK_AT_ONCE if session.options.quick else AT_ONCE
    notes = [f"seed {SEED}; {together} guests at a time"]
    certificates(lab)  # before several threads want them
    guests = Guests(lab)
    agents = HostAgents(lab)
    for kind in (kind for kind in KINDS if kind.measure in session.wanted):
        if kind.agents:
            session.tell("starting the hosts' agents")
            agents.start()
        wanted = max(1, kind.cases // QUICK_SHARE) if session.options.quick else kind.cases
        cases: list[Case] = []
        while len(cases) < wanted:
            session.tell(f"{kind.measure}: {len(cases)} of {wanted}")
            count = min(together, wanted - len(cases))
            done = batch(Setting(lab, guests, agents), kind, count, dice)
            cases += [case for case in done if not (case.undone and case.survived)]
            for case in done:
                if case.undone or not case.survived:
                    session.tell(f"{case}")
        if kind.agents:
            agents.stop()
        values[kind.measure] = [float(sum(case.survived for case in cases))]
        runs += [kept(number, case) for number, case in enumerate(cases, 1)]
        if wanted != kind.cases:
            notes.append(f"{kind.measure}: {wanted} cases only")
        notes += [f"{case.kind} {case.where}: {case.words}" for case in cases if not case.survived]
    return Outcome(values, versions(lab), runs, notes)


def kept(number: int, case: Case) -> dict[str, Any]:
    """A case as JSON values."""
    return {"round": number, "way": case.kind, **asdict(case)}


class Guests:
    """Guests that go to and fro; a new one in place of each that was lost."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._made = 0
        self._alive: list[Guest] = []

    def some(self, count: int) -> list[Guest]:
        """So many that run. Raises LabError."""
        while len(self._alive) < count:
            self._made += 1
            self._alive.append(
                self._lab.guest(
                    f"f{self._made}",
                    workload="checksum",
                    memory_mib=MEMORY_MIB,
                    arguments=("--memory", str(CHECKED_MIB)),
                    wait=True,
                )
            )
        return self._alive[:count]

    def lose(self, guest: Guest) -> None:
        """It does not run any more, or not as it should."""
        self._alive.remove(guest)
        guest.destroy()


@dataclass(frozen=True)
class Setting:
    """What all cases of a run share."""

    lab: Lab
    guests: Guests
    agents: HostAgents

    def departure(self, kind: Kind, guest: Guest) -> Departure:
        """Of one guest, as the kind has it leave."""
        return OrderedDeparture(self.agents, guest) if kind.agents else Departure(self.lab, guest)


def batch(setting: Setting, kind: Kind, count: int, dice: random.Random) -> Sequence[Case]:
    """Several VMs at once, each with a moment of its own; one moment where the fault is shared."""
    moving = setting.guests.some(count)
    seeds = [dice.randrange(1 << 32) for _ in moving]
    if kind.shared:
        seeds = seeds[:1] * len(moving)
    once = threading.Lock()
    done: list[str] = []

    def act(departure: Departure, own: random.Random) -> str:
        if not kind.shared:
            return kind.act(departure, own)
        with once:
            if not done:
                done.append(kind.act(departure, own))
        return done[0]

    with ThreadPoolExecutor(len(moving)) as pool:
        cases = list(
            pool.map(
                lambda pair: one_case(setting, pair[0], kind, act, random.Random(pair[1])),
                zip(moving, seeds, strict=True),
            )
        )
    for guest, case in zip(moving, cases, strict=True):
        # libvirt 9.0 lets one that went on at its source leave only after it was started again.
        if not case.survived or case.words == STAYED:
            setting.guests.lose(guest)
    return cases


def one_case(
    setting: Setting,
    guest: Guest,
    kind: Kind,
    act: Callable[[Departure, random.Random], str],
    dice: random.Random,
) -> Case:
    """Move a guest, break something, see what became of it."""
    at = round(dice.uniform(0.0, SPAN_S), 3)
    latest = guest.probe.latest
    known = latest.token_hash if latest is not None else 0
    departure = setting.departure(kind, guest)
    where, words, undone, survived = "", "", "", False
    with faults.Copies(departure) as copies:
        departure.start()
        try:
            begun = departure.until_executing if kind.arrived else departure.until_begun
            try:
                begun()
                threading.Event().wait(at)
                where = act(departure, dice)
            except LabError as error:
                undone = str(error)  # it never came so far, or there was nothing left to break
            words = settled(departure)
            faults.assert_whole(guest, known)
            assert_recorded(departure)
            survived = copies.second is None
        except LabError as error:
            words = str(error)
        finally:
            departure.kill()
    return Case(kind.measure, guest.name, at, survived, where, copies.second or words, undone)


def settled(departure: Departure) -> str:
    """Until one host has all of it and the other nothing. Raises LabError where that fails."""
    deadline = time.monotonic() + SETTLE_S
    pair = (departure.here(), departure.there())
    while pair not in _WHOLE:
        if time.monotonic() > deadline:
            raise LabError(f"{pair[0]} at the source, {pair[1]} at the destination: "
                           f"{departure.said()[-600:]}")  # fmt: skip
        threading.Event().wait(0.2)
        pair = (departure.here(), departure.there())
    return _WHOLE[pair]


def assert_recorded(departure: Departure) -> None:
    """Raises LabError where the hosts' agents, if they moved it, hold something else of it."""
    if isinstance(departure, OrderedDeparture) and (wrong := departure.agents.wrong_of(departure)):
        raise LabError(f"{departure.guest.name}: {wrong}")


_WHOLE: Final = {
    (Standing.GONE, Standing.EXECUTES): "moved",
    (Standing.EXECUTES, Standing.GONE): STAYED,
    # libvirt keeps the definition of one that had been there before.
    (Standing.EXECUTES, Standing.ENDED): STAYED,
}


# --- the kinds ---------------------------------------------------------------------------------


def _cut(departure: Departure, dice: random.Random) -> str:
    with faults.dropped(departure.lab):
        threading.Event().wait(CUT_S)
    return "link"


def _kill_relay(departure: Departure, dice: random.Random) -> str:
    side = dice.choice(("source", "destination"))
    departure.kill_relay(side)
    return side


def _kill_who_ordered(departure: Departure, dice: random.Random) -> str:
    departure.kill()
    return "source"


def _restart_agent(departure: Departure, dice: random.Random) -> str:
    assert isinstance(departure, OrderedDeparture)
    side = dice.choice(("source", "destination"))
    departure.agents.restart(departure.source if side == "source" else departure.destination)
    return side


def _restart_libvirtd(departure: Departure, dice: random.Random) -> str:
    side = dice.choice(("source", "destination"))
    faults.restart_libvirtd(departure.source if side == "source" else departure.destination)
    return side


KINDS: Final = (
    Kind("cut_30s_survived_of_50", 50, True, True, _cut),
    Kind("relay_killed_survived_of_50", 50, False, False, _kill_relay),
    Kind("orderer_killed_survived_of_20", 20, False, False, _kill_who_ordered),
    Kind("restart_host_agent_of_20", 20, False, False, _restart_agent, agents=True),
    Kind("restart_libvirtd_of_20", 20, False, True, _restart_libvirtd),
)
