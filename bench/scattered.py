# SPDX-License-Identifier: Apache-2.0
"""Hot pages scattered over physical memory, or contiguous in it: how fast the guest is back."""

from __future__ import annotations

from collections.abc import Mapping

from bench.engine import BARE_NUMBER, BareStage, LabStage, Twins
from bench.results import Outcome
from bench.rounds import Run, Series, all_rounds, best_stock
from bench.session import LINK_BYTES_S, Session, versions
from lab import Lab
from lab.domain import GuestSpec
from lab.way import Way

HOT_BYTES = 64 << 20
LIMIT_S = HOT_BYTES / LINK_BYTES_S
"""The hot pages alone need this long on the link, whoever orders them."""


def qemu7(session: Session) -> Outcome:
    """QEMU 7.2 with libvirt 9.0, which has no preempt: that guest runs without libvirt."""
    ours = Way.ENLIGHTENED
    lab = session.lab("bookworm")
    series = _twins(session, lab, (Way.STOCK, Way.STOCK_PREEMPT, ours), Way.STOCK_PREEMPT)
    values = {
        "scattered_recovery_ratio_qemu7": series.ratios(lambda runs: _gain(runs, ours)),
        "scattered_over_limit": series.ratios(lambda runs: runs[ours].recovery_s / LIMIT_S),
        "order_to_executing_over_bare": series.ratios(
            lambda runs: _start_ratio(runs[ours], runs[Way.STOCK])
        ),
    }
    return outcome(series, values, versions(lab), ours)


def qemu10(session: Session) -> Outcome:
    """QEMU 10 with libvirt 11, which always preempts: without, there is no libvirt."""
    ours = Way.ENLIGHTENED_PREEMPT
    lab = session.lab("trixie")
    series = _twins(session, lab, (Way.STOCK_PREEMPT, Way.STOCK, ours), Way.STOCK)
    values = {"scattered_recovery_ratio_qemu10": series.ratios(lambda runs: _gain(runs, ours))}
    return outcome(series, values, versions(lab), ours)


def contiguous(session: Session) -> Outcome:
    """Where stock's own order, by address, is good."""
    ours = Way.ENLIGHTENED
    lab = session.lab("bookworm")
    stage = LabStage(lab, lambda: lab.guest("contiguous", workload="contiguous", wait=True))
    options = session.options
    series = all_rounds(stage, (Way.STOCK, ours), options.rounds, options.limit_s, session.tell)
    ratios = series.ratios(lambda runs: runs[ours].recovery_s / best_stock(runs).recovery_s)
    return outcome(series, {"contiguous_over_stock": ratios}, versions(lab), ours)


def outcome(
    series: Series, values: Mapping[str, list[float]], used: Mapping[str, str], ours: Way
) -> Outcome:
    """The series as an outcome, with what its reader must know.

    A run that was not seen to recover counts with the time it was watched: where that is
    stock's, the ratio is a lower bound; where it is ours, the ratio flatters us.
    """
    notes = list(series.failures)
    notes += [
        f"round {run.round}, {run.way.words}: not recovered while watched, a lower bound"
        for run in series.runs
        if run.cost.lower_bound
    ]
    notes += [
        f"round {run.round}: ours went without knowledge ({run.migration.relay.get('plan_error')})"
        for run in series.runs
        if run.way is ours and not run.planned
    ]
    return Outcome(values, used, [run.to_dict() for run in series.runs], notes)


def _twins(session: Session, lab: Lab, ways: tuple[Way, ...], bare_way: Way) -> Series:
    bare = BareStage(lab, GuestSpec(name="bare", number=BARE_NUMBER))
    try:
        bare.pause()
        main = LabStage(lab, lambda: lab.guest("scattered", workload="scattered", wait=True))
        stage = Twins(main, bare, frozenset({bare_way}))
        options = session.options
        return all_rounds(stage, ways, options.rounds, options.limit_s, session.tell)
    finally:
        bare.end()


def _gain(runs: Mapping[Way, Run], ours: Way) -> float:
    return best_stock(runs).recovery_s / runs[ours].recovery_s


def _start_ratio(ours: Run, bare: Run) -> float | None:
    mine, theirs = ours.order_to_executing_s, bare.order_to_executing_s
    return None if mine is None or theirs is None else mine / theirs
