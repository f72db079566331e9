# SPDX-License-Identifier: Apache-2.0
"""Migrations that left this host under somebody's eyes, on disk: a restarted agent goes on."""

import dataclasses
import json
import logging
import pathlib
import uuid
from collections.abc import Iterator
from typing import Any, Final, Self

from nova_enlightened import exception, whole_file

LOG = logging.getLogger(__name__)

DIRECTORY: Final = "departures"
LONGEST: Final = 64 * 1024
"""Bytes of a record; ours have some hundreds."""


@dataclasses.dataclass(frozen=True)
class Departure:
    """A migration that was ordered.

    :param instance: UUID of the domain.
    :param destination: the compute service it goes to.
    :param control_uri: the destination's libvirt, as libvirt of the source reaches it.
    :param migration: of the relays that carry it; None where QEMU's own channel does.
    :param stopped: an operator said that nothing more is to be tried.
    :param ram: of its stream, as the first of its relays told (``ram`` of its state).
    :param delivered: the destination has said that it has all; its source does not know.
    """

    instance: str
    destination: str
    control_uri: str
    migration: str | None = None
    attempts: int = 0
    stopped: bool = False
    ram: dict[str, Any] | None = None
    delivered: bool = False

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """:raises ConfigError: no record of a departure."""
        try:
            made = cls(**json.loads(text))
            uuid.UUID(made.instance)
            if made.migration is not None:
                uuid.UUID(made.migration)
        except (ValueError, TypeError, AttributeError) as error:
            raise exception.ConfigError(f"record of a departure: {error}") from error
        return made


class Departures:
    """The records below one directory.

    :param top: ``[enlightened] run_directory``.
    """

    def __init__(self, top: str) -> None:
        self._directory = pathlib.Path(top, DIRECTORY)

    def keep(self, departure: Departure) -> None:
        """Write it, in one piece. :raises RelayError: it cannot be written."""
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            whole_file.write(self._path(departure.instance), departure.to_json())
        except OSError as error:
            raise exception.RelayError(f"record of a departure: {error}") from error

    def drop(self, instance: str) -> None:
        """It has ended; harmless where there is none."""
        self._path(instance).unlink(missing_ok=True)

    def kept(self) -> Iterator[Departure]:
        """Those that have not ended, as far as they can be read."""
        for path in sorted(self._directory.glob("*.json")):
            try:
                with path.open() as file:
                    yield Departure.from_json(file.read(LONGEST))
            except (OSError, ValueError, exception.ConfigError) as error:
                LOG.warning("%s: %s", path, error)

    def _path(self, instance: str) -> pathlib.Path:
        return self._directory / f"{instance}.json"


def told(departure: Departure) -> dict[str, Any]:
    """What others are told of one, as plain values."""
    return {
        "instance": departure.instance,
        "destination": departure.destination,
        "migration": departure.migration,
        "attempts": departure.attempts,
    }
