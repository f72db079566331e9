# SPDX-License-Identifier: Apache-2.0
"""Redis under a zipf load that overcommits nothing: how much work a migration costs it."""

from __future__ import annotations

from bench.engine import LabStage
from bench.results import Outcome
from bench.rounds import all_rounds
from bench.scattered import outcome
from bench.session import Session, versions
from lab.guests import Guest
from lab.programs import Program
from lab.way import Way

POPULATE_S = 90.0


def redis(session: Session) -> Outcome:
    """Work lost, stock / ours."""
    lab = session.lab("bookworm")
    load: list[Program] = []

    def boot() -> Guest:
        for old in load:
            old.stop()
        guest = lab.guest("redis", workload="redis", wait=True)
        load[:] = [Program(lab.control, "redis_load", [guest.address, "--name", guest.name])]
        load[0].start()
        guest.probe.wait_running(POPULATE_S)
        return guest

    options = session.options
    try:
        stage = LabStage(lab, boot)
        ways = (Way.STOCK, Way.ENLIGHTENED)
        series = all_rounds(stage, ways, options.rounds, options.limit_s, session.tell)
    finally:
        for program in load:
            program.stop()
    ratios = series.ratios(
        lambda runs: runs[Way.STOCK].cost.lost_s / runs[Way.ENLIGHTENED].cost.lost_s
    )
    return outcome(series, {"redis_work_lost_ratio": ratios}, versions(lab), Way.ENLIGHTENED)
