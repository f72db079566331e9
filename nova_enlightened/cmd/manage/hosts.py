# SPDX-License-Identifier: Apache-2.0
"""``hosts`` and ``armed``: what compute hosts say of themselves now."""

import argparse
import concurrent.futures
from collections.abc import Sequence
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.cmd.manage import output
from nova_enlightened.cmd.manage.context import NO_REPORTS, Context, describe
from nova_enlightened.cmd.manage.output import Column
from nova_enlightened.contention.report import DomainReport, HostReport

ASKED_AT_ONCE: Final = 16

_HOSTS: Final = (
    Column("Host"),
    Column("Level"),
    Column("CPUs", right=True),
    Column("waiting", right=True),
    Column("MiB free", right=True),
    Column("of", right=True),
    Column("Guests", right=True),
    Column("armed", right=True),
    Column("leaving", right=True),
    Column("In order"),
    Column("Age s", right=True),
    Column("Why"),
)
_ARMED: Final = (
    Column("Host"),
    Column("Server"),
    Column("MiB", right=True),
    Column("hot", right=True),
    Column("Urgent order"),
    Column("How"),
)


def hosts(arguments: argparse.Namespace, context: Context) -> int:
    """The state of every host that reports, or of those named."""
    reports = heard(arguments, context)
    if arguments.json:
        output.document([one.to_dict() for one in reports])
    else:
        now = context.clock()
        output.table(_HOSTS, [_host_row(one, now) for one in reports])
    missing = sorted(set(arguments.host) - {one.host for one in reports})
    for host in missing:
        output.say(f"{host} does not report: see nova-enlightened-agent's log there")
    return 1 if missing else 0


def heard(arguments: argparse.Namespace, context: Context) -> list[HostReport]:
    """Reports as they come. :raises AgentUnreachable: there are none."""
    reports = context.listen(arguments.wait, arguments.host)
    if not reports:
        raise exception.AgentUnreachable(NO_REPORTS)
    return sorted(reports, key=lambda one: (-one.level, one.host))


def _host_row(report: HostReport, now: float) -> list[str]:
    return [
        report.host,
        report.level.name,
        f"{report.cpu_used:.2f} of {report.cpus}",
        f"{report.cpu_waiting:.2f}",
        output.mebibytes(report.memory_available),
        output.mebibytes(report.memory_total),
        str(len(report.domains)),
        str(sum(domain.armed for domain in report.domains)),
        str(len(report.urgent)),
        "yes" if report.capable else "no",
        f"{max(0.0, now - report.at):.0f}",
        report.reason,
    ]


def armed(arguments: argparse.Namespace, context: Context) -> int:
    """Guests that sample their memory, or were asked to, and orders that stand."""
    reports = {one.host: one for one in heard(arguments, context)}
    with concurrent.futures.ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        answers = dict(
            zip(reports, pool.map(lambda host: describe(context, host), reports), strict=True)
        )
    found = [entry for host, answer in answers.items() for entry in entries(reports[host], answer)]
    if arguments.json:
        output.document(found)
    elif found:
        output.table(_ARMED, [_armed_row(entry) for entry in found])
    else:
        output.say("No guest is armed: they are once their host warns of contention")
    for host in sorted(host for host, answer in answers.items() if answer is None):
        output.say(f"{host} reports, but does not answer: how its guests stand is not known")
    return 0


def entries(report: HostReport, answer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What is known of each guest of a host that is armed or has an order.

    :param answer: of ``HostAPI.describe``, None where the agent does not answer.
    """
    how: dict[str, str] = (answer or {}).get("armed") or {}
    domains = {one.uuid: one for one in report.domains}
    ordered = set(report.urgent) | {one["instance"] for one in (answer or {}).get("orders") or ()}
    sampling = {uuid for uuid, one in domains.items() if one.armed}
    return [
        {
            "host": report.host,
            "server": uuid,
            "sampling": uuid in sampling,
            "urgent": uuid in ordered,
            "how": how.get(uuid, ""),
            **_memory(domains.get(uuid)),
        }
        for uuid in sorted(sampling | ordered | set(how))
    ]


def _memory(domain: DomainReport | None) -> dict[str, int | None]:
    if domain is None:
        return {"memory": None, "hot": None}
    return {"memory": domain.memory, "hot": domain.hot}


def _armed_row(entry: dict[str, Any]) -> Sequence[str]:
    return [
        entry["host"],
        entry["server"],
        output.mebibytes(entry["memory"]),
        output.mebibytes(entry["hot"]),
        "stands" if entry["urgent"] else "",
        entry["how"] or ("sampling" if entry["sampling"] else ""),
    ]
