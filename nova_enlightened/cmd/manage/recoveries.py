# SPDX-License-Identifier: Apache-2.0
"""``recoveries``: VMs in post-copy, how they stand, and a hand on what is done about it."""

import argparse
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.cmd.manage import output
from nova_enlightened.cmd.manage.context import Context
from nova_enlightened.cmd.manage.hosts import heard
from nova_enlightened.cmd.manage.output import Column

_COLUMNS: Final = (
    Column("From"),
    Column("To"),
    Column("Server"),
    Column("State"),
    Column("Attempts", right=True),
    Column("Why"),
)
_DONE: Final = frozenset({"moved", "stayed"})


def recoveries(arguments: argparse.Namespace, context: Context) -> int:
    """Show them, or retry or stop one; exit status 1 where a VM is lost or stands still."""
    names = arguments.host or [one.host for one in heard(arguments, context)]
    if arguments.retry or arguments.stop:
        return _act(arguments, context, names)
    found: list[dict[str, Any]] = []
    silent: list[str] = []
    for host in names:
        try:
            departures = context.hosts.recoveries(host)["departures"]
        except (exception.AgentUnreachable, exception.AgentRefused) as error:
            silent.append(f"{host} does not say: {error}")
        else:
            found += [{"host": host, **one} for one in departures]
    shown = [one for one in found if arguments.all or one["state"] not in _DONE]
    if arguments.json:
        output.document(shown)
    elif shown:
        output.table(_COLUMNS, [_row(one) for one in shown])
    else:
        output.say("No VM is in post-copy")
    for line in silent:
        output.say(line)
    return 1 if silent or any(one["state"] in ("lost", "stopped") for one in found) else 0


def _act(arguments: argparse.Namespace, context: Context, names: list[str]) -> int:
    server = arguments.retry or arguments.stop
    call = context.hosts.retry_recovery if arguments.retry else context.hosts.stop_recovery
    refusals = []
    for host in names:
        try:
            told = call(host, server)
        except (exception.AgentUnreachable, exception.AgentRefused) as error:
            refusals.append(str(error))
            continue
        output.say(f"{server} from {host}: {told['state']}")
        return 0
    for line in refusals:
        output.say(line)
    return 1


def _row(one: dict[str, Any]) -> list[str]:
    why = one["why"] + (f" ({one['trouble']})" if one.get("trouble") else "")
    return [
        one["host"],
        one["destination"],
        one["instance"],
        one["state"],
        str(one["attempts"]),
        why,
    ]
