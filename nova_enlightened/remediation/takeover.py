# SPDX-License-Identifier: Apache-2.0
"""Migrations that this instance did not order, or does not know that it did.

Operators migrate servers, and so did a leader whose last words were lost. Nova's list of
migrations knows both: what is under way counts against the limits and is followed; what has
completed a short while ago cools down.
"""

import datetime
import uuid
from collections.abc import Iterable
from typing import Final

from nova_enlightened.remediation.eviction_states import MIGRATION_STATUS, UNDER_WAY, Input, State
from nova_enlightened.remediation.record import EvictionRecord
from nova_enlightened.remediation.servers import Migration

_IDS: Final = uuid.UUID("6f2a3c1e-6b0e-5d3c-9c3e-0a4a2f6f7d11")
CAUSE: Final = "found in Nova"
SKEW_S: Final = 60.0
"""Clocks of controllers may differ by so much."""


def adopted(
    migrations: Iterable[Migration], records: Iterable[EvictionRecord], now: float
) -> list[EvictionRecord]:
    """Records of the migrations that no record is about.

    :param records: all that are known, ended ones too.
    """
    known = list(records)
    ids = {record.migration for record in known}
    awaited = {
        record.instance: record.after_migration
        for record in known
        if not record.ended and record.migration is None
    }
    found = []
    for migration in migrations:
        after = awaited.get(migration.server)
        if migration.id in ids or (after is not None and migration.id > after):
            continue
        record = _record(migration, now)
        if record is not None:
            found.append(record)
    return found


def _record(migration: Migration, now: float) -> EvictionRecord | None:
    if migration.status in UNDER_WAY:
        state, times = State.MIGRATING, {"decided": now, "appeared": now}
    elif MIGRATION_STATUS.get(migration.status) is Input.COMPLETED:
        at = now if migration.updated is None else min(migration.updated, now)
        state, times = State.DONE, {"decided": at, "completed": at, "ended": at}
    else:
        return None
    return EvictionRecord(
        # The same in every process and at every look, so that none is taken in twice.
        eviction=str(uuid.uuid5(_IDS, str(migration.id))),
        cause=CAUSE,
        host=migration.source,
        instance=migration.server,
        state=state,
        why="a live migration that was not ordered here",
        destination=migration.destination,
        migration=migration.id,
        adopted=True,
        times=times,
    )


def changes_since(at: float) -> str:
    """A moment as Nova's API takes it, a little earlier."""
    moment = datetime.datetime.fromtimestamp(max(0.0, at - SKEW_S), datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
