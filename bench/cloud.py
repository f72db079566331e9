# SPDX-License-Identifier: Apache-2.0
"""A real Nova whose host relieves itself, and the same under stock Nova with the same monitor.

Two servers work on host1, which has one processor; load rises in the second. The monitor and the
remediator are this project's in every way; what differs is how Nova moves the server that they
choose: ours, stock post-copy forced as soon as Nova lets it, Nova's pre-copy. The ways that need
another nova-compute follow each other in blocks, on one cloud.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openstack.exceptions import SDKException
from rich.console import Console

from bench import measures
from bench.results import Outcome
from bench.rounds import StageError
from bench.session import Session, project_version
from lab.demo import Stage
from lab.errors import LabError
from lab.openstack.agents import Agents
from lab.openstack.cloud import Cloud
from lab.openstack.configuration import Driver
from lab.openstack.servers import Server
from lab.openstack.story import ENDED, QUICK, Moved, Play, told
from lab.story import Act
from lab.way import Way

BLOCKS = ((Driver.ENLIGHTENED, (Way.ENLIGHTENED,)), (Driver.STOCK, (Way.STOCK, Way.PRECOPY)))
#: The measures that an act of each way goes into.
NEEDS = {
    Way.ENLIGHTENED: {"detect_to_order_s", "order_to_executing_over_force_complete",
                      "story_precopy_ratio", "story_postcopy_ratio"},
    Way.STOCK: {"order_to_executing_over_force_complete", "story_postcopy_ratio"},
    Way.PRECOPY: {"story_precopy_ratio"},
}  # fmt: skip
PING_PONG, STEADY = "ping_pong_completed_of_20", "steady_load_orders"
STEADY_S, QUICK_STEADY_S = 600.0, 60.0
TO_AND_FRO = 20
QUICK_TO_AND_FRO = 4
MOVE_S = 90.0
ARM_S = 4.0
LOOK_S = 0.2
ALIVE_S = 20.0


@dataclass(frozen=True)
class Told:
    """One act, with what it was told from."""

    round: int
    way: Way
    act: Act
    moved: Moved

    def value(self, key: str) -> float | None:
        """A figure of the act."""
        figure = self.act.figure(key)
        return None if figure is None else figure.value

    @property
    def ordered_after(self) -> float | None:
        """Seconds from the rise of load to the order to evict."""
        at = self.moved.record.at("ordered") or self.moved.record.at("requested")
        return None if at is None else at - self.moved.rose_at


def cloud(session: Session) -> Outcome:
    """Acts of every way that is asked for, one server to and fro, and a steady load."""
    session.close()
    found: list[Told] = []
    notes: list[str] = []
    counts: dict[str, list[float]] = {}
    running = _cloud(Driver.ENLIGHTENED, session)
    try:
        running.up()
        used = versions(running)
        for driver, ways in BLOCKS:
            wanted = [way for way in ways if session.wanted & NEEDS[way]]
            if wanted and running.settings.driver is not driver:
                running = _driven(running, driver, session)
            for number in range(1, session.options.rounds + 1):
                found += _round(running, wanted, number, session, notes)
            if driver is Driver.ENLIGHTENED:
                counts = _counts(running, session, notes)
    finally:
        running.stop()
    return judged(found, counts, notes, used)


def _cloud(driver: Driver, session: Session) -> Cloud:
    return Cloud(driver=driver, mode="auto", extra=QUICK, remediated=False, progress=session.tell)


def _driven(running: Cloud, driver: Driver, session: Session) -> Cloud:
    """A cloud with that driver: the one that is up or, where its hosts do not follow, another."""
    session.tell(f"the {driver} driver takes over both hosts")
    try:
        running.drive(driver)
        return running
    except LabError as error:
        session.tell(f"they do not follow: {error}")
        running.stop()
        return _cloud(driver, session).up()


def _round(
    running: Cloud, ways: Sequence[Way], number: int, session: Session, notes: list[str]
) -> Iterator[Told]:
    """An act of each way; one that did not come about is noted."""
    for way in ways:
        session.tell(f"round {number} of {session.options.rounds}: {way.words}")
        try:
            yield _act(running, way, number, session.options.precopy_cap_s)
        except (LabError, StageError, measures.MeasureError, SDKException) as error:
            notes.append(f"round {number}, {way.words}: {error}")
            session.tell(notes[-1])


def _counts(running: Cloud, session: Session, notes: list[str]) -> dict[str, list[float]]:
    """What needs our driver, and is counted; what cannot be is noted."""
    counted: Mapping[str, Callable[[], int]] = {
        PING_PONG: lambda: _to_and_fro(running, session, notes),
        STEADY: lambda: _steady(running, session),
    }
    found: dict[str, list[float]] = {}
    for measure, count in counted.items():
        if measure in session.wanted:
            try:
                found[measure] = [float(count())]
            except (LabError, SDKException) as error:
                notes.append(f"{measure}: {error}")
    return found


def _steady(running: Cloud, session: Session) -> int:
    """Evictions decided while one of two servers works, for as long as it is watched."""
    seconds = QUICK_STEADY_S if session.options.quick else STEADY_S
    session.tell(f"a steady uneven load for {seconds:.0f} s")
    play = Play(running, Stage(Console(quiet=True)))
    with play.cast():
        return play.steady(seconds)


def _act(running: Cloud, way: Way, number: int, precopy_cap_s: float) -> Told:
    """One act. A pre-copy that does not end is one: what was lost by then is a lower bound."""
    play = Play(running, Stage(Console(quiet=True)))
    with play.cast():
        endless = way is Way.PRECOPY
        moved, workers = play.evicted(way, precopy_cap_s if endless else MOVE_S)
        if moved.migration.failure and not endless:
            raise StageError(moved.migration.failure)
        return Told(number, way, told(moved, workers), moved)


def _to_and_fro(running: Cloud, session: Session, notes: list[str]) -> int:
    """How many of so many evictions completed, in a row and without a restart."""
    moves = QUICK_TO_AND_FRO if session.options.quick else TO_AND_FRO
    agents = Agents(running)
    server = Server.create(running, "to-and-fro", "host1")
    done = 0
    try:
        server.work("scattered")
        for number in range(1, moves + 1):
            session.tell(f"to and fro: {number} of {moves}")
            why = _one_move(running, agents, server)
            done += not why
            if why:
                notes.append(f"to and fro, move {number}: {why}")
    finally:
        agents.close()
        server.delete()
    return done


def _one_move(running: Cloud, agents: Agents, server: Server) -> str:
    """Why an urgent move was not right; empty where it was."""
    source = server.host
    before = max((int(one["id"]) for one in running.api.migrations(server.uuid)), default=0)
    agents.arm(source, server.uuid)
    time.sleep(ARM_S)  # the guest looks for so long at what it uses
    agents.order(source, server.uuid, "the benchmark")
    server.live_migrate()
    deadline = time.monotonic() + MOVE_S
    status = "requested"
    while status not in ENDED:
        if time.monotonic() > deadline:
            return f"{status} after {MOVE_S:.0f} s"
        time.sleep(LOOK_S)
        new = [one for one in running.api.migrations(server.uuid) if int(one["id"]) > before]
        status = str(new[0]["status"]) if new else status
    if status != "completed":
        return f"Nova says {status}"
    held = running.api.allocations(server.uuid)
    there = server.host
    if there == source or set(held) != {there}:
        return f"Nova has it on {there}, placement on {sorted(held)}"
    try:
        server.probe.wait_running(ALIVE_S)
    except LabError as error:
        return str(error)
    return ""


def ratios(found: Sequence[Told], key: str, way: Way, *, over: Way) -> list[float]:
    """A figure of one way / that of another, for each round that has both."""
    by = {(one.round, one.way): one.value(key) for one in found}
    pairs = [
        (by.get((number, way)), by.get((number, over)))
        for number in sorted({one.round for one in found})
    ]
    return [mine / theirs for mine, theirs in pairs if mine is not None and theirs]


def judged(
    found: Sequence[Told],
    counts: Mapping[str, list[float]],
    notes: Sequence[str],
    used: Mapping[str, str],
) -> Outcome:
    """The acts as an outcome, with what its reader must know."""
    ours = Way.ENLIGHTENED
    values = {
        "detect_to_order_s": [
            one.ordered_after for one in found if one.way is ours and one.ordered_after is not None
        ],
        "order_to_executing_over_force_complete": ratios(found, "executing", ours, over=Way.STOCK),
        "story_precopy_ratio": ratios(found, "lost", Way.PRECOPY, over=ours),
        "story_postcopy_ratio": ratios(found, "lost", Way.STOCK, over=ours),
        **counts,
    }
    bounds = [
        f"round {one.round}, {one.way.words}: not both at full rate while watched, a lower bound"
        for one in found
        if (lost := one.act.figure("lost")) is not None and lost.at_least
    ]
    return Outcome(values, used, [_kept(one) for one in found], [*notes, *bounds])


def _kept(one: Told) -> dict[str, Any]:
    return {
        "round": one.round,
        "way": str(one.way),
        "ordered_after_s": one.ordered_after,
        "figures": {figure.key: figure.value for figure in one.act.figures},
        "parts": one.moved.migration.parts(),
        "predicted_relief": one.moved.record.predicted_relief,
        "measured_relief": one.moved.record.measured_relief,
        "decided": list(one.act.decided),
    }


def versions(running: Cloud) -> Mapping[str, str]:
    """What ran, by name."""
    host = running.lab.status()["hosts"]["host1"]
    return {
        "Nova": "34.0.0",
        "QEMU": host["qemu"],
        "libvirt": host["libvirt"],
        "accelerator": running.lab.acceleration,
        "Linux": os.uname().release,
        "Python": platform.python_version(),
        "nova-enlightened": project_version(),
    }
