# SPDX-License-Identifier: Apache-2.0
"""``python -m lab.soak``: evictions to and fro with faults at random, for as long as told.

Each round moves one guest as an operator would, breaks something at a random moment, and then
looks at what must hold whatever broke: it is the same VM, no page of it differs, one copy of it
runs, and the machine holds no more than before.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from lab import faults, leaks, migration, relays
from lab.errors import LabError
from lab.faults import Departure
from lab.guests import Guest
from lab.laboratory import Lab
from lab.soak_faults import (
    FAULTS,
    HINTS,
    PHASES,
    Fault,
    chosen,
    guest_agent_killed,
    nothing,
    phases,
)
from lab.watch import event_loop
from nova_enlightened import exception
from nova_enlightened.host import arrival_monitor
from nova_enlightened.host.eviction import Eviction, Route
from nova_enlightened.host.relay_upkeep import RelayUpkeep
from nova_enlightened.host.standing import Standing
from nova_enlightened.knowledge.guest_pages import GuestKnowledge
from nova_enlightened.knowledge.layout import MemoryLayout

WARM_ROUNDS: Final = 3
"""Rounds before growth is counted: libvirt and Python fill their caches in the first."""
SETTLE_S: Final = arrival_monitor.WITNESS_S + 30.0
"""A witness of a VM that never arrived ends by itself, and so does, sooner, a relay nobody uses."""
LINK_MBIT: Final = 1000.0
GUEST_MIB: Final = 384
LOG_BYTES: Final = 1500
REPORT_S: Final = 300.0
HINTS_S: Final = 60.0
Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Round:
    """What one round did. ``wrong`` is empty unless something that must hold did not."""

    number: int
    fault: str
    phase: str
    outcome: str
    seconds: float
    wrong: tuple[str, ...] = ()
    notes: str = ""


@dataclasses.dataclass
class Report:
    """A soak so far. ``growth``: bytes, of the long-lived process that grew most."""

    rounds: list[Round] = dataclasses.field(default_factory=list)
    minutes: float = 0.0
    growth: int = 0
    grown: str = ""

    @property
    def lost(self) -> int:
        """Rounds after which a VM was not whole, not alone or not there."""
        return sum(each.outcome == "lost" for each in self.rounds)

    @property
    def wrong(self) -> list[str]:
        """Everything that did not hold."""
        return [f"round {each.number}: {why}" for each in self.rounds for why in each.wrong]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**dataclasses.asdict(self), "lost": self.lost, "wrong": self.wrong}


# --- a round -------------------------------------------------------------------------------------


class Soak:
    """Rounds on one laboratory that is up, of guests whose workload is ``checksum``.

    :param dice: decides everything that is left to chance.
    :param fault_names: of :data:`FAULTS` and :data:`HINTS`; all of them without any.
    """

    def __init__(
        self,
        lab: Lab,
        guests: Sequence[Guest],
        dice: random.Random,
        tell: Tell = lambda text: None,
        fault_names: Sequence[str] = (),
    ) -> None:
        self._lab = lab
        self._guests = guests
        self._dice = dice
        self._tell = tell
        self._names = tuple(fault_names) or (*FAULTS, *HINTS)
        self._tokens = {guest.name: _token(guest) for guest in guests}
        self._before: leaks.Holdings | None = None
        self.report = Report()

    def run(self, minutes: float) -> Report:
        """Rounds until the time is over, at least one; what is lost ends it."""
        began = time.monotonic()
        while True:
            done = self.round()
            self.report.rounds.append(done)
            self.report.minutes = (time.monotonic() - began) / 60
            self._tell(_line(done))
            if done.outcome == "lost" or self.report.minutes >= minutes:
                return self.report

    def round(self) -> Round:
        """One, whatever comes of it."""
        guest = self._dice.choice(self._guests)
        fault = self._dice.choice(self._names)
        phase = self._dice.choice(phases(fault))
        began = time.monotonic()
        source = guest.host
        with faults.Copies(Departure(self._lab, guest)) as copies:
            if fault in FAULTS:
                notes = self._depart(Departure(self._lab, guest), FAULTS[fault], PHASES[phase])
            else:
                notes = self._depart_by(guest, HINTS[fault])
            wrong = self._wrong(guest)
        if copies.second is not None:
            wrong.append(copies.second)
        if wrong or notes:
            notes += self._evidence()
        outcome = "lost" if wrong else ("stayed" if guest.host is source else "moved")
        for host in self._lab.hosts.values():
            host.have_spare_relay()
        wrong += self._left_behind()
        number = len(self.report.rounds) + 1
        seconds = round(time.monotonic() - began, 1)
        return Round(number, fault, phase, outcome, seconds, tuple(wrong), notes)

    def _depart(
        self, departure: Departure, fault: Fault, until: Callable[[Departure], None]
    ) -> str:
        """Through the command; how it went, in words."""
        notes = ""
        try:
            if fault is guest_agent_killed:  # later on nobody asks it any more
                fault(departure, self._dice)
                fault = nothing
        except LabError as error:
            notes = f"undisturbed: {str(error)[-80:]}; "
        departure.start()
        try:
            until(departure)
            time.sleep(self._dice.random())  # at any moment of the phase
            fault(departure, self._dice)
        except LabError as error:  # it was over before it could be disturbed
            notes = f"undisturbed: {str(error)[-80:]}; "
        try:
            told = departure.report(REPORT_S)
        except LabError as error:
            return notes + str(error)[-200:]
        recovered = told.get("recovered")
        return notes + ("" if recovered is None else f"resumed, {recovered} attempts")

    def _depart_by(
        self, guest: Guest, hint: Callable[[GuestKnowledge, random.Random], GuestKnowledge]
    ) -> str:
        """With knowledge that is not the guest's."""
        try:
            session = migration.arm(guest, HINTS_S, samples=2)
        except LabError as error:
            return f"no hints to falsify: {error}"
        try:
            held = session.latest()
        finally:
            session.close()
        assert held is not None
        source, domain = guest.host, guest.domain
        destination = migration.other(self._lab, source)
        pair = relays.start_pair(
            source,
            destination,
            knowledge=hint(held.knowledge, self._dice),
            layout=MemoryLayout.from_domain_xml(domain.XMLDesc()).to_dict(),
            tls=relays.certificates(self._lab.run_dir / "tls", list(self._lab.hosts.values())),
        )
        try:
            Eviction(domain, Route(destination.libvirt_uri(remote=True), pair.migrate_uri)).run()
        except exception.LibvirtError as error:
            return str(error)[-200:]
        migration.last_state(pair)
        return ""

    # -- what has to hold ---------------------------------------------------------------------

    def _wrong(self, guest: Guest) -> list[str]:
        """What does not hold of the VM."""
        wrong = []
        standings = [faults.standing_at(host, guest.name) for host in self._lab.hosts.values()]
        if standings.count(Standing.EXECUTES) != 1 or Standing.GONE not in standings:
            wrong.append(f"{guest.name} stands as {' and '.join(standings)}")
        try:
            faults.assert_whole(guest, self._tokens[guest.name])
        except LabError as error:
            wrong.append(str(error))
        guest.probe.restart()  # a report every 20 ms would be this process's own growth
        return wrong

    def _evidence(self) -> str:
        """What relays wrote of what went wrong; their directories do not outlive the round."""
        tops = [host.outside(relays.DIRECTORY) for host in self._lab.hosts.values()]
        logs = [path for top in tops for path in top.rglob("relay.log")]
        told = [f"{path.parent.name}: {path.read_text()[-LOG_BYTES:]}" for path in sorted(logs)]
        return "".join(f"\n      {line}" for text in told for line in text.splitlines())

    def _left_behind(self) -> list[str]:
        """What the round left on the machine; endings take a moment."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            now = self._settled()
            before, rounds = self._before, len(self.report.rounds) + 1
            if before is None or rounds <= WARM_ROUNDS:
                # Nothing goes away any more, and what is there is where counting begins.
                if before == now:
                    return []
                self._before = now
            elif not (left := now.beyond(before)):
                self._grow(now)
                return []
            if time.monotonic() > deadline:
                return [] if rounds <= WARM_ROUNDS else left
            time.sleep(0.5)  # nothing tells when a process of another's has ended

    def _settled(self) -> leaks.Holdings:
        """What is held once what ended is cleared away, as the hosts' agents would."""
        now = leaks.held(self._lab)
        if now.relays:
            return now
        for host in self._lab.hosts.values():
            for top in (relays.DIRECTORY, *(f"{relays.DIRECTORY}/{g.name}" for g in self._guests)):
                RelayUpkeep(str(host.outside(top)), keep=0.0).look()
        return leaks.held(self._lab)

    def _grow(self, now: leaks.Holdings) -> None:
        assert self._before is not None
        for name, size in now.memory.items():
            more = size - self._before.memory.get(name, size)
            if more > self.report.growth:
                self.report.growth, self.report.grown = more, name


def _token(guest: Guest) -> int:
    return guest.probe.wait_running(60.0).token_hash


def _line(done: Round) -> str:
    wrong = f"  WRONG: {'; '.join(done.wrong)}" if done.wrong else ""
    return (
        f"{done.number:4}  {done.fault:27} {done.phase:16} {done.outcome:7} "
        f"{done.seconds:6.1f} s  {done.notes}{wrong}"
    )


# --- the command ---------------------------------------------------------------------------------


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lab.soak",
        description="Move guests to and fro between two hosts, break things at random, and see "
        "that no VM is lost and nothing is left behind. MINUTES=N in the environment does the "
        "same as --minutes.",
    )
    parser.add_argument(
        "--minutes", type=float, default=float(os.environ.get("MINUTES") or 60),
        help="how long (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--guests", type=int, default=2, help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, help="repeat the choices of an earlier run")
    parser.add_argument("--fault", action="append", default=[], choices=(*FAULTS, *HINTS),
                        help="only this; may be given more than once")  # fmt: skip
    parser.add_argument("--report", type=Path, help="write everything there too, as JSON")
    return parser.parse_args(argv)


def show(console: Console, report: Report) -> None:
    """The closing table: how often each fault ended how."""
    table = Table(title=f"{len(report.rounds)} rounds in {report.minutes:.1f} minutes")
    outcomes = ("moved", "stayed", "lost")
    for heading in ("fault", *outcomes):
        table.add_column(heading, justify="left" if heading == "fault" else "right")
    count = collections.Counter((each.fault, each.outcome) for each in report.rounds)
    for name in dict.fromkeys(each.fault for each in report.rounds):
        table.add_row(name, *(str(count[name, outcome]) for outcome in outcomes))
    console.print(table)
    console.print(f"grown most: {report.growth / (1 << 20):.1f} MiB {report.grown}")
    for why in report.wrong:
        console.print(why, style="red", markup=False)


def soak(
    minutes: float,
    run_directory: Path,
    *,
    guests: int = 2,
    seed: int | None = None,
    fault_names: Sequence[str] = (),
    tell: Tell = lambda text: None,
) -> Report:
    """Bring a laboratory up, soak it, end it. Raises LabError where it does not come up."""
    event_loop()
    begun_with = random.randrange(1 << 32) if seed is None else seed
    tell(f"seed {begun_with}")
    with Lab(run=run_directory, link_mbit=LINK_MBIT, progress=tell) as lab:
        started = [
            lab.guest(f"soak{number}", workload="checksum", memory_mib=GUEST_MIB, wait=True)
            for number in range(1, guests + 1)
        ]
        names = fault_names or chosen(minutes)
        return Soak(lab, started, random.Random(begun_with), tell, names).run(minutes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit status is 1 where something did not hold."""
    wanted = _arguments(argv)
    console = Console()
    try:
        report = soak(
            wanted.minutes,
            Path(f"/run/nel-s-{os.getpid()}"),
            guests=wanted.guests,
            seed=wanted.seed,
            fault_names=wanted.fault,
            tell=lambda text: console.print(text, markup=False, highlight=False),
        )
    except LabError as error:
        console.print(f"soak: {error}", style="red", markup=False)
        return 1
    show(console, report)
    if wanted.report:
        wanted.report.write_text(json.dumps(report.to_dict(), indent=1))
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
