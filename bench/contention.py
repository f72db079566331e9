# SPDX-License-Identifier: Apache-2.0
"""Two VMs on one core, one leaves: the work both lose until both are at full rate.

host1 has processor 0 for all it does (both VMs, its QEMUs' threads, its libvirtd, its relay),
host2 has processor 1. Full rate is what each VM gets alone on its core, measured after every
migration that left it there; all runs are judged by the median of these, as the cores and the
VMs are the same throughout and a pre-copy that never ends leaves nobody alone.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench import engine, measures, rounds
from bench.engine import LabStage
from bench.measures import RateSeries
from bench.results import Outcome
from bench.rounds import StageError
from bench.session import LINK_MBIT, Session, versions
from lab import Lab
from lab.way import Migration, Way

WAYS = (Way.PRECOPY, Way.STOCK, Way.ENLIGHTENED)
SHARED_S = 3.0
ALONE_S = 4.0
HOME_S = 60.0


@dataclasses.dataclass(frozen=True)
class Pair:
    """One value for the VM that leaves and one for the VM that stays."""

    leaves: float
    stays: float


@dataclasses.dataclass(frozen=True)
class Eviction:
    """One run: series of both VMs, full rates where they could be measured."""

    round: int
    migration: Migration
    leaves: RateSeries
    stays: RateSeries
    full: Pair | None
    cap_s: float


@dataclasses.dataclass(frozen=True)
class Loss:
    """Work both lost, in seconds of full-speed work of one VM each."""

    leaves_s: float
    stays_s: float
    until: float
    lower_bound: bool

    @property
    def total_s(self) -> float:
        """Both together."""
        return self.leaves_s + self.stays_s


def contention(session: Session) -> Outcome:
    """Pre-copy / ours and stock post-copy / ours."""
    lab = session.lab("bookworm", one_core_each=True)
    stage = LabStage(lab, lambda: lab.guest("leaves", workload="scattered", wait=True))
    stays = lab.guest("stays", workload="scattered", wait=True)
    found: list[Eviction] = []
    failures: list[str] = []
    options = session.options
    for number, turn in enumerate(measures.interleaved(WAYS, options.rounds), 1):
        for way in map(Way, turn):
            session.tell(f"round {number} of {options.rounds}: {way.words}")
            cap = options.limit_s if way.postcopy else options.precopy_cap_s
            try:
                found.append(_evict(stage, stays.name, way, number, cap))
                _bring_home(lab, stage)
            except (StageError, measures.MeasureError) as error:
                failures.append(f"round {number}, {way.words}: {error}")
                session.tell(failures[-1])
                stage.recover()
    return judged(found, failures, versions(lab))


def _evict(stage: LabStage, stays: str, way: Way, number: int, cap_s: float) -> Eviction:
    stage.wait(SHARED_S)
    if way.enlightened:
        stage.arm()
    migration = stage.migrate(way, cap_s)
    switched = migration.switchover if way.postcopy else None
    if way.postcopy and (switched is None or migration.failure):
        raise StageError(f"{way.words}: {migration.failure or 'did not switch'}")
    full = None
    stage.wait(rounds.AFTER_S)
    if migration.completed is not None:
        first = stage.now()
        stage.wait(ALONE_S)
        full = Pair(*(_rate(stage, name, first) for name in (stage.guest.name, stays)))
    begin, end = migration.ordered - rounds.SHOWN_BEFORE_S, stage.now()
    edge = migration.ordered if switched is None else switched
    leaves, stayed = (
        engine.rates(stage.lab.collector.probe(name), begin, end, edge, measures.BIN_S)
        for name in (stage.guest.name, stays)
    )
    return Eviction(number, migration, leaves, stayed, full, cap_s)


def _rate(stage: LabStage, name: str, first: float) -> float:
    last = stage.now()
    series = engine.rates(stage.lab.collector.probe(name), first, last, first, measures.BIN_S)
    return measures.baseline_rate(series, first, last)


def _bring_home(lab: Lab, stage: LabStage) -> None:
    """Back to host1 over an unshaped link; nothing is measured."""
    if stage.guest.host.name == "host1":
        return
    lab.link.shape(None)
    try:
        back = stage.migrate(Way.STOCK, HOME_S)
    finally:
        lab.link.shape(LINK_MBIT)
    if back.failure:
        raise StageError(f"on the way home: {back.failure}")


def loss(run: Eviction, full: Pair) -> Loss:
    """What both lost from the order until both are at full rate, or until the cap."""
    ordered, switchover = run.migration.ordered, run.migration.switchover
    limit = min(ordered + run.cap_s, run.leaves.end)
    back = [
        measures.recovered_at(run.leaves, full.leaves, switchover or ordered),
        measures.recovered_at(run.stays, full.stays, ordered),
    ]
    seen = [at for at in back if at is not None and at <= limit]
    bound = len(seen) < len(back) or switchover is None
    until = limit if bound else max(seen)
    return Loss(
        measures.work_lost(run.leaves, full.leaves, ordered, until),
        measures.work_lost(run.stays, full.stays, ordered, until),
        until,
        bound,
    )


def full_rates(found: Sequence[Eviction]) -> Pair | None:
    """The median full rates of all runs; None when no run left both alone."""
    pairs = [run.full for run in found if run.full is not None]
    if not pairs:
        return None
    return Pair(
        statistics.median(pair.leaves for pair in pairs),
        statistics.median(pair.stays for pair in pairs),
    )


def ratios(losses: Mapping[tuple[int, Way], Loss], way: Way) -> list[float]:
    """That way's loss / ours, for each round that has both."""
    return [
        lost.total_s / losses[number, Way.ENLIGHTENED].total_s
        for (number, of), lost in losses.items()
        if of is way and (number, Way.ENLIGHTENED) in losses
    ]


def judged(found: Sequence[Eviction], failures: Sequence[str], used: Mapping[str, str]) -> Outcome:
    """The runs as an outcome, with what its reader must know."""
    losses: dict[tuple[int, Way], Loss] = {}
    runs: list[dict[str, Any]] = []
    notes = list(failures)
    full = full_rates(found)
    for run in found:
        if full is None:
            break
        lost = losses[run.round, run.migration.way] = loss(run, full)
        runs.append(_kept(run, full, lost))
        if lost.lower_bound:
            notes.append(
                f"round {run.round}, {run.migration.way.words}: not at full rate "
                f"{lost.until - run.migration.ordered:.0f} s after the order, a lower bound"
            )
    values = {
        "contention_precopy_ratio": ratios(losses, Way.PRECOPY),
        "contention_postcopy_ratio": ratios(losses, Way.STOCK),
    }
    return Outcome(values, used, runs, notes)


def _kept(run: Eviction, full: Pair, lost: Loss) -> dict[str, Any]:
    ordered = run.migration.ordered
    return {
        "round": run.round,
        "way": str(run.migration.way),
        "full": dataclasses.asdict(full),
        "lost_s": rounds.rounded(lost.total_s),
        "lost_leaves_s": rounds.rounded(lost.leaves_s),
        "lost_stays_s": rounds.rounded(lost.stays_s),
        "until_s": rounds.rounded(lost.until - ordered),
        "lower_bound": lost.lower_bound,
        "parts": {name: rounds.rounded(at) for name, at in run.migration.parts().items()},
        "failure": run.migration.failure,
        "relay": dict(run.migration.relay),
        "curve": rounds.curve(rounds.coarser(run.leaves), ordered, full.leaves),
        "curve_stays": rounds.curve(rounds.coarser(run.stays), ordered, full.stays),
    }
