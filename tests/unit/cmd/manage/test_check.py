# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import sqlite3

import pytest

from lab.ca import make_ca
from nova_enlightened.cmd.manage import command
from nova_enlightened.remediation.journal import FILE, SCHEMA, Journal
from tests.unit.cmd.manage.stand_ins import Stage, stage
from tests.unit.cmd.manage.test_hosts import CALM

ANSWER = {"version": "1", "capable": True, "obstacles": [], "level": 0, "rpc_version": "1.0"}


def host(tmp_path: pathlib.Path, more: str = "") -> Stage:
    make_ca(tmp_path, {"compute1": []})
    return stage(
        tmp_path,
        f"libvirt_uri = test+unix:///nowhere\n[enlightened]\nrun_directory = /tmp\n"
        f"link_tls_ca = {tmp_path}/ca.pem\nlink_tls_certificate = {tmp_path}/compute1.pem\n"
        f"link_tls_key = {tmp_path}/compute1.key\nlink_address = 127.0.0.1\n{more}",
    )


def failures(there: Stage, capsys: pytest.CaptureFixture[str]) -> list[str]:
    status = there.run("check", "--json")
    failed = [one["what"] for one in json.loads(capsys.readouterr().out) if one["grade"] == "FAIL"]
    assert status == (1 if failed else 0)
    return failed


def test_a_host_that_is_set_up_passes(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = host(tmp_path)
    there.agents.answers["compute1"] = ANSWER
    assert failures(there, capsys) == []


def test_an_agent_that_does_not_answer_fails_the_check(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures(host(tmp_path), capsys) == ["agent"]


def test_a_certificate_for_another_name_fails_the_check(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = host(tmp_path, "[enlightened_agent]\nlink_name = compute9\n")
    there.agents.answers["compute1"] = ANSWER
    assert failures(there, capsys) == ["link_tls_certificate"]


def test_the_host_is_asked_by_the_name_that_nova_was_given(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As for the agent itself: the last value of an option counts, and an empty one is none.
    there = host(tmp_path, "[enlightened_agent]\nhost =\n[DEFAULT]\nhost = compute1\n")
    there.agents.answers["compute1"] = ANSWER
    assert failures(there, capsys) == []


def test_novas_own_configuration_is_looked_at_where_it_is_read(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = host(tmp_path, "[DEFAULT]\ncompute_driver = libvirt.LibvirtDriver\n")
    there.agents.answers["compute1"] = ANSWER
    assert failures(there, capsys) == ["compute_driver", "post-copy"]


def test_a_guest_without_libvirt_cannot_be_asked(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = host(tmp_path)
    there.agents.answers["compute1"] = ANSWER
    assert there.run("check", "--guest", "web") == 1
    assert "FAIL  guest web" in capsys.readouterr().out


def test_each_line_that_is_not_ok_says_what_to_do(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host(tmp_path).run("check")
    lines = capsys.readouterr().out.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith(("WARN", "FAIL")):
            assert following.strip().startswith("->")


def test_an_upgrade_that_nothing_hinders_succeeds(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = stage(tmp_path)
    journal = Journal(tmp_path, 10)
    journal.open()
    journal.close()
    there.reports.append(CALM)
    there.agents.answers["compute2"] = ANSWER
    assert there.run("upgrade", "check") == 0
    assert "Success" in capsys.readouterr().out


def test_a_journal_of_a_newer_release_hinders_an_upgrade(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    database.close()
    assert stage(tmp_path).run("upgrade", "check") == 2
    assert "newer release" in capsys.readouterr().out


def test_agents_that_would_not_understand_are_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = stage(tmp_path)
    there.reports.append(CALM)
    there.agents.answers["compute2"] = {**ANSWER, "rpc_version": "0.9"}
    assert there.run("upgrade", "check") == 2
    assert "compute2 (0.9)" in capsys.readouterr().out


def test_a_plugin_that_is_not_installed_hinders_an_upgrade(tmp_path: pathlib.Path) -> None:
    assert stage(tmp_path, "[enlightened]\nhint_sources = oracle\n").run("upgrade", "check") == 2


def test_a_configuration_that_cannot_be_read_is_an_error_and_no_traceback(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.backend, "init_backend", lambda _: None)
    assert command.main(["--config-file", str(tmp_path / "none.conf"), "hosts"]) == 1
    assert "none.conf" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["hosts", "--wait", "0"], ["evictions", "--limit", "-1"], ["evict"], ["upgrade"]]
)
def test_what_cannot_be_meant_is_a_usage_error(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.parser().parse_args(words)
    assert ended.value.code == 2
