# SPDX-License-Identifier: Apache-2.0
"""Evictions under way and those that still matter, in memory and, if decided here, in the journal.

What this instance changes and what it hears from the leader meet here; of two copies the one
with more changes holds. One thread uses it.
"""

import logging

from nova_enlightened import exception
from nova_enlightened.remediation.eviction_states import State
from nova_enlightened.remediation.journal import Journal
from nova_enlightened.remediation.record import EvictionRecord

LOG = logging.getLogger(__name__)


class Ledger:
    """The evictions that decisions take into account.

    :param memory: seconds for which one that ended matters.
    """

    def __init__(self, journal: Journal, memory: float) -> None:
        self._journal = journal
        self._memory = memory
        self._records: dict[str, EvictionRecord] = {}

    def load(self, now: float) -> None:
        """Take in what the journal has. :raises JournalError: it cannot be read."""
        for record in (*self._journal.unfinished(), *self._journal.since(now - self._memory)):
            self._take(record)

    def keep(self, record: EvictionRecord) -> bool:
        """Take a record in, and write it down.

        :returns: False where the journal knows more of it than this: another instance went on.
        :raises JournalError: it is not on disk. It is not taken in then.
        """
        kept = record.adopted or self._journal.keep(record)
        self._take(record)
        return kept

    def keep_anyway(self, record: EvictionRecord) -> None:
        """As :meth:`keep`; without the journal where that fails."""
        try:
            self.keep(record)
        except exception.JournalError as error:
            LOG.error("Eviction %s goes on unwritten: %s", record.eviction, error)
            self._take(record)

    def hear(self, record: EvictionRecord) -> None:
        """Take in what the leader tells."""
        held = self._records.get(record.eviction)
        if held is None or held.revision < record.revision:
            self.keep_anyway(record)

    def get(self, eviction: str) -> EvictionRecord | None:
        """An eviction by its id."""
        return self._records.get(eviction)

    def under_way(self) -> list[EvictionRecord]:
        """Evictions that have not ended."""
        return [record for record in self._records.values() if not record.ended]

    def relevant(self, now: float, *, proposed: bool) -> list[EvictionRecord]:
        """Those under way and those that ended a short while ago; forgets the others.

        :param proposed: those too that were only proposed.
        """
        for record in list(self._records.values()):
            if record.ended and now - record.last_change > self._memory:
                del self._records[record.eviction]
        return [
            record
            for record in self._records.values()
            if proposed or record.state is not State.PROPOSED
        ]

    def _take(self, record: EvictionRecord) -> None:
        held = self._records.get(record.eviction)
        if held is None or held.revision <= record.revision:
            self._records[record.eviction] = record
