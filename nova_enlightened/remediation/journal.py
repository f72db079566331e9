# SPDX-License-Identifier: Apache-2.0
"""What was decided and what came of it, kept in a file: SQLite's, which survives a crash at any
moment, can be read while it is written, and holds a bounded number of evictions.

One process writes (the leader, or one that hears from it), in one thread.
"""

import contextlib
import json
import logging
import os
import pathlib
import sqlite3
import time
from collections.abc import Iterator
from typing import Final

from nova_enlightened import exception
from nova_enlightened.remediation.eviction_states import FINAL
from nova_enlightened.remediation.record import EvictionRecord

LOG = logging.getLogger(__name__)

FILE: Final = "evictions.sqlite"
SCHEMA: Final = 1
BUSY_S: Final = 5.0

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS evictions (
    eviction TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    instance TEXT NOT NULL,
    ended INTEGER NOT NULL,
    changed REAL NOT NULL,
    revision INTEGER NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS evictions_changed ON evictions (changed);
"""
_KEEP: Final = """
INSERT INTO evictions VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (eviction) DO UPDATE SET ended = excluded.ended, changed = excluded.changed,
    revision = excluded.revision, record = excluded.record
WHERE excluded.revision > evictions.revision
"""
_BOUND: Final = """
DELETE FROM evictions WHERE ended AND eviction IN
    (SELECT eviction FROM evictions ORDER BY changed DESC LIMIT -1 OFFSET ?)
"""


class Journal:
    """The journal in a directory.

    :param limit: evictions kept; those under way are kept beyond it.
    """

    def __init__(self, directory: str | os.PathLike[str], limit: int) -> None:
        self.path = pathlib.Path(directory, FILE)
        self._limit = limit
        self._database: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open or create the file. One that is damaged is put aside: what is under way is found
        in Nova again.

        :raises JournalError: the directory cannot be written, or a newer release wrote the file.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            try:
                self._database = _open(self.path)
            except sqlite3.OperationalError:
                raise  # locked, or not permitted: the file may well be whole
            except sqlite3.DatabaseError as error:
                aside = self.path.with_name(f"{FILE}.damaged-{time.time_ns()}")
                LOG.error("The journal is damaged (%s) and begins anew; see %s", error, aside)
                self.path.rename(aside)
                self._database = _open(self.path)
        except (OSError, sqlite3.Error) as error:
            raise exception.JournalError(f"journal {self.path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def keep(self, record: EvictionRecord) -> bool:
        """Write a record, or a change of it; on disk when this returns.

        :returns: False where the journal has this revision of it, or a later one.
        :raises JournalError: it is not on disk.
        """
        try:
            text = json.dumps(record.to_dict(), allow_nan=False)
        except ValueError as error:
            raise exception.JournalError(f"eviction {record.eviction}: {error}") from error
        row = (record.eviction, record.host, record.instance, int(record.state in FINAL),
               record.last_change, record.revision, text)  # fmt: skip
        with self._writing() as database:
            kept = database.execute(_KEEP, row).rowcount > 0
            if kept:
                database.execute(_BOUND, (self._limit,))
        return kept

    def unfinished(self) -> list[EvictionRecord]:
        """Every eviction that was under way when it was last written, the oldest first."""
        return self._read("WHERE NOT ended ORDER BY changed", ())

    def since(self, changed: float) -> list[EvictionRecord]:
        """What has changed since, the oldest first."""
        return self._read("WHERE changed >= ? ORDER BY changed", (changed,))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        if self._database is None:
            raise exception.JournalError(f"journal {self.path} is not open")
        try:
            with self._database:
                yield self._database
        except sqlite3.Error as error:
            raise exception.JournalError(f"journal {self.path}: {error}") from error

    def _read(self, where: str, values: tuple[object, ...]) -> list[EvictionRecord]:
        if self._database is None:
            raise exception.JournalError(f"journal {self.path} is not open")
        return _records(self._database, self.path, where, values)


def read(directory: str | os.PathLike[str], limit: int, instance: str = "") -> list[EvictionRecord]:
    """The newest evictions, the newest first; for readers beside the service.

    :param instance: only those of this server.
    :raises JournalError: there is no journal, or it cannot be read.
    """
    path = pathlib.Path(directory, FILE)
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
    except sqlite3.Error as error:
        raise exception.JournalError(f"journal {path}: {error}") from error
    with contextlib.closing(database):
        return _records(
            database,
            path,
            "WHERE ? IN ('', instance) ORDER BY changed DESC LIMIT ?",
            (instance, limit),
        )


def _open(path: pathlib.Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=BUSY_S)
    try:
        found = database.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA:
            raise exception.JournalError(f"journal {path} is of a newer release (schema {found})")
        # The default journal mode: readers need no right to write, as they would with WAL.
        database.execute("PRAGMA synchronous = FULL")
        if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("quick_check fails")
        with database:
            database.executescript(_CREATE)
            database.execute(f"PRAGMA user_version = {SCHEMA}")
        path.chmod(0o640)
    except BaseException:
        database.close()
        raise
    return database


def _records(
    database: sqlite3.Connection, path: pathlib.Path, where: str, values: tuple[object, ...]
) -> list[EvictionRecord]:
    try:
        rows = database.execute(f"SELECT record FROM evictions {where}", values).fetchall()
    except sqlite3.Error as error:
        raise exception.JournalError(f"journal {path}: {error}") from error
    records = []
    for (text,) in rows:
        try:
            records.append(EvictionRecord.from_dict(json.loads(text)))
        except (TypeError, ValueError) as error:
            LOG.warning("A record of %s is passed over: %s", path, error)
    return records
