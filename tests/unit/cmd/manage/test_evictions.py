# SPDX-License-Identifier: Apache-2.0
import json
import pathlib

import pytest

from nova_enlightened.remediation.eviction_states import State
from nova_enlightened.remediation.journal import Journal
from nova_enlightened.remediation.record import EvictionRecord
from tests.unit.cmd.manage.stand_ins import stage

DONE = EvictionRecord(
    "e1",
    "c1",
    "compute1",
    "server-1",
    State.DONE,
    predicted_relief=1.25,
    measured_relief=1.1,
    predicted_cost=4.0,
    measured_cost=5.5,
    destination="compute2",
    reason="relieved",
    times={"decided": 1000.0, "ended": 1010.0},
)
UNDER_WAY = EvictionRecord(
    "e2",
    "c2",
    "compute1",
    "server-2",
    State.MIGRATING,
    resource="memory",
    predicted_relief=2048.0 * 1024,
    expected="compute3",
    times={"decided": 2000.0},
)


@pytest.fixture
def written(tmp_path: pathlib.Path) -> pathlib.Path:
    journal = Journal(tmp_path, 100)
    journal.open()
    for record in (DONE, UNDER_WAY):
        journal.keep(record)
    journal.close()
    return tmp_path


def test_evictions_are_shown_with_predicted_and_measured_relief(
    written: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    assert stage(written).run("evictions") == 0
    later, earlier = [line for line in capsys.readouterr().out.splitlines() if "server-" in line]
    for word in ("1.25 CPUs", "1.10 CPUs", "4.0", "5.5", "compute2", "done"):
        assert word in earlier
    for word in ("2048 MiB", "(compute3)", "migrating"):
        assert word in later


@pytest.mark.parametrize(
    "words, expected",
    [
        ((), ["e2", "e1"]),
        (("--limit", "1"), ["e2"]),
        (("--server", "server-1"), ["e1"]),
        (("--ongoing",), ["e2"]),
    ],
)
def test_evictions_can_be_chosen(
    written: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    expected: list[str],
) -> None:
    assert stage(written).run("evictions", "--json", *words) == 0
    assert [one["eviction"] for one in json.loads(capsys.readouterr().out)] == expected


def test_a_host_without_a_journal_says_where_there_is_one(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage(tmp_path).run("evictions") == 1
    assert "state_path" in capsys.readouterr().err


def test_a_damaged_journal_is_an_error_and_no_traceback(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evictions.sqlite").write_bytes(b"not a database, but long enough" * 40)
    assert stage(tmp_path).run("evictions") == 1
    assert "evictions.sqlite" in capsys.readouterr().err
