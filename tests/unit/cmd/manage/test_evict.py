# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import pathlib

import pytest

from nova_enlightened import exception
from tests.unit.cmd.manage.stand_ins import EARLIER, MOVED, SERVER, Stage, seen, stage


@pytest.fixture
def there(tmp_path: pathlib.Path) -> Stage:
    return stage(tmp_path)


def test_a_server_is_ordered_away_before_nova_is_asked(there: Stage) -> None:
    assert there.run("evict", "web") == 0
    assert there.agents.orders == [("compute1", SERVER.uuid)]
    assert there.cloud.requested == [SERVER.uuid]


def test_a_move_is_followed_to_its_end(there: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    there.cloud.looks = [
        [EARLIER],
        [EARLIER],
        [EARLIER, seen("preparing", "")],
        [EARLIER, seen("running (post-copy)")],
        [EARLIER, seen("running (post-copy)")],
        [EARLIER, MOVED],
    ]
    assert there.run("evict", "web", "--wait", "--json") == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["destination"] == "compute2"
    assert list(found["seconds"]) == ["preparing", "running (post-copy)", "completed"]
    assert told.err.count("post-copy") == 1
    assert there.agents.withdrawn == []


def test_a_move_that_fails_takes_the_order_back(
    there: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    there.cloud.looks = [[], [seen("error", "")]]
    assert there.run("evict", "web", "--wait") == 1
    assert there.agents.withdrawn == [SERVER.uuid]
    assert "openstack server event list" in capsys.readouterr().err


def test_a_request_that_nova_refuses_takes_the_order_back(
    there: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    there.cloud.refusal = exception.NovaRefused("no permission")
    assert there.run("evict", "web", "--wait") == 1
    assert there.agents.withdrawn == [SERVER.uuid]
    assert "no permission" in capsys.readouterr().err


def test_a_request_that_nova_may_have_is_followed(there: Stage) -> None:
    there.cloud.refusal = exception.NovaUnreachable("timed out")
    there.cloud.looks = [[], [MOVED]]
    assert there.run("evict", "web", "--wait") == 0
    assert there.cloud.requested == [SERVER.uuid]


def test_an_api_that_is_down_for_a_while_is_asked_again(there: Stage) -> None:
    there.cloud.looks = [[], exception.NovaUnreachable("503"), [MOVED]]
    assert there.run("evict", "web", "--wait") == 0


def test_a_migration_that_never_appears_is_not_known_of(
    there: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    there.cloud.looks = [[EARLIER]]
    assert there.run("evict", "web", "--wait") == 3
    assert "no migration" in capsys.readouterr().err


def test_a_migration_that_never_ends_is_left_to_nova(there: Stage) -> None:
    there.cloud.looks = [[], [seen("running")]]
    assert there.run("evict", "web", "--wait") == 3
    assert there.agents.withdrawn == []


def test_a_status_of_a_newer_nova_is_passed_on(
    there: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    there.cloud.looks = [[], [seen("contemplating")], [MOVED]]
    assert there.run("evict", "web", "--wait") == 0
    assert "contemplating" in capsys.readouterr().err


def test_without_an_agent_nothing_moves_and_stock_is_offered(
    there: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    there.agents.refusal = exception.AgentUnreachable("agent of compute1: no answer")
    assert there.run("evict", "web") == 1
    assert there.cloud.requested == []
    assert "openstack server migrate --live-migration" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, word",
    [
        ({"state": "stopped"}, "stopped"),
        ({"task": "migrating"}, "migrating"),
        ({"locked": True}, "locked"),
        ({"host": ""}, "no host"),
        ({"opted_out": "by its flavor"}, "--force"),
    ],
)
def test_a_server_that_cannot_move_is_left_alone(
    there: Stage, capsys: pytest.CaptureFixture[str], change: dict[str, object], word: str
) -> None:
    there.cloud.server = dataclasses.replace(SERVER, **change)  # type: ignore[arg-type]
    assert there.run("evict", "web") == 1
    assert there.agents.orders == []
    assert word in capsys.readouterr().err


def test_an_operator_may_overrule_an_opt_out(there: Stage) -> None:
    there.cloud.server = dataclasses.replace(SERVER, opted_out="by its metadata")
    assert there.run("evict", SERVER.uuid, "--force") == 0
    assert there.cloud.requested == [SERVER.uuid]


def test_a_server_that_is_not_there_is_named(
    there: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert there.run("evict", "nobody") == 1
    assert "nobody" in capsys.readouterr().err
