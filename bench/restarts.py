# SPDX-License-Identifier: Apache-2.0
"""A real nova-compute of the source killed at a random moment of an urgent migration.

It is killed and started again before, during or after the switch, by the seed in the results.
Afterwards the server has to be one and the same: one copy, alive, with Nova's record of it, of its
migration and of what it occupies as it is.
"""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Final

from bench.cloud import versions
from bench.results import Outcome
from bench.session import Session
from lab.openstack.agents import Agents
from lab.openstack.cloud import Cloud
from lab.openstack.configuration import Driver
from lab.openstack.faults import Case, befallen, nova_compute_killed
from lab.openstack.servers import Server

MEASURE: Final = "restart_nova_compute_of_20"
TIMES: Final = 20
QUICK_TIMES: Final = 2
LATEST_S: Final = 8.0
"""After it was given to the driver: the switch comes within the first seconds, the last page after
some more."""
ANYWHERE: Final = {
    "enlightened_scheduler": {"filter_migrations": False, "filter_new_servers": False}
}


def restarts(session: Session) -> Outcome:
    """All of them, on one server that goes to and fro."""
    session.close()
    times = QUICK_TIMES if session.options.quick else TIMES
    seed = random.SystemRandom().getrandbits(32)
    dice = random.Random(seed)
    running = Cloud(driver=Driver.ENLIGHTENED, extra=ANYWHERE, progress=session.tell)
    cases: list[Case] = []
    try:
        running.up()
        used = versions(running)
        agents = Agents(running)
        server = _working(running)
        for number in range(1, times + 1):
            after_s = dice.uniform(0.0, LATEST_S)
            case = befallen(running, agents, server, nova_compute_killed, after_s)
            cases.append(case)
            session.tell(f"{number} of {times}: {case.status} after {case.after_s:.1f} s, "
                         f"{case.wrong or 'all is true'}")  # fmt: skip
            if case.wrong:
                server.delete()
                server = _working(running)
        agents.close()
    finally:
        running.stop()
    good = float(sum(not case.wrong for case in cases))
    notes = [f"after {one.after_s:.2f} s, {one.status}: {one.wrong}" for one in cases if one.wrong]
    runs = [{"way": "nova-compute killed", **asdict(one)} for one in cases]
    return Outcome({MEASURE: [good]}, used, runs, [f"seed {seed}, {times} restarts", *notes])


def _working(running: Cloud) -> Server:
    server = Server.create(running, "restarted", "host1")
    server.work("scattered")
    return server
