# SPDX-License-Identifier: Apache-2.0
"""``evictions``: what the remediator decided, and what came of it."""

import argparse
from typing import Final

from nova_enlightened import exception
from nova_enlightened.cmd.manage import output
from nova_enlightened.cmd.manage.context import Context
from nova_enlightened.cmd.manage.output import NOTHING, Column
from nova_enlightened.conf import remediation
from nova_enlightened.contention.victims import Resource
from nova_enlightened.remediation import journal
from nova_enlightened.remediation.record import EvictionRecord

_COLUMNS: Final = (
    Column("When"),
    Column("Server"),
    Column("From"),
    Column("To"),
    Column("State"),
    Column("Relief", right=True),
    Column("measured", right=True),
    Column("Seconds", right=True),
    Column("measured", right=True),
    Column("Why"),
)


def evictions(arguments: argparse.Namespace, context: Context) -> int:
    """The newest first."""
    ours = context.conf[remediation.GROUP]
    try:
        records = journal.read(ours.state_path, arguments.limit, arguments.server)
    except exception.JournalError as error:
        raise exception.JournalError(
            f"{error}. The journal is on the hosts of nova-enlightened-remediator, in "
            f"[{remediation.GROUP}] state_path"
        ) from error
    if arguments.ongoing:
        records = [one for one in records if not one.ended]
    if arguments.json:
        output.document([one.to_dict() for one in records])
    elif records:
        output.table(_COLUMNS, [_row(one) for one in records])
    else:
        output.say("None")
    return 0


def _row(record: EvictionRecord) -> list[str]:
    memory = record.resource == Resource.MEMORY
    proposed = not record.destination and record.expected
    return [
        output.moment(min(record.times.values(), default=None)),
        record.instance,
        record.host,
        f"({record.expected})" if proposed else record.destination or NOTHING,
        str(record.state),
        _relief(record.predicted_relief, memory),
        _relief(record.measured_relief, memory),
        output.seconds(record.predicted_cost),
        output.seconds(record.measured_cost),
        record.reason or record.why,
    ]


def _relief(value: float | None, memory: bool) -> str:
    if value is None:
        return NOTHING
    return f"{output.mebibytes(value)} MiB" if memory else f"{value:.2f} CPUs"
