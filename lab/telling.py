# SPDX-License-Identifier: Apache-2.0
"""From what was measured to the story: one migration and two series become an act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import measures
from lab.story import Act, Figure, Mark, Moment, VmLine
from lab.way import Migration, Way

BEFORE_S, BIN_S = 6.0, 0.1

TITLES = {
    Way.ENLIGHTENED: "Enlightened post-copy: pages in the order the guest needs them",
    Way.ENLIGHTENED_PREEMPT: "Enlightened post-copy: pages in the order the guest needs them",
    Way.STOCK: "Stock post-copy: pages in the order of their addresses",
    Way.STOCK_PREEMPT: "Stock post-copy: pages in the order of their addresses",
    Way.PRECOPY: "Pre-copy: memory first, the VM last",
}


@dataclass(frozen=True)
class Worker:
    """A VM and its work. ``times``, ``counts``: its probe's samples. ``full``: its rate alone."""

    name: str
    unit: str
    moves: bool
    full: float
    times: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    def series(self, first: float, last: float, edge: float, bin_s: float) -> measures.RateSeries:
        """Its rate by time."""
        return measures.rate_series(self.times, self.counts, first, last, bin_s, edge)


def act(
    migration: Migration, workers: tuple[Worker, ...], until: float, decided: tuple[str, ...]
) -> Act:
    """One eviction as an act; ``until`` is where the samples end (monotonic s)."""
    zero = migration.ordered
    costs = {worker.name: _cost(worker, migration, until) for worker in workers}
    leaver = next(worker for worker in workers if worker.moves)
    back = costs[leaver.name].recovered
    ends = [cost.recovered for cost in costs.values()]
    total_until = max((end for end in ends if end is not None), default=until)
    lost = {
        worker.name: measures.work_lost(
            worker.series(zero - 1.0, until, zero, measures.BIN_S), worker.full, zero, total_until
        )
        for worker in workers
    }
    return Act(
        way=str(migration.way),
        title=TITLES[migration.way],
        vms=tuple(_line(worker, zero, until, lost[worker.name]) for worker in workers),
        marks=_marks(migration, back),
        figures=_figures(migration, workers, costs, lost),
        decided=decided,
    )


def _cost(worker: Worker, migration: Migration, until: float) -> measures.Cost:
    switchover = migration.switchover if worker.moves else None
    edge = migration.ordered if switchover is None else switchover
    series = worker.series(migration.ordered - 1.0, until, edge, measures.BIN_S)
    return measures.cost(series, worker.full, migration.ordered, switchover, until)


def _line(worker: Worker, zero: float, until: float, lost_s: float) -> VmLine:
    series = worker.series(zero - BEFORE_S, until, zero, BIN_S)
    rates = tuple(round(float(rate), 2) for rate in series.rates)
    return VmLine(
        worker.name, worker.moves, worker.unit, worker.full,
        round(series.start - zero, 6), BIN_S, rates, lost_s,
    )  # fmt: skip


def _marks(migration: Migration, recovered: float | None) -> tuple[Mark, ...]:
    zero = migration.ordered
    marks = [Mark(Moment.DECISION, 0.0, "the order to evict")]
    for moment, at, note in (
        (Moment.SWITCHOVER, migration.switchover, "the source stopped executing"),
        (Moment.EXECUTING, migration.executing, "the destination began to execute"),
        (Moment.RECOVERED, recovered, "90 % of its full rate, for half a second and more"),
        (Moment.SOURCE_FREED, migration.source_freed, "the source's QEMU has ended"),
    ):
        if at is not None:
            marks.append(Mark(moment, round(at - zero, 4), note))
    return tuple(marks)


def _figures(
    migration: Migration,
    workers: tuple[Worker, ...],
    costs: Mapping[str, measures.Cost],
    lost: Mapping[str, float],
) -> tuple[Figure, ...]:
    zero = migration.ordered
    leaver = next(worker.name for worker in workers if worker.moves)
    unsure = any(cost.lower_bound for cost in costs.values())
    figures = [
        Figure("executing", "decision to executing there", _since(migration.executing, zero), "s"),
        Figure("recovery", "switchover to 90 % of full rate", costs[leaver].recovery_s, "s"),
    ]
    for worker in workers:
        verb = "leaves" if worker.moves else "stays"
        figures.append(
            Figure(
                f"lost {worker.name}", f"work lost by {worker.name}, which {verb}",
                lost[worker.name], "s", costs[worker.name].lower_bound,
            )
        )  # fmt: skip
    figures += [
        Figure("lost", "work lost by both", sum(lost.values()), "s", unsure),
        Figure("blocked", f"{leaver} as good as stopped", costs[leaver].blocked_s, "s"),
        Figure("freed", "decision to source freed", _since(migration.source_freed, zero), "s"),
        *_relay_figures(migration.relay),
    ]
    return tuple(figures)


def _relay_figures(relay: Mapping[str, Any]) -> list[Figure]:
    if not relay:
        return []
    pages = relay.get("pages") or {}
    latency = relay.get("fault_latency_s") or {}
    return [
        Figure("carried", "carried by the relay", relay["link"]["bytes_sent"] / 1e6, "MB"),
        Figure("injected", "pages requested ahead of the guest", pages.get("injected"), ""),
        Figure("faults", "pages the guest had to wait for", pages.get("faults"), ""),
        Figure("latency", "wait for such a page, median", _ms(latency.get("p50")), "ms"),
    ]


def _since(at: float | None, zero: float) -> float | None:
    return None if at is None else at - zero


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
