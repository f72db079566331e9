# SPDX-License-Identifier: Apache-2.0
"""The journal, and what a crash, a full disk or a stranger's hand leaves of it."""

import dataclasses
import pathlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nova_enlightened import exception
from nova_enlightened.remediation import journal as journals
from nova_enlightened.remediation.eviction_states import Input, State
from nova_enlightened.remediation.journal import Journal
from tests.unit.remediation.fakes import record

TOP = pathlib.Path(__file__).parents[3]


@pytest.fixture
def journal(tmp_path: pathlib.Path) -> Iterator[Journal]:
    opened = Journal(tmp_path, limit=3)
    opened.open()
    yield opened
    opened.close()


def test_what_was_kept_is_there_after_a_restart(journal: Journal, tmp_path: pathlib.Path) -> None:
    journal.keep(record())
    journal.close()
    again = Journal(tmp_path, limit=3)
    again.open()
    assert again.unfinished() == [record()]
    again.close()


def test_a_change_replaces_what_was_before(journal: Journal) -> None:
    after = record().after(Input.ORDER_TAKEN, 101.0)
    assert journal.keep(record())
    assert journal.keep(after)
    assert journal.unfinished() == [after]


def test_a_copy_that_was_overtaken_changes_nothing(journal: Journal) -> None:
    after = record().after(Input.ORDER_TAKEN, 101.0)
    journal.keep(after)
    assert not journal.keep(record())
    assert not journal.keep(after)
    assert journal.unfinished() == [after]


def test_it_is_bounded_and_drops_the_oldest_that_ended(journal: Journal) -> None:
    for number in range(6):
        one = record(eviction=f"e{number}", state=State.DONE, times={"ended": 100.0 + number})
        journal.keep(one)
    assert [one.eviction for one in journal.since(0.0)] == ["e3", "e4", "e5"]


def test_what_is_under_way_is_never_dropped(journal: Journal) -> None:
    journal.keep(record(eviction="old", times={"decided": 1.0}))
    for number in range(6):
        one = record(eviction=f"e{number}", state=State.DONE, times={"ended": 100.0 + number})
        journal.keep(one)
    assert [one.eviction for one in journal.unfinished()] == ["old"]


def test_it_can_be_read_beside_the_service(journal: Journal, tmp_path: pathlib.Path) -> None:
    journal.keep(record())
    journal.keep(record(eviction="e2", instance="vm2", times={"decided": 200.0}))
    assert [one.eviction for one in journals.read(tmp_path, 10)] == ["e2", "e1"]
    assert [one.eviction for one in journals.read(tmp_path, 10, "vm1")] == ["e1"]
    assert [one.eviction for one in journals.read(tmp_path, 1)] == ["e2"]


def test_reading_where_there_is_none_says_so_and_makes_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(exception.JournalError):
        journals.read(tmp_path, 10)
    assert not list(tmp_path.iterdir())


def test_a_crash_in_the_middle_of_a_write_leaves_what_was_before(
    journal: Journal, tmp_path: pathlib.Path
) -> None:
    journal.keep(record())
    journal.close()
    # Killed with a transaction open whose pages have reached the file already: the cache holds
    # a few pages only, so SQLite spills them.
    program = f"""
import os, signal, sqlite3
database = sqlite3.connect({str(tmp_path / journals.FILE)!r}, isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN IMMEDIATE")
database.execute("UPDATE evictions SET record = 'half', ended = 1")
for number in range(2000):
    database.execute("INSERT INTO evictions VALUES (?, '', '', 1, 0, 0, ?)", (number, "x" * 500))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=TOP, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / f"{journals.FILE}-journal").exists()
    again = Journal(tmp_path, limit=3)
    again.open()
    assert again.unfinished() == [record()]
    assert again.since(0.0) == [record()]
    again.close()


def test_a_file_that_is_no_journal_is_put_aside(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / journals.FILE).write_text("not a database, but long enough to look like one" * 99)
    opened = Journal(tmp_path, limit=3)
    opened.open()
    opened.keep(record())
    opened.close()
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1
    assert "damaged" in caplog.text


def test_a_journal_cut_short_is_put_aside(journal: Journal, tmp_path: pathlib.Path) -> None:
    for number in range(3):
        journal.keep(record(eviction=f"e{number}", reason="x" * 400))
    journal.close()
    file = tmp_path / journals.FILE
    file.write_bytes(file.read_bytes()[:5000])
    again = Journal(tmp_path, limit=3)
    again.open()
    assert again.keep(record())
    again.close()


def test_a_journal_of_a_newer_release_is_not_touched(tmp_path: pathlib.Path) -> None:
    database = sqlite3.connect(tmp_path / journals.FILE)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(exception.JournalError, match="newer release"):
        Journal(tmp_path, limit=3).open()
    assert (tmp_path / journals.FILE).exists()


def test_a_record_that_cannot_be_read_is_passed_over(
    journal: Journal, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal.keep(record())
    with sqlite3.connect(tmp_path / journals.FILE) as database:
        database.execute("INSERT INTO evictions VALUES ('bad', '', '', 0, 1, 0, '{}')")
    database.close()
    assert journal.unfinished() == [record()]
    assert "passed over" in caplog.text


def test_a_value_that_json_does_not_know_is_not_written(journal: Journal) -> None:
    with pytest.raises(exception.JournalError, match="JSON"):
        journal.keep(dataclasses.replace(record(), predicted_relief=float("nan")))


def test_a_directory_that_cannot_be_made_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(exception.JournalError, match="file"):
        Journal(tmp_path / "file" / "state", limit=3).open()


def test_writing_to_a_journal_that_is_locked_for_long_is_an_error(
    journal: Journal, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "BUSY_S", 0.0)
    journal.close()
    journal.open()
    other = sqlite3.connect(tmp_path / journals.FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(exception.JournalError, match="locked"):
        journal.keep(record())
    other.close()
