# SPDX-License-Identifier: Apache-2.0
"""``recoveries``: a VM in post-copy is seen, and can be retried and stopped by hand."""

import json
import pathlib

import pytest

from tests.unit.cmd.manage.stand_ins import SERVER, Stage, stage

BROKEN = {
    "instance": SERVER.uuid,
    "destination": "compute2",
    "migration": "m",
    "state": "resuming",
    "why": "both relays are gone: QEMU waits on both hosts",
    "attempts": 3,
    "trouble": "host2 is silent",
}
MOVED = {**BROKEN, "state": "moved", "instance": "another"}


@pytest.fixture
def scene(tmp_path: pathlib.Path) -> Stage:
    made = stage(tmp_path)
    made.agents.answers = {"compute1": {"departures": [BROKEN, MOVED]}}
    return made


def test_a_vm_that_is_recovered_is_shown_with_why(
    scene: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scene.run("recoveries", "compute1") == 0
    shown = capsys.readouterr().out
    for word in (SERVER.uuid, "resuming", "compute2", "3", "host2 is silent"):
        assert word in shown
    assert "another" not in shown


def test_those_that_arrived_are_shown_on_request(
    scene: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.run("recoveries", "compute1", "--all", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert [one["state"] for one in shown] == ["resuming", "moved"]


def test_a_lost_vm_is_no_good_end(scene: Stage) -> None:
    scene.agents.answers["compute1"]["departures"] = [{**BROKEN, "state": "lost"}]
    assert scene.run("recoveries", "compute1") == 1


def test_a_silent_host_is_named(scene: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert scene.run("recoveries", "compute7") == 1
    assert "compute7" in "".join(capsys.readouterr())


@pytest.mark.parametrize("what", ["retry", "stop"])
def test_an_operator_has_a_hand_in_it(scene: Stage, what: str) -> None:
    assert scene.run("recoveries", "compute1", f"--{what}", SERVER.uuid) == 0
    assert scene.agents.hands == [(what, "compute1", SERVER.uuid)]


def test_what_is_not_under_way_cannot_be_retried(scene: Stage) -> None:
    assert scene.run("recoveries", "compute1", "--retry", "unknown") == 1
