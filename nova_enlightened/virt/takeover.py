# SPDX-License-Identifier: Apache-2.0
"""Urgent migrations whose nova-compute has ended: taken up again, to their end on Nova's record."""

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from nova_enlightened import exception
from nova_enlightened.host.standing import Standing
from nova_enlightened.virt.journal import Entry, Journal
from nova_enlightened.virt.outcome import CONFIRMED, End, Outcome

LOG = logging.getLogger(__name__)

LOOK_S: Final = 1.0
AGAIN_S: Final = 10.0
"""After an error of Nova's, such as a destination whose nova-compute is down."""

_SPLIT: Final = frozenset({Standing.POSTCOPY, Standing.FAILED, Standing.SWITCHING})
_AWAY: Final = frozenset({Standing.GONE, Standing.ENDED})


def decided(here: Standing, there: Standing, agent: Mapping[str, Any]) -> Outcome | None:
    """How it has ended; None while it has not, or while nobody knows.

    Unlike `outcome.judged` it may be asked before the switch, or after a reboot of this host, when
    its agent has forgotten.

    :param here: at the source; SWITCHING also while libvirt migrates what still executes here.
    :param there: as the destination's agent says.
    :param agent: of ``HostAPI.recovery``, of this host; may be empty.
    """
    if here is Standing.UNKNOWN:
        return None
    if here is Standing.EXECUTES:
        return Outcome(End.STAYED, "it executes at its source")
    if agent.get("state") == "lost":
        end = End.LOST_HERE if here is Standing.ENDED else End.LOST_THERE
        return Outcome(end, str(agent.get("why", "")))
    if here not in _AWAY:
        return None
    if there is Standing.EXECUTES or agent.get("state") == "moved":
        return Outcome(End.MOVED, "it executes at its destination")
    if here is Standing.GONE:  # what is split still may be on its last few pages
        words = "libvirt of the source says that it has migrated"
        return None if there in _SPLIT else Outcome(End.MOVED, words)
    if there in _SPLIT:
        return Outcome(End.LOST_HERE, "QEMU at the source has ended before the last page crossed")
    if there in _AWAY:
        return Outcome(End.LOST_THERE, "QEMU has ended on both hosts")
    return None


class Records(Protocol):
    """Nova's, as `records.Records` has them."""

    def hold(self, entry: Entry) -> None:
        """Have Nova show it as migrating."""

    def end(self, entry: Entry, outcome: Outcome) -> None:
        """Make Nova's record what is so; again is harmless."""


class Takeover:
    """Follows each of a host's entries in a thread of its own; safe for threads.

    :param look: of an entry: here, there, and what the agent of this host says.
    :param on_end: told once of an end that is on record, with words.
    """

    def __init__(
        self,
        journal: Journal,
        records: Records,
        look: Callable[[Entry], tuple[Standing, Standing, Mapping[str, Any]]],
        on_end: Callable[[Entry, Outcome], None],
    ) -> None:
        self._journal = journal
        self._records = records
        self._look = look
        self._on_end = on_end
        self._stopped = threading.Event()

    def take_up(self, entry: Entry) -> None:
        """Follow it from now on."""
        threading.Thread(
            target=self._run, args=(entry,), name="departure-takeover", daemon=True
        ).start()

    def stop(self) -> None:
        """Follow none; who starts next goes on."""
        self._stopped.set()

    def _run(self, entry: Entry) -> None:
        LOG.info("Taking up the migration of %s to %s", entry.instance, entry.destination)
        if not self._done(lambda: self._records.hold(entry), entry):
            return
        found = self._outcome(entry)
        if found is None:
            return
        LOG.warning("%s %s: %s", entry.instance, found.end, found.words)
        if self._done(lambda: self.settle(entry, found), entry):
            self._on_end(entry, found)

    def settle(self, entry: Entry, found: Outcome) -> None:
        """Put an end on record, and close the entry but for what the guard needs."""
        self._records.end(entry, found)
        closed(self._journal, entry, found)

    def _outcome(self, entry: Entry) -> Outcome | None:
        """The end; None where this process was stopped first."""
        last: Outcome | None = None
        times = 0
        while True:
            found = decided(*self._look(entry))
            times = times + 1 if found is not None and found == last else 1
            last = found
            if found is not None and times >= CONFIRMED:
                return found
            if self._stopped.wait(LOOK_S):
                return None

    def _done(self, step: Callable[[], None], entry: Entry) -> bool:
        """Do it until it succeeds; False where this process was stopped first."""
        while not self._stopped.is_set():
            try:
                step()
            except Exception:  # Nova's, its bus's, its database's: each may answer later
                LOG.exception("The migration of %s is not on record yet", entry.instance)
                self._stopped.wait(AGAIN_S)
            else:
                return True
        return False


def closed(journal: Journal, entry: Entry, found: Outcome) -> None:
    """Drop an entry whose end is on record; one that is lost stays for the guard.

    :raises JournalError: it can be neither written nor removed.
    """
    if found.end is End.LOST_THERE:
        journal.keep(dataclasses.replace(entry, lost=found.words))
    else:
        journal.drop(entry.instance)


def open_entries(journal: Journal) -> dict[str, Entry]:
    """Those that have no end yet, by instance."""
    return {entry.instance: entry for entry in _readable(journal) if entry.lost is None}


def bury(journal: Journal, exists: Callable[[Entry], bool]) -> None:
    """Drop the entries of what is lost, and whose server is no more.

    :raises JournalError: one cannot be removed.
    """
    for entry in _readable(journal):
        if entry.lost is not None and not exists(entry):
            journal.drop(entry.instance)


def _readable(journal: Journal) -> list[Entry]:
    """What cannot be read stays shut, and is told."""
    found = []
    for instance in journal.instances():
        try:
            entry = journal.get(instance)
        except exception.JournalError as error:
            LOG.error("Server %s is not started here: %s", instance, error)
            continue
        if entry is not None:
            found.append(entry)
    return found
