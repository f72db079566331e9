# SPDX-License-Identifier: Apache-2.0
"""A server of a real Nova becomes an appliance, and servers start from it without a download.

redis in the guest holds a value that was never on a disk: who has it was resumed, not booted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.guests import redis_says
from lab.openstack import Cloud, appliances
from lab.openstack.agents import Agents
from lab.openstack.servers import Server
from tests.integration.openstack.asked import OTHER, ends_where_nova_has_it, moved, until

FLAVOR = "m1.small"
SERVING_S, WHOLE_S = 120.0, 240.0
KEY, VALUE = "only-in-memory", "4711"


@pytest.fixture(scope="module")
def published(cloud: Cloud) -> Iterator[appliances.Published]:
    server = Server.create(cloud, "original", "host1", flavor=FLAVOR)
    try:
        server.serve()
        assert said(cloud, server.own_address(), "SET", KEY, VALUE) == "+OK"
        yield appliances.publish(cloud, server, "redis-appliance")
    finally:
        server.delete()


@pytest.fixture(scope="module")
def clone(cloud: Cloud, published: appliances.Published) -> Iterator[Server]:
    made = Server.create(cloud, "clone", "host1", flavor=FLAVOR, image_id=published.image)
    yield made
    made.delete()


def said(cloud: Cloud, address: str, *words: str) -> str:
    """What redis at an address of the data network answers."""
    return cloud.lab.control.in_network(lambda: redis_says(address, *words))


def phase(agents: Agents, server: Server, host: str = "host1") -> str:
    state = agents.call(lambda asked: asked.appliance_state(host, server.uuid))
    return str(state["phase"])


def act(cloud: Cloud, server: Server, action: str, status: str) -> None:
    """Have Nova do something to a server, and wait until it has."""

    def ask(api: Any) -> None:
        found = api.compute.get_server(server.uuid)
        {
            "stop": api.compute.stop_server,
            "start": api.compute.start_server,
            "reboot": lambda one: api.compute.reboot_server(one, "HARD"),
        }[action](found)
        api.compute.wait_for_server(found, status=status, interval=0.5, wait=120)

    cloud.api.call(ask)


def test_a_clone_was_resumed_and_answers_at_its_own_address(cloud: Cloud, clone: Server) -> None:
    assert clone.address() != clone.own_address()
    clone.wait_serving(clone.address(), SERVING_S)
    assert said(cloud, clone.address(), "GET", KEY) == VALUE


def test_a_second_server_is_another_clone(
    cloud: Cloud, clone: Server, published: appliances.Published
) -> None:
    second = Server.create(cloud, "second", "host1", flavor=FLAVOR, image_id=published.image)
    try:
        second.wait_serving(second.address(), SERVING_S)
        assert said(cloud, second.address(), "GET", KEY) == VALUE
        assert said(cloud, second.address(), "SET", KEY, "mine") == "+OK"
        assert said(cloud, clone.address(), "GET", KEY) == VALUE
    finally:
        second.delete()


def test_when_all_is_here_it_needs_no_player(cloud: Cloud, clone: Server, agents: Agents) -> None:
    until(lambda: phase(agents, clone) == "done", WHOLE_S, "it still streams")
    players = cloud.lab.hosts["host1"].outside("/run/nova-enlightened")
    assert list(players.glob(f"*{clone.uuid}*")) == []
    xml = clone.domain()[1].XMLDesc()
    assert "nbd" not in xml


def test_it_leaves_at_once_with_its_memory(cloud: Cloud, clone: Server, agents: Agents) -> None:
    source = clone.host
    agents.order(source, clone.uuid, "a test")
    migration, seen = moved(cloud, clone)
    assert migration["status"] == "completed", seen
    assert "running (post-copy)" in seen
    assert clone.host == OTHER[source]
    assert said(cloud, clone.address(), "GET", KEY) == VALUE


def test_it_moves_like_any_other(cloud: Cloud, clone: Server) -> None:
    source = clone.host
    migration, seen = moved(cloud, clone)
    assert migration["status"] == "completed", seen
    ends_where_nova_has_it(cloud, clone, OTHER[source])


def test_it_stops_starts_and_reboots_like_any_other(cloud: Cloud, clone: Server) -> None:
    act(cloud, clone, "stop", "SHUTOFF")
    act(cloud, clone, "start", "ACTIVE")
    xml = clone.domain()[1].XMLDesc()
    assert "-incoming" not in xml
    act(cloud, clone, "reboot", "ACTIVE")


def test_a_delete_leaves_the_cache_and_nothing_else(
    cloud: Cloud, published: appliances.Published
) -> None:
    server = Server.create(cloud, "short", "host1", flavor=FLAVOR, image_id=published.image)
    server.delete()
    until(lambda: not left(cloud, server), 30.0, "its player is there")
    assert any((cloud.places.run / "host1/chunks").iterdir())
    until(lambda: cloud.api.allocations(server.uuid) == {}, 30.0, "placement holds its room")


def left(cloud: Cloud, server: Server) -> list[Path]:
    top = cloud.lab.hosts["host1"].outside("/run/nova-enlightened")
    return list(top.glob(f"*{server.uuid}*"))


def test_a_flavor_that_does_not_fit_is_refused_with_the_reason(
    cloud: Cloud, published: appliances.Published
) -> None:
    def ask(api: Any) -> str:
        made = api.compute.create_server(
            name="wrong", image_id=published.image, flavor_id=api.compute.find_flavor("m1.lab").id,
            networks=[{"uuid": api.network.find_network("lab").id}],
        )  # fmt: skip
        try:
            ended = api.compute.wait_for_server(
                made, status="ERROR", failures=["ACTIVE"], interval=0.5, wait=60
            )
            return str(ended.fault["message"])
        finally:
            api.compute.delete_server(made)
            api.compute.wait_for_delete(made, wait=60)

    assert "256 MiB of memory and the flavor 768" in cloud.api.call(ask)
