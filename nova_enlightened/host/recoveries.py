# SPDX-License-Identifier: Apache-2.0
"""All migrations that left this host and have not ended, followed by a thread of the agent's."""

import collections
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.host import recovery
from nova_enlightened.host.departures import Departure, Departures
from nova_enlightened.host.recovering import Recovery

LOG = logging.getLogger(__name__)

TURN_S: Final = 1.0
MOST_ENDED: Final = 100
"""Ended recoveries that are still told of, the newest."""

Make = Callable[[Departure, Callable[[Departure], None]], Recovery]


class Recoveries:
    """Safe for threads; made without I/O.

    :param make: a recovery of a departure, which calls back with each change of its record.
    """

    def __init__(self, departures: Departures, make: Make) -> None:
        self._departures = departures
        self._make = make
        self._lock = threading.Lock()
        self._followed: dict[str, Recovery] = {}
        self._ended: collections.OrderedDict[str, dict[str, Any]] = collections.OrderedDict()

    def load(self) -> None:
        """Go on with what an earlier process of this agent followed."""
        for departure in self._departures.kept():
            LOG.info("Following %s to %s again", departure.instance, departure.destination)
            self._follow(departure)

    def follow(self, departure: Departure) -> None:
        """A migration was ordered. :raises RelayError: its record cannot be written."""
        self._departures.keep(departure)
        self._follow(departure)

    def end(self, instance: str, moved: bool) -> None:
        """Who ordered it knows how it ended: it is followed no more.

        :param moved: it is told of as such; otherwise who ordered it tells what became of it.
        """
        with self._lock:
            found = self._followed.get(instance)
            if found is not None and found.state is recovery.State.FOLLOWED:
                if moved:
                    found.seen_moved()
                self._drop(instance)
                if not moved:
                    self._ended.pop(instance, None)

    def end_migration(self, migration: str, moved: bool) -> None:
        """As :meth:`end`, by the id of its relays."""
        with self._lock:
            found = [
                instance
                for instance, one in self._followed.items()
                if one.departure.migration == migration
            ]
        for instance in found:
            self.end(instance, moved)

    def turn(self) -> None:
        """Look after each once."""
        with self._lock:
            followed = dict(self._followed)
        for instance, one in followed.items():
            try:
                one.turn()
            except Exception:
                LOG.exception("Following %s", instance)
            if one.ended:
                with self._lock:
                    self._drop(instance)

    def told(self) -> list[dict[str, Any]]:
        """Each that is followed, and the newest of those that ended, as plain values."""
        with self._lock:
            return [one.told() for one in self._followed.values()] + list(self._ended.values())

    def state(self, instance: str) -> dict[str, Any]:
        """One of them; empty where it is not known."""
        return next((one for one in self.told() if one["instance"] == instance), {})

    def retry(self, instance: str) -> dict[str, Any]:
        """Try again now. :raises AgentRefused: it is not followed here."""
        one = self._known(instance)
        one.retry()
        return one.told()

    def stop(self, instance: str) -> dict[str, Any]:
        """Try nothing more. :raises AgentRefused: it is not followed here."""
        one = self._known(instance)
        one.stop()
        return one.told()

    def _known(self, instance: str) -> Recovery:
        with self._lock:
            try:
                return self._followed[instance]
            except KeyError:
                raise exception.AgentRefused(
                    f"no migration of {instance} from this host is under way"
                ) from None

    def _follow(self, departure: Departure) -> None:
        made = self._make(departure, self._departures.keep)
        with self._lock:
            self._followed[departure.instance] = made
            self._ended.pop(departure.instance, None)

    def _drop(self, instance: str) -> None:
        one = self._followed.pop(instance, None)
        if one is None:
            return
        self._departures.drop(instance)
        self._ended[instance] = one.told()
        while len(self._ended) > MOST_ENDED:
            self._ended.popitem(last=False)
