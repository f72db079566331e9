# SPDX-License-Identifier: Apache-2.0
"""Departures on disk."""

import dataclasses
import json
import pathlib
import stat

import pytest

from nova_enlightened import exception
from nova_enlightened.virt import journal, takeover
from nova_enlightened.virt.journal import Entry, Journal

ENTRY = Entry(
    instance="2f4d4a55-6c5a-4f0f-8a5f-0a33c4b3f1f0",
    migration="0b4e76a1-88a4-4f13-9df6-5dcb1d1f2a10",
    destination="host2",
    block_migration=False,
    migrate_data={"nova_object.name": "LibvirtLiveMigrateData"},
)


def path_of(top: pathlib.Path) -> pathlib.Path:
    return top / journal.DIRECTORY / "host1" / f"{ENTRY.instance}.json"


def test_what_is_kept_is_there_for_the_next_process(tmp_path: pathlib.Path) -> None:
    Journal(str(tmp_path), "host1").keep(ENTRY)
    assert Journal(str(tmp_path), "host1").get(ENTRY.instance) == ENTRY


def test_another_host_on_the_same_disk_has_its_own(tmp_path: pathlib.Path) -> None:
    Journal(str(tmp_path), "host1").keep(ENTRY)
    assert Journal(str(tmp_path), "host2").get(ENTRY.instance) is None


def test_nobody_else_reads_it(tmp_path: pathlib.Path) -> None:
    Journal(str(tmp_path), "host1").keep(ENTRY)
    path = path_of(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_nothing_but_the_entry_is_left_of_writing_it(tmp_path: pathlib.Path) -> None:
    Journal(str(tmp_path), "host1").keep(ENTRY)
    assert [path_of(tmp_path)] == list(path_of(tmp_path).parent.iterdir())


def test_what_is_dropped_is_gone_and_may_be_dropped_again(tmp_path: pathlib.Path) -> None:
    kept = Journal(str(tmp_path), "host1")
    kept.keep(ENTRY)
    kept.drop(ENTRY.instance)
    kept.drop(ENTRY.instance)
    assert kept.get(ENTRY.instance) is None


def test_a_disk_that_is_not_writable_is_said(tmp_path: pathlib.Path) -> None:
    (tmp_path / journal.DIRECTORY).write_text("in the way")
    with pytest.raises(exception.JournalError):
        Journal(str(tmp_path), "host1").keep(ENTRY)


def test_what_is_too_long_is_not_written(tmp_path: pathlib.Path) -> None:
    long = dataclasses.replace(ENTRY, migrate_data={"x": "x" * journal.LONGEST})
    with pytest.raises(exception.JournalError):
        Journal(str(tmp_path), "host1").keep(long)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "\udcff", json.dumps({**dataclasses.asdict(ENTRY), "instance": "../x"}),
     json.dumps({**dataclasses.asdict(ENTRY), "more": 1})],
)  # fmt: skip
def test_what_cannot_be_read_is_an_error_and_not_nothing(tmp_path: pathlib.Path, text: str) -> None:
    kept = Journal(str(tmp_path), "host1")
    kept.keep(ENTRY)
    path_of(tmp_path).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(exception.JournalError):
        kept.get(ENTRY.instance)
    assert takeover.open_entries(kept) == {}


def test_a_lost_one_is_not_taken_up_again(tmp_path: pathlib.Path) -> None:
    kept = Journal(str(tmp_path), "host1")
    kept.keep(dataclasses.replace(ENTRY, lost="it is"))
    assert takeover.open_entries(kept) == {}
    kept.keep(ENTRY)
    assert takeover.open_entries(kept) == {ENTRY.instance: ENTRY}


@pytest.mark.parametrize("exists", [True, False])
def test_a_lost_one_is_forgotten_with_its_server(tmp_path: pathlib.Path, exists: bool) -> None:
    kept = journal.Journal(str(tmp_path), "host1")
    kept.keep(dataclasses.replace(ENTRY, lost="QEMU has ended"))
    takeover.bury(kept, lambda entry: exists)
    assert (kept.get(ENTRY.instance) is not None) is exists


def test_one_that_is_under_way_is_not_forgotten(tmp_path: pathlib.Path) -> None:
    kept = journal.Journal(str(tmp_path), "host1")
    kept.keep(ENTRY)
    takeover.bury(kept, lambda entry: False)
    assert kept.get(ENTRY.instance) == ENTRY
