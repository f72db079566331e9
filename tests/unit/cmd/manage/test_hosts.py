# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import pathlib

import pytest

from nova_enlightened.contention.report import DomainReport, HostReport, Level
from tests.unit.cmd.manage.stand_ins import SERVER, stage

CALM = HostReport(
    host="compute2",
    node="compute2",
    at=998.0,
    level=Level.CALM,
    reason="1 of 4 CPUs in use",
    cpu_level=Level.CALM,
    memory_level=Level.CALM,
    cpus=4,
    cpu_used=1.0,
    cpu_waiting=0.0,
    memory_total=8 << 20,
    memory_available=6 << 20,
    capable=True,
)
BUSY = dataclasses.replace(
    CALM,
    host="compute1",
    level=Level.ACT,
    domains=(
        DomainReport(SERVER.uuid, 1, 0.5, 0.5, 1 << 20, hot=1 << 18, armed=True),
        DomainReport("another", 1, 0.5, 0.5, 1 << 20),
    ),
    urgent=(SERVER.uuid,),
)


@pytest.mark.parametrize("columns", ["200", "80", "20"])
def test_the_most_contended_host_is_listed_first_on_any_terminal(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    there = stage(tmp_path)
    there.reports += [CALM, BUSY]
    assert there.run("hosts") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "compute" in line]
    assert [line.split()[0] for line in lines] == ["compute1", "compute2"]
    assert "ACT" in lines[0]
    assert "1 of 4 CPUs in use" in lines[1]


def test_hosts_as_json_are_reports(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = stage(tmp_path)
    there.reports += [CALM, BUSY]
    assert there.run("hosts", "--json") == 0
    assert [HostReport.from_dict(one) for one in json.loads(capsys.readouterr().out)] == [
        BUSY,
        CALM,
    ]


def test_a_named_host_that_does_not_report_is_a_failure(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = stage(tmp_path)
    there.reports.append(CALM)
    assert there.run("hosts", "compute2", "compute9") == 1
    assert "compute9" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["hosts", "armed"])
def test_silence_says_where_to_look(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert stage(tmp_path).run(words) == 1
    said = capsys.readouterr().err
    assert "transport_url" in said
    assert "nova-enlightened-agent" in said


def test_armed_lists_guests_that_sample_and_orders_that_stand(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = stage(tmp_path)
    there.reports += [CALM, BUSY]
    there.agents.answers = {
        "compute1": {"armed": {SERVER.uuid: "agent 1"}, "orders": []},
        "compute2": {"armed": {"third": "being asked"}, "orders": [{"instance": "fourth"}]},
    }
    assert there.run("armed", "--json") == 0
    found = {one["server"]: one for one in json.loads(capsys.readouterr().out)}
    assert set(found) == {SERVER.uuid, "third", "fourth"}
    assert found[SERVER.uuid]["urgent"]
    assert found[SERVER.uuid]["hot"] == 1 << 18
    assert found["fourth"]["urgent"]
    assert not found["third"]["sampling"]


def test_an_agent_that_does_not_answer_leaves_what_its_host_reports(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = stage(tmp_path)
    there.reports.append(BUSY)
    assert there.run("armed") == 0
    told = capsys.readouterr()
    assert "stands" in told.out
    assert "compute1 reports, but does not answer" in told.err
