# SPDX-License-Identifier: Apache-2.0
"""What watching a host costs: the agent itself, at its default pace, over a hundred guests.

The guests are made up where libvirt would answer for them; the rest, the kernel's files, the
detector, reports as they go on the bus and metrics, is real. What libvirtd spends on answering
is not in the figure.
"""

from __future__ import annotations

import json
import platform
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from bench.measures import MeasureError
from bench.results import Outcome
from bench.session import Session, project_version
from nova_enlightened import conf as options
from nova_enlightened.contention.report import HostReport
from nova_enlightened.host.service import Agent

GUESTS = 100
VCPUS = 4
WARM_UP_S = 3.0
LISTENED_S = 20.0
QUICK_S = 5.0
CONFIGURATION = """\
[enlightened]
run_directory = {run}
link_address = 127.0.0.1
link_tls = off
[enlightened_agent]
host = bench
provider_traits = false
"""


class Guest:
    """A domain as libvirt's binding shows it; it uses a fifth of its vCPUs and waits a little."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.uuid = str(uuid.uuid4())

    def ID(self) -> int:
        return self.number

    def UUIDString(self) -> str:
        return self.uuid

    def name(self) -> str:
        return f"instance-{self.number:08x}"

    def statistics(self, at: float) -> dict[str, Any]:
        """The keys that libvirt 9.0 gives, by its own count of nanoseconds."""
        used, said = int(at * 2e8), {"vcpu.current": VCPUS, "vcpu.maximum": VCPUS}
        for vcpu in range(VCPUS):
            said |= {
                f"vcpu.{vcpu}.state": 1,
                f"vcpu.{vcpu}.time": used,
                f"vcpu.{vcpu}.wait": 0,
                f"vcpu.{vcpu}.delay": used // 100,
            }
        balloon = ("current", "maximum", "unused", "available", "usable", "rss")
        return {
            "cpu.time": used * VCPUS,
            "cpu.user": used,
            "cpu.system": used,
            **said,
            **{f"balloon.{name}": 4 << 20 for name in balloon},
        }


class Hypervisor:
    """As much of libvirt as the agent asks, without a daemon."""

    def __init__(self, guests: int) -> None:
        self._guests = [Guest(number) for number in range(1, guests + 1)]

    def get(self) -> Hypervisor:
        return self

    def hostname(self) -> str:
        return "bench"

    def capabilities(self) -> str:
        return "<capabilities/>"

    def close(self) -> None:
        """Nothing is open."""

    def getAllDomainStats(self, wanted: int, flags: int) -> list[tuple[Guest, dict[str, Any]]]:
        at = time.monotonic()
        return [(guest, guest.statistics(at)) for guest in self._guests]


class NobodyElse:
    """The other hosts: none is asked."""

    def describe(self, host: str) -> dict[str, Any]:
        raise NotImplementedError(host)

    def start_destination_relay(self, host: str, spec: str) -> dict[str, Any]:
        raise NotImplementedError(host)


def monitor(session: Session) -> Outcome:
    """CPU time of the agent as a share of one core, a figure for each round."""
    seconds = QUICK_S if session.options.quick else LISTENED_S
    runs: list[dict[str, Any]] = []
    for number in range(1, session.options.rounds + 1):
        session.tell(f"round {number} of {session.options.rounds}: {GUESTS} guests, {seconds:g} s")
        cpu_s, reports = listened(seconds, GUESTS)
        runs.append({
            "round": number,
            "way": "agent",
            "seconds": seconds,
            "cpu_s": round(cpu_s, 4),
            "reports": reports,
            "percent": 100 * cpu_s / seconds,
        })  # fmt: skip
    return Outcome(
        {"monitor_core_percent_100_domains": [run["percent"] for run in runs]},
        {"Python": platform.python_version(), "nova-enlightened": project_version()},
        runs,
    )


def listened(seconds: float, guests: int) -> tuple[float, int]:
    """CPU seconds of this process while an agent runs in it, and the reports it sent.

    Raises MeasureError where it sent none that tells of every guest.
    """
    sent: list[int] = []

    def cast(report: HostReport) -> None:
        # oslo.messaging makes JSON twice: of the message, and of its envelope.
        json.dumps({"oslo.message": json.dumps(report.to_dict())})
        sent.append(len(report.domains))

    with tempfile.TemporaryDirectory(prefix="nee-", dir="/tmp") as top:
        file = Path(top, "agent.conf")
        file.write_text(CONFIGURATION.format(run=f"{top}/run"))
        agent = Agent(options.read([str(file)]), Hypervisor(guests), NobodyElse(), cast)  # type: ignore[arg-type]
        agent.start()
        try:
            still = threading.Event()
            still.wait(WARM_UP_S)
            sent.clear()
            began = time.process_time()
            still.wait(seconds)
            cpu_s = time.process_time() - began
        finally:
            agent.stop()
    if not sent or set(sent) != {guests}:
        raise MeasureError(f"the agent reported guests {sent}, not {guests} each time")
    return cpu_s, len(sent)
