# SPDX-License-Identifier: Apache-2.0
"""Urgent live migrations that left this host and have not ended, on disk beside Nova's state.

From its order until Nova's record is true again a server of these may execute at its destination
while Nova has it here. So each is written before libvirt is asked, in one piece and through to
the disk: it has to outlive nova-compute, and the host.
"""

import dataclasses
import json
import os
import pathlib
import uuid
from collections.abc import Iterator
from typing import Any, Final, Self

from nova_enlightened import exception

DIRECTORY: Final = "enlightened-departures"
LONGEST: Final = 4 << 20
"""Bytes of a record; most are a few thousand, a volume adds about two."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One migration, with what Nova needs to end it.

    :param instance: UUID of the server.
    :param migration: UUID of Nova's migration.
    :param destination: the compute service it goes to.
    :param migrate_data: Nova's object, as a primitive.
    :param source_bdms: Nova's block devices as they are attached here, as a primitive; they may
        hold secrets of volumes. None where Nova gave none.
    :param relays: the id of the relays that carry it, if any do.
    :param lost: why the VM is lost, once that is known; then only the guard needs the entry.
    """

    instance: str
    migration: str
    destination: str
    block_migration: bool
    migrate_data: dict[str, Any]
    source_bdms: dict[str, Any] | None = None
    relays: str | None = None
    lost: str | None = None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """:raises JournalError: no entry."""
        try:
            made = cls(**json.loads(text))
            uuid.UUID(made.instance)
            uuid.UUID(made.migration)
            if not (made.destination and isinstance(made.migrate_data, dict)):
                raise ValueError("no destination, or nothing of the migration")
        except (ValueError, TypeError, AttributeError) as error:
            raise exception.JournalError(f"entry of a departure: {error}") from error
        return made


class Journal:
    """The entries of one compute service. Each process writes its own host's only.

    :param state_path: ``[DEFAULT] state_path`` of nova-compute; it has to survive a reboot.
    :param host: the compute service.
    """

    def __init__(self, state_path: str, host: str) -> None:
        self._directory = pathlib.Path(state_path, DIRECTORY, host)

    def keep(self, entry: Entry) -> None:
        """Write it, through to the disk. :raises JournalError: it cannot be."""
        path = self._path(entry.instance)
        draft = path.with_suffix(".new")
        try:
            text = json.dumps(dataclasses.asdict(entry))
            if len(text.encode()) > LONGEST:
                raise exception.JournalError(f"entry of a departure: more than {LONGEST} bytes")
            for directory in (self._directory.parent, self._directory):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            with os.fdopen(os.open(draft, flags, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            self._sync_directories()
        except (OSError, ValueError, TypeError) as error:
            raise exception.JournalError(f"entry of a departure: {error}") from error

    def drop(self, instance: str) -> None:
        """Its outcome is on record; harmless where there is none.

        :raises JournalError: it cannot be removed.
        """
        try:
            self._path(instance).unlink()
            self._sync_directories()  # it must not come back with the host
        except FileNotFoundError:
            return
        except OSError as error:
            raise exception.JournalError(f"entry of a departure: {error}") from error

    def get(self, instance: str) -> Entry | None:
        """None where there is none. :raises JournalError: there is one that cannot be read."""
        try:
            with self._path(instance).open() as file:
                text = file.read(LONGEST + 1)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise exception.JournalError(f"entry of a departure: {error}") from error
        return Entry.from_json(text)

    def instances(self) -> Iterator[str]:
        """UUIDs of the servers that have an entry, readable or not."""
        for path in sorted(self._directory.glob("*.json")):
            yield path.stem

    def _sync_directories(self) -> None:
        top = self._directory.parent
        for directory in (self._directory, top, top.parent):  # any may be new
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _path(self, instance: str) -> pathlib.Path:
        return self._directory / f"{uuid.UUID(instance)}.json"
