# SPDX-License-Identifier: Apache-2.0
"""openstacksdk and this project's use of it, against an API over HTTP."""

import pathlib
from collections.abc import Iterator

import pytest
from oslo_config import cfg

from nova_enlightened import conf as options
from nova_enlightened import exception
from nova_enlightened.conf import remediation
from nova_enlightened.remediation import servers
from nova_enlightened.remediation.servers import Migration, NovaApi, Server
from tests.functional.fake_nova_api import FakeNovaApi, FakeServer, NovaState

VM1, VM2 = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"


def configured(tmp_path: pathlib.Path, text: str) -> cfg.ConfigOpts:
    file = tmp_path / "test.conf"
    file.write_text(f"[{remediation.GROUP}]\n{text}\n")
    conf = cfg.ConfigOpts()
    options.register_opts(conf)
    remediation.register_auth_opts(conf)
    conf(["--config-file", str(file)], project="test", default_config_files=[])
    return conf


@pytest.fixture
def state() -> NovaState:
    made = NovaState()
    made.add(FakeServer(VM1, "compute1"))
    made.add(FakeServer(VM2, "compute2"))
    return made


@pytest.fixture
def api(state: NovaState, tmp_path: pathlib.Path) -> Iterator[NovaApi]:
    with FakeNovaApi(state) as server:
        conf = configured(tmp_path, f"auth_type = none\nendpoint = {server.url}\ntimeout = 5")
        made = NovaApi(conf)
        yield made
        made.close()


def test_servers_of_one_host_are_told_as_they_are(api: NovaApi, state: NovaState) -> None:
    state.servers[VM1].extra_specs = {"enlightened:priority": "80"}
    assert api.servers_on("compute1") == [
        Server(VM1, "web", "compute1", "active", priority=80, project="project")
    ]


@pytest.mark.parametrize("key", ["enlightened:eviction", "enlightened.eviction"])
def test_flavor_and_owner_may_both_say_never(api: NovaApi, state: NovaState, key: str) -> None:
    state.servers[VM1].extra_specs = {"enlightened:eviction": "never"}
    state.servers[VM2].metadata = {key: "never"}
    assert api.server(VM1).opted_out == "by its flavor"
    assert api.server(VM2).opted_out == "by its metadata"


def test_a_priority_that_is_no_number_is_the_usual_one(api: NovaApi, state: NovaState) -> None:
    state.servers[VM1].extra_specs = {"enlightened:priority": "high"}
    assert api.server(VM1).priority == 50


def test_a_live_migration_is_requested_and_followed(api: NovaApi, state: NovaState) -> None:
    api.live_migrate(VM1)
    assert state.requests == [VM1]
    statuses = []
    for _ in range(3):
        (migration,) = api.migrations_of(VM1)
        statuses.append(migration.status)
    assert statuses == ["running", "completed", "completed"]
    assert migration == Migration(1, VM1, "compute1", "compute2", "completed", migration.updated)
    assert [one.id for one in api.migrations_since("2026-01-01T00:00:00Z")] == [1]
    assert api.server(VM1).host == "compute2"


def test_a_server_that_migrates_already_is_a_refusal(api: NovaApi, state: NovaState) -> None:
    state.servers[VM1].task = "migrating"
    with pytest.raises(exception.NovaRefused, match="so it is"):
        api.live_migrate(VM1)


def test_a_server_that_is_gone_is_said_to_be(api: NovaApi) -> None:
    with pytest.raises(exception.ServerGone):
        api.server("33333333-3333-3333-3333-333333333333")


def test_an_api_that_is_overloaded_may_be_asked_again(api: NovaApi, state: NovaState) -> None:
    api.server(VM1)
    state.status = 503
    with pytest.raises(exception.NovaUnreachable):
        api.server(VM1)
    state.status = 0
    assert api.server(VM1).uuid == VM1


def test_an_api_that_is_down_when_first_asked_is_reached_later(
    state: NovaState, tmp_path: pathlib.Path
) -> None:
    with FakeNovaApi(state) as server:
        url = server.url
    api = NovaApi(configured(tmp_path, f"auth_type = none\nendpoint = {url}\ntimeout = 5"))
    with pytest.raises(exception.NovaUnreachable):
        api.server(VM1)
    api.close()


def test_an_answer_that_does_not_come_in_time_may_be_an_acceptance(
    state: NovaState, tmp_path: pathlib.Path
) -> None:
    state.answer_requests.clear()
    with FakeNovaApi(state) as server:
        conf = configured(tmp_path, f"auth_type = none\nendpoint = {server.url}\ntimeout = 1")
        api = NovaApi(conf)
        with pytest.raises(exception.NovaUnreachable):
            api.live_migrate(VM1)
        state.answer_requests.set()
        api.close()
    assert state.requests == [VM1], "and it is not sent again by a library either"


def test_a_configuration_without_credentials_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(exception.ConfigError, match="os_cloud nor auth_type"):
        servers.check(configured(tmp_path, ""))


def test_an_auth_type_that_is_not_installed_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(exception.ConfigError, match="telepathy"):
        servers.check(configured(tmp_path, "auth_type = telepathy"))


def clouds(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """A ``clouds.yaml`` with one cloud in it."""
    file = tmp_path / "clouds.yaml"
    file.write_text(f"clouds: {{lab: {{auth_type: none, auth: {{endpoint: '{url}'}}}}}}")
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(file))


def test_a_cloud_may_be_named_instead(
    state: NovaState, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.servers[VM1].extra_specs = {"enlightened:eviction": "never"}
    with FakeNovaApi(state) as server:
        clouds(tmp_path, monkeypatch, server.url)
        conf = configured(tmp_path, "os_cloud = lab")
        servers.check(conf)
        api = NovaApi(conf)
        assert api.server(VM1).opted_out
        api.close()


def test_a_cloud_that_is_not_there_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clouds(tmp_path, monkeypatch, "http://127.0.0.1:1")
    with pytest.raises(exception.ConfigError, match="moon"):
        servers.check(configured(tmp_path, "os_cloud = moon"))
